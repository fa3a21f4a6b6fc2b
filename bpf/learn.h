/* learn.h: from an answer that was read to grants.
 *
 * Rules this file obeys:
 *   - An answer counts only against an open question of the same socket (or, where the resolver is on this
 *     host, of the same client address and port), once, for QUESTION_SECONDS.
 *   - Some addresses are never learned, whatever a server says: they lead back into the machine, to the
 *     cloud's metadata, or to nowhere (RFC 6890; RFC 6052 2.1 and RFC 8215 for NAT64).
 *   - A grant is written before the answer is delivered.
 *   - Messages are read on a slate. On the way in (softirq) a CPU reads one at a time and slate 0 is free; on
 *     the way out a program may be preempted by another, so that a slate is claimed first.
 */

enum { CB_SLATE, CB_OFFSET, CB_HOOK, CB_WORKLOAD, CB_WORKLOAD_HIGH };

static __always_inline struct slate *slate_of(struct __sk_buff *skb)
{
	u32 index = skb->cb[CB_SLATE];

	return slates.lookup(&index);
}

static __always_inline u32 claim_key(u32 slate)
{
	return bpf_get_smp_processor_id() * SLATES + slate;
}

static __always_inline struct slate *claim_slate(struct __sk_buff *skb)
{
	u32 one = 1;

	skb->cb[CB_SLATE] = 0;
	if (skb->cb[CB_HOOK] == HOOK_INGRESS)
		return slate_of(skb);
#pragma unroll
	for (u32 i = 1; i < SLATES; i++) {
		u32 key = claim_key(i);

		if (claims.insert(&key, &one))
			continue;
		skb->cb[CB_SLATE] = i;
		return slate_of(skb);
	}
	return NULL;
}

static __always_inline int release_slate(struct __sk_buff *skb)
{
	u32 key = claim_key(skb->cb[CB_SLATE]);

	if (skb->cb[CB_SLATE])
		claims.delete(&key);
	return PASS;
}

static __always_inline int never_learned(const u8 *address)
{
	struct prefix_key key = {.bits = 128 + 16};
	u32 first = bpf_ntohl(word(address, 0)), last = bpf_ntohl(word(address, 3));

	__builtin_memcpy(key.address, address, 16);
	if (never.lookup(&key))                                        /* the operator's own ranges */
		return 1;
	if (is_ipv4(address))
		return last >> 24 == 0 || last >> 24 == 127 ||         /* this network, loopback */
		       last >> 16 == 0xa9fe ||                         /* link-local, cloud metadata */
		       last >> 28 == 0xe || last == 0xffffffff ||      /* multicast, broadcast */
		       last == 0xa83f8110 || last == 0x646464c8;       /* Azure's and Alibaba's metadata */
	return first >> 24 == 0xff || first >> 22 == 0xfe80 >> 6 ||    /* multicast, link-local */
	       first == 0x0064ff9b ||                                  /* NAT64, both prefixes */
	       (first == 0 && word(address, 1) == 0) ||                /* unspecified, loopback, compatible */
	       (first == 0xfd000ec2 && word(address, 1) == 0 && word(address, 2) == 0 && last == 0x254);
}

/* Times first, the peer last: a slot that is half written admits nobody. */
static __always_inline void put_slot(struct slot *slot, u64 peer, u64 expires)
{
	*(volatile u64 *)&slot->peer = 0;
	*(volatile u64 *)&slot->expires = expires;
	*(volatile u64 *)&slot->peer = peer;
}

/* The slot of the same peer, or else the one that is free, ended or soonest to end. */
static __always_inline void renew_grant(struct grant *grant, u32 policy, u64 peer, u64 expires, u64 now)
{
	u64 soonest = ~0ULL;     /* its slot's number in the two lowest bits */

#pragma unroll
	for (u32 i = 0; i < PEERS; i++) {
		struct slot *slot = &grant->slots[i];
		u64 until = ((slot->peer ? slot->expires : 0) & ~3ULL) | i;

		if (slot->peer == peer) {
			if (slot->expires < expires)
				slot->expires = expires;
			return;
		}
		soonest = until < soonest ? until : soonest;
	}
	if (soonest > now)
		count(policy, GRANT_CROWDED);
	put_slot(&grant->slots[soonest & (PEERS - 1)], peer, expires);
}

static __always_inline void grant_address(u32 policy, const u8 *address, u64 peer, u64 expires, u64 now)
{
	struct grant_key key ALIGNED = {.policy = policy};
	struct grant fresh = {.slots[0] = {.peer = peer, .expires = expires}};
	struct grant *grant;

	copy_address(key.address, address);
	grant = grants.lookup(&key);
	if (!grant) {
		if (!grants.insert(&key, &fresh))
			return;
		grant = grants.lookup(&key);             /* another CPU was first, or the table is full */
	}
	if (grant)
		renew_grant(grant, policy, peer, expires, now);
	else
		count(policy, GRANTS_FULL);
}

static __always_inline void question_key_of(struct question_key *key, struct slate *s, u64 socket,
					    const struct tuple *client)
{
	key->name = s->hash;
	key->id = be16(s->message);
	if (client)
		__builtin_memcpy(&key->client, client, sizeof(key->client));
	else
		key->socket = socket;
}

/* A workload's questions are counted by nobody but itself: with one more than OPEN_QUESTIONS its own oldest
 * goes, answered or not. So questions that are never answered need no clean-up, and no workload can take the
 * places of another. Two CPUs that ask at the same moment may share a place; one question then stays in the
 * table until the workload goes. */
static __always_inline int keep_question(u64 workload, struct question_key *key, struct question *value)
{
	struct tally fresh = {}, *tally = tallies.lookup(&workload);
	struct asked_key place = {.workload = workload};
	struct asked *oldest, now = {.question = *key};

	if (!tally) {
		tallies.insert(&workload, &fresh);
		tally = tallies.lookup(&workload);
		if (!tally)
			return -1;
	}
	place.place = tally->questions++ % OPEN_QUESTIONS;
	oldest = asked.lookup(&place);
	if (oldest) {
		struct question_key old = oldest->question;

		questions.delete(&old);
	}
	return asked.update(&place, &now) || questions.update(key, value);
}

/* The open question that this answer fits, taken out of the table; fills s->question. */
static __always_inline enum reason take_question(struct slate *s, u64 socket, const struct tuple *client)
{
	struct question_key key ALIGNED = {};
	struct question *found;

	question_key_of(&key, s, socket, client);
	found = questions.lookup(&key);
	if (!found)
		return ANSWER_UNASKED;
	s->question = *found;
#ifndef BENCH                    /* where one question is answered again and again */
	if (questions.delete(&key))
		return ANSWER_UNASKED;                   /* another CPU took it */
#endif
	if (s->question.time + QUESTION_SECONDS * 1000000000ULL < bpf_ktime_get_boot_ns())
		return ANSWER_LATE;
	return NONE;
}

static __always_inline void tell_address(struct slate *s, struct subject *who, struct record *r,
					 enum reason reason, u64 expires, u64 now)
{
	struct tuple t ALIGNED = {};

	copy_address(t.remote, r->address);
	who->socket = s->question.socket;
	fill_event(&s->told.event, who, &t, reason, now);
	s->told.expires = expires;
	send_event(who, &s->told, sizeof(s->told));
}

static __always_inline void learn_address(struct slate *s, struct subject *who, struct record *r,
					  const struct policy *policy, u64 now)
{
	u64 seconds = r->ttl > policy->floor ? r->ttl : policy->floor;
	u64 lasts = now + (seconds + policy->grace) * 1000000000ULL;
	enum reason reason = s->peers.id[0] ? LEARNED : SEEN;

	who->peer = s->peers.id[0];
	if (r->mapped || never_learned(r->address))
		reason = NEVER_LEARNED;
	count(who->policy, reason);
	if (reason == LEARNED) {
		for (u32 i = 0; i < PEERS; i++) {
			if (!s->peers.id[i])
				break;
			grant_address(who->policy, r->address, s->peers.id[i], lasts, now);
		}
	}
	if ((who->flags & TRACE) || reason == NEVER_LEARNED)
		tell_address(s, who, r, reason, lasts, now);
}

/* Who asked: the policy that the workload has now. */
static __always_inline struct policy *asker(struct slate *s, struct subject *who)
{
	u64 id = s->question.workload;
	struct workload *found = workloads.lookup(&id);
	struct policy *policy;

	if (!found)
		return NULL;
	who->workload = id;
	who->policy = found->policy;
	policy = policies.lookup(&who->policy);
	if (!policy)
		return NULL;
	who->flags = policy->flags;
	who->hook = HOOK_INGRESS;
	return policy;
}
