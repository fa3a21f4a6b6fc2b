/* names.h: which peers of a policy want this name.
 *
 * The table is a longest-prefix trie over reversed names, so that one lookup answers for exact names and
 * wildcards alike: "example.com" is stored as "moc.elpmaxe\0", "*.example.com" as "moc.elpmaxe." (one or
 * more labels below, never the apex), "*" as nothing. A row names every peer that matches, nearest first.
 * Search suffixes ("svc.cluster.local" as "lacol.retsulc.cvs.") lie in a second trie of the same form.
 *
 * The name lies right-aligned in slate->reversed, so its key starts at an offset known only at run time: the
 * key's head is written into the bytes before it. What is left of a name without a suffix is the end of the
 * reversed one, so that its key overwrites nothing but the suffix: shorter and shorter names may be asked for.
 */

enum { REVERSED_END = 256, KEY_HEAD = 6 };

static __always_inline struct name_key *name_key_of(struct slate *s, u32 policy, u32 text_length)
{
	u32 length = bounded(text_length, 255);
	u32 bits = 16 + 8 * (length + 1);
	u8 head[2] = {policy >> 8, policy};
	u8 *key = s->key + bounded(sizeof(s->key) + REVERSED_END - KEY_HEAD - length, 511);

	__builtin_memcpy(key, &bits, 4);
	__builtin_memcpy(key + 4, head, 2);
	return (struct name_key *)key;
}

static __always_inline struct peers *find_name(struct slate *s, u32 policy, u32 length)
{
	return names.lookup(name_key_of(s, policy, length));
}

/* The search suffixes that the name ends in, into s->suffixes. */
static __always_inline void find_suffixes(struct slate *s, u32 policy)
{
	struct suffixes *found = suffixes.lookup(name_key_of(s, policy, s->text_length));

	__builtin_memset(&s->suffixes, 0, sizeof(s->suffixes));
	if (found)
		s->suffixes = *found;
}
