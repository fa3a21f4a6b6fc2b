/* alone.h: the decision for what no socket on this host vouches for, and what is done about it; on links and at
 * gateways.
 *
 * Rules this file obeys:
 *   - The order is that of verdict.h, by the same numbers. What differs between a link and a gateway is asked of
 *     the text that lays this in: is_anew(), is_neighbour(), enter(), is_out_of_state(), miss(), let(), refuse().
 *   - A packet that no flow is known for may be another one's answer, or it is judged by its address.
 */

/* A question in pieces is not read. */
static __always_inline enum reason unread_piece(const struct subject *who, const struct packet *p,
						enum reason reason)
{
	return reason == RESOLVER && p->piece && (who->flags & ONLY_ALLOWED_NAMES) ? QUESTION_UNREADABLE : reason;
}

static __always_inline enum reason judge_alone(struct __sk_buff *skb, struct subject *who, const struct packet *p)
{
	enum reason reason = NONE;

	if (is_icmp_error(p))                                                 /* 2 */
		return read_quote(skb, who, p);
	if (!is_anew(p))                                                      /* 3 */
		reason = ask_table(who, &p->tuple);
	if (reason)
		return reason;
	if (!is_anew(p) && came_in(who, &p->tuple))                           /* 4 */
		return enter(who, p, INBOUND);
	if (is_neighbour(skb, who, p))                                        /* 5 */
		return NEIGHBOUR;
	if (is_out_of_state(who, p))
		return OUT_OF_STATE;
	reason = judge(who, &p->tuple);                                       /* 6 .. 9 */
	return passes(reason) ? enter(who, p, reason) : miss(who, &p->tuple, reason);
}

/* Counts and tells what was decided, and does it. */
static __always_inline int finish(struct __sk_buff *skb, struct subject *who, const struct packet *p,
				  enum reason reason)
{
	if (!conclude(skb, who, &p->tuple, storage_of(skb->sk), reason))
		return refuse(skb, who, p, reason);
	return let(skb, who, p, reason);
}

int alone(struct __sk_buff *skb)
{
	struct subject who = {.hook = HOOK_OUT};
	struct packet p ALIGNED = {};

	if (!find_workload(skb, &who) || read_packet(skb, &p, 1))
		return STOP;                     /* neither can be: who comes before has seen both */
	return finish(skb, &who, &p, unread_piece(&who, &p, judge_alone(skb, &who, &p)));
}

int proxied(struct __sk_buff *skb)
{
	struct subject who = {.hook = HOOK_OUT};
	struct packet p ALIGNED = {};
	enum reason reason = PROXIED;

	if (read_packet(skb, &p, 1))
		return STOP;
	if (!find_workload(skb, &who))           /* a bridge */
		return lead_to_proxy(skb, &p) ? reset(skb, &p) : TAKEN;
	if (lead_to_proxy(skb, &p))
		reason = PROXY_AWAY;
	if (!conclude(skb, &who, &p.tuple, NULL, reason))
		return reset(skb, &p);
	return reason == PROXIED ? TAKEN : let(skb, &who, &p, reason);
}
