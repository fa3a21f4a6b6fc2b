/* verdict.h: the decision, and the one place that counts and tells it.
 *
 * The order of precedence, whose numbers stand again at the lines that decide (decide() in cgroup.c,
 * judge_alone() in alone.h, judge() here):
 *   0. nobody's packet passes untouched; an unclassified workload's is dropped
 *   1. what cannot be read is dropped by name
 *   2. loopback passes, unless its source is forged; a socket's own ICMP errors are dropped
 *   3. a flow that was admitted goes on for as long as the peer that admitted it
 *   4. answers to what came in from outside pass
 *   5. neighbour discovery on the link passes, and what keeps a host on its network
 *   6. the trusted resolvers are always reachable
 *   7. an address that DNS taught passes on the ports of the peer that its name belongs to
 *   8. an address inside a prefix of the policy, the same
 *   9. everything else is dropped
 */

struct subject {
	u64 workload;
	u64 socket;               /* cookie */
	u64 peer;
	u64 home;                 /* the network namespace whose addresses are its own */
	u64 netns;                /* and by which its sockets are known; 0 where none is */
	u32 policy;
	u32 flags;
	u32 generation;
	u32 shadow;
	u8 hook;
};

static __always_inline int passes(enum reason reason)
{
	return reason >= ALLOWED && reason <= PROXIED;
}

static __always_inline void count(u32 policy, enum reason reason)
{
	u32 index = policy * REASONS + reason;
	struct counter *c = counters.lookup(&index);

	if (c)
		c->packets++;
}

/* Events of one policy are limited, so that a workload which is refused a million times a second costs
 * neither the CPU nor the log of its node. */
static __always_inline int paced(const struct subject *who, u64 now)
{
	u32 policy = who->policy;
	struct pace *pace;

	if (who->flags & TRACE)
		return 1;
	pace = paces.lookup(&policy);
	if (!pace)
		return 0;
	if (pace->second != now >> 30) {
		pace->second = now >> 30;
		pace->told = 0;
	}
	return pace->told++ < EVENTS_PER_SECOND;
}

static __always_inline void fill_event(struct event *e, const struct subject *who, const struct tuple *t,
				       enum reason reason, u64 now)
{
	e->time = now;
	e->workload = who->workload;
	e->socket = who->socket;
	e->peer = who->peer;
	copy_address(e->local, t->local);
	copy_address(e->remote, t->remote);
	__builtin_memcpy(e->local_port, t->local_port, 2);
	__builtin_memcpy(e->remote_port, t->remote_port, 2);
	e->policy = who->policy;
	e->protocol = t->protocol;
	e->reason = reason;
	e->verdict = passes(reason) ? PASS : who->flags & AUDIT ? WOULD_DROP : DROP;
	e->hook = who->hook;
}

static __always_inline void send_event(const struct subject *who, void *event, u32 size)
{
	u32 policy = who->policy;
	void *ring = events.lookup(&policy);

	if (ring && bpf_ringbuf_output(ring, event, size, 0))
		count(policy, EVENTS_LOST);
}

static __always_inline void tell_process(struct event *e, const struct socket *s)
{
	if (!s)
		return;
	e->pid = s->pid;
	__builtin_memcpy(e->comm, s->comm, COMM);
}

static __always_inline void tell(const struct subject *who, const struct tuple *t, const struct socket *s,
				 enum reason reason)
{
	u64 now = bpf_ktime_get_boot_ns();
	struct event e ALIGNED = {};

	if (!paced(who, now)) {
		count(who->policy, EVENTS_LOST);
		return;
	}
	fill_event(&e, who, t, reason, now);
	tell_process(&e, s);
	send_event(who, &e, sizeof(e));
}

/* Counts and tells a verdict that is not merely "as before"; returns whether the packet passes. */
static __always_inline int conclude(void *ctx, struct subject *who, const struct tuple *t, const struct socket *s,
				    enum reason reason)
{
	if (who->shadow)
		return PASS;
	count(who->policy, reason);
	if (!passes(reason) || (reason == ALLOWED && (who->flags & TRACE))) {
		who->socket = bpf_get_socket_cookie(ctx);
		tell(who, t, s, reason);
	}
	return passes(reason) || (who->flags & AUDIT);
}

static __always_inline int is_dns_port(const u8 *port)
{
	return port[0] == 0 && port[1] == DNS_PORT;
}

/* What is captured comes to a server of ours, whatever its address says. */
static __always_inline int is_resolver(u32 policy, u32 flags, const u8 *address, const u8 *port)
{
	struct resolver_key key ALIGNED = {.policy = policy, .port = {port[0], port[1]}};

	if ((flags & CAPTURED) && is_dns_port(port))
		return 1;
	copy_address(key.address, address);
	return resolvers.lookup(&key) != NULL;
}

static __always_inline int may_be_resolver(u32 flags, const u8 *port)
{
	return is_dns_port(port) || (flags & RESOLVER_PORTS);
}

static __always_inline int trusts(const struct subject *who, const struct packet *p)
{
	return may_be_resolver(who->flags, p->tuple.remote_port) &&
	       is_resolver(who->policy, who->flags, p->tuple.remote, p->tuple.remote_port);
}

#ifdef GATEWAY
/* The machine, or the network of machines, that an address belongs to; 0 where it is no client's. */
static __always_inline u64 machine_of(const u8 *address)
{
	struct source_key key = {.bits = 128};
	u64 *found;

	__builtin_memcpy(key.address, address, 16);
	found = sources.lookup(&key);
	return found ? *found : 0;
}

static __always_inline int is_own(const struct subject *who, const u8 *address)
{
	return machine_of(address) == who->workload;
}

/* Whether an address is the gateway's. */
static __always_inline int is_here(const struct subject *who, const u8 *address)
{
	struct own_key key ALIGNED = {.home = who->home};

	copy_address(key.address, address);
	return own.lookup(&key) != NULL;
}
#else
/* Whether an address is one of the workload's network namespace. */
static __always_inline int is_own(const struct subject *who, const u8 *address)
{
	struct own_key key ALIGNED = {.home = who->home};

	copy_address(key.address, address);
	return own.lookup(&key) != NULL;
}
#endif

/* The bits of all sets of ports that hold this protocol and port. */
static __always_inline u64 find_ports(u32 policy, u32 protocol, const u8 *port)
{
	struct service_key key = {
		.bits = 40,
		.policy = {policy >> 8, policy},
		.protocol = protocol == IPPROTO_ICMPV6 ? IPPROTO_ICMP : protocol,
	};
	struct service *found;

	if (has_ports(protocol)) {
		key.port[0] = port[0];
		key.port[1] = port[1];
	}
	found = single_services.lookup(&key);    /* a hash: a walk of the trie costs three times as much */
	if (!found)
		found = services.lookup(&key);
	return found ? found->ports : 0;
}

/* Whether a peer is still in the policy, and for which of the ports asked for. */
static __always_inline enum reason ask_rule(u32 policy, u64 peer, u64 ports)
{
	struct rule_key key = {.policy = policy, .peer = peer};
	struct rule *rule = rules.lookup(&key);

	if (!rule)
		return NOT_ALLOWED;
	return rule->ports & ports ? ALLOWED : PORT_NOT_ALLOWED;
}

static __always_inline enum reason ask_grants(struct subject *who, const struct tuple *t, u64 ports)
{
	struct grant_key key = {.policy = who->policy};
	enum reason reason = NOT_ALLOWED;
	struct grant *grant;
	u64 now;

	copy_address(key.address, t->remote);
	grant = grants.lookup(&key);
	if (!grant)
		return NOT_ALLOWED;
	now = bpf_ktime_get_boot_ns();
#pragma unroll
	for (int i = 0; i < PEERS; i++) {
		u64 peer = grant->slots[i].peer;
		enum reason found;

		if (!peer)
			continue;
		found = ask_rule(who->policy, peer, ports);
		if (found == NOT_ALLOWED)
			continue;
		if (grant->slots[i].expires < now) {
			reason = reason == NOT_ALLOWED ? EXPIRED : reason;
			continue;
		}
		reason = found;
		if (found == ALLOWED) {
			who->peer = peer;
			return ALLOWED;
		}
	}
	return reason;
}

static __always_inline enum reason ask_prefixes(struct subject *who, const struct tuple *t, u64 ports)
{
	struct prefix_key key = {.bits = 144, .policy = {who->policy >> 8, who->policy}};
	enum reason reason = NOT_ALLOWED;
	struct peers *peers;

	__builtin_memcpy(key.address, t->remote, 16);
	peers = prefixes.lookup(&key);
	if (!peers)
		return NOT_ALLOWED;
#pragma unroll
	for (int i = 0; i < PEERS; i++) {
		u64 peer = peers->id[i];
		enum reason found;

		if (!peer)
			break;
		found = ask_rule(who->policy, peer, ports);
		reason = found == NOT_ALLOWED ? reason : found;
		if (found == ALLOWED) {
			who->peer = peer;
			return ALLOWED;
		}
	}
	return reason;
}

/* Where questions are checked, those that are not read are refused. Those over TCP are read by the proxy, to which
 * the link leads them: link.c asks before it judges. */
static __always_inline int unread_question(const struct subject *who, const struct tuple *t)
{
	return (who->flags & ONLY_ALLOWED_NAMES) && t->protocol != IPPROTO_UDP;
}

static __always_inline enum reason judge(struct subject *who, const struct tuple *t)
{
	enum reason by_grant, by_prefix;
	u64 ports;

	if (may_be_resolver(who->flags, t->remote_port) &&
	    (t->protocol == IPPROTO_UDP || t->protocol == IPPROTO_TCP) &&
	    is_resolver(who->policy, who->flags, t->remote, t->remote_port))
		return unread_question(who, t) && !(who->flags & LINKED) ? QUESTION_UNREAD : RESOLVER;  /* 6 */
	ports = find_ports(who->policy, t->protocol, t->remote_port);
	by_grant = ask_grants(who, t, ports);                                 /* 7 */
	if (by_grant == ALLOWED)
		return ALLOWED;
	by_prefix = ask_prefixes(who, t, ports);                              /* 8 */
	if (by_prefix == ALLOWED)
		return ALLOWED;
	return by_prefix == NOT_ALLOWED ? by_grant : by_prefix;               /* 9 */
}
