/* questions.h: the stages that read a question which goes out: in the cgroup's hooks, on a link, at a gateway.
 *
 * Rules this file obeys: those of stages.h, and
 *   - A question that its link will read is refused there and not by the cgroup's hooks: a socket would be told
 *     EPERM, where the link can answer. It is kept, so that this answer belongs to something.
 */

static __always_inline void stage(struct __sk_buff *skb, u32 next, u32 hook, u32 offset, u64 workload)
{
	skb->cb[CB_HOOK] = hook;
	skb->cb[CB_OFFSET] = offset;
	skb->cb[CB_WORKLOAD] = workload;
	skb->cb[CB_WORKLOAD_HIGH] = workload >> 32;
	stages.call(skb, next);
}

#ifdef LINK
static __always_inline int find_asker(struct __sk_buff *skb, struct subject *who)
{
	return find_workload(skb, who);
}

static __always_inline int read_on_link(struct __sk_buff *skb, const struct subject *who)
{
	return 0;
}

#else
/* Whose question it is: the proxy says it, since a message that it hands in is no packet of the workload's. */
static __always_inline int find_asker(struct __sk_buff *skb, struct subject *who)
{
	struct workload *found;
	u64 id;

	if (skb->cb[CB_HOOK] != HOOK_PROXY)
		return find_workload(skb, who);
	id = workload_of(skb);
	found = workloads.lookup(&id);
	return found && fill_subject(who, id, found);
}

static __always_inline int read_on_link(struct __sk_buff *skb, const struct subject *who)
{
	return (who->flags & LINKED) && skb->ifindex != LOOPBACK_IFINDEX;
}

static __always_inline int refuse_question(struct __sk_buff *skb, const struct slate *s, const struct packet *p)
{
	return STOP;
}

#endif

/* A question that goes out is kept, so that its answer is believed. */
static __always_inline void keep_asked(struct slate *s, const struct subject *who, u64 socket,
				       const struct tuple *client)
{
	struct question value = {.workload = who->workload, .socket = socket, .policy = who->policy};
	struct question_key key ALIGNED = {};

	value.time = bpf_ktime_get_boot_ns();
	question_key_of(&key, s, socket, client);
	if (keep_question(who->workload, &key, &value))
		count(who->policy, QUESTIONS_FULL);
}

#ifdef GATEWAY
static __always_inline int let_ask(struct __sk_buff *skb, struct slate *s, const struct subject *who,
				   const struct tuple *client)
{
	keep_asked(s, who, 0, client);
	return release_slate(skb);
}
#elif defined LINK
/* The socket that asks has kept it; what comes from no socket is not answered to one. */
static __always_inline int let_ask(struct __sk_buff *skb, struct slate *s, const struct subject *who,
				   const struct tuple *client)
{
	return release_slate(skb);
}
#else
/* At home only; what comes by the proxy is kept there, with its connection. */
static __always_inline int let_ask(struct __sk_buff *skb, struct slate *s, const struct subject *who,
				   const struct tuple *client)
{
	if (skb->cb[CB_HOOK] != HOOK_PROXY && at_home(who, storage_of(skb->sk)))
		keep_asked(s, who, bpf_get_socket_cookie(skb),
			   skb->ifindex == LOOPBACK_IFINDEX ? client : NULL);
	return release_slate(skb);
}
#endif

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
		    read_question(s) && !is_transfer(s)) {
			s->length = s->text_length;
			s->suffix = 0;
			stages.call(skb, STAGE_ASK);
		}
	}
	release_slate(skb);
	if (!find_asker(skb, &who) || read_packet(skb, &p, 1))
		return STOP;                     /* neither can be: who comes before has seen both */
	who.hook = HOOK_OUT;
	if (who.flags & ONLY_ALLOWED_NAMES)
		return conclude(skb, &who, &p.tuple, storage_of(skb->sk), wrong) ? LET : STOP;
	count(who.policy, wrong);
	return LET;
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
	who->hook = HOOK_OUT;
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
 * be asked for: is this one, or what is left of it without a search suffix? One name in each turn. The packet is
 * read last: the verifier would follow each way to do so through all of the names. */
int ask(struct __sk_buff *skb)
{
	struct slate *s = slate_of(skb);
	struct subject who = {};
	struct packet p ALIGNED = {};
	int refused = 0;

	if (!s || !find_asker(skb, &who)) {
		release_slate(skb);
		return STOP;
	}
	if (who.flags & ONLY_ALLOWED_NAMES && !who.shadow && !read_on_link(skb, &who)) {
		if (!s->suffix)
			find_suffixes(s, who.policy);
		refused = !is_wanted(s, &who);
	}
	if (refused) {
		u32 cut = s->suffixes.length[s->suffix & (SUFFIXES - 1)];

		if (s->suffix++ < SUFFIXES && cut && cut < s->text_length) {
			s->length = s->text_length - cut;
			stages.call(skb, STAGE_ASK);
		}
	}
	if (read_packet(skb, &p, 1)) {
		release_slate(skb);
		return STOP;
	}
	if (refused)
		tell_question(skb, s, &who, &p.tuple);
	if (refused && !(who.flags & AUDIT)) {
		release_slate(skb);
		return refuse_question(skb, s, &p);
	}
	return let_ask(skb, s, &who, &p.tuple);
}
