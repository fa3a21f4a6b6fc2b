/* flows.h: whose packet this is, who admitted its flow, and what came in from outside.
 *
 * Rules this file obeys:
 *   - What is remembered holds for one whole tuple: protocol, both addresses, both ports. A socket that is
 *     connected elsewhere, or sends to another peer, is judged anew.
 *   - A flow remembers the peer that admitted it. When the policy's generation changes, that peer is asked
 *     for again, not the address: expiry ends nothing that is open, withdrawal ends everything it admitted.
 *   - A socket with many peers (unconnected UDP) keeps the last one at hand and the others in `flows`.
 *   - TCP needs no table for what came in: a listener that a SYN reached from outside is marked, its children
 *     inherit the mark, and the first segment of a child that is not a SYN fixes its tuple. A datagram that
 *     came in may be answered for as long as `inbounds` says, and is asked for each time.
 *   - What a socket had before these programs saw it (under other maps, or before its workload had a policy)
 *     is laid down in `carried` by whoever puts the workload here, and taken over with its next packet.
 *   - What arrives over loopback never counts as coming from outside.
 */

enum { LEVELS = 8, TCP_STATE_LISTEN = 10, TCP_STATE_SYN_RECV = 3 };

/* Fills in what the rows of a workload say; 0 where it is exempt. */
static __always_inline int fill_subject(struct subject *who, u64 id, const struct workload *found)
{
	struct policy *policy;

	who->workload = id;
	who->policy = found->policy;
	if (who->policy == EXEMPT)
		return 0;
	who->policy = who->policy < POLICIES ? who->policy : 0;
	policy = policies.lookup(&who->policy);
	if (!policy)
		return 0;
	who->flags = policy->flags | found->flags;
	who->generation = policy->generation;
	who->home = found->home;
	who->netns = found->flags & COOKIE ? found->home : 0;
	return 1;
}

#ifdef GATEWAY
/* Whose packet it is was found by its source, and noted for the stages. */
static __always_inline int find_workload(struct __sk_buff *skb, struct subject *who)
{
	u64 id = (u64)skb->cb[CB_WORKLOAD_HIGH] << 32 | skb->cb[CB_WORKLOAD];
	struct workload *found = workloads.lookup(&id);

	return found && fill_subject(who, id, found);
}
#elif defined LINK
/* Whose link it is, whatever socket the packet came from. A link decides by its own maps until it is taken over:
 * so none is ever in the shadow. */
static __always_inline int find_workload(struct __sk_buff *skb, struct subject *who)
{
	u32 index = skb->ifindex;
	struct link *link = links.lookup(&index);
	struct workload *found = link ? workloads.lookup(&link->workload) : NULL;

	return found && fill_subject(who, link->workload, found);
}
#else
/* The nearest ancestor that is a workload; `skb` is NULL in hooks that see the current task instead. */
static __always_inline int find_workload(struct __sk_buff *skb, struct subject *who)
{
	u32 zero = 0;
	struct settings *setting = settings.lookup(&zero);

	if (!setting)
		return 0;
	for (int i = 0; i < LEVELS; i++) {
		int level = (int)setting->deepest - i;
		struct workload *found;
		u64 id;

		if (level < (int)setting->shallowest)
			return 0;
		id = skb ? bpf_skb_ancestor_cgroup_id(skb, level) : bpf_get_current_ancestor_cgroup_id(level);
		if (!id)
			continue;
		found = workloads.lookup(&id);
		if (!found)
			continue;
		who->shadow = setting->shadow;
		return fill_subject(who, id, found);
	}
	return 0;
}
#endif

#ifdef GATEWAY
/* Nobody who lives here: a socket that is seen is another host's, or that of a server of ours. */
static __always_inline struct socket *storage_of(struct bpf_sock *sk)
{
	return NULL;
}
#elif defined LINK
/* What the cgroup hooks keep with it: NULL for what they have not seen. */
static __always_inline struct socket *storage_of(struct bpf_sock *sk)
{
	sk = sk ? bpf_sk_fullsock(sk) : NULL;
	return sk ? sockets.sk_storage_get(sk, 0, 0) : NULL;
}
#else
/* NULL also where there is no memory for it: then every packet is judged anew. */
static __always_inline struct socket *storage_of(struct bpf_sock *sk)
{
	return sk ? sockets.sk_storage_get(sk, 0, BPF_SK_STORAGE_GET_F_CREATE) : NULL;
}
#endif

/* Whether a socket lives in its workload's network namespace. Who makes one of their own (every user may, in
 * a user namespace of their own) decides there what a resolver says and what comes in: nothing of it counts. */
static __always_inline int at_home(const struct subject *who, const struct socket *s)
{
	return !who->netns || (s && s->netns == who->netns);
}

static __always_inline int same_tuple(const struct tuple *a, const struct tuple *b)
{
	const u64 *x = (const u64 *)a, *y = (const u64 *)b;

	return x[1] == y[1] && x[3] == y[3] && x[4] == y[4] && x[0] == y[0] && x[2] == y[2];
}

/* convert.py knows this sum too, for flows whose state has another number in another version. Where versions
 * differ in it, no seal holds: flows of datagrams are then judged anew. */
static __always_inline u64 seal_of(const struct flow *f)
{
	const u64 *t = (const u64 *)&f->tuple;

	return t[0] * 0x9e3779b97f4a7c15ULL + t[1] * 0xc2b2ae3d27d4eb4fULL + t[2] * 0x165667b19e3779f9ULL +
	       t[3] * 0xd6e8feb86659fd93ULL + t[4] * 0xa0761d6478bd642fULL + f->peer * 0xe7037ed1a0b428dbULL +
	       ((u64)f->policy << 32 | f->generation) * 0x8ebc6af09c88c6e3ULL + f->state + 1;
}

static __always_inline int holds(const struct flow *f, const struct tuple *t)
{
#ifdef BENCH                     /* what a first packet costs */
	return 0;
#endif
	return f->state && same_tuple(&f->tuple, t) && (t->protocol == IPPROTO_TCP || f->seal == seal_of(f));
}

/* Whether a packet is of this flow, told from its bytes alone: a plain header without options, extensions or
 * fragments, as nearly every packet has. Anything else is read by read_packet(). */
static __always_inline int recognises(struct __sk_buff *skb, const struct flow *f, int outbound)
{
	const u32 *local = (const u32 *)f->tuple.local, *remote = (const u32 *)f->tuple.remote;
	const u32 *from = outbound ? local : remote, *to = outbound ? remote : local;
	u32 ports = *(const u32 *)f->tuple.local_port;
	u8 *head = (void *)(long)skb->data + L2;
	u32 *words = (u32 *)head;
	u16 *halves = (u16 *)head;

	ports = outbound ? ports : ports << 16 | ports >> 16;
	if ((void *)(long)skb->data_end < (void *)head + 24)
		return 0;
	if (head[0] == 0x45)
		return words[4] == to[3] && words[5] == ports && words[3] == from[3] && head[9] == f->tuple.protocol &&
		       !(halves[3] & bpf_htons(0x3fff)) && is_ipv4(f->tuple.local) &&
		       skb->protocol == bpf_htons(IPV4);
	if ((void *)(long)skb->data_end < (void *)head + 44 || head[0] >> 4 != 6)
		return 0;
	return words[9] == to[3] && words[10] == ports && head[6] == f->tuple.protocol && words[8] == to[2] &&
	       words[7] == to[1] && words[6] == to[0] && words[2] == from[0] && words[3] == from[1] &&
	       words[4] == from[2] && words[5] == from[3] && skb->protocol == bpf_htons(IPV6);
}

static __always_inline int is_current(const struct flow *f)
{
	u32 number = f->policy;
	struct policy *policy = policies.lookup(&number);

	return policy && policy->generation == f->generation;
}

/* 3, the common case. Only what has ports: an echo's identifier stands elsewhere. */
static __always_inline int goes_on(struct __sk_buff *skb, const struct socket *s, int outbound)
{
	const struct flow *f = &s->flow;

#ifdef BENCH
	return 0;
#endif
	return (f->state == ALLOWED || f->state == INBOUND) && recognises(skb, f, outbound) && is_current(f) &&
	       (f->tuple.protocol == IPPROTO_TCP || (f->tuple.protocol == IPPROTO_UDP && f->seal == seal_of(f)));
}

static __always_inline void set_flow(struct flow *f, const struct subject *who, enum reason state)
{
	f->peer = who->peer;
	f->policy = who->policy;
	f->generation = who->generation;
	f->state = state;
	if (f->tuple.protocol != IPPROTO_TCP)
		f->seal = seal_of(f);
}

/* The flow at hand makes room for another peer of the same socket; 0 where there is no room for itself. One
 * that a prefix admits needs none: it is admitted anew for as long as its rule is there. */
static __always_inline int put_aside(struct socket *s, struct subject *who)
{
	struct flow_key key ALIGNED = {.socket = who->socket};
	struct flow old ALIGNED = s->flow;

	if (old.state != ALLOWED && old.state != WITHDRAWN)
		return 1;
	if (old.tuple.protocol == IPPROTO_TCP || old.seal != seal_of(&old))
		return 1;
	old.seen = bpf_ktime_get_boot_ns();
	__builtin_memcpy(&key.tuple, &old.tuple, sizeof(key.tuple));
	if (keep_flow(who->workload, &key, &old) &&
	    ask_prefixes(who, &old.tuple,
			 find_ports(who->policy, old.tuple.protocol, old.tuple.remote_port)) != ALLOWED)
		return 0;
	who->peer = 0;
	s->flow.state = NONE;
	return 1;
}

static __always_inline void remember(struct socket *s, const struct subject *who, const struct tuple *t,
				     enum reason state)
{
	s->flow.state = NONE;
	__builtin_memcpy(&s->flow.tuple, t, sizeof(*t));
	set_flow(&s->flow, who, state);
}

/* A flow that was put aside. */
static __always_inline int recall(struct flow *flow, const struct subject *who, const struct tuple *t)
{
	struct flow_key key ALIGNED = {.socket = who->socket};
	u64 now = bpf_ktime_get_boot_ns();
	struct flow *found;

	if (t->protocol == IPPROTO_TCP && !L2)   /* only a link puts these aside */
		return 0;
	__builtin_memcpy(&key.tuple, t, sizeof(*t));
	found = flows.lookup(&key);
	if (!found)
		return 0;
	*flow = *found;
	if (!holds(flow, t) || flow_is_over(flow, now))
		return 0;
	found->seen = now;
	return 1;
}

/* Of what another layout of maps, or nobody, knew of this socket: for sockets that were there before. Who
 * admitted a flow there counts: in the shadow another peer may have come first. */
static __always_inline void take_over(struct socket *s, u64 cookie)
{
	struct socket *before = carried.lookup(&cookie);

	if (!before)
		return;
	if (!s->netns) {
		s->netns = before->netns;
		s->pid = before->pid;
		__builtin_memcpy(s->comm, before->comm, COMM);
	}
	if (before->flow.state && (!s->flow.state || same_tuple(&s->flow.tuple, &before->flow.tuple)))
		__builtin_memcpy(&s->flow, &before->flow, sizeof(s->flow));
	s->passive |= before->passive;
	carried.delete(&cookie);
}

/* 3. A flow whose policy changed: is the peer that admitted it still there, for this port? */
static __always_inline enum reason judge_again(struct flow *flow, struct subject *who, const struct tuple *t)
{
	enum reason state = flow->state, reason;

	who->peer = flow->peer;
	if (state == INBOUND) {
		set_flow(flow, who, INBOUND);
		return INBOUND;
	}
	if (state == ALLOWED &&
	    ask_rule(who->policy, who->peer, find_ports(who->policy, t->protocol, t->remote_port)) == ALLOWED) {
		set_flow(flow, who, ALLOWED);
		return ESTABLISHED;
	}
	who->peer = 0;
	reason = judge(who, t);
	reason = passes(reason) ? reason : WITHDRAWN;
	set_flow(flow, who, reason);
	return reason;
}

/* 3. What is known of a flow: ESTABLISHED, WITHDRAWN or another state it has. What was withdrawn may have been
 * learned again since, under another name. */
static __always_inline enum reason ask_flow(struct flow *flow, struct subject *who, const struct tuple *t)
{
	if (flow->policy != who->policy || flow->generation != who->generation || flow->state == WITHDRAWN)
		return judge_again(flow, who, t);
	return flow->state == ALLOWED ? ESTABLISHED : flow->state;
}

/* Whose rows tell what came in: of TCP and echoes those that the link wrote, where it is judged; the cgroup's hooks
 * tell a listener's children by their socket, and see an echo request of none. */
static __always_inline u64 inbound_owner(const struct subject *who, const struct tuple *t)
{
	int links = L2 && (t->protocol == IPPROTO_TCP || t->protocol == IPPROTO_ICMP ||
			   t->protocol == IPPROTO_ICMPV6);

	return links ? who->workload | 1ULL << LINK_BIT : who->workload;
}

static __always_inline int came_in(const struct subject *who, const struct tuple *t)
{
	struct inbound_key key ALIGNED = {.workload = inbound_owner(who, t)};
	struct inbound *found;

	__builtin_memcpy(&key.tuple, t, sizeof(*t));
	found = inbounds.lookup(&key);
	return !inbound_is_over(found, bpf_ktime_get_boot_ns());
}

static __always_inline void note_inbound(const struct subject *who, const struct tuple *t)
{
	struct inbound_key key ALIGNED = {.workload = inbound_owner(who, t)};
	struct inbound value = {.seen = bpf_ktime_get_boot_ns()}, *found;

	__builtin_memcpy(&key.tuple, t, sizeof(*t));
	found = inbounds.lookup(&key);
	if (found)
		found->seen = value.seen;
	else if (keep_inbound(&key, &value))
		count(who->policy, INBOUND_FULL);
}

/* 4. Does this segment answer a connection that came in from outside? */
static __always_inline int answers_listener(struct bpf_sock *sk, struct socket *s, const struct packet *p)
{
	u8 flags = p->tcp_flags & (TCP_SYN | TCP_ACK);

	if (!s->passive)
		return 0;
	if (flags == (TCP_SYN | TCP_ACK))
		return sk->state == TCP_STATE_LISTEN || sk->state == TCP_STATE_SYN_RECV;
	if (flags & TCP_SYN)
		s->passive = 0;          /* it is being connected elsewhere */
	return !(flags & TCP_SYN) && sk->state != TCP_STATE_LISTEN;
}

static __always_inline int answers_inbound(struct bpf_sock *sk, struct socket *s, struct subject *who,
					   const struct packet *p)
{
	if (!at_home(who, s))
		return 0;
	if (p->tuple.protocol != IPPROTO_TCP)
		return came_in(who, &p->tuple);
	return sk && s && answers_listener(sk, s, p);
}

#ifdef LINK
/* What no socket here vouches for is known by the workload and the tuple. */
static __always_inline u64 link_owner(const struct subject *who)
{
	return who->workload | 1ULL << LINK_BIT;
}

static __always_inline int keep(struct subject *who, struct flow *flow)
{
	struct flow_key key ALIGNED = {.socket = link_owner(who)};

	flow->seen = bpf_ktime_get_boot_ns();
	__builtin_memcpy(&key.tuple, &flow->tuple, sizeof(key.tuple));
	return keep_flow(link_owner(who), &key, flow);
}

static __always_inline int keep_anew(struct subject *who, const struct tuple *t, enum reason state)
{
	struct flow flow ALIGNED = {};

	__builtin_memcpy(&flow.tuple, t, sizeof(flow.tuple));
	set_flow(&flow, who, state);
	return keep(who, &flow);
}

static __always_inline enum reason ask_table(struct subject *who, const struct tuple *t)
{
	struct flow flow ALIGNED;
	enum reason reason;
	u32 generation, state;

	who->socket = link_owner(who);
	if (!recall(&flow, who, t))
		return NONE;
	generation = flow.generation;
	state = flow.state;
	reason = ask_flow(&flow, who, t);
	if (flow.generation != generation || flow.state != state)
		keep(who, &flow);
	return reason;
}
#endif
