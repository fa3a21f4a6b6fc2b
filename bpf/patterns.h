/* patterns.h: which regular expressions of a policy match this name.
 *
 * All expressions of a policy are one automaton (a minimal DFA, gateway/policies/patterns.py) in a map of its own that
 * the policy's number leads to; policies with equal expressions lead to the same one, and a change swaps it in
 * one write. It is walked over the lower-case name, character by character, from state 1; state 0 is dead. The
 * state in which the name ends says which peers want it.
 */

/* Only for names whose characters are all ordinary; anything else is 39 or more, and no state follows. */
static __always_inline u32 symbol_of(u32 c)
{
	u32 symbol = c - 'a';

	symbol = c - '0' < 10 ? c - '0' + 26 : symbol;
	symbol = c == '-' ? 36 : symbol;
	symbol = c == '_' ? 37 : symbol;
	return c == '.' ? 38 : symbol;
}

/* The state in which the first `length` characters of the name end; NULL where nothing matches them. */
static __always_inline struct state *walk(struct slate *s, u32 policy, u32 length)
{
	void *automaton = patterns.lookup(&policy);
	struct state *here = NULL;
	u32 number = 1;

	if (!automaton)
		return NULL;
	for (u32 i = 0; i < NAME_WIRE; i++) {
		u32 symbol;

		here = bpf_map_lookup_elem_((u64)automaton, &number);
		if (!here || i >= length)
			break;
		symbol = symbol_of(s->told.name[i]);
		if (symbol >= SYMBOLS)
			return NULL;
		number = here->next[symbol];
		if (!number)
			return NULL;
	}
	return here;
}
