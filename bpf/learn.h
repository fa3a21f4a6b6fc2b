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
	return LET;
}

/* As stage() noted it. */
static __always_inline u64 workload_of(struct __sk_buff *skb)
{
	return (u64)skb->cb[CB_WORKLOAD_HIGH] << 32 | skb->cb[CB_WORKLOAD];
}

static __always_inline int leads_back(const u8 *address)
{
	u32 first = bpf_ntohl(word(address, 0)), last = bpf_ntohl(word(address, 3));

	if (is_ipv4(address))
		return last >> 24 == 0 || last >> 24 == 127 ||         /* this network, loopback */
		       last >> 16 == 0xa9fe ||                         /* link-local, cloud metadata */
		       last >> 28 == 0xe || last == 0xffffffff ||      /* multicast, broadcast */
		       last == 0xa83f8110 || last == 0x646464c8;       /* Azure's and Alibaba's metadata */
	return first >> 24 == 0xff || first >> 22 == 0xfe80 >> 6 ||    /* multicast, link-local */
	       first == 0x0064ff9b ||                                  /* NAT64, both prefixes */
	       (first == 0 && word(address, 1) == 0) ||                /* unspecified, loopback, compatible */
	       first == 0xfd000ec2 || first == 0xfd2000ce;             /* AWS's and Google's metadata */
}

/* Whether a name may not teach this address: also where it lies in the operator's own ranges, or in the
 * cluster's, whose names alone say what is there. */
static __always_inline int never_learned(const u8 *address, u32 of_cluster)
{
	struct prefix_key key = {.bits = 128 + 16};
	u32 *range;

	if (leads_back(address))
		return 1;
	__builtin_memcpy(key.address, address, 16);
	range = never.lookup(&key);
	return range && (*range == NEVER || (*range == CLUSTER && !of_cluster));
}

/* Times first, the peer last: a slot that is half written admits nobody. */
static __always_inline void put_slot(struct slot *slot, u64 peer, u64 expires)
{
	*(volatile u64 *)&slot->peer = 0;
	*(volatile u64 *)&slot->expires = expires;
	*(volatile u64 *)&slot->peer = peer;
}

/* The slot that this peer has already. */
static __always_inline struct slot *slot_of(struct grant *grant, u64 peer)
{
	struct slot *found = NULL;

#pragma unroll
	for (u32 i = 0; i < PEERS; i++)
		found = grant->slots[i].peer == peer ? &grant->slots[i] : found;
	return found;
}

/* The slot that is free, ended or soonest to end. */
static __always_inline void share_grant(struct grant *grant, u32 policy, u64 peer, u64 expires, u64 now)
{
	u64 soonest = ~0ULL;     /* its slot's number in the two lowest bits */

#pragma unroll
	for (u32 i = 0; i < PEERS; i++) {
		struct slot *slot = &grant->slots[i];
		u64 until = ((slot->peer ? slot->expires : 0) & ~3ULL) | i;

		soonest = until < soonest ? until : soonest;
	}
	if (soonest > now)
		count(policy, GRANT_CROWDED);
	put_slot(&grant->slots[soonest & (PEERS - 1)], peer, expires);
}

/* What others need to be told: a new end that is further away by more than a quarter of what is left till then. */
static __always_inline int is_news(u64 before, u64 expires, u64 now)
{
	return before + (expires - now) / 4 < expires;
}

/* NONE, or why the address is not granted; `news` where others ought to know it. A peer that holds the address
 * already needs no new place. */
static __always_inline enum reason grant_address(u32 policy, const u8 *address, u64 peer, u64 expires, u64 now,
						 int *news)
{
	struct grant_key key ALIGNED = {.policy = policy};
	struct grant fresh = {.slots[0] = {.peer = peer, .expires = expires}};
	struct grant *grant;
	struct slot *slot;
	enum reason wrong;

	copy_address(key.address, address);
	grant = grants.lookup(&key);
	slot = grant ? slot_of(grant, peer) : NULL;
	*news = !slot || is_news(slot->expires, expires, now);
	if (slot) {
		if (slot->expires < expires)
			slot->expires = expires;
		return NONE;
	}
	wrong = take_place(policy, peer, address, now);
	if (wrong)
		return wrong;
	if (!grants.insert(&key, &fresh))
		return NONE;
	grant = grants.lookup(&key);
	if (!grant)
		return GRANTS_FULL;
	slot = slot_of(grant, peer);
	if (slot)
		slot->expires = expires;
	else
		share_grant(grant, policy, peer, expires, now);
	return NONE;
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

/* The peers of one row, behind those that are there. */
static __always_inline void add_peers(struct slate *s, const struct peers *row)
{
	if (!row)
		return;
	for (u32 i = 0; i < PEERS; i++) {
		if (!row->id[i])
			break;
		s->wanting[s->wants & (4 * PEERS - 1)] = row->id[i];
		s->wants++;
	}
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

/* Other gateways need each address for each peer, and hold what they miss against nobody's pace. */
static __always_inline int is_shared(const struct subject *who, enum reason reason, int news)
{
	return (who->flags & SHARED) && reason == LEARNED && news;
}

static __always_inline int is_told(const struct subject *who, enum reason reason, u64 now)
{
	return ((reason != LEARNED && reason != SEEN) || (who->flags & (TRACE | NAMES))) && paced(who, now);
}

/* One address for the peer whose turn it is; counted and told once, and for each peer that has no room. */
static __always_inline void learn_address(struct slate *s, struct subject *who, struct record *r, u32 turn,
					  const struct policy *policy, u64 now)
{
	u64 ttl = r->ttl < LONGEST_GRANT ? r->ttl : LONGEST_GRANT;
	u64 seconds = ttl > policy->floor ? ttl : policy->floor;
	u64 lasts = now + (seconds + policy->grace) * 1000000000ULL;
	enum reason reason = SEEN;
	int first = !turn, news = 0;

	who->peer = s->wanting[turn & (4 * PEERS - 1)];
	if (r->mapped || never_learned(r->address, s->cluster)) {
		reason = NEVER_LEARNED;
	} else if (s->wants) {
		reason = grant_address(who->policy, r->address, who->peer, lasts, now, &news);
		reason = reason ? reason : LEARNED;
	}
	if (reason == NAME_FULL && s->tries++ < PROBES)
		return;                                  /* the same again, with the next place */
	s->tries = 0;
	s->learned++;
	first |= reason != LEARNED && reason != NEVER_LEARNED;
	if (first)
		count(who->policy, reason);
	if (is_shared(who, reason, news) || (first && is_told(who, reason, now)))
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
