/* limits.h: how many, how much, how long; what both halves count with.
 *
 * A part of the contract (contract.h), whose rules hold here too: contract.py reads them as one text.
 */

enum limit {
	POLICIES = 4096,          /* policy numbers; 0 is "not classified yet" and drops */
	EXEMPT = 65535,           /* in place of a number: not filtered, whatever lies around it */
	PEERS = 4,                /* peers that may share one name or prefix, slots of one grant */
	NAME_TEXT = 254,          /* 253 characters and a terminator; LPM data is at most 256 bytes */
	MESSAGE = 4096,           /* bytes of a DNS answer that are read */
	RECORDS = 64,             /* addresses of one answer that are learned */
	STEPS = 64,               /* labels and records read in one stage of the reader; 33 stages at most */
	SYMBOLS = 39,             /* of a name: a to z, 0 to 9, '-', '_', '.', in this order */
	STATES = 8192,            /* of the automaton of one policy's patterns; 0 is dead, 1 the first */
	SUFFIXES = 8,             /* search suffixes that one name may end in */
	GRANTS_AT_ONCE = 16,      /* addresses, for one of their peers each, learned in one stage */
	FACTS_AT_ONCE = 8,        /* of another gateway, taken in one run */
	SLATES = 8,               /* DNS messages that may be read at once on one CPU */
	COMM = 16,
	QUESTION_SECONDS = 10,    /* how long an answer is waited for */
	QUESTIONS = 1024,         /* quotas, unless `settings` say otherwise: see there */
	FLOWS = 2048,
	INBOUNDS = 8192,
	ADDRESSES = 16384,
	PROBES = 4,               /* places of a full ring that are looked at for one that is over */
	LONGEST_GRANT = 604800,   /* seconds; a longer TTL counts as this one (RFC 8767 4) */
	GRANTS_PER_POLICY = 4,    /* times what one peer may hold: all peers of a policy together */
	INBOUND_SECONDS = 180,    /* how long a datagram from outside may be answered */
	FLOW_SECONDS = 300,       /* how long a silent peer of a socket with many peers is remembered */
	EVENTS_PER_SECOND = 100,  /* of one policy; TRACE lifts it */
	DNS_PORT = 53,
	MARK = 0x10,              /* of packets to the proxy, unless `settings` say otherwise */
	MARK_MASK = 0x30,         /* bits of marks that are ours; what else they hold: routing/ */
	FRAGMENTS = 64,           /* datagrams in pieces that one workload may have under way */
	FRAGMENT_SECONDS = 30,    /* how long their pieces are waited for (RFC 791 3.2) */
	LINK_BIT = 63,            /* of a workload's id: its rows and rings that the link writes; no cgroup has it */
	MACHINE_BIT = 62,         /* of the id of a machine behind a gateway, which no cgroup has */
	MACHINE_FLOWS = 65536,    /* what FLOWS is to a workload, to a machine: those of TCP are among them */
	TCP_SECONDS = 7440,       /* how long a silent connection of a machine is remembered (RFC 5382 REQ-5) */
	TCP_HALF_SECONDS = 240,   /* and one that is being opened or closed */
	MISS_SECONDS = 10,        /* after that a packet to the same address is held back again */
};
