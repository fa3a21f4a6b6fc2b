/* share.h: what another gateway has learned (gateway/peers/talk.py).
 *
 *   share   attached nowhere: the agent has it run (BPF_PROG_TEST_RUN, bpf/share.py) on a frame of facts,
 *           FACTS_AT_ONCE of them at most, and finds in the control block how many were taken
 *
 * Rules this file obeys:
 *   - A fact gives nothing that an answer to one of our own could not: its peer must be one of the policy's,
 *     its address one that DNS may teach, and the quotas are the same. It cannot make a policy, only fill it.
 *   - Of two ends the later one counts, so that facts may come in any order, twice, or never.
 *   - A fact has no name: so none may teach what only some names may, the cluster's own addresses.
 *   - Nobody is told: what came from a gateway is not what goes to the others.
 */

static __always_inline enum reason take_fact(const struct fact *fact, u64 now)
{
	struct rule_key key = {.policy = fact->policy, .peer = fact->peer};
	u64 seconds = fact->seconds < LONGEST_GRANT ? fact->seconds : LONGEST_GRANT;
	enum reason wrong = NAME_FULL;
	int news;                                       /* a gateway's, which told all of them */

	if (never_learned(fact->address, 0))
		return NEVER_LEARNED;
	if (!fact->peer || !rules.lookup(&key))
		return NOT_ALLOWED;
	for (u32 i = 0; i < PROBES && wrong == NAME_FULL; i++)
		wrong = grant_address(fact->policy, fact->address, fact->peer, now + seconds * 1000000000ULL, now, &news);
	return wrong;
}

int share(struct __sk_buff *skb)
{
	u64 now = bpf_ktime_get_boot_ns();

	skb->cb[0] = 0;
	for (u32 i = 0; i < FACTS_AT_ONCE; i++) {
		struct fact fact ALIGNED;

		if (bpf_skb_load_bytes(skb, L2 + i * sizeof(fact), &fact, sizeof(fact)))
			break;
		if (!take_fact(&fact, now))
			skb->cb[0]++;
	}
	return LET;
}
