/* frames.h: what a link asks of a frame beside its packet: whose it is.
 *
 * Rules this file obeys:
 *   - A frame without a tag, of IP or ARP, from the MAC at the other end and with a source that is its own: else
 *     it is dropped by name. Whoever speaks for an address (ARP, RFC 4861 4.4) speaks for its own only.
 * Sources: RFC 826 and RFC 5227 (ARP), RFC 4861 (neighbours), RFC 4862 5.4 (duplicate addresses).
 */

enum { ARP = 0x0806, ARP_LENGTH = 28, SHORTEST_FRAME = 60 };

struct arp {
	u8 head[8];               /* types, lengths, operation */
	u8 mac[6];
	u8 address[4];            /* of the sender, at an odd place: bytes */
	u8 target[10];
};

static __always_inline int has_its_mac(struct __sk_buff *skb, const u8 *mac)
{
	u8 *head = (void *)(long)skb->data;

	if ((void *)(long)skb->data_end < (void *)head + L2)
		return 0;
	return *(u32 *)(head + 6) == *(const u32 *)mac && *(u16 *)(head + 10) == *(const u16 *)(mac + 4);
}

/* Whether the kernel has yet to write a checksum into this frame. Whoever makes frames says where (packet(7),
 * PACKET_VNET_HDR; AF_XDP): that may be an address, a port or a name that was judged already. The only sign of it:
 * a change of what is summed is then none of the sum (inet_proto_csum_replace4()). */
static __always_inline int is_unfinished(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	u16 before = 0, after = 0;

	if (!sk || sk->family == 2 || sk->family == 10)
		return 0;
	if (bpf_skb_load_bytes(skb, 12, &before, 2) || bpf_l4_csum_replace(skb, 12, 0, 1, 2) ||
	    bpf_skb_load_bytes(skb, 12, &after, 2) || bpf_skb_store_bytes(skb, 12, &before, 2, 0))
		return 1;
	return before == after;
}

/* The address that a kernel makes of its MAC for the link alone (RFC 4291, appendix A). */
static __always_inline int is_made_of_mac(struct __sk_buff *skb, const u8 *address)
{
	u8 mac[6];

	if (bpf_skb_load_bytes(skb, 6, mac, sizeof(mac)))
		return 0;
	return word(address, 0) == bpf_htonl(0xfe800000) && !word(address, 1) &&
	       word(address, 2) == bpf_htonl((u32)(mac[0] ^ 2) << 24 | mac[1] << 16 | mac[2] << 8 | 0xff) &&
	       word(address, 3) == bpf_htonl(0xfeU << 24 | mac[3] << 16 | mac[4] << 8 | mac[5]);
}

/* A request or an answer, of its own MAC and address; a probe has none yet. */
static __always_inline enum reason read_arp(struct __sk_buff *skb, const struct subject *who, const u8 *mac)
{
	struct arp arp ALIGNED = {};
	u8 sender[16] ALIGNED;
	u32 address;

	if (skb->len > SHORTEST_FRAME || load(skb, 0, &arp, ARP_LENGTH))
		return UNREADABLE;
	if (*(u32 *)arp.head != bpf_htonl(1 << 16 | IPV4) ||
	    (*(u32 *)(arp.head + 4) != bpf_htonl(6 << 24 | 4 << 16 | 1) &&
	     *(u32 *)(arp.head + 4) != bpf_htonl(6 << 24 | 4 << 16 | 2)))
		return UNREADABLE;
	__builtin_memcpy(&address, arp.address, 4);
	map_ipv4(sender, address);
	if (*(u32 *)arp.mac != *(const u32 *)mac || *(u16 *)(arp.mac + 4) != *(const u16 *)(mac + 4))
		return SPOOFED;
	return is_own(who, sender) || (!address && arp.head[7] == 1) ? NEIGHBOUR : SPOOFED;
}

/* Of RFC 4861 only what a host says: no routes. Of an advertisement its target counts. */
static __always_inline int is_neighbour(struct __sk_buff *skb, const struct subject *who, const struct packet *p)
{
	u8 target[16] ALIGNED;

	if (is_membership_report(p))
		return 1;
	if (!is_neighbour_discovery(p) || p->icmp_type == 134 || p->icmp_type == 137)
		return 0;
	if (p->icmp_type != 136 && !is_unspecified(p->tuple.local))
		return 1;
	/* Who asks whether an address is taken denies it to others: before it is its own that is not believed. */
	if (p->icmp_type == 133)
		return 1;
	return !load(skb, p->transport + 8, target, sizeof(target)) &&
	       (is_own(who, target) || (p->icmp_type == 135 && is_made_of_mac(skb, target)));
}

/* An address that was just made up is known here a moment later: what is said to the link alone may have it, or
 * none. */
static __always_inline int is_forged(struct __sk_buff *skb, const struct subject *who, const struct packet *p)
{
	const u8 *local = p->tuple.local;

	if (is_own(who, local))
		return 0;
	if (!is_unspecified(local) && !(local[0] == 0xfe && local[1] >> 6 == 2))
		return 1;
	if (!is_unspecified(local) && !is_membership_report(p) && !is_made_of_mac(skb, local))
		return 1;
	return !is_neighbour(skb, who, p);
}
