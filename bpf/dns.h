/* dns.h: the one reader of DNS questions and answers (RFC 1035 4, RFC 6891, RFC 2181).
 *
 * Rules this file obeys:
 *   - A broken message teaches nothing, is counted under ANSWER_UNREADABLE, and is never read out of bounds.
 *     All sections are walked to their end, so that a message is believed whole or not at all. A truncated
 *     (TC) message may end early: what came before its end counts.
 *   - One flat loop over labels and records. Where it stands is kept in the slate, not in registers: the
 *     verifier then sees the same state at each turn. What one stage does not finish, the next goes on with.
 *   - Every name is followed through its pointers, which lead backwards (RFC 1035 4.1.4), and is at most 255
 *     bytes long. The question's own name is not compressed.
 *   - The data of types other than A, AAAA and CNAME is opaque.
 */

enum { HEADER = 12, NAME_WIRE = 255, POINTER = 0xc0 };
enum { TYPE_A = 1, TYPE_CNAME = 5, TYPE_AAAA = 28, TYPE_OPT = 41, TYPE_IXFR = 251, TYPE_AXFR = 252, CLASS_IN = 1 };
enum { READ_NAME, READ_RECORD, READ_TARGET, READ_DONE };

static __always_inline u32 be16(const u8 *bytes)
{
	return bytes[0] << 8 | bytes[1];
}

static __always_inline u32 be32(const u8 *bytes)
{
	return be16(bytes) << 16 | be16(bytes + 2);
}

static __always_inline u8 *message_at(struct slate *s, u32 at)
{
	return s->message + bounded(at, MESSAGE - 1);  /* the margin behind it takes what reads on from there */
}

/* FNV-1a; nothing hangs on its strength: it only tells apart the open questions of one socket. */
static __always_inline void mix(struct slate *s, u32 byte)
{
	s->hash = (s->hash ^ byte) * 0x100000001b3ULL;
}

static __always_inline int load_message(struct __sk_buff *skb, struct slate *s, u32 offset)
{
	u32 length;

	offset += L2;
	length = skb->len - offset;
	s->wrong = NONE;
	s->partial = length > MESSAGE;
	if (skb->len <= offset + HEADER)
		return -1;
	if (length > MESSAGE) {
		s->wrong = ANSWER_LONG;
		length = MESSAGE;
	}
	s->length = length;
	length = ((length - 1) & (MESSAGE - 1)) + 1;
	return bpf_skb_load_bytes(skb, offset, s->message, length);
}

/* Letters, digits, '-' and '_'; `c` is lower case already. */
static __always_inline int is_ordinary(u32 c)
{
	return c - 'a' < 26 || c - '0' < 10 || c == '-' || c == '_';
}

/* The question's name into s->reversed, s->told.name and s->hash. Returns 0 where it is no name, or the
 * root's: nobody asks for its address. */
static __always_inline int read_question_name(struct slate *s)
{
	s->odd = 0;
	s->hash = 0xcbf29ce484222325ULL;
	s->label = s->message[HEADER];
	if (s->label == 0 || s->label >= 64)
		return 0;
	mix(s, s->label);
	for (u32 i = 1; i < NAME_WIRE; i++) {
		u32 c = s->message[HEADER + i];

		if (HEADER + i >= s->length)
			return 0;
		if (s->label) {
			s->label--;
			c += (c - 'A' < 26) * 32;
			s->odd |= !is_ordinary(c);
			mix(s, c);
		} else {
			if (c >= 64)
				return 0;
			mix(s, c);
			if (c == 0) {
				s->text_length = i - 1;
				s->at = HEADER + i + 1;
				s->told.name[i - 1] = 0;
				return 1;
			}
			s->label = c;
			c = '.';
		}
		s->reversed[REVERSED_END - i] = c;
		s->told.name[i - 1] = c;
	}
	return 0;
}

/* One question; the hash covers name, type and class. */
static __always_inline int read_question(struct slate *s)
{
	u8 *tail;

	if (be16(s->message + 4) != 1 || !read_question_name(s) || s->at + 4 > s->length)
		return 0;
	tail = message_at(s, s->at);
	mix(s, tail[0]);
	mix(s, tail[1]);
	mix(s, tail[2]);
	mix(s, tail[3]);
	s->at += 4;
	return 1;
}

/* IXFR and AXFR ask for a zone, not for a name's records (RFC 1995, RFC 5936). */
static __always_inline int is_transfer(struct slate *s)
{
	u32 type = be16(message_at(s, s->at - 4));

	return type == TYPE_IXFR || type == TYPE_AXFR;
}

static __always_inline void next_record(struct slate *s)
{
	s->left--;
	if (s->answers)
		s->answers--;
	s->labels = 0;
	s->resume = 0;
	s->state = s->left ? READ_NAME : READ_DONE;
}

static __always_inline void unreadable(struct slate *s)
{
	s->wrong = ANSWER_UNREADABLE;
	s->state = READ_DONE;
}

/* The message ended in the midst of a record. */
static __always_inline void cut(struct slate *s)
{
	if (!s->truncated && !s->partial)
		s->wrong = ANSWER_UNREADABLE;
	s->state = READ_DONE;
}

/* A label's bytes, up to sixteen at a turn. One above 127 is refused: no host name has it, and readers of
 * DNS differ about it. The arithmetic has no branches, which the verifier would follow one by one. */
static __always_inline void read_bytes(struct slate *s)
{
	u32 length = s->label;
	const u8 *here = message_at(s, s->at);
	u64 first, second, excess;

	__builtin_memcpy(&first, here, 8);
	__builtin_memcpy(&second, here + 8, 8);
	length = length > 16 ? 16 : length;
	s->at += length;
	s->label -= length;
	excess = length > 8 ? 16 - length : 8;   /* bytes of the second word that lie behind the label */
	second = second << excess * 4 << excess * 4;
	excess = length > 8 ? 0 : 8 - length;
	first = first << excess * 4 << excess * 4;
	if ((first | second) & 0x8080808080808080ULL)
		unreadable(s);
}

static __always_inline void end_name(struct slate *s)
{
	s->at = s->resume ? s->resume : s->at;
	if (s->state == READ_TARGET) {
		if (s->at == s->end)
			next_record(s);
		else
			unreadable(s);
	} else {
		s->state = READ_RECORD;
	}
}

static __always_inline void read_label(struct slate *s)
{
	u32 at = s->at;
	u8 *here = message_at(s, at);
	u32 length = here[0];

	if (s->label) {
		read_bytes(s);
	} else if (at >= s->length) {
		cut(s);
	} else if (length == 0) {
		s->at = at + 1;
		end_name(s);
	} else if (length < 64) {
		s->labels += length + 1;
		s->at = at + 1;
		s->label = length;
		if (at + 1 + length > s->length)
			cut(s);
		else if (s->labels >= NAME_WIRE)
			unreadable(s);
	} else if (length < POINTER) {
		unreadable(s);
	} else if (at + 2 > s->length) {
		cut(s);
	} else {
		u32 target = be16(here) & 0x3fff;

		if (!s->resume)
			s->resume = at + 2;
		s->at = target;
		if (target >= at || target < HEADER)
			unreadable(s);
		else if (target == HEADER && s->labels + s->text_length + 2 > NAME_WIRE)
			unreadable(s);
		else if (target == HEADER)       /* the question's name, read already */
			end_name(s);
	}
}

static __always_inline void keep_address(struct slate *s, const u8 *data, u32 ttl, int ipv4)
{
	struct record *r = &s->records[s->addresses & (RECORDS - 1)];
	u32 address;

	if (s->addresses >= RECORDS) {           /* told at the end: till then the message may prove broken */
		s->addresses = RECORDS + 1;
		return;
	}
	if (ipv4) {
		__builtin_memcpy(&address, data, 4);
		map_ipv4(r->address, address);
	} else {
		copy_address(r->address, data);
	}
	r->mapped = !ipv4 && is_ipv4(r->address);
	r->ttl = ttl >> 31 ? 0 : ttl;            /* RFC 2181 8 */
	s->addresses++;
}

static __always_inline void read_record(struct slate *s)
{
	u8 *head = message_at(s, s->at);
	u32 type, length;

	if (s->at + 10 > s->length) {
		cut(s);
		return;
	}
	type = be16(head);
	length = be16(head + 8);
	s->at += 10;
	s->end = s->at + length;
	if (s->end > s->length) {
		cut(s);
		return;
	}
	if ((type == TYPE_A && length != 4) || (type == TYPE_AAAA && length != 16) ||
	    (length == 0 && type != TYPE_OPT)) {
		unreadable(s);
		return;
	}
	if (type == TYPE_CNAME) {
		s->cluster = 0;                  /* an alias may lead out of the cluster */
		s->state = READ_TARGET;
		s->labels = 0;
		s->resume = 0;
		return;
	}
	if (s->answers && (type == TYPE_A || type == TYPE_AAAA) && be16(head + 2) == CLASS_IN)
		keep_address(s, head + 10, be32(head + 4), type == TYPE_A);
	s->at = s->end;
	next_record(s);
}

/* Sets the slate behind the question; returns 0 where there is nothing to learn. */
static __always_inline int begin_records(struct slate *s)
{
	u32 answers = be16(s->message + 6);

	s->left = answers + be16(s->message + 8) + be16(s->message + 10);
	s->answers = answers;
	s->addresses = 0;
	s->learned = 0;
	s->tries = 0;
	s->labels = 0;
	s->label = 0;
	s->resume = 0;
	s->truncated = s->message[2] & 0x02;
	s->state = READ_NAME;
	return answers && (s->message[3] & 0x0f) == 0;
}

static __always_inline void read_records(struct slate *s)
{
	for (u32 i = 0; i < STEPS; i++) {
		if (s->state == READ_DONE)
			break;
		if (s->state == READ_RECORD)
			read_record(s);
		else
			read_label(s);
	}
	if (s->state == READ_DONE && s->addresses > RECORDS) {
		s->addresses = RECORDS;
		s->wrong = s->wrong ? s->wrong : ANSWER_LONG;
	}
}
