/* cgroup.c: the entry points of the cgroup hooks.
 *
 * egress, ingress     every packet of every socket below the workloads' cgroup: they decide
 * connect             early and in the caller's context: a refused connect() gets EPERM at once, where a
 *                     dropped SYN would be retried in silence
 * connect, note       (bind and sendmsg) whose socket it is, in which network namespace
 * resolver            at the root of the hierarchy, only where a trusted resolver is on this host: learns
 *                     from the answers that leave the resolver's own socket, since what arrives over
 *                     loopback may be forged
 *
 * What reads a DNS message goes on in stages.h.
 *
 * Includes are flattened by compile.py: BCC rewrites map calls in the main text only.
 */
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
#include "names.h"
#include "dns.h"
#include "aliases.h"
#include "patterns.h"
#include "learn.h"
#include "questions.h"
#include "stages.h"
#include "proxy.h"

static __always_inline struct bpf_sock *socket_of(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	return sk ? bpf_sk_fullsock(sk) : NULL;
}

/* Over loopback a source is loopback, or the very address it goes to: what the kernel itself chooses. */
static __always_inline int is_forged(const u8 *source, const u8 *destination)
{
	return !is_loopback(source) && !same_address(source, destination);
}

/* Where the node translates addresses, and the workload has no say in that, the address that a socket was
 * connected to counts. Of datagrams it does not: another thread may connect the socket elsewhere while one is
 * on its way, whereas a TCP socket is locked. */
static __always_inline int is_translated(const struct subject *who, const struct socket *s, const struct packet *p)
{
	return (who->flags & TRANSLATED) && p->protocol == IPPROTO_TCP && s && *(const u16 *)s->server_port &&
	       !is_led_socket(s) && !s->passive && at_home(who, s);
}

static __always_inline void whom_it_asked(struct tuple *t, const struct socket *s)
{
	copy_address(t->remote, s->server);
	__builtin_memcpy(t->remote_port, s->server_port, 2);
}

static __always_inline enum reason decide(struct __sk_buff *skb, struct bpf_sock *sk, struct socket *s,
					  struct subject *who, const struct packet *p)
{
	struct tuple asked ALIGNED = p->tuple;
	struct flow aside ALIGNED;
	enum reason reason;

	if (is_translated(who, s, p))
		whom_it_asked(&asked, s);
	if (is_icmp_error(p))                                                 /* 2 */
		return who->flags & HOST ? HOUSEKEEPING : ICMP_ERROR;
	if (s && holds(&s->flow, &p->tuple))                                  /* 3 */
		return ask_flow(&s->flow, who, &asked);
	if (s && recall(&aside, who, &p->tuple)) {
		int room = put_aside(s, who);

		reason = ask_flow(&aside, who, &p->tuple);
		if (room)
			s->flow = aside;
		return reason;
	}
	if (s && !put_aside(s, who))
		return FLOWS_FULL;
	if (answers_inbound(sk, s, who, p)) {                                 /* 4 */
		if (s && sk && p->protocol == IPPROTO_TCP && sk->state != TCP_STATE_LISTEN) {
			s->passive = 0;
			remember(s, who, &p->tuple, INBOUND);
		}
		return INBOUND;
	}
	if (is_neighbour_discovery(p))                                        /* 5 */
		return NEIGHBOUR;
	if ((who->flags & HOST) && is_housekeeping(p))
		return HOUSEKEEPING;
	reason = judge(who, &asked);                                          /* 6 .. 9 */
	/* The answer would go to somebody else, with what it says of the packet. Raw sockets are asked too, of
	 * which no hook says where they live; not those that are known to live elsewhere. */
	if (passes(reason) && (who->flags & OWN_SOURCES) && !(s && s->netns && s->netns != who->netns) &&
	    !is_own(who, p->tuple.local))
		return SPOOFED;
	if (s && passes(reason) && !(sk && sk->type == SOCK_RAW && p->protocol == IPPROTO_TCP))
		remember(s, who, &p->tuple, reason);
	return reason;
}

/* Over loopback, to a server on this host: of those that are not trusted nothing is known, so that where
 * questions are checked none goes there. */
static __always_inline enum reason to_local_server(const struct subject *who, const struct packet *p)
{
	if (trusts(who, p))
		return unread_question(who, &p->tuple) ? QUESTION_UNREAD : RESOLVER;
	if ((who->flags & ONLY_ALLOWED_NAMES) && is_dns_port(p->tuple.remote_port))
		return QUESTION_UNREAD;
	return LOOPBACK;
}

static __always_inline void take_over_once(struct __sk_buff *skb, struct socket *s)
{
	struct settings *now = setting();

	if (s && now && now->carrying)
		take_over(s, bpf_get_socket_cookie(skb));
}

static __always_inline int judge_egress(struct __sk_buff *skb, struct socket *s)
{
	struct packet p ALIGNED = {};
	struct subject who = {.hook = HOOK_EGRESS};
	enum reason reason;
	int local = skb->ifindex == LOOPBACK_IFINDEX;

	if (!find_workload(skb, &who))                                        /* 0 */
		return PASS;
	take_over_once(skb, s);
	reason = read_packet(skb, &p, 1);                                     /* 1 */
	if (p.protocol != IPPROTO_TCP)
		who.socket = bpf_get_socket_cookie(skb);
	if (!who.policy)
		reason = UNCLASSIFIED;
	else if (!reason && local)                                            /* 2 */
		reason = is_led(s, &who, &p) ? LOOPBACK :
			 is_forged(p.tuple.local, p.tuple.remote) ? SPOOFED : to_local_server(&who, &p);
	else if (!reason)
		reason = decide(skb, socket_of(skb), s, &who, &p);
	if (!conclude(skb, &who, &p.tuple, s, reason))
		return DROP;
	if (reason != RESOLVER || p.protocol != IPPROTO_UDP)
		return PASS;
	if (who.flags & ONLY_ALLOWED_NAMES || at_home(&who, s))
		stage(skb, STAGE_QUESTION, HOOK_EGRESS, p.transport + 8, who.workload);
	return who.flags & ONLY_ALLOWED_NAMES ? DROP : PASS;     /* here only where no stage follows */
}

int egress(struct __sk_buff *skb)
{
	struct socket *s = storage_of(skb->sk);

	if (s && goes_on(skb, s, 1)) {
		count(s->flow.policy, ESTABLISHED);
		return PASS;
	}
	return judge_egress(skb, s);
}

/* A segment of a flow whose address was translated on its way out, and back on its way in. */
static __always_inline int comes_back(const struct socket *s, const struct subject *who, const struct packet *p)
{
	return s->flow.state && is_translated(who, s, p) && same_address(p->tuple.remote, s->server) &&
	       *(const u16 *)p->tuple.remote_port == *(const u16 *)s->server_port;
}

static __always_inline int judge_ingress(struct __sk_buff *skb, struct socket *s)
{
	struct packet p ALIGNED = {};
	struct subject who = {.hook = HOOK_INGRESS};
	struct bpf_sock *sk = socket_of(skb);
	struct flow aside ALIGNED;
	enum reason reason;
	int answer;

	if (!sk || !find_workload(skb, &who) || !who.policy || read_packet(skb, &p, 0))
		return PASS;
	take_over_once(skb, s);
	if (p.protocol != IPPROTO_TCP)
		who.socket = bpf_get_socket_cookie(skb);
	if (skb->pkt_type == PACKET_LOOPBACK)    /* its own multicast, which comes back by the interface it left */
		return PASS;
	if (skb->ifindex == LOOPBACK_IFINDEX) {
		if (is_loopback(p.tuple.local) || !is_forged(p.tuple.remote, p.tuple.local))
			return PASS;
		return conclude(skb, &who, &p.tuple, s, SPOOFED);
	}
	answer = p.protocol == IPPROTO_UDP && trusts(&who, &p);
	reason = NONE;
	if (s && (holds(&s->flow, &p.tuple) || comes_back(s, &who, &p)))
		reason = ask_flow(&s->flow, &who, &p.tuple);
	else if (s && recall(&aside, &who, &p.tuple))
		reason = ask_flow(&aside, &who, &p.tuple);
	if (reason == WITHDRAWN)
		return conclude(skb, &who, &p.tuple, s, reason);
	if (!at_home(&who, s))
		return PASS;
	if (reason) {
		;
	} else if (p.protocol == IPPROTO_TCP) {
		if (s && sk->state == TCP_STATE_LISTEN && (p.tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN)
			s->passive = 1;
	} else if (sk->type != SOCK_RAW && !answer) {
		note_inbound(&who, &p.tuple);
	}
	if (answer)
		stage(skb, STAGE_ANSWER, HOOK_INGRESS, p.transport + 8, who.workload);
	return PASS;
}

int ingress(struct __sk_buff *skb)
{
	struct socket *s = storage_of(skb->sk);

	if (s && goes_on(skb, s, 0))
		return PASS;
	return judge_ingress(skb, s);
}

/* A resolver on this host answers one of ours over loopback. */
int resolver(struct __sk_buff *skb)
{
	struct packet p ALIGNED = {};
	struct subject who = {};

	if (skb->ifindex != LOOPBACK_IFINDEX || read_packet(skb, &p, 1) || p.protocol != IPPROTO_UDP)
		return PASS;
	if (is_resolver(0, 0, p.tuple.local, p.tuple.local_port) && !find_workload(skb, &who))
		stage(skb, STAGE_ANSWER, HOOK_RESOLVER, p.transport + 8, 0);
	return PASS;
}

static __always_inline void note_process(struct bpf_sock_addr *ctx, struct socket *s)
{
	if (!s)
		return;
	s->netns = bpf_get_netns_cookie(ctx);
	s->pid = bpf_get_current_pid_tgid() >> 32;
	bpf_get_current_comm(s->comm, sizeof(s->comm));
}

static __always_inline int connecting(struct bpf_sock_addr *ctx, const struct tuple *t, int ipv4_hook)
{
	struct subject who = {.hook = HOOK_CONNECT};
	struct socket *s = storage_of(ctx->sk);
	enum reason reason;

	note_process(ctx, s);
	if (ctx->type != SOCK_STREAM || t->protocol != IPPROTO_TCP)
		return PASS;             /* connecting a datagram socket sends nothing: resolvers do it to sort */
	ask_for(s, NULL);
	if (!find_workload(NULL, &who))
		return PASS;
	reason = lead(ctx, &who, s, t, ipv4_hook);
	if (reason)
		return conclude(ctx, &who, t, s, reason);
	if (is_loopback(t->remote) || is_unspecified(t->remote)) {
		reason = (who.flags & ONLY_ALLOWED_NAMES) && is_dns_port(t->remote_port) ? QUESTION_UNREAD : LOOPBACK;
	} else {
		reason = who.policy ? judge(&who, t) : UNCLASSIFIED;
		/* To itself goes over loopback, as egress will see; here no route is known yet. */
		reason = is_own(&who, t->remote) && reason != QUESTION_UNREAD ? LOOPBACK : reason;
	}
	if (!passes(reason))
		return conclude(ctx, &who, t, s, reason);
	ask_for(s, t);
	return PASS;
}

static __always_inline void remote_of(struct bpf_sock_addr *ctx, struct tuple *t, int ipv4)
{
	u32 *words = (u32 *)t->remote;

	if (ipv4) {
		map_ipv4(t->remote, ctx->user_ip4);
	} else {
		words[0] = ctx->user_ip6[0];
		words[1] = ctx->user_ip6[1];
		words[2] = ctx->user_ip6[2];
		words[3] = ctx->user_ip6[3];
	}
	set_service(t, (u32)(u16)ctx->user_port << 16, ctx->protocol, 1);
}

int connect4(struct bpf_sock_addr *ctx)
{
	struct tuple t ALIGNED = {};

	remote_of(ctx, &t, 1);
	return connecting(ctx, &t, 1);
}

int connect6(struct bpf_sock_addr *ctx)
{
	struct tuple t ALIGNED = {};

	remote_of(ctx, &t, 0);
	return connecting(ctx, &t, 0);
}

/* A datagram that egress drops gives its sender EPERM at once, so that nothing is decided here. */
int note(struct bpf_sock_addr *ctx)
{
	note_process(ctx, storage_of(ctx->sk));
	return PASS;
}
