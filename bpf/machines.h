/* machines.h: what is particular to machines behind a gateway: they have no socket and no cgroup here.
 *
 * Rules this file obeys:
 *   - A connection is known by its tuple, from its SYN on, until both sides have ended it or it was silent for as
 *     long as a translator of addresses has to wait (RFC 5382 REQ-5). Each SYN is judged anew: else a tuple that
 *     is used again and again would outlive its grant.
 *   - A segment of no known connection is refused, since what it belongs to was translated elsewhere, or never
 *     admitted; unless nothing is translated (settings.pick_up).
 *   - What passes gets the mark by which nftables forwards it; nothing else has it. What is refused comes back as
 *     a reset, or goes on without the mark, so that nftables says what became of it.
 *   - Where other gateways may know more, a packet waits once for them: who sends it again is judged anew.
 */

static __always_inline void set_mark(struct __sk_buff *skb, int admitted)
{
	struct settings *now = setting();
	u32 mask = now ? now->mark_mask : MARK_MASK;

	skb->mark = (skb->mark & ~mask) | (admitted && now ? mask : 0);
}

static __always_inline int is_anew(const struct packet *p)
{
	return p->protocol == IPPROTO_TCP && (p->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* Audited machines have flows that nobody admitted. */
static __always_inline int is_out_of_state(const struct subject *who, const struct packet *p)
{
	struct settings *now = setting();

	return p->protocol == IPPROTO_TCP && !is_anew(p) && !(who->flags & AUDIT) && now && !now->pick_up;
}

static __always_inline struct flow *flow_of(const struct subject *who, const struct tuple *t)
{
	struct flow_key key ALIGNED = {.socket = link_owner(who)};

	__builtin_memcpy(&key.tuple, t, sizeof(*t));
	return flows.lookup(&key);
}

static __always_inline void note_phase(const struct subject *who, const struct tuple *t, u32 bits)
{
	struct flow *flow = flow_of(who, t);

	if (flow)
		flow->phase |= bits;
}

/* What a segment of a machine says of its connection. */
static __always_inline u32 phase_of(const struct packet *p)
{
	u32 said = p->tcp_flags & TCP_SYN ? 0 : SPOKEN;

	said |= p->tcp_flags & TCP_FIN ? CLIENT_ENDED : 0;
	return said | (p->tcp_flags & TCP_RST ? BROKEN : 0);
}

/* 3, the common case: a flow that is known, of a policy that has not changed. Nobody but the programs here writes
 * its row, and all at once: so it needs no seal. */
static __always_inline enum reason ask_known(const struct subject *who, const struct packet *p)
{
	u64 now = bpf_ktime_get_boot_ns();
	struct flow *flow;

	if (is_anew(p) || is_icmp_error(p) || p->offset)
		return NONE;
	flow = flow_of(who, &p->tuple);
	if (flow_is_over(flow, now))
		return NONE;
	if (p->protocol == IPPROTO_TCP && phase_of(p) & ~flow->phase)
		flow->phase |= phase_of(p);
	if (flow->policy != who->policy || flow->generation != who->generation)
		return NONE;
	flow->seen = now;
	return flow->state == ALLOWED ? ESTABLISHED : flow->state == INBOUND ? INBOUND : NONE;
}

/* What is admitted is remembered: a connection has to be, what else there is may be judged again. */
static __always_inline enum reason enter(struct subject *who, const struct packet *p, enum reason reason)
{
	int tcp = p->protocol == IPPROTO_TCP;

	if (reason == ALLOWED || (reason == INBOUND && tcp))
		if (keep_anew(who, &p->tuple, reason) && tcp)
			return FLOWS_FULL;
	return reason;
}

static __always_inline int is_neighbour(struct __sk_buff *skb, const struct subject *who, const struct packet *p)
{
	return 0;                        /* of the gateway it is, and never forwarded */
}

/* What has no grant here may have one at another gateway. */
static __always_inline enum reason miss(const struct subject *who, const struct tuple *t, enum reason reason)
{
	struct grant_key key ALIGNED = {.policy = who->policy};
	struct miss fresh = {.time = bpf_ktime_get_boot_ns()}, *before;
	struct settings *now = setting();

	if (!now || !now->hold_back || (who->flags & (SHARED | AUDIT)) != SHARED)
		return reason;
	if (reason != NOT_ALLOWED && reason != PORT_NOT_ALLOWED && reason != EXPIRED)
		return reason;
	copy_address(key.address, t->remote);
	before = misses.lookup(&key);
	if (before && before->time + now->hold_back * 1000000ULL >= fresh.time)
		return HELD_BACK;
	if (before && before->time + MISS_SECONDS * 1000000000ULL >= fresh.time)
		return reason;
	misses.update(&key, &fresh);
	return HELD_BACK;
}

static __always_inline int let(struct __sk_buff *skb, const struct subject *who, const struct packet *p,
			       enum reason reason)
{
	if ((p->piece & MORE) && !p->offset)
		let_others_follow(who, p);
	set_mark(skb, 1);
	if (reason != RESOLVER || !(who->flags & ONLY_ALLOWED_NAMES))
		return LET;
	stage(skb, STAGE_QUESTION, HOOK_GATEWAY, p->transport + 8, who->workload);
	return STOP;                             /* here only where no stage follows */
}

/* To a server of ours by the port where it really is: nobody would read the question. */
static __always_inline int is_behind(const struct packet *p)
{
	struct settings *now = setting();

	return now && now->dns_port && *(const u16 *)p->tuple.remote_port == bpf_htons(now->dns_port) &&
	       (p->protocol == IPPROTO_UDP || p->protocol == IPPROTO_TCP);
}

/* What can't be believed is answered to nobody; nor may a question that was not read come to a server of ours, by an
 * address that only the kernel knows to be here (RFC 919). */
static __always_inline int refuse(struct __sk_buff *skb, const struct subject *who, const struct packet *p,
				  enum reason reason)
{
	if (reason < NOT_ALLOWED || reason == HELD_BACK || p->offset)
		return STOP;
	if (p->protocol == IPPROTO_TCP)
		return reset(skb, p);
	if (reason == QUESTION_UNREAD)
		return STOP;
	return p->protocol == IPPROTO_UDP && (is_dns_port(p->tuple.remote_port) || is_behind(p)) ? STOP : LET;
}
