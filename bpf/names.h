/* names.h: which peers of a policy want this name.
 *
 * The table is a longest-prefix trie over reversed names, so that one lookup answers for exact names and
 * wildcards alike: "example.com" is stored as "moc.elpmaxe\0", "*.example.com" as "moc.elpmaxe." (one or
 * more labels below, never the apex), "*" as nothing. A row names every peer that matches, nearest first.
 *
 * The name lies right-aligned in slate->reversed, so its key starts at an offset known only at run time:
 * the key's head is written into the bytes before it.
 */

enum { REVERSED_END = 256, KEY_HEAD = 6 };

static __always_inline struct peers *find_name(struct slate *s, u32 policy)
{
	u32 length = bounded(s->text_length, 255);
	u32 bits = 16 + 8 * (length + 1);
	u8 head[2] = {policy >> 8, policy};
	u8 *key = s->key + bounded(sizeof(s->key) + REVERSED_END - KEY_HEAD - length, 511);

	__builtin_memcpy(key, &bits, 4);
	__builtin_memcpy(key + 4, head, 2);
	return names.lookup((struct name_key *)key);
}
