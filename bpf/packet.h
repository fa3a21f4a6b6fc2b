/* packet.h: from a socket buffer to addresses, protocol and ports; the one parsing rule for every header.
 *
 * Rules this file obeys:
 *   - Both families end in the same `struct packet`; nothing behind it asks for the family again.
 *   - A header is followed or it is refused under a name of its own. Nothing passes unread.
 *   - `local` is the workload's side whichever way the packet goes.
 * Sources: RFC 791 (IPv4, options), RFC 8200 (IPv6), RFC 4884/4443 (ICMP types), ip(7).
 */

enum { IPV4 = 0x0800, IPV6 = 0x86dd };   /* if_ether.h, in host order */
#ifdef LINK                      /* frames: an Ethernet header lies before that of IP */
enum { L2 = 14, LET = -1, STOP = 2 };    /* linux/pkt_cls.h: TC_ACT_UNSPEC, so that other tools' programs follow */
#else
enum { L2 = 0, LET = 1, STOP = 0 };
#endif
#ifdef GATEWAY
enum { HOOK_OUT = HOOK_GATEWAY };
#elif defined LINK
enum { HOOK_OUT = HOOK_LINK };
#else
enum { HOOK_OUT = HOOK_EGRESS };
#endif
enum { TCP_FIN = 0x01, TCP_SYN = 0x02, TCP_RST = 0x04, TCP_ACK = 0x10, TCP_FLAGS = 13 };
enum { LOOPBACK_IFINDEX = 1 };           /* in every network namespace */
enum { PACKET_LOOPBACK = 5 };            /* linux/if_packet.h */
enum { SOCK_STREAM = 1, SOCK_RAW = 3 };  /* socket(2) */
enum { EXTENSION_HEADERS = 6 };

#define ALIGNED __attribute__((aligned(8)))

struct packet {
	struct tuple tuple ALIGNED;
	u32 transport;            /* offset of the header behind IP */
	u32 protocol;
	u8 tcp_flags;
	u8 icmp_type;
	u8 hop_limit;
	u8 echo;                  /* ICMP echo request or reply */
#ifdef LINK
	u32 end;                  /* of the IP packet: a frame may be longer */
	u32 data;                 /* where what is fragmented begins */
	u32 piece;                /* PIECE, MORE: it is a fragment, and not the last one */
	u32 offset;               /* of a later fragment, in bytes: nothing of its transport header is there */
	u32 id;
#endif
};

/* The mask is kept where the verifier must see it: the compiler knows bounds that the verifier does not. */
static __always_inline u64 bounded(u64 value, u64 mask)
{
	asm volatile("%0 &= %1" : "+r"(value) : "r"(mask));
	return value;
}

/* Straight from the packet where the bytes lie in its linear part, which costs nothing; in words, as every
 * CPU that compiles BPF reads them from any address. */
static __always_inline int load(struct __sk_buff *skb, u32 offset, void *to, const u32 size)
{
	void *from = (void *)(long)skb->data + L2 + bounded(offset, 0xfff);

	if (from + size <= (void *)(long)skb->data_end && offset <= 0xfff) {
		__builtin_memcpy(to, __builtin_assume_aligned(from, 8), size);
		return 0;
	}
	return bpf_skb_load_bytes(skb, L2 + offset, to, size);
}

static __always_inline void copy_address(u8 *to, const u8 *from)
{
	((u64 *)to)[0] = ((const u64 *)from)[0];
	((u64 *)to)[1] = ((const u64 *)from)[1];
}

/* In whole words: what is stored in halves and read as one makes the CPU wait. */
static __always_inline void map_ipv4(u8 *to, u32 address)
{
	u64 *words = (u64 *)to;

	words[0] = 0;
	words[1] = (u64)address << 32 | bpf_htonl(0xffff);
}

/* Both ports, as they stand in the header, and the protocol. */
static __always_inline void set_service(struct tuple *t, u32 ports, u32 protocol, int outbound)
{
	u64 *words = (u64 *)t;

	words[4] = (u64)protocol << 32 | (outbound ? ports : ports << 16 | ports >> 16);
}

static __always_inline u32 word(const u8 *address, int index)
{
	return ((const u32 *)address)[index];
}

static __always_inline int is_ipv4(const u8 *address)
{
	return ((const u64 *)address)[0] == 0 && word(address, 2) == bpf_htonl(0xffff);
}

static __always_inline int is_loopback(const u8 *address)
{
	if (is_ipv4(address))
		return address[12] == 127;
	return ((const u64 *)address)[0] == 0 && word(address, 2) == 0 && word(address, 3) == bpf_htonl(1);
}

static __always_inline int is_unspecified(const u8 *address)
{
	return word(address, 3) == 0 && word(address, 0) == 0 && word(address, 1) == 0 &&
	       (word(address, 2) == 0 || is_ipv4(address));
}

static __always_inline int same_address(const u8 *a, const u8 *b)
{
	return ((const u64 *)a)[1] == ((const u64 *)b)[1] && ((const u64 *)a)[0] == ((const u64 *)b)[0];
}

static __always_inline int has_ports(u32 protocol)
{
	return protocol == IPPROTO_TCP || protocol == IPPROTO_UDP || protocol == IPPROTO_SCTP ||
	       protocol == IPPROTO_UDPLITE || protocol == IPPROTO_DCCP;
}

#ifdef LINK
enum { PIECE = 1, MORE = 2 };

/* Where the packet ends, by its own word; one that is segmented on its way may be too long for that (RFC 2675,
 * and IPv4 alike), where the kernel made it. */
static __always_inline enum reason find_end(struct __sk_buff *skb, struct packet *p, u32 end)
{
	u32 there = skb->len - L2;

	p->end = skb->gso_size ? there : end;
	return p->end > there || p->end < p->transport ? UNREADABLE : NONE;
}

static __always_inline enum reason read_ipv4_end(struct __sk_buff *skb, struct packet *p, const struct iphdr *ip,
						 u32 length)
{
	u32 fragment = bpf_ntohs(ip->frag_off);

	if (fragment & 0x3fff) {
		p->piece = PIECE | (fragment & 0x2000 ? MORE : 0);
		p->offset = (fragment & 0x1fff) * 8;
		p->id = ip->id;
	}
	p->data = length;
	p->transport = length;
	return find_end(skb, p, bpf_ntohs(ip->tot_len));
}

/* RFC 8200 4.5. One that is alone (RFC 6946) is like any other packet. */
static __always_inline int read_fragment_header(struct __sk_buff *skb, struct packet *p, u32 at, u32 *next)
{
	u32 words[2];

	if (load(skb, at, words, sizeof(words)))
		return -1;
	*next = bpf_ntohl(words[0]) >> 24;
	p->offset = bpf_ntohl(words[0]) & 0xfff8;
	p->piece = bpf_ntohl(words[0]) & 0xfff9 ? PIECE | (bpf_ntohl(words[0]) & 1 ? MORE : 0) : 0;
	p->id = words[1];
	return 0;
}

/* The whole transport header lies in the packet, or in its first fragment (RFC 1858, RFC 7112). */
static __always_inline enum reason holds_header(struct __sk_buff *skb, const struct packet *p)
{
	u8 words = 2 << 4;

	if (p->protocol == IPPROTO_TCP && load(skb, p->transport + 12, &words, 1))
		return p->piece ? FRAGMENT : UNREADABLE;
	if (p->protocol == IPPROTO_TCP && words >> 4 < 5)
		return UNREADABLE;
	if (p->transport + (words >> 4) * 4 > p->end)
		return p->piece ? FRAGMENT : UNREADABLE;
	return NONE;
}
#endif

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
	struct iphdr ip ALIGNED;
	u32 length;

	if (load(skb, 0, &ip, sizeof(ip)))
		return UNREADABLE;
	length = (*(u8 *)&ip & 15) * 4;
	if ((*(u8 *)&ip >> 4) != 4 || length < 20)
		return UNREADABLE;
#ifdef LINK
	if (read_ipv4_end(skb, p, &ip, length))
		return UNREADABLE;
#else
	if (ip.frag_off & bpf_htons(0x3fff))     /* more fragments, or not the first */
		return FRAGMENT;
#endif
	map_ipv4(outbound ? p->tuple.local : p->tuple.remote, ip.saddr);
	map_ipv4(outbound ? p->tuple.remote : p->tuple.local, ip.daddr);
	p->protocol = ip.protocol;
	p->hop_limit = ip.ttl;
	p->transport = length;
	return length > 20 ? read_options(skb, length) : NONE;
}

static __always_inline enum reason read_ipv6(struct __sk_buff *skb, struct packet *p, int outbound)
{
	struct ipv6hdr ip ALIGNED;
	u32 at = sizeof(ip), next;

	if (load(skb, 0, &ip, sizeof(ip)))
		return UNREADABLE;
	if ((*(u8 *)&ip >> 4) != 6)
		return UNREADABLE;
	copy_address(outbound ? p->tuple.local : p->tuple.remote, (u8 *)&ip.saddr);
	copy_address(outbound ? p->tuple.remote : p->tuple.local, (u8 *)&ip.daddr);
	if (is_ipv4(p->tuple.local) || is_ipv4(p->tuple.remote))   /* RFC 4291 2.5.5.2: not on a wire */
		return UNREADABLE;
	p->hop_limit = ip.hop_limit;
	next = ip.nexthdr;
#pragma unroll
	for (int i = 0; i < EXTENSION_HEADERS; i++) {
		u8 header[4];

		if (next != IPPROTO_HOPOPTS && next != IPPROTO_DSTOPTS && next != IPPROTO_ROUTING &&
		    next != IPPROTO_AH && next != IPPROTO_FRAGMENT && next != IPPROTO_MH)
			break;
		if (next == IPPROTO_FRAGMENT && L2)        /* what lies behind it is the transport header */
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
#ifdef LINK
	p->data = at;
	if (next == IPPROTO_FRAGMENT) {
		if (read_fragment_header(skb, p, at, &next))
			return UNREADABLE;
		at += 8;
		p->data = at;
	}
#endif
	if (next == IPPROTO_HOPOPTS || next == IPPROTO_DSTOPTS || next == IPPROTO_ROUTING ||
	    next == IPPROTO_AH || next == IPPROTO_FRAGMENT || next == IPPROTO_MH)
		return EXTENSION_HEADER;
	if (at > skb->len - L2)                  /* a header's length leads out of the packet */
		return UNREADABLE;
	p->protocol = next;
	p->transport = at;
#ifdef LINK
	return find_end(skb, p, sizeof(ip) + bpf_ntohs(ip.payload_len));
#endif
	return NONE;
}

static __always_inline enum reason read_ports(struct __sk_buff *skb, struct packet *p, int outbound)
{
	u32 ports;

	if (load(skb, p->transport, &ports, sizeof(ports)))
		return UNREADABLE;
	set_service(&p->tuple, ports, p->protocol, outbound);
	if (p->protocol == IPPROTO_TCP && load(skb, p->transport + TCP_FLAGS, &p->tcp_flags, 1))
		return UNREADABLE;
	return NONE;
}

/* An echo's identifier stands for the local port, so that one ping is one flow (RFC 792, RFC 4443). */
static __always_inline enum reason read_icmp(struct __sk_buff *skb, struct packet *p)
{
	u8 type;
	u16 identifier = 0;

	if (load(skb, p->transport, &type, 1))
		return UNREADABLE;
	p->icmp_type = type;
	p->echo = p->protocol == IPPROTO_ICMPV6 ? type == 128 || type == 129 : type == 8 || type == 0;
	if (load(skb, p->transport + 4, &identifier, sizeof(identifier)))
		return UNREADABLE;
	set_service(&p->tuple, p->echo ? identifier : 0, p->protocol, 1);
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
#ifdef LINK
	if (p->offset) {
		set_service(&p->tuple, 0, p->protocol, outbound);
		return NONE;
	}
	if (has_ports(p->protocol) || p->protocol == IPPROTO_ICMP || p->protocol == IPPROTO_ICMPV6)
		wrong = holds_header(skb, p);
	if (wrong)
		return wrong;
#endif
	if (has_ports(p->protocol))
		return read_ports(skb, p, outbound);
	if (p->protocol == IPPROTO_ICMP || p->protocol == IPPROTO_ICMPV6)
		return read_icmp(skb, p);
	set_service(&p->tuple, 0, p->protocol, outbound);
	return NONE;
}

/* fe80::/10 or ff02::/16: what no router forwards. */
static __always_inline int is_on_link(const u8 *address)
{
	return (address[0] == 0xfe && address[1] >> 6 == 2) || (address[0] == 0xff && address[1] == 2);
}

/* RFC 4861: router and neighbour discovery. Hop limit 255 is what its receiver asks for; routers would forward
 * it, so that a message to an address further away is judged like any other. */
static __always_inline int is_neighbour_discovery(const struct packet *p)
{
	return p->protocol == IPPROTO_ICMPV6 && is_on_link(p->tuple.remote) && p->icmp_type >= 133 &&
	       p->icmp_type <= 137 && p->hop_limit == 255;
}

/* RFC 2710 3, RFC 3810 5, RFC 9776 4: membership reports; hop limit 1, to groups that no router forwards. */
static __always_inline int is_membership_report(const struct packet *p)
{
	if (p->hop_limit != 1)
		return 0;
	if (p->protocol == IPPROTO_ICMPV6)
		return p->tuple.remote[0] == 0xff && p->tuple.remote[1] == 2 &&
		       (p->icmp_type == 131 || p->icmp_type == 132 || p->icmp_type == 143);
	return p->protocol == IPPROTO_IGMP && (word(p->tuple.remote, 3) & bpf_htonl(0xffffff00)) == bpf_htonl(0xe0000000);
}

/* RFC 2131 4.1, RFC 8415 7: to everybody on the link, and to no server by its address, which could be anyone. */
static __always_inline int is_dhcp(const struct packet *p)
{
	u32 ports = *(const u32 *)p->tuple.local_port;

	if (ports == bpf_htonl(68 << 16 | 67))
		return is_ipv4(p->tuple.remote) && word(p->tuple.remote, 3) == 0xffffffff;
	return ports == bpf_htonl(546 << 16 | 547) && word(p->tuple.remote, 0) == bpf_htonl(0xff020000) &&
	       word(p->tuple.remote, 3) == bpf_htonl(0x00010002);
}

/* What a host needs to stay on its network and what its kernel answers by itself, where the host is the
 * workload: DHCP, group membership (RFC 9776, RFC 3810), echo replies, resets. */
static __always_inline int is_housekeeping(const struct packet *p)
{
	if (p->protocol == IPPROTO_UDP)
		return is_dhcp(p);
	if (p->protocol == IPPROTO_TCP)
		return p->tcp_flags & TCP_RST;
	if (p->protocol == IPPROTO_ICMPV6)
		return p->icmp_type == 129 || (p->icmp_type >= 130 && p->icmp_type <= 132) || p->icmp_type == 143;
	return p->protocol == IPPROTO_IGMP || (p->protocol == IPPROTO_ICMP && p->icmp_type == 0);
}

/* RFC 792, RFC 4443 2.1: messages about other packets. */
static __always_inline int is_icmp_error(const struct packet *p)
{
	if (p->protocol == IPPROTO_ICMPV6)
		return p->icmp_type < 128;
	return p->protocol == IPPROTO_ICMP &&
	       (p->icmp_type == 3 || p->icmp_type == 4 || p->icmp_type == 5 || p->icmp_type == 11 ||
		p->icmp_type == 12);
}
