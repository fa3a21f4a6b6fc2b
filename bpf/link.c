/* link.c: the entry points on a workload's link, at the host's end of it.
 *
 * link_ingress    every frame that leaves the workload, whoever made it: it decides
 * link_egress     every frame towards it: notes what comes in, and cuts short answers that the reader can't take
 *
 * The first is on bridges too, whose ports are links: netfilter's hooks there take a packet's socket away
 * (br_netfilter), so that what is the proxy's is given to it once more behind them.
 *
 * What the cgroup's hooks admitted is recognised by its socket, and passes without being judged twice. All else
 * (AF_PACKET, headers of one's own, what is forwarded inside the workload, the kernel's own answers) is judged as
 * they do it, by the numbers of verdict.h; what it is known by is the workload and the tuple.
 *
 * Includes are flattened by compile.py: BCC rewrites map calls in the main text only.
 */
#define LINK
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/in.h>
#include <linux/in6.h>

#include "limits.h"
#include "reasons.h"
#include "contract.h"
#include "packet.h"
#include "verdict.h"
#include "quotas.h"
#include "flows.h"
#include "frames.h"
#include "pieces.h"
#include "names.h"
#include "dns.h"
#include "aliases.h"
#include "patterns.h"
#include "learn.h"
#include "turned.h"
#include "questions.h"
#include "steer.h"

static __always_inline int is_anew(const struct packet *p)
{
	return 0;
}

static __always_inline int is_out_of_state(const struct subject *who, const struct packet *p)
{
	return 0;                        /* the socket that began it may have gone */
}

static __always_inline enum reason enter(struct subject *who, const struct packet *p, enum reason reason)
{
	if (reason == ALLOWED)
		keep_anew(who, &p->tuple, ALLOWED);
	return reason;
}

static __always_inline enum reason miss(const struct subject *who, const struct tuple *t, enum reason reason)
{
	return reason;
}

/* What is done with a frame whose packet may pass. */
static __always_inline int let(struct __sk_buff *skb, const struct subject *who, const struct packet *p,
			       enum reason reason)
{
	if ((p->piece & MORE) && !p->offset)
		let_others_follow(who, p);
	if (reason != RESOLVER || !(who->flags & ONLY_ALLOWED_NAMES))
		return LET;
	stage(skb, STAGE_QUESTION, HOOK_LINK, p->transport + 8, who->workload);
	return STOP;                             /* here only where no stage follows */
}

static __always_inline int refuse(struct __sk_buff *skb, const struct subject *who, const struct packet *p,
				  enum reason reason)
{
	return STOP;
}

#include "alone.h"

/* A segment that neither begins nor ends a connection; recognises() has seen that its ports are there. */
static __always_inline int goes_in_between(struct __sk_buff *skb, const struct flow *f)
{
	u8 *head = (void *)(long)skb->data + L2 + (is_ipv4(f->tuple.local) ? 20 : 40);

	if (f->tuple.protocol != IPPROTO_TCP)
		return 1;
	return (void *)(long)skb->data_end >= (void *)head + 14 && !(head[TCP_FLAGS] & (TCP_SYN | TCP_FIN | TCP_RST));
}

/* 3, the common case: the cgroup's hooks admitted just this packet, of a socket that lives here, whose source they
 * have asked for. */
static __always_inline int was_admitted(struct __sk_buff *skb, const struct socket *s, const struct link *link,
					const struct workload *found)
{
	return (found->flags & (COOKIE | OWN_SOURCES)) == (COOKIE | OWN_SOURCES) && s->netns == found->home &&
	       s->flow.policy == found->policy && !skb->vlan_present && goes_on(skb, s, 1) &&
	       goes_in_between(skb, &s->flow) && has_its_mac(skb, link->mac);
}

/* 3. What the cgroup's hooks know of this flow, and then what the link itself does. NONE where neither does. */
static __always_inline enum reason ask_socket(struct socket *s, struct subject *who, const struct tuple *t)
{
	struct flow flow ALIGNED;

	if (!s)
		return NONE;
	flow = s->flow;
	if (!holds(&flow, t) && !recall(&flow, who, t))
		return NONE;
	return ask_flow(&flow, who, t);
}

/* What the kernel answers to the rest of a connection that ends comes from no socket. */
static __always_inline void keep_end(struct subject *who, const struct socket *s)
{
	struct flow flow ALIGNED = s->flow;

	keep(who, &flow);
}

static __always_inline int is_for_proxy(const struct subject *who, const struct packet *p)
{
	return p->protocol == IPPROTO_TCP && trusts(who, p) && !p->offset && !p->piece;
}

static __always_inline int judge_packet(struct __sk_buff *skb, struct subject *who, struct socket *s)
{
	struct packet p ALIGNED = {};
	enum reason reason = read_packet(skb, &p, 1);                         /* 1 */
	int known = 0;

	if (!reason && is_forged(skb, who, &p))
		reason = SPOOFED;
	if (!reason && p.offset)
		reason = follows(who, &p);
	if (!reason && is_for_proxy(who, &p))                                 /* 6 */
		return stage(skb, STAGE_PROXIED, HOOK_LINK, 0, 0), STOP;
	if (!reason && !is_icmp_error(&p)) {                                  /* 3 */
		who->socket = s ? bpf_get_socket_cookie(skb) : 0;
		reason = unread_piece(who, &p, ask_socket(s, who, &p.tuple));
		known = passes(reason);
	}
	if (!reason)
		return stage(skb, STAGE_ALONE, HOOK_LINK, 0, 0), STOP;
	if (known && s && p.protocol == IPPROTO_TCP && (p.tcp_flags & (TCP_FIN | TCP_RST)))
		keep_end(who, s);
	if (!known && !conclude(skb, who, &p.tuple, s, reason))
		return STOP;
	return let(skb, who, &p, reason);
}

static __always_inline int judge_frame(struct __sk_buff *skb, const u8 *mac, struct subject *who, struct socket *s)
{
	struct tuple none ALIGNED = {};
	enum reason reason = NONE;

	if (!who->policy)                                                     /* 0 */
		reason = UNCLASSIFIED;
	else if (skb->vlan_present)                                           /* 1 */
		reason = VLAN_TAG;
	else if (!has_its_mac(skb, mac))
		reason = SPOOFED;
	else if (!s && is_unfinished(skb))
		reason = UNREADABLE;
	else if (skb->protocol == bpf_htons(ARP))
		reason = read_arp(skb, who, mac);
	else if (skb->protocol != bpf_htons(IPV4) && skb->protocol != bpf_htons(IPV6))
		reason = NOT_IP;
	if (!reason)
		return judge_packet(skb, who, s);
	return conclude(skb, who, &none, NULL, reason) ? LET : STOP;
}

/* Behind the links of a bridge: nobody else's packets have the mark. */
static __always_inline int lead_again(struct __sk_buff *skb)
{
	struct settings *now = setting();

	if (!now || !now->mark || (skb->mark & now->mark_mask) != now->mark)
		return LET;
	stage(skb, STAGE_PROXIED, HOOK_LINK, 0, 0);
	return STOP;                             /* here only where no stage follows */
}

int link_ingress(struct __sk_buff *skb)
{
	u32 index = skb->ifindex;
	struct link *link = links.lookup(&index);
	struct workload *found = link ? workloads.lookup(&link->workload) : NULL;
	struct subject who = {.hook = HOOK_LINK};
	struct socket *s;

	if (link && !link->workload)
		return lead_again(skb);
	if (!found) {                            /* 0 */
		count(0, UNCLASSIFIED);
		return STOP;
	}
	s = storage_of(skb->sk);
	if (s && was_admitted(skb, s, link, found))
		return LET;
	if (!fill_subject(&who, link->workload, found))
		return found->policy == EXEMPT ? LET : STOP;
	return judge_frame(skb, link->mac, &who, s);
}

int link_egress(struct __sk_buff *skb)
{
	struct subject who = {.hook = HOOK_LINK};
	struct packet p ALIGNED = {};

	if (skb->vlan_present || !find_workload(skb, &who) || !who.policy || read_packet(skb, &p, 0) || p.offset)
		return LET;
	if (p.protocol == IPPROTO_TCP) {
		if ((p.tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
			note_inbound(&who, &p.tuple);
	} else if (p.echo) {
		if (p.icmp_type == 8 || p.icmp_type == 128)
			note_inbound(&who, &p.tuple);
	} else if (p.protocol == IPPROTO_UDP && trusts(&who, &p) && is_proxy_there(&p.tuple)) {
		if (defer_answer(skb, &p))
			count(who.policy, ANSWER_DEFERRED);
	}
	return LET;
}
