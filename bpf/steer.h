/* steer.h: to the proxy's socket on this host, from links and gateways, goes DNS over TCP.
 *
 * Rules this file obeys:
 *   - The proxy's is what its listener accepted, or will: a socket that merely has the tuple is not.
 *   - What is handed to it has a mark, by which routing/ brings it there whatever its destination is.
 */

enum { TAKEN = 0 };              /* TC_ACT_OK: it is the proxy's, no other program may have it */
enum { TCP_STATE_TIME_WAIT = 6 };

/* A connection that a server on this host had before anybody held the workload is not the proxy's: nobody would
 * read it. What the proxy accepts is marked as its listener is; one that is about to be accepted can't be told. */
static __always_inline int is_of_proxy(struct bpf_sock *sk)
{
	struct bpf_sock *full = bpf_sk_fullsock(sk);
	struct socket *s = full ? sockets.sk_storage_get(full, 0, 0) : NULL;

	return !full || (s && s->listener);
}

/* The proxy's socket for this connection, or its listener. */
static __always_inline struct bpf_sock *proxy_of(struct __sk_buff *skb, const struct packet *p)
{
	u32 ipv6 = !is_ipv4(p->tuple.local), ports = bpf_ntohl(*(const u32 *)p->tuple.local_port);
	struct bpf_sock_tuple t = {};
	struct bpf_sock *sk;

	if (ipv6) {
		__builtin_memcpy(t.ipv6.saddr, p->tuple.local, 16);
		__builtin_memcpy(t.ipv6.daddr, p->tuple.remote, 16);
		t.ipv6.sport = bpf_htons(ports >> 16);
		t.ipv6.dport = bpf_htons(ports);
		sk = bpf_skc_lookup_tcp(skb, &t, sizeof(t.ipv6), BPF_F_CURRENT_NETNS, 0);
	} else {
		t.ipv4.saddr = word(p->tuple.local, 3);
		t.ipv4.daddr = word(p->tuple.remote, 3);
		t.ipv4.sport = bpf_htons(ports >> 16);
		t.ipv4.dport = bpf_htons(ports);
		sk = bpf_skc_lookup_tcp(skb, &t, sizeof(t.ipv4), BPF_F_CURRENT_NETNS, 0);
	}
	if (sk && (sk->state == TCP_STATE_LISTEN || (sk->state == TCP_STATE_TIME_WAIT && (p->tcp_flags & TCP_SYN)))) {
		bpf_sk_release(sk);
		sk = NULL;
	}
	if (sk && !is_of_proxy(sk)) {
		bpf_sk_release(sk);
		return NULL;
	}
	return sk ? sk : (struct bpf_sock *)listeners.lookup(&ipv6);
}

static __always_inline int lead_to_proxy(struct __sk_buff *skb, const struct packet *p)
{
	struct settings *now = setting();
	struct bpf_sock *sk;
	int wrong;

	if (!now)
		return -1;
	sk = proxy_of(skb, p);
	if (!sk)
		return -1;
	wrong = bpf_sk_assign(skb, sk, 0);
	bpf_sk_release(sk);
	if (!wrong)
		skb->mark = (skb->mark & ~now->mark_mask) | (now->mark & now->mark_mask);
	return wrong;
}

static __always_inline int is_proxy_there(const struct tuple *t)
{
	u32 ipv6 = !is_ipv4(t->local);
	struct bpf_sock *sk = (struct bpf_sock *)listeners.lookup(&ipv6);

	if (sk)
		bpf_sk_release(sk);
	return sk != NULL;
}
