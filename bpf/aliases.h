/* aliases.h: an answer that strips a search suffix from the name it was asked for.
 *
 * A server that walks the search path itself (CoreDNS's autopath) answers the question for
 * "api.example.com.shop.svc.cluster.local" by the alias "api.example.com" and the addresses of that one, which
 * is what the client meant. So the peers that want the stripped name count too.
 *
 * Rules this file obeys:
 *   - Only the first record counts. Its owner is the question's name, its target exactly that name less one of
 *     the workload's search suffixes. Without such a record nothing is stripped.
 *   - The target is written out: nothing stands before it that a pointer to it could lead to.
 *   - What is compared lies in the slate, so that the verifier sees the same state at each turn.
 */

/* Of the first record: a pointer to the question's name, or else that name again. */
static __always_inline u32 owner_length(struct slate *s)
{
	return be16(message_at(s, s->at)) == (POINTER << 8 | HEADER) ? 2 : s->text_length + 2;
}

static __always_inline int begins_with_alias(struct slate *s)
{
	u8 *head = message_at(s, s->at + owner_length(s));

	return be16(head) == TYPE_CNAME && be16(head + 2) == CLASS_IN;
}

static __always_inline u32 lower(u32 c)
{
	return c + (c - 'A' < 26) * 32;
}

/* Whether the next s->end bytes are the first ones of the question's name. */
static __always_inline int repeats_question(struct slate *s, u32 at)
{
	for (u32 i = 0; i < NAME_WIRE; i++) {
		if (i >= s->end)
			return 1;
		if (lower(message_at(s, at + i)[0]) != lower(s->message[HEADER + i]))
			return 0;
	}
	return s->end == NAME_WIRE;
}

/* How long the name is that the alias leaves of the question's; 0 where it strips no search suffix. */
static __always_inline u32 stripped_length(struct slate *s, u32 policy)
{
	u32 owner = owner_length(s), data = s->at + owner + 10;
	u32 length = be16(message_at(s, data - 2)), left = length - 2;

	if (!begins_with_alias(s) || length < 3 || data + length > s->length)
		return 0;
	s->end = owner == 2 ? 0 : owner;
	if (!repeats_question(s, s->at))
		return 0;
	s->end = length - 1;
	if (message_at(s, data + length - 1)[0] || !repeats_question(s, data))
		return 0;
	find_suffixes(s, policy);
	for (u32 i = 0; i < SUFFIXES; i++) {
		u32 cut = s->suffixes.length[i];

		if (cut && left + cut == s->text_length)
			return left;
	}
	return 0;
}
