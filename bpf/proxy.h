/* proxy.h: DNS over TCP, for the proxy that reads it (gateway/dns_proxy.py).
 *
 *   connect4, connect6  lead a connection to a trusted resolver to the proxy, and note whom it asked for
 *   peer                (getpeername) the client sees the server it asked for
 *   whose, outside, inquire, teach   attached nowhere: the proxy has them run (BPF_PROG_TEST_RUN, bpf/ask.py)
 *                       on a frame between client and server. They go on in the stages that read
 *                       datagrams: what may be asked, and what is learned, is the same over TCP and UDP.
 *
 * Rules this file obeys:
 *   - Where the proxy is away it is refused at once, by name: what it learns can't be learned without it.
 *   - Only the kernel writes down whom a socket asked for, and who asked; the proxy takes nobody's word.
 *   - What is not led is judged as if there were no proxy: its answers teach nothing, and where questions are
 *     checked it is refused.
 *   - The proxy vouches for an answer: it asked the question itself, of the server that the kernel names, and
 *     where that is on this host, of a process that is nobody's workload.
 */

enum { IPV4_LOOPBACK = 0x7f000001, TCP_HEADER = 20 };

static __always_inline int is_led_socket(const struct socket *s)
{
	return s && s->asker;
}

/* Whom a socket asks for at connect(); NULL: nobody. */
static __always_inline void ask_for(struct socket *s, const struct tuple *t)
{
	if (!s)
		return;
	s->asker = 0;
	*(u16 *)s->server_port = 0;
	if (!t)
		return;
	copy_address(s->server, t->remote);
	*(u16 *)s->server_port = *(const u16 *)t->remote_port;
}

/* The namespace's own loopback is where the proxy listens: not for a socket that is bound to a link, or lives
 * in another namespace. */
static __always_inline struct proxy *proxy_of(struct bpf_sock_addr *ctx, const struct subject *who,
					      const struct socket *s)
{
	u32 policy = who->policy;
	struct proxy *proxy = proxies.lookup(&policy);

	if (!proxy || !policy || who->shadow || (who->flags & LINKED) || !ctx->sk)
		return NULL;
	if (ctx->sk->bound_dev_if && ctx->sk->bound_dev_if != LOOPBACK_IFINDEX)
		return NULL;
	return !proxy->netns || proxy->netns == s->netns ? proxy : NULL;
}

/* Whether the proxy listens there: a port that it has left may be anybody's by now. */
static __always_inline int listens(struct bpf_sock_addr *ctx, int ipv4, u16 port)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *listener;
	struct socket *s;
	u32 size = sizeof(tuple.ipv6);
	int ours;

	if (ipv4) {
		tuple.ipv4.saddr = tuple.ipv4.daddr = bpf_htonl(IPV4_LOOPBACK);
		tuple.ipv4.dport = port;
		size = sizeof(tuple.ipv4);
	} else {
		tuple.ipv6.saddr[3] = tuple.ipv6.daddr[3] = bpf_htonl(1);
		tuple.ipv6.dport = port;
	}
	listener = bpf_sk_lookup_tcp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!listener)
		return 0;
	s = sockets.sk_storage_get(listener, 0, 0);
	ours = s && s->listener;
	bpf_sk_release(listener);
	return ours;
}

/* A connection to a trusted resolver: PROXIED where it is led to the proxy now, PROXY_AWAY where nobody listens,
 * NONE where it is not to be led. */
static __always_inline enum reason lead(struct bpf_sock_addr *ctx, const struct subject *who, struct socket *s,
					const struct tuple *t, int ipv4_hook)
{
	int ipv4 = is_ipv4(t->remote);
	struct proxy *proxy;
	u16 port;

	if (!s || !may_be_resolver(who->flags, t->remote_port) ||
	    !is_resolver(who->policy, who->flags, t->remote, t->remote_port))
		return NONE;
	proxy = proxy_of(ctx, who, s);
	port = proxy ? ipv4 ? *(u16 *)proxy->port4 : *(u16 *)proxy->port6 : 0;
	if (!port)
		return NONE;
	if (!listens(ctx, ipv4, port))
		return PROXY_AWAY;
	ask_for(s, t);
	s->asker = who->workload;
	if (ipv4_hook) {
		ctx->user_ip4 = bpf_htonl(IPV4_LOOPBACK);
	} else {
		ctx->user_ip6[0] = 0;
		ctx->user_ip6[1] = 0;
		ctx->user_ip6[2] = ipv4 ? bpf_htonl(0xffff) : 0;
		ctx->user_ip6[3] = bpf_htonl(ipv4 ? IPV4_LOOPBACK : 1);
	}
	ctx->user_port = port;
	return PROXIED;
}

/* Whether a segment goes where connect() led it: over loopback, also from an address that is not. */
static __always_inline int is_led(const struct socket *s, const struct subject *who, const struct packet *p)
{
	u32 policy = who->policy;
	struct proxy *proxy = proxies.lookup(&policy);
	u16 port = *(const u16 *)p->tuple.remote_port;

	return is_led_socket(s) && proxy && p->protocol == IPPROTO_TCP && is_loopback(p->tuple.remote) &&
	       port == (is_ipv4(p->tuple.remote) ? *(u16 *)proxy->port4 : *(u16 *)proxy->port6);
}

int peer4(struct bpf_sock_addr *ctx)
{
	struct socket *s = ctx->sk ? sockets.sk_storage_get(ctx->sk, 0, 0) : NULL;

	if (is_led_socket(s)) {
		ctx->user_ip4 = word(s->server, 3);
		ctx->user_port = *(u16 *)s->server_port;
	}
	return PASS;
}

int peer6(struct bpf_sock_addr *ctx)
{
	struct socket *s = ctx->sk ? sockets.sk_storage_get(ctx->sk, 0, 0) : NULL;

	if (is_led_socket(s)) {
		ctx->user_ip6[0] = word(s->server, 0);
		ctx->user_ip6[1] = word(s->server, 1);
		ctx->user_ip6[2] = word(s->server, 2);
		ctx->user_ip6[3] = word(s->server, 3);
		ctx->user_port = *(u16 *)s->server_port;
	}
	return PASS;
}

/* The socket of this network namespace to which the frame goes; to be released. */
static __always_inline struct bpf_sock *receiver(struct __sk_buff *skb)
{
	struct bpf_sock_tuple tuple = {};
	struct packet p ALIGNED = {};
	u32 size = sizeof(tuple.ipv6);

	if (read_packet(skb, &p, 1) || p.protocol != IPPROTO_TCP)
		return NULL;
	if (is_ipv4(p.tuple.remote)) {
		tuple.ipv4.saddr = word(p.tuple.local, 3);
		tuple.ipv4.daddr = word(p.tuple.remote, 3);
		tuple.ipv4.sport = *(u16 *)p.tuple.local_port;
		tuple.ipv4.dport = *(u16 *)p.tuple.remote_port;
		size = sizeof(tuple.ipv4);
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, p.tuple.local, 16);
		__builtin_memcpy(tuple.ipv6.daddr, p.tuple.remote, 16);
		tuple.ipv6.sport = *(u16 *)p.tuple.local_port;
		tuple.ipv6.dport = *(u16 *)p.tuple.remote_port;
	}
	return bpf_sk_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
}

/* The frame is one from the proxy to its client. Of the client's own socket is told who asked (mark and
 * priority), and whom (the control block). */
int whose(struct __sk_buff *skb)
{
	struct bpf_sock *client = receiver(skb);
	struct socket *s;
	u32 found = 0;

	if (!client)
		return DROP;
	s = sockets.sk_storage_get(client, 0, 0);
	if (is_led_socket(s) && client->state != TCP_STATE_LISTEN) {
		skb->mark = s->asker;
		skb->priority = s->asker >> 32;
		skb->cb[0] = word(s->server, 0);
		skb->cb[1] = word(s->server, 1);
		skb->cb[2] = word(s->server, 2);
		skb->cb[3] = word(s->server, 3);
		skb->cb[4] = *(u16 *)s->server_port;
		found = 1;
	}
	bpf_sk_release(client);
	return found;
}

/* The frame is one from the proxy to a server on this host, which must be none of those whom we hold: what a
 * workload says to itself, or to another, teaches nobody. */
int outside(struct __sk_buff *skb)
{
	struct settings *now = setting();
	struct workload *found = NULL;
	struct bpf_sock *server;

	if (!now)
		return DROP;
	server = receiver(skb);
	if (!server)
		return DROP;
	for (int i = 0; i < LEVELS; i++) {
		int level = (int)now->deepest - i;
		u64 id;

		if (level < (int)now->shallowest)
			break;
		id = bpf_sk_ancestor_cgroup_id(server, level);
		found = id ? workloads.lookup(&id) : NULL;
		if (found)
			break;
	}
	bpf_sk_release(server);
	return !found || found->policy == EXEMPT;
}

/* A machine's gateway is its DNS server, by each of its addresses. */
static __always_inline int is_gateway(const struct subject *who, const struct tuple *t)
{
	return (who->workload >> MACHINE_BIT & 1) && is_dns_port(t->remote_port) && is_own(who, t->remote);
}

/* Whose message it is that the proxy has, and where it begins; 0 where it is nobody's, or to nobody trusted. */
static __always_inline u32 find_message(struct __sk_buff *skb, struct subject *who)
{
	struct packet p ALIGNED = {};

	skb->cb[CB_HOOK] = HOOK_PROXY;
	if (!find_asker(skb, who) || !who->policy || read_packet(skb, &p, 1) || p.protocol != IPPROTO_TCP)
		return 0;
	if (!is_resolver(who->policy, who->flags, p.tuple.remote, p.tuple.remote_port) && !is_gateway(who, &p.tuple))
		return 0;
	return p.transport + TCP_HEADER;
}

int inquire(struct __sk_buff *skb)
{
	struct subject who = {};

	skb->cb[CB_OFFSET] = find_message(skb, &who);
	if (skb->cb[CB_OFFSET])
		stages.call(skb, STAGE_QUESTION);
	return DROP;
}

/* DROP where it was not read: the proxy holds it back then. */
int teach(struct __sk_buff *skb)
{
	struct subject who = {};
	u32 offset = find_message(skb, &who);
	struct slate *s = offset ? claim_slate(skb) : NULL;

	if (!s) {
		count(who.policy, ANSWER_BUSY);
		return DROP;
	}
	if (load_message(skb, s, offset) || (s->message[2] & 0xf8) != 0x80 || !read_question(s)) {
		count(who.policy, ANSWER_UNREADABLE);
		return release_slate(skb);
	}
	s->question.workload = who.workload;
	s->question.socket = 0;
	return begin_answer(skb, s, &who);
}
