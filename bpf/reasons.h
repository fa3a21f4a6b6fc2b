/* reasons.h: what the kernel half says of packets and answers, and the switches that both halves know by name.
 *
 * A part of the contract (contract.h), whose rules hold here too: contract.py reads them as one text.
 */

/* Why a packet passed or not. Every value has a sentence in events.py. */
enum reason {
	NONE,
	/* passed */
	ALLOWED,                  /* a peer of the policy admits it */
	ESTABLISHED,              /* its flow was admitted before */
	LOOPBACK,
	RESOLVER,                 /* to a trusted DNS server */
	INBOUND,                  /* answers what came in from outside */
	NEIGHBOUR,                /* IPv6 neighbour discovery on the link, hop limit 255 */
	HOUSEKEEPING,             /* a host's own: DHCP, and what its kernel answers */
	PROXIED,                  /* DNS over TCP, which the proxy reads */
	/* dropped */
	UNCLASSIFIED,             /* a workload nobody has given a policy yet */
	UNREADABLE,               /* headers cut short, or of an unknown version */
	FRAGMENT,                 /* hand-made: the kernel fragments after this hook; on a link: too short a first one */
	LATER_FRAGMENT,           /* on a link: its first one was not admitted, or it would overwrite that */
	IP_OPTION,                /* an option not known to be harmless */
	SOURCE_ROUTE,             /* an option or routing header naming another destination */
	EXTENSION_HEADER,         /* an IPv6 extension header that is not followed, or too many */
	ICMP_ERROR,               /* a socket's own ICMP error: it could carry data out */
	SPOOFED,                  /* its source, or a frame's MAC, is not the workload's own */
	NOT_ALLOWED,              /* no peer of the policy holds the address */
	PORT_NOT_ALLOWED,         /* a peer holds the address, but not for this protocol and port */
	EXPIRED,                  /* the name's grant ran out */
	WITHDRAWN,                /* the peer that admitted the flow is no longer in the policy */
	FLOWS_FULL,               /* the workload has as many open flows of datagrams as it may */
	QUESTION_REFUSED,         /* for a name that no peer matches, where only allowed names may be asked for */
	QUESTION_UNREAD,          /* the same for DNS over TCP, which is not read */
	VLAN_TAG,                 /* on a link: a frame with a tag of 802.1Q or 802.1ad */
	NOT_IP,                   /* on a link: a frame neither of IP nor of ARP */
	PROXY_AWAY,               /* DNS over TCP while nobody reads it */
	OUT_OF_STATE,             /* on a gateway: a segment of a connection that did not begin here */
	HELD_BACK,                /* no grant yet, and peers are asked: who sends it again is let through then */
	/* told of DNS */
	QUESTION_UNREADABLE,      /* to a resolver, but no DNS question */
	QUESTIONS_FULL,
	LEARNED,                  /* an address that a name of the policy now grants */
	SEEN,                     /* an address of a name that no peer matches (told with TRACE or NAMES) */
	ANSWER_UNASKED,           /* matches no open question of this socket */
	ANSWER_LATE,              /* its question is older than QUESTION_SECONDS */
	ANSWER_UNREADABLE,        /* not a well-formed message (RFC 1035 4.1) */
	ANSWER_TRUNCATED,         /* TC: what is readable was learned */
	ANSWER_LONG,              /* more than MESSAGE bytes or RECORDS addresses */
	ANSWER_BUSY,              /* no slate was free */
	ANSWER_DEFERRED,          /* TC was set: too long for the reader, the client comes again over TCP */
	NEVER_LEARNED,            /* an address that DNS may not teach */
	GRANT_CROWDED,            /* a grant of another name on this address was replaced */
	NAME_FULL,                /* a peer has as many addresses as it may */
	GRANTS_FULL,
	INBOUND_FULL,             /* a peer outside that might still be answered made room for another */
	EVENTS_LOST,
	REASONS,
};

enum flag {
	AUDIT = 1,                /* drop nothing, tell what would have been dropped */
	TRACE = 2,                /* tell admitted flows and learned addresses too, without a rate limit */
	RESOLVER_PORTS = 4,       /* some resolver of this policy listens on another port than 53 */
	ONLY_ALLOWED_NAMES = 8,   /* refuse questions for names that no peer matches */
	PATTERNS = 16,            /* there is an automaton */
	HOST = 32,                /* the workload is the host: what keeps it on its network passes */
	OWN_SOURCES = 64,         /* of a workload: `own` has all addresses of its home */
	NAMES = 128,              /* tell the addresses of answers too, at a limited rate */
	COOKIE = 256,             /* of a workload: its home is a cookie, by which hooks know who lives elsewhere */
	LINKED = 512,             /* of a workload: all that leaves its home is judged on its link, too */
	TRANSLATED = 1024,        /* of a workload: it cannot change its home's translation of addresses */
	CAPTURED = 2048,          /* of machines: DNS goes to the gateway, whatever server it was meant for */
	SHARED = 4096,            /* peers are told what is learned, and asked for what is missed */
};

enum hook {
	HOOK_EGRESS = 1,
	HOOK_INGRESS,
	HOOK_CONNECT,
	HOOK_SENDMSG,
	HOOK_RESOLVER,
	HOOK_LINK,
	HOOK_PROXY,
	HOOK_GATEWAY,
};

enum verdict { DROP, PASS, WOULD_DROP };

/* What one stage hands to the next in the packet's control block; two versions may share one table of stages. */
enum control { CB_SLATE, CB_OFFSET, CB_HOOK, CB_WORKLOAD, CB_WORKLOAD_HIGH };

enum stage {
	STAGE_QUESTION,
	STAGE_ASK,
	STAGE_ANSWER,
	STAGE_PATTERNS,
	STAGE_ALIAS,
	STAGE_RECORDS,
	STAGE_GRANTS,
	STAGE_ALONE,              /* the last two: of links and gateways, whose tables have no others of their own */
	STAGE_PROXIED,
	STAGES,
};

/* How far a connection is, in bits. */
enum phase { SPOKEN = 1, CLIENT_ENDED = 2, SERVER_ENDED = 4, BROKEN = 8 };
