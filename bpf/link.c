/* link.c: the entry points on a workload's link, at the host's end of it.
 *
 * link_ingress    every frame that leaves the workload, whoever made it: it decides
 * link_egress     every frame towards it: notes what comes in
 */
#define LINK
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/in.h>
#include <linux/in6.h>

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


static __always_inline int has_its_mac(struct __sk_buff *skb, const struct link *link)
{
	u8 *head = (void *)(long)skb->data;

	if ((void *)(long)skb->data_end < (void *)head + L2)
		return 0;
	return *(u32 *)(head + 6) == *(const u32 *)link->mac && *(u16 *)(head + 10) == *(const u16 *)(link->mac + 4);
}

int link_ingress(struct __sk_buff *skb)
{
	u32 index = skb->ifindex;
	struct link *link = links.lookup(&index);

	return link && has_its_mac(skb, link) ? LET : STOP;
}

int link_egress(struct __sk_buff *skb)
{
	return LET;
}
