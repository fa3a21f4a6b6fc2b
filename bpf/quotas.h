/* quotas.h: how much of the shared tables one workload, or one peer of a policy, may hold.
 *
 * Rules this file obeys:
 *   - Each workload has a ring of places for its questions, one for its flows that are put aside and one for
 *     the peers outside that it may answer; each peer of a policy has one for the addresses it holds. Who has
 *     no place has no row in the table behind it: so nobody takes the room of another, and nothing needs a
 *     sweeper. Rings are kept here, in the kernel, and go on when the agent is dead.
 *   - Questions and inbound peers: the oldest goes. Whoever floods a server from outside must be faster than
 *     its answers; were the new one refused, 8,192 datagrams would stop the server.
 *   - Flows and grants: a new row takes the place of one that is over, of a few that are looked at from where
 *     the last search ended. Where none is over the new one is refused; what is alive stays.
 *   - A row is written before its place, and goes when none is had; a place is emptied before its row goes, by
 *     the one CPU whose delete succeeds. A row that is there is replaced, never made: another CPU may have just
 *     emptied its place. So no race leaves a row without a place.
 *   - BCC has no word for that (BPF_EXIST, bpf(2)): where its flag for `update` is given another value, `update`
 *     replaces.
 */

static __always_inline struct settings *setting(void)
{
	u32 zero = 0;

	return settings.lookup(&zero);
}

static __always_inline struct tally *tally_of(u64 workload)
{
	struct tally fresh = {}, *tally = tallies.lookup(&workload);

	if (tally)
		return tally;
	tallies.insert(&workload, &fresh);
	return tallies.lookup(&workload);
}

/* The place after the last one that was looked at. */
static __always_inline u64 turn_of(u64 *ring, u32 quota)
{
	return quota ? (*ring)++ % quota : 0;
}

/* 0 where no question that was open had to go. */
static __always_inline int keep_question(u64 workload, struct question_key *key, struct question *value)
{
	struct tally *tally = tally_of(workload);
	struct place place = {.workload = workload};
	struct question *row = questions.lookup(key);
	struct settings *s = setting();
	struct question_key *oldest;
	enum { BPF_ANY = BPF_EXIST };
	int open = 0;

	if (!tally || !s)
		return -1;
	value->place = row ? row->place : 0;
	if (row || questions.insert(key, value))
		return questions.update(key, value);
#pragma unroll
	for (int i = 0; i < PROBES; i++) {
		place.number = turn_of(&tally->questions, s->questions);
		oldest = question_ring.lookup(&place);
		if (oldest) {
			struct question_key old = *oldest;

			/* The place of a question that was answered stays; the same may have been asked again. */
			row = questions.lookup(&old);
			if (!question_ring.delete(&place) && row && row->place == (u32)place.number + 1) {
				open = row->time + QUESTION_SECONDS * 1000000000ULL >= value->time;
				questions.delete(&old);
			}
		}
		value->place = place.number + 1;
		if (!question_ring.insert(&place, key))
			return questions.update(key, value) ? -1 : -open;
	}
	questions.delete(key);
	return -1;
}

/* Who is known by its tuple alone would lose a connection that is silent for a while. */
static __always_inline u64 flow_lasts(const struct flow *flow)
{
#ifdef GATEWAY
	if (flow->tuple.protocol == IPPROTO_TCP)
		return flow->phase == SPOKEN ? TCP_SECONDS : TCP_HALF_SECONDS;
#endif
	return FLOW_SECONDS;
}

static __always_inline int flow_is_over(const struct flow *flow, u64 now)
{
	return !flow || flow->seen + flow_lasts(flow) * 1000000000ULL < now;
}

/* What both sides have ended may still say so again, but not at the cost of a new one. */
static __always_inline int flow_may_go(const struct flow *flow, u64 now)
{
	u32 ended = CLIENT_ENDED | SERVER_ENDED;

	return flow_is_over(flow, now) || (flow->phase & BROKEN) || (flow->phase & ended) == ended;
}

static __always_inline int keep_flow(u64 workload, struct flow_key *key, struct flow *value)
{
	enum { BPF_ANY = BPF_EXIST };
	struct flow_key *there;
	struct place place = {.workload = workload};
	struct tally *tally = tally_of(workload);
	struct settings *s = setting();

	if (!tally || !s)
		return -1;
	if (flows.insert(key, value)) {
		if (!flows.update(key, value))
			return 0;
		if (flows.insert(key, value))
			return -1;
	}
#pragma unroll
	for (int i = 0; i < PROBES; i++) {
		place.number = turn_of(&tally->flows, s->flows);
		there = flow_ring.lookup(&place);
		if (there) {
			struct flow_key old = *there;

			if (!flow_may_go(flows.lookup(&old), value->seen))
				continue;
			if (!flow_ring.delete(&place))
				flows.delete(&old);
		}
		if (!flow_ring.insert(&place, key))
			return 0;
	}
	flows.delete(key);
	return -1;
}

static __always_inline int inbound_is_over(const struct inbound *inbound, u64 now)
{
	return !inbound || inbound->seen + INBOUND_SECONDS * 1000000000ULL < now;
}

/* 0 where nothing that was alive had to go. */
static __always_inline int keep_inbound(struct inbound_key *key, struct inbound *value)
{
	enum { BPF_ANY = BPF_EXIST };
	struct inbound_key *oldest;
	struct place place = {.workload = key->workload};
	struct tally *tally = tally_of(key->workload);
	struct settings *s = setting();
	int alive = 0;

	if (!tally || !s)
		return -1;
	if (inbounds.insert(key, value)) {
		if (!inbounds.update(key, value))
			return 0;
		if (inbounds.insert(key, value))
			return -1;
	}
#pragma unroll
	for (int i = 0; i < PROBES; i++) {
		place.number = turn_of(&tally->inbounds, s->inbounds);
		oldest = inbound_ring.lookup(&place);
		if (oldest) {
			struct inbound_key old = *oldest;

			alive = !inbound_is_over(inbounds.lookup(&old), value->seen);
			if (!inbound_ring.delete(&place))
				inbounds.delete(&old);
		}
		if (!inbound_ring.insert(&place, key))
			return -alive;
	}
	inbounds.delete(key);
	return -1;
}

static __always_inline struct holding *holding_of(u64 policy, u64 peer)
{
	struct rule_key key = {.policy = policy, .peer = peer};
	struct holding fresh = {}, *found = holdings.lookup(&key);

	if (found)
		return found;
	holdings.insert(&key, &fresh);
	return holdings.lookup(&key);
}

/* Whether a peer's grant of an address is over, for a while already, since the very name may be asked for again
 * at this moment, on another CPU. Its slot goes then, and the row if nothing is left in it. */
static __always_inline int grant_is_over(struct grant_key *key, u64 peer, u64 now)
{
	struct grant *grant = grants.lookup(key);
	u64 mine = 0, last = 0;

	if (!grant)
		return 1;
#pragma unroll
	for (int i = 0; i < PEERS; i++) {
		u64 until = grant->slots[i].peer ? grant->slots[i].expires : 0;

		mine = grant->slots[i].peer == peer ? until : mine;
		last = until > last ? until : last;
	}
	if (mine + 10 * 1000000000ULL >= now)
		return 0;
#pragma unroll
	for (int i = 0; i < PEERS; i++)
		if (grant->slots[i].peer == peer)
			grant->slots[i].peer = 0;
	if (last + 10 * 1000000000ULL < now)
		grants.delete(key);
	return 1;
}

/* The next place for one more address of a peer: NONE where it was free and is taken now, else why not. */
static __always_inline enum reason take_place(u64 policy, u64 peer, const u8 *address, u64 now)
{
	struct holding *mine = holding_of(policy, peer), *all = holding_of(policy, 0);
	struct holder holder = {.policy = policy, .peer = peer};
	struct settings *s = setting();
	struct held here, *there;

	if (!mine || !all || !s)
		return GRANTS_FULL;
	copy_address(here.address, address);
	holder.number = turn_of(&mine->number, s->addresses);
	there = grant_ring.lookup(&holder);
	if (there) {
		struct grant_key old ALIGNED = {.policy = policy};

		copy_address(old.address, there->address);
		if (!grant_is_over(&old, peer, now) || grant_ring.delete(&holder))
			return NAME_FULL;
		__sync_fetch_and_add(&all->places, -1);
	}
	if (all->places >= (u64)s->addresses * GRANTS_PER_POLICY || grant_ring.insert(&holder, &here))
		return NAME_FULL;
	__sync_fetch_and_add(&all->places, 1);
	return NONE;
}
