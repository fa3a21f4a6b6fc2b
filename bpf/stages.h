/* stages.h: the programs that read a DNS message, one after the other by tail calls (enum stage).
 *
 *   egress   -> question -> ask                     what may be asked, and is kept
 *   ingress  -> answer [-> pattern] [-> alias] -> records -> grant
 *   resolver -> answer ...                          of a server on this host
 *
 * Rules this file obeys:
 *   - Stages hand on a slate (learn.h); whichever does not call the next one releases it.
 *   - Where no stage is left to call, what was not read teaches nothing, and is no allowed question.
 */

/* A question that goes out is kept, so that its answer is believed; at home only. */
static __always_inline int let_ask(struct __sk_buff *skb, struct slate *s, const struct subject *who,
				   const struct tuple *client)
{
	struct question value = {.workload = who->workload, .socket = bpf_get_socket_cookie(skb)};
	struct question_key key ALIGNED = {};

	value.time = bpf_ktime_get_boot_ns();
	value.policy = who->policy;
	question_key_of(&key, s, value.socket, skb->ifindex == LOOPBACK_IFINDEX ? client : NULL);
	if (at_home(who, storage_of(skb->sk)) && keep_question(who->workload, &key, &value))
		count(who->policy, QUESTIONS_FULL);
	return release_slate(skb);
}

int question(struct __sk_buff *skb)
{
	struct subject who = {};
	struct packet p ALIGNED = {};
	struct slate *s = claim_slate(skb);
	enum reason wrong = ANSWER_BUSY;

	if (s) {
		wrong = QUESTION_UNREADABLE;
		/* One buffer that the kernel cuts into many datagrams later has more questions than the first. */
		if (!skb->gso_size && !load_message(skb, s, skb->cb[CB_OFFSET]) && !(s->message[2] & 0xf8) &&
		    read_question(s)) {
			s->length = s->text_length;
			s->suffix = 0;
			stages.call(skb, STAGE_ASK);
		}
	}
	release_slate(skb);
	if (!find_workload(skb, &who) || read_packet(skb, &p, 1))
		return DROP;                     /* neither can be: egress has seen both */
	who.hook = HOOK_EGRESS;
	if (who.flags & ONLY_ALLOWED_NAMES)
		return conclude(skb, &who, &p.tuple, storage_of(skb->sk), wrong);
	count(who.policy, wrong);
	return PASS;
}

/* Counts and tells, by its name, a question that is not to be asked. */
static __always_inline void tell_question(struct __sk_buff *skb, struct slate *s, struct subject *who,
					  const struct tuple *t)
{
	u64 now = bpf_ktime_get_boot_ns();

	count(who->policy, QUESTION_REFUSED);
	if (!paced(who, now))
		return;
	who->socket = bpf_get_socket_cookie(skb);
	who->hook = HOOK_EGRESS;
	fill_event(&s->told.event, who, t, QUESTION_REFUSED, now);
	tell_process(&s->told.event, storage_of(skb->sk));
	send_event(who, &s->told, sizeof(s->told));
}

/* Whether a peer wants the name that is left. */
static __always_inline int is_wanted(struct slate *s, const struct subject *who)
{
	struct state *end;

	if (s->odd)
		return 0;
	if (find_name(s, who->policy, s->length))
		return 1;
	end = who->flags & PATTERNS ? walk(s, who->policy, s->length) : NULL;
	return end && end->peers[0];
}

/* A question that was read goes out and is kept, so that its answer is believed. Where only allowed names may
 * be asked for: is this one, or what is left of it without a search suffix? One name in each turn. */
int ask(struct __sk_buff *skb)
{
	struct slate *s = slate_of(skb);
	struct subject who = {};
	struct packet p ALIGNED = {};

	if (!s || !find_workload(skb, &who) || read_packet(skb, &p, 1)) {
		release_slate(skb);
		return DROP;
	}
	if (who.flags & ONLY_ALLOWED_NAMES && !who.shadow) {
		if (!s->suffix)
			find_suffixes(s, who.policy);
		if (!is_wanted(s, &who)) {
			u32 cut = s->suffixes.length[s->suffix & (SUFFIXES - 1)];

			if (s->suffix++ < SUFFIXES && cut && cut < s->text_length) {
				s->length = s->text_length - cut;
				stages.call(skb, STAGE_ASK);
			}
			tell_question(skb, s, &who, &p.tuple);
			if (!(who.flags & AUDIT)) {
				release_slate(skb);
				return DROP;
			}
		}
	}
	return let_ask(skb, s, &who, &p.tuple);
}

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
		return PASS;
	}
	if (read_packet(skb, &p, outbound))
		return release_slate(skb);
	if (outbound)
		turn(&client, &p.tuple);
	if (!load_message(skb, s, skb->cb[CB_OFFSET]) && (s->message[2] & 0xf8) == 0x80 && read_question(s))
		wrong = take_question(s, bpf_get_socket_cookie(skb), outbound ? &client : NULL);
	if (!wrong && (!asker(s, &who) || (outbound && !is_resolver(who.policy, client.remote, client.remote_port))))
		wrong = ANSWER_UNASKED;
	if (wrong) {
		count(who.policy, wrong);
		return release_slate(skb);
	}
	s->wants = 0;
	s->cluster = 0;
	if (!begin_records(s))
		return release_slate(skb);
	if (!s->odd) {
		s->cluster = domains.lookup(name_key_of(s, 0, s->text_length)) != NULL;
		add_peers(s, find_name(s, who.policy, s->text_length));
		if (who.flags & PATTERNS)
			stages.call(skb, STAGE_PATTERNS);
		if (begins_with_alias(s))
			stages.call(skb, STAGE_ALIAS);
	}
	return read_on(skb, s, &who);
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
