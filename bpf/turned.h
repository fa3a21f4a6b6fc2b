/* turned.h: answers that a link gives by itself, made of the very frame that it refuses.
 *
 * Rules this file obeys:
 *   - Both ends are swapped, which no checksum notices, and the frame leaves by the interface by which it came.
 *   - What else changes keeps its place and its length, so that the kernel mends checksums however far they
 *     were made already (bpf_l4_csum_replace(); bpf-helpers(7)).
 * Sources: RFC 1035 4.1.1, RFC 8020 (NXDOMAIN); RFC 9293 3.5.2 (resets).
 */

/* BPF_F_RECOMPUTE_CSUM, BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR */
enum { MEND_COMPLETE = 1, ZERO_IS_NONE = 1 << 5, PSEUDO_HEADER = 1 << 4 };
enum { RESPONSE = 0x8000, RECURSION_AVAILABLE = 0x80, CODES = 0x2f, NAME_ERROR = 3 };

static __always_inline int put(struct __sk_buff *skb, u32 offset, const void *from, const u32 size)
{
	return bpf_skb_store_bytes(skb, L2 + offset, from, size, MEND_COMPLETE);
}

static __always_inline int turn_back(struct __sk_buff *skb, const struct packet *p)
{
	u8 macs[12], swapped[12];
	u16 ports[2] = {*(const u16 *)p->tuple.remote_port, *(const u16 *)p->tuple.local_port};
	int wrong;

	if (bpf_skb_load_bytes(skb, 0, macs, sizeof(macs)))
		return STOP;
	__builtin_memcpy(swapped, macs + 6, 6);
	__builtin_memcpy(swapped + 6, macs, 6);
	wrong = bpf_skb_store_bytes(skb, 0, swapped, sizeof(swapped), 0);
	if (is_ipv4(p->tuple.local)) {
		wrong |= put(skb, 12, p->tuple.remote + 12, 4);
		wrong |= put(skb, 16, p->tuple.local + 12, 4);
	} else {
		wrong |= put(skb, 8, p->tuple.remote, 16);
		wrong |= put(skb, 24, p->tuple.local, 16);
	}
	wrong |= put(skb, p->transport, ports, sizeof(ports));
	return wrong ? STOP : bpf_redirect(skb->ifindex, 0);
}

/* The question comes back as it was, with the word that there is no such name. */
static __always_inline int refuse_question(struct __sk_buff *skb, const struct slate *s, const struct packet *p)
{
	u32 at = p->transport + 8 + 2;
	u16 asked = *(const u16 *)(s->message + 2);
	u16 said = bpf_htons((bpf_ntohs(asked) & ~CODES) | RESPONSE | RECURSION_AVAILABLE | NAME_ERROR);

	if (bpf_l4_csum_replace(skb, L2 + p->transport + 6, asked, said, ZERO_IS_NONE | sizeof(said)) ||
	    put(skb, at, &said, sizeof(said)))
		return STOP;
	return turn_back(skb, p);
}

/* Of many segments in one buffer only the headers are left. There the checksum is the pseudo header's, whose length
 * counts, until the buffer is cut (Documentation/networking/segmentation-offloads.rst). */
static __always_inline int shorten(struct __sk_buff *skb, const struct packet *p)
{
	u32 before = bpf_htonl(skb->len - L2 - p->transport), after, at = p->transport;
	u16 was, said;
	u8 words;
	int wrong;

	if (load(skb, at + 12, &words, 1))
		return -1;
	after = (words >> 4) * 4;
	if (is_ipv4(p->tuple.local)) {
		said = bpf_htons(at + after);
		wrong = load(skb, 2, &was, sizeof(was)) || put(skb, 2, &said, sizeof(said)) ||
			bpf_l3_csum_replace(skb, L2 + 10, was, said, sizeof(said));
	} else {
		said = bpf_htons(at + after - 40);
		wrong = put(skb, 4, &said, sizeof(said));
	}
	return wrong ||
	       bpf_l4_csum_replace(skb, L2 + at + 16, before, bpf_htonl(after), PSEUDO_HEADER | sizeof(u32)) ||
	       bpf_skb_change_tail(skb, L2 + at + after, 0);
}

/* A segment comes back as the reset that a host without a listener would send. */
static __always_inline int reset(struct __sk_buff *skb, const struct packet *p)
{
	u32 at = p->transport, sum = L2 + p->transport + 16, words[2], made[2] = {};
	u16 flags, said;
	int acks = p->tcp_flags & TCP_ACK;

	if (p->piece || (p->tcp_flags & TCP_RST) || (!acks && !(p->tcp_flags & TCP_SYN)))
		return STOP;
	if (skb->gso_size && shorten(skb, p))
		return STOP;
	if (load(skb, at + 4, words, sizeof(words)) || load(skb, at + 12, &flags, sizeof(flags)))
		return STOP;
	made[0] = acks ? words[1] : 0;
	made[1] = acks ? 0 : bpf_htonl(bpf_ntohl(words[0]) + 1);
	said = bpf_htons((bpf_ntohs(flags) & 0xf000) | TCP_RST | (acks ? 0 : TCP_ACK));
	if (bpf_l4_csum_replace(skb, sum, words[0], made[0], sizeof(u32)) ||
	    bpf_l4_csum_replace(skb, sum, words[1], made[1], sizeof(u32)) ||
	    bpf_l4_csum_replace(skb, sum, flags, said, sizeof(u16)) || put(skb, at + 4, made, sizeof(made)) ||
	    put(skb, at + 12, &said, sizeof(said)))
		return STOP;
	return turn_back(skb, p);
}

/* An answer that the reader can't take whole is cut short, in its header: the client comes again over TCP. */
static __always_inline int defer_answer(struct __sk_buff *skb, const struct packet *p)
{
	u32 at = p->transport + 8;
	u16 header[4], said;

	if (skb->gso_size || load(skb, at, header, sizeof(header)) || !(header[1] & bpf_htons(RESPONSE)))
		return 0;
	if (!(p->piece & MORE) && p->end - at <= MESSAGE && bpf_ntohs(header[3]) <= RECORDS)
		return 0;
	said = header[1] | bpf_htons(0x0200);
	if (said == header[1])
		return 0;
	return !bpf_l4_csum_replace(skb, L2 + p->transport + 6, header[1], said, ZERO_IS_NONE | sizeof(said)) &&
	       !put(skb, at + 2, &said, sizeof(said));
}
