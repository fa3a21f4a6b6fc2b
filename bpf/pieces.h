/* pieces.h: packets that are parts of others: fragments, and ICMP errors, which quote one.
 *
 * Rules this file obeys:
 *   - Where the kernel fragments is behind the cgroup's hooks: here the first piece is judged, with its whole
 *     transport header, and the others follow if they begin behind it (RFC 1858, RFC 5722). Each workload has
 *     slots of its own for that, and loses none but its own when it fills them.
 *   - An ICMP error says what became of a packet to the workload: else it would carry data out.
 */

static __always_inline void fragment_key_of(struct fragment_key *key, const struct subject *who,
					    const struct packet *p)
{
	key->workload = who->workload;
	key->slot = (p->id * 0x9e3779b1U) >> 26;         /* of FRAGMENTS */
}

static __always_inline u32 piece_protocol(const struct packet *p)
{
	return is_ipv4(p->tuple.local) ? p->protocol : 0;
}

/* The first piece of a datagram was admitted. */
static __always_inline void let_others_follow(const struct subject *who, const struct packet *p)
{
	struct fragment_key key = {};
	struct fragment value ALIGNED = {.id = p->id, .protocol = piece_protocol(p), .end = p->end - p->data};

	fragment_key_of(&key, who, p);
	value.seen = bpf_ktime_get_boot_ns();
	copy_address(value.local, p->tuple.local);
	copy_address(value.remote, p->tuple.remote);
	fragments.update(&key, &value);
}

static __always_inline enum reason follows(const struct subject *who, const struct packet *p)
{
	struct fragment_key key = {};
	struct fragment *first;

	fragment_key_of(&key, who, p);
	first = fragments.lookup(&key);
	if (!first || first->id != p->id || first->protocol != piece_protocol(p) || p->offset < first->end ||
	    !same_address(first->local, p->tuple.local) || !same_address(first->remote, p->tuple.remote) ||
	    first->seen + FRAGMENT_SECONDS * 1000000000ULL < bpf_ktime_get_boot_ns())
		return LATER_FRAGMENT;
	return ESTABLISHED;
}

/* An ICMP error goes to the source of the packet that it quotes, which was one to the workload: it may be told if
 * it came in from outside, or could be answered. */
static __always_inline enum reason read_quote(struct __sk_buff *skb, struct subject *who, const struct packet *p)
{
	u32 at = p->transport + 8, protocol, ports = 0, ipv4 = is_ipv4(p->tuple.local);
	struct tuple quoted ALIGNED = {};
	u32 words[10] ALIGNED = {};

	if (p->piece || load(skb, at, words, 20) || (!ipv4 && load(skb, at + 20, words + 5, 20)))
		return ICMP_ERROR;
	if (ipv4) {
		map_ipv4(quoted.remote, words[3]);
		map_ipv4(quoted.local, words[4]);
		at += (*(u8 *)words & 15) * 4;
		protocol = *((u8 *)words + 9);
	} else {
		copy_address(quoted.remote, (u8 *)(words + 2));
		copy_address(quoted.local, (u8 *)(words + 6));
		at += 40;
		protocol = *((u8 *)words + 6);
	}
	if (!same_address(quoted.remote, p->tuple.remote) || !is_own(who, quoted.local))
		return ICMP_ERROR;
	if (has_ports(protocol) && load(skb, at, &ports, sizeof(ports)))
		return ICMP_ERROR;
	set_service(&quoted, ports, protocol, 0);
	if (came_in(who, &quoted))
		return INBOUND;
	return passes(judge(who, &quoted)) ? ALLOWED : ICMP_ERROR;
}
