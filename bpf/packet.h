/* packet.h: from a socket buffer to addresses, protocol and ports; the one parsing rule for every header.
 *
 * Rules this file obeys:
 *   - Both families end in the same `struct packet`; nothing behind it asks for the family again.
 *   - A header is followed or it is refused under a name of its own. Nothing passes unread.
 *   - `local` is the workload's side whichever way the packet goes.
 * Sources: RFC 791 (IPv4, options), RFC 8200 (IPv6), RFC 4884/4443 (ICMP types), ip(7).
 */

enum { IPV4 = 0x0800, IPV6 = 0x86dd };   /* if_ether.h, in host order */
enum { TCP_SYN = 0x02, TCP_ACK = 0x10, TCP_FLAGS = 13 };
enum { LOOPBACK_IFINDEX = 1 };           /* in every network namespace */
enum { SOCK_STREAM = 1, SOCK_RAW = 3 };  /* socket(2) */
enum { EXTENSION_HEADERS = 6 };

struct packet {
	struct tuple tuple;
	u32 transport;            /* offset of the header behind IP */
	u8 tcp_flags;
	u8 icmp_type;
	u8 hop_limit;
	u8 echo;                  /* ICMP echo request or reply */
};

static __always_inline int load(struct __sk_buff *skb, u32 offset, void *to, u32 size)
{
	return bpf_skb_load_bytes(skb, offset, to, size);
}

static __always_inline void copy_address(u8 *to, const u8 *from)
{
	__builtin_memcpy(to, from, 16);
}

static __always_inline void map_ipv4(u8 *to, u32 address)
{
	u32 words[4] = {0, 0, bpf_htonl(0xffff), address};

	__builtin_memcpy(to, words, 16);
}

static __always_inline u32 word(const u8 *address, int index)
{
	u32 value;

	__builtin_memcpy(&value, address + 4 * index, 4);
	return value;
}

static __always_inline int is_ipv4(const u8 *address)
{
	return word(address, 0) == 0 && word(address, 1) == 0 && word(address, 2) == bpf_htonl(0xffff);
}

static __always_inline int is_loopback(const u8 *address)
{
	if (is_ipv4(address))
		return address[12] == 127;
	return word(address, 0) == 0 && word(address, 1) == 0 && word(address, 2) == 0 &&
	       word(address, 3) == bpf_htonl(1);
}

static __always_inline int same_address(const u8 *a, const u8 *b)
{
	return word(a, 3) == word(b, 3) && word(a, 0) == word(b, 0) && word(a, 1) == word(b, 1) &&
	       word(a, 2) == word(b, 2);
}

static __always_inline int has_ports(u32 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP ||
	       protocol == IPPROTO_UDPLITE || protocol == IPPROTO_DCCP;
}

/* RFC 791 3.1. Only a router alert (RFC 2113) passes; padding before an option is looked through to name a
 * source route, which leads to another destination than the header says. */
static __always_inline enum reason read_options(struct __sk_buff *skb, u32 length)
{
	u8 options[4], first;

	if (load(skb, 20, options, sizeof(options)))
		return UNREADABLE;
	if (length == 24 && options[0] == IPOPT_RA && options[1] == 4)
		return NONE;
	first = options[0] != IPOPT_NOOP ? options[0] : options[1] != IPOPT_NOOP ? options[1] :
		options[2] != IPOPT_NOOP ? options[2] : options[3];
	return first == IPOPT_LSRR || first == IPOPT_SSRR ? SOURCE_ROUTE : IP_OPTION;
}

static __always_inline enum reason read_ipv4(struct __sk_buff *skb, struct packet *p, int outbound)
{
	struct iphdr ip;
	u32 length;

	if (load(skb, 0, &ip, sizeof(ip)))
		return UNREADABLE;
	length = (*(u8 *)&ip & 15) * 4;
	if ((*(u8 *)&ip >> 4) != 4 || length < 20)
		return UNREADABLE;
	if (ip.frag_off & bpf_htons(0x3fff))     /* more fragments, or not the first */
		return FRAGMENT;
	map_ipv4(outbound ? p->tuple.local : p->tuple.remote, ip.saddr);
	map_ipv4(outbound ? p->tuple.remote : p->tuple.local, ip.daddr);
	p->tuple.protocol = ip.protocol;
	p->hop_limit = ip.ttl;
	p->transport = length;
	return length > 20 ? read_options(skb, length) : NONE;
}

static __always_inline enum reason read_ipv6(struct __sk_buff *skb, struct packet *p, int outbound)
{
	struct ipv6hdr ip;
	u32 at = sizeof(ip), next;

	if (load(skb, 0, &ip, sizeof(ip)))
		return UNREADABLE;
	if ((*(u8 *)&ip >> 4) != 6)
		return UNREADABLE;
	copy_address(outbound ? p->tuple.local : p->tuple.remote, (u8 *)&ip.saddr);
	copy_address(outbound ? p->tuple.remote : p->tuple.local, (u8 *)&ip.daddr);
	p->hop_limit = ip.hop_limit;
	next = ip.nexthdr;
#pragma unroll
	for (int i = 0; i < EXTENSION_HEADERS; i++) {
		u8 header[4];

		if (next != IPPROTO_HOPOPTS && next != IPPROTO_DSTOPTS && next != IPPROTO_ROUTING &&
		    next != IPPROTO_AH && next != IPPROTO_FRAGMENT && next != IPPROTO_MH)
			break;
		if (next == IPPROTO_FRAGMENT)
			return FRAGMENT;
		if (next == IPPROTO_AH || next == IPPROTO_MH)
			return EXTENSION_HEADER;
		if (load(skb, at, header, sizeof(header)))
			return UNREADABLE;
		if (next == IPPROTO_ROUTING && header[3])  /* segments left: it goes on elsewhere */
			return SOURCE_ROUTE;
		at += (header[1] + 1) * 8;
		next = header[0];
	}
	if (next == IPPROTO_HOPOPTS || next == IPPROTO_DSTOPTS || next == IPPROTO_ROUTING || next == IPPROTO_FRAGMENT)
		return EXTENSION_HEADER;
	p->tuple.protocol = next;
	p->transport = at;
	return NONE;
}

static __always_inline enum reason read_ports(struct __sk_buff *skb, struct packet *p, int outbound)
{
	u8 head[4];

	if (load(skb, p->transport, head, sizeof(head)))
		return UNREADABLE;
	__builtin_memcpy(outbound ? p->tuple.local_port : p->tuple.remote_port, head, 2);
	__builtin_memcpy(outbound ? p->tuple.remote_port : p->tuple.local_port, head + 2, 2);
	if (p->tuple.protocol == IPPROTO_TCP && load(skb, p->transport + TCP_FLAGS, &p->tcp_flags, 1))
		return UNREADABLE;
	return NONE;
}

/* An echo's identifier stands for the local port, so that one ping is one flow (RFC 792, RFC 4443). */
static __always_inline enum reason read_icmp(struct __sk_buff *skb, struct packet *p)
{
	u8 head[8];

	if (load(skb, p->transport, head, sizeof(head)))
		return UNREADABLE;
	p->icmp_type = head[0];
	p->echo = p->tuple.protocol == IPPROTO_ICMPV6 ? head[0] == 128 || head[0] == 129
						      : head[0] == 8 || head[0] == 0;
	if (p->echo)
		__builtin_memcpy(p->tuple.local_port, head + 4, 2);
	return NONE;
}

static __always_inline enum reason read_packet(struct __sk_buff *skb, struct packet *p, int outbound)
{
	enum reason wrong;

	if (skb->protocol == bpf_htons(IPV4))
		wrong = read_ipv4(skb, p, outbound);
	else if (skb->protocol == bpf_htons(IPV6))
		wrong = read_ipv6(skb, p, outbound);
	else
		return UNREADABLE;
	if (wrong)
		return wrong;
	if (has_ports(p->tuple.protocol))
		return read_ports(skb, p, outbound);
	if (p->tuple.protocol == IPPROTO_ICMP || p->tuple.protocol == IPPROTO_ICMPV6)
		return read_icmp(skb, p);
	return NONE;
}

/* RFC 4861: router and neighbour discovery, which a router never forwards (hop limit 255). */
static __always_inline int is_neighbour_discovery(const struct packet *p)
{
	return p->tuple.protocol == IPPROTO_ICMPV6 && p->icmp_type >= 133 && p->icmp_type <= 137 &&
	       p->hop_limit == 255;
}

/* RFC 792, RFC 4443 2.1: messages about other packets. */
static __always_inline int is_icmp_error(const struct packet *p)
{
	if (p->tuple.protocol == IPPROTO_ICMPV6)
		return p->icmp_type < 128;
	return p->tuple.protocol == IPPROTO_ICMP &&
	       (p->icmp_type == 3 || p->icmp_type == 4 || p->icmp_type == 5 || p->icmp_type == 11 ||
		p->icmp_type == 12);
}
