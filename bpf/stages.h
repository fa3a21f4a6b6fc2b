/* stages.h: the programs that read a DNS message, one after the other by tail calls (enum stage).
 *
 *   egress   -> question -> ask                     what may be asked, and is kept (questions.h)
 *   ingress  -> answer [-> pattern] [-> alias] -> records -> grant
 *   resolver, gateway_egress -> answer ...          of a server on this host
 *   inquire  -> question ..., teach [-> pattern] ...   of what came over TCP (proxy.h)
 *
 * Rules this file obeys:
 *   - Stages hand on a slate (learn.h); whichever does not call the next one releases it.
 *   - Where no stage is left to call, what was not read teaches nothing, and is no allowed question.
 */

/* The tuple as the client of a resolver on this host had it when it asked. */
static __always_inline void turn(struct tuple *to, const struct tuple *from)
{
	copy_address(to->local, from->remote);
	copy_address(to->remote, from->local);
	set_service(to, *(const u32 *)from->local_port, from->protocol, 0);
}

/* Somebody wants what the records say, or they are told all the same. */
static __always_inline int read_on(struct __sk_buff *skb, struct slate *s, const struct subject *who)
{
	if (s->wants || who->flags & (TRACE | NAMES))
		stages.call(skb, STAGE_RECORDS);
	return release_slate(skb);
}

/* What an answer to a question that was asked has to say. */
static __always_inline int begin_answer(struct __sk_buff *skb, struct slate *s, const struct subject *who)
{
	s->wants = 0;
	s->cluster = 0;
	if (!begin_records(s))
		return release_slate(skb);
	if (!s->odd) {
		s->cluster = domains.lookup(name_key_of(s, 0, s->text_length)) != NULL;
		add_peers(s, find_name(s, who->policy, s->text_length));
		if (who->flags & PATTERNS)
			stages.call(skb, STAGE_PATTERNS);
		if (begins_with_alias(s))
			stages.call(skb, STAGE_ALIAS);
	}
	return read_on(skb, s, who);
}

/* Of a server on this host: a gateway's is everybody's, and gateway_egress has seen that it is that one. */
static __always_inline int is_believed(const struct subject *who, const struct tuple *client)
{
#ifdef GATEWAY
	return 1;
#endif
	return is_resolver(who->policy, who->flags, client->remote, client->remote_port);
}

int answer(struct __sk_buff *skb)
{
	struct subject who = {};
	struct packet p ALIGNED = {};
	struct tuple client ALIGNED = {};
	struct slate *s = claim_slate(skb);
	int outbound = skb->cb[CB_HOOK] == HOOK_RESOLVER;
	enum reason wrong = ANSWER_UNREADABLE;

	if (!outbound)
		find_workload(skb, &who);
	if (!s) {
		count(who.policy, ANSWER_BUSY);
		return LET;
	}
	if (read_packet(skb, &p, outbound))
		return release_slate(skb);
	if (outbound)
		turn(&client, &p.tuple);
	if (!load_message(skb, s, skb->cb[CB_OFFSET]) && (s->message[2] & 0xf8) == 0x80 && read_question(s))
		wrong = take_question(s, bpf_get_socket_cookie(skb), outbound ? &client : NULL);
	if (!wrong && (!asker(s, &who) || (outbound && !is_believed(&who, &client))))
		wrong = ANSWER_UNASKED;
	if (wrong) {
		count(who.policy, wrong);
		return release_slate(skb);
	}
	return begin_answer(skb, s, &who);
}

int pattern(struct __sk_buff *skb)
{
	struct slate *s = slate_of(skb);
	struct subject who = {};
	struct state *end;

	if (!s || !asker(s, &who))
		return release_slate(skb);
	end = walk(s, who.policy, s->text_length);
	if (end)
		add_peers(s, (struct peers *)end->peers);
	if (begins_with_alias(s))
		stages.call(skb, STAGE_ALIAS);
	return read_on(skb, s, &who);
}

/* The peers of the name that a search suffix was stripped from. */
int alias(struct __sk_buff *skb)
{
	struct slate *s = slate_of(skb);
	struct subject who = {};
	struct state *end = NULL;
	u32 left;

	if (!s || !asker(s, &who))
		return release_slate(skb);
	left = stripped_length(s, who.policy);
	if (left) {
		add_peers(s, find_name(s, who.policy, left));
		if (who.flags & PATTERNS)
			end = walk(s, who.policy, left);
		if (end)
			add_peers(s, (struct peers *)end->peers);
	}
	return read_on(skb, s, &who);
}

int records(struct __sk_buff *skb)
{
	struct slate *s = slate_of(skb);
	struct subject who = {};

	if (!s || !asker(s, &who))
		return release_slate(skb);
	read_records(s);
	if (s->state != READ_DONE)
		stages.call(skb, STAGE_RECORDS);
	if (s->state != READ_DONE || s->wrong == ANSWER_UNREADABLE) {
		count(who.policy, ANSWER_UNREADABLE);
		return release_slate(skb);
	}
	if (s->truncated)
		count(who.policy, ANSWER_TRUNCATED);
	if (s->wrong)
		count(who.policy, s->wrong);
	stages.call(skb, STAGE_GRANTS);
	count(who.policy, ANSWER_LONG);          /* no stage was left */
	return release_slate(skb);
}

int grant(struct __sk_buff *skb)
{
	struct slate *s = slate_of(skb);
	struct subject who = {};
	u64 now = bpf_ktime_get_boot_ns();
	struct policy *policy = s ? asker(s, &who) : NULL;

	if (!s || !policy)
		return release_slate(skb);
	for (u32 i = 0; i < GRANTS_AT_ONCE; i++) {
		u32 peers = s->wants ? s->wants : 1;
		u32 index = s->learned / peers;

		if (index >= s->addresses)
			return release_slate(skb);
		learn_address(s, &who, &s->records[index & (RECORDS - 1)], s->learned % peers, policy, now);
	}
	stages.call(skb, STAGE_GRANTS);
	count(who.policy, ANSWER_LONG);
	return release_slate(skb);
}
