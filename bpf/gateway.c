/* gateway.c: the entry points on the interface that leads to machines behind a gateway.
 *
 * gateway_ingress    what comes from a machine, told by its source address: judges and marks what is to be
 *                    forwarded; reads the questions to the gateway's own DNS server
 * gateway_egress     what goes to a machine: learns from that server's answers, before the machine has them;
 *                    notes what comes in from other machines, and ends what was withdrawn
 *
 * One interface may lead to machines and to the world: what has no machine's address passes untouched.
 *
 * A packet to the gateway itself is not forwarded, and is the gateway's own to judge; of these only DNS is read. It
 * has no mark: what turns out to be elsewhere does not get there. The same holds for DNS that is captured.
 *
 * Includes are flattened by compile.py: BCC rewrites map calls in the main text only.
 */
#define LINK                     /* frames, of nobody's socket */
#define GATEWAY
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
#include "pieces.h"
#include "names.h"
#include "dns.h"
#include "aliases.h"
#include "patterns.h"
#include "learn.h"
#include "turned.h"
#include "questions.h"
#include "steer.h"
#include "stages.h"
#include "machines.h"
#include "alone.h"
#include "share.h"

enum { VLAN = 0x8100, QINQ = 0x88a8, VLAN_ID = 0x0fff };

/* What no router forwards: the gateway's own addresses, groups and the link's (RFC 1112, RFC 4291 2.4, RFC 919). */
static __always_inline int is_local(const struct subject *who, const struct packet *p)
{
	const u8 *to = p->tuple.remote;

	if (is_ipv4(to))
		return to[12] >> 4 == 0xe || word(to, 3) == 0xffffffff || is_here(who, to);
	return to[0] == 0xff || is_on_link(to) || is_here(who, to);
}

/* To a DNS server of ours: by its address, or because all DNS comes to it. */
static __always_inline int is_to_server(const struct subject *who, const struct packet *p, int local)
{
	if ((p->protocol != IPPROTO_UDP && p->protocol != IPPROTO_TCP) || p->offset)
		return 0;
	if (is_dns_port(p->tuple.remote_port))
		return local || (who->flags & CAPTURED) || (p->protocol == IPPROTO_TCP && trusts(who, p));
	return local && trusts(who, p);
}

static __always_inline int to_server(struct __sk_buff *skb, struct subject *who, const struct packet *p)
{
	int checked = who->flags & ONLY_ALLOWED_NAMES;

	if (p->protocol == IPPROTO_TCP && p->piece)
		return finish(skb, who, p, FRAGMENT);
	if (p->protocol == IPPROTO_TCP)
		return stage(skb, STAGE_PROXIED, HOOK_GATEWAY, 0, who->workload), STOP;
	if (p->piece && checked)
		return finish(skb, who, p, QUESTION_UNREADABLE);
	if (p->piece & MORE)
		let_others_follow(who, p);
	stage(skb, STAGE_QUESTION, HOOK_GATEWAY, p->transport + 8, who->workload);
	return checked ? STOP : LET;             /* here only where no stage follows */
}

static __always_inline int judge_packet(struct __sk_buff *skb, struct subject *who, const struct packet *p,
					enum reason reason)
{
	int local;

	if (!who->policy)                                                     /* 0 */
		reason = UNCLASSIFIED;
	if (!reason && !may_be_resolver(who->flags, p->tuple.remote_port))    /* 3: the gateway has no flows */
		reason = ask_known(who, p);
	if (reason)
		return finish(skb, who, p, reason);
	if (is_here(who, p->tuple.local))                                     /* 1 */
		return finish(skb, who, p, SPOOFED);
	local = is_local(who, p);
	if (is_to_server(who, p, local))                                      /* 6 */
		return to_server(skb, who, p);
	if (local)
		return is_behind(p) ? finish(skb, who, p, QUESTION_UNREAD) : LET;
	if (p->offset)
		return finish(skb, who, p, follows(who, p));
	return stage(skb, STAGE_ALONE, HOOK_GATEWAY, 0, who->workload), STOP;
}

/* Behind a tag of no VLAN the kernel finds the packet, and no program does (IEEE 802.1Q 9.6: priority tags). */
static __always_inline int hides_tag(struct __sk_buff *skb)
{
	return (skb->protocol == bpf_htons(VLAN) || skb->protocol == bpf_htons(QINQ)) && skb->vlan_present &&
	       !(skb->vlan_tci & VLAN_ID);
}

int gateway_ingress(struct __sk_buff *skb)
{
	struct subject who = {.hook = HOOK_GATEWAY};
	struct packet p ALIGNED = {};
	struct workload *found;
	enum reason reason;
	u64 id;

	if (hides_tag(skb)) {
		count(0, VLAN_TAG);
		return STOP;
	}
	if (skb->protocol != bpf_htons(IPV4) && skb->protocol != bpf_htons(IPV6))
		return LET;
	reason = read_packet(skb, &p, 1);
	id = machine_of(p.tuple.local);
	if (!id)                                                              /* 0 */
		return LET;
	found = workloads.lookup(&id);
	set_mark(skb, found && found->policy == EXEMPT);
	if (found && found->policy == EXEMPT)
		return LET;
	if (!found || !fill_subject(&who, id, found)) {
		count(0, UNCLASSIFIED);
		return STOP;
	}
	return judge_packet(skb, &who, &p, reason);
}

/* A server of ours answers: learned here, since what is forwarded may be anybody's. */
static __always_inline int take_answer(struct __sk_buff *skb, const struct subject *who, const struct packet *p)
{
	if (is_proxy_there(&p->tuple) && defer_answer(skb, p))
		count(who->policy, ANSWER_DEFERRED);
	stage(skb, STAGE_ANSWER, HOOK_RESOLVER, p->transport + 8, who->workload);
	count(who->policy, ANSWER_BUSY);
	return LET;
}

static __always_inline int note_segment(struct subject *who, const struct packet *p)
{
	if (is_anew(p) && machine_of(p->tuple.remote))
		note_inbound(who, &p->tuple);
	else if (p->tcp_flags & (TCP_FIN | TCP_RST))
		note_phase(who, &p->tuple, p->tcp_flags & TCP_RST ? BROKEN : SERVER_ENDED);
	return LET;
}

/* Of what has no acknowledgments the machine may never say another word. */
static __always_inline int note_datagram(struct __sk_buff *skb, struct subject *who, const struct packet *p)
{
	enum reason reason = ask_table(who, &p->tuple);
	int begins = p->protocol == IPPROTO_UDP || (p->echo && (p->icmp_type == 8 || p->icmp_type == 128));

	if (reason && !passes(reason))
		return conclude(skb, who, &p->tuple, NULL, reason) ? LET : STOP;
	if (!reason && begins && machine_of(p->tuple.remote))
		note_inbound(who, &p->tuple);
	return LET;
}

/* A segment that neither begins nor ends a connection: of these there is nothing to say. */
static __always_inline int goes_in_between(const struct packet *p)
{
	return p->protocol == IPPROTO_TCP && !(p->tcp_flags & (TCP_SYN | TCP_FIN | TCP_RST));
}

static __always_inline int is_answer(const struct subject *who, const struct packet *p)
{
	return p->protocol == IPPROTO_UDP && (is_dns_port(p->tuple.remote_port) || trusts(who, p));
}

int gateway_egress(struct __sk_buff *skb)
{
	struct subject who = {.hook = HOOK_GATEWAY};
	struct packet p ALIGNED = {};
	struct workload *found;
	u64 id;

	if (read_packet(skb, &p, 0) || p.offset || goes_in_between(&p))
		return LET;
	id = machine_of(p.tuple.local);
	found = id ? workloads.lookup(&id) : NULL;
	if (!found || !fill_subject(&who, id, found) || !who.policy)
		return LET;
	if (skb->sk && !skb->ingress_ifindex)
		return is_answer(&who, &p) ? take_answer(skb, &who, &p) : LET;
	if (p.protocol == IPPROTO_TCP)
		return note_segment(&who, &p);
	return is_icmp_error(&p) ? LET : note_datagram(skb, &who, &p);
}
