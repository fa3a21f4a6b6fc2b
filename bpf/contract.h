/* contract.h: all that the kernel half and the Python half must agree on (with limits.h and reasons.h), and nothing
 * else.
 *
 * Rules this file obeys:
 *   - Plain structs, enums and MAP() lines only: the compiler reads it as C, contract.py reads the same
 *     text with cffi, behind that of the other two. There is no second copy of any layout.
 *   - Every struct is laid out without implicit padding, because the kernel compares keys byte by byte.
 *   - Addresses are 16 bytes; IPv4 is written as v4-mapped (RFC 4291 2.5.5.2). Ports in tuples and in LPM
 *     keys are in network order. Times are nanoseconds of CLOCK_BOOTTIME.
 *   - A change of anything here changes the hash under which maps are pinned (contract.py), so that maps
 *     of another layout are never used by mistake.
 *   - Rows of another layout are taken over by the names of fields, flags and reasons (migrate.py): so a name
 *     keeps its meaning for ever, and what means something else gets another name. `shadow` and `carrying`
 *     of struct settings are what versions talk to each other by: they stay.
 */

struct settings {
	__u32 shallowest;         /* cgroup levels at which workloads may lie, the root being 0 */
	__u32 deepest;
	__u32 shadow;             /* not 0: another layout of maps still decides; learn and remember, drop nothing */
	__u32 carrying;           /* not 0: look for sockets in `carried` */
	__u32 flows;              /* quotas: open flows of datagrams of one workload */
	__u32 inbounds;           /* peers outside that one workload may answer */
	__u32 addresses;          /* that one peer of a policy may hold */
	__u32 questions;          /* open ones of one workload */
	__u32 mark;               /* of packets that are led to the proxy, within mark_mask */
	__u32 mark_mask;          /* all of it: what a gateway has admitted */
	__u32 hold_back;          /* of gateways: milliseconds for which peers are waited for; 0: there are none */
	__u32 pick_up;            /* of gateways, not 0: a connection that began elsewhere goes on here */
	__u32 dns_port;           /* of gateways: where their DNS server is, behind port 53; 0: there itself */
};

struct policy {
	__u32 generation;         /* grows with every change, when a workload leaves it, and at a number's reuse */
	__u32 flags;
	__u32 floor;              /* seconds: a grant lasts max(TTL, floor) + grace */
	__u32 grace;
};

/* Workloads of one policy may live in different network namespaces: so each row says where. */
struct workload {
	__u32 policy;
	__u32 flags;              /* OWN_SOURCES, COOKIE, LINKED: added to the policy's */
	__u64 home;               /* its network namespace's cookie, else its inode's number; 0: not asked */
};

/* Of an interface of the host that is one end of a workload's link: who is at the other end. */
struct link {
	__u64 workload;           /* 0: a bridge, whose ports are links */
	__u8 mac[6];              /* of that end */
	__u8 pad[2];
};

/* The ports of the host's loopback to which connect() to a trusted resolver's TCP port is led; 0: nowhere. */
struct proxy {
	__u64 netns;              /* only sockets of the namespace with this cookie; 0: of any */
	__u8 port4[2];
	__u8 port6[2];
	__u32 pad;
};

struct own_key {
	__u8 address[16];
	__u64 home;
};

/* Whose packets these are, on a gateway: all machines below a prefix are one workload. Its home is the gateway's
 * own network namespace. */
struct source_key {
	__u32 bits;               /* 128 of one address, 96 more than IPv4 says */
	__u8 address[16];
};

struct resolver_key {
	__u8 address[16];
	__u16 policy;
	__u8 port[2];
};

/* Peers that a name or a prefix belongs to, nearest first, 0 where there are fewer. */
struct peers {
	__u64 id[4];
};

struct name_key {
	__u32 bits;
	__u8 policy[2];
	__u8 text[254];           /* reversed, lower case; exact names end in NUL */
};

/* What DNS may teach of an address: a value of `never`. Under policy 0, as the rows of `domains` are, which say
 * below which names the cluster's own addresses lie. */
enum range { ANYBODY, NEVER, CLUSTER };

/* How many characters of a name to take away, the shortest suffix first, 0 where there are fewer. */
struct suffixes {
	__u8 length[8];
};

/* One state of an automaton over the lower-case name, read forwards. */
struct state {
	__u16 next[40];
	__u64 peers[4];
};

struct prefix_key {
	__u32 bits;
	__u8 policy[2];
	__u8 address[16];
	__u8 pad[2];
};

struct rule_key {
	__u64 policy;
	__u64 peer;
};

struct rule {
	__u64 ports;              /* one bit for each set of ports that the policy knows */
};

struct service_key {
	__u32 bits;
	__u8 policy[2];
	__u8 protocol;            /* ICMPv6 is asked for as ICMP */
	__u8 port[2];
	__u8 pad[3];
};

struct service {
	__u64 ports;              /* rows of one port stand in single_services too, which is asked first */
};

struct grant_key {
	__u8 address[16];
	__u64 policy;
};

struct slot {
	__u64 peer;
	__u64 expires;
};

struct grant {
	struct slot slots[4];
};

struct tuple {
	__u8 local[16];
	__u8 remote[16];
	__u8 local_port[2];       /* the echo identifier, for ICMP */
	__u8 remote_port[2];
	__u32 protocol;
};

struct question_key {
	__u64 socket;             /* its cookie; 0 where the resolver is on this host, then `client` counts */
	__u64 name;               /* hash of the question section, letters folded */
	struct tuple client;
	__u32 id;
	__u32 pad;
};

struct question {
	__u64 time;
	__u64 workload;
	__u64 socket;
	__u32 policy;
	__u32 place;              /* in its workload's ring, from 1 on */
};

/* A place in one of the rings of a workload (quotas.h). */
struct place {
	__u64 workload;
	__u64 number;
};

/* How far a workload's rings were written. */
struct tally {
	__u64 questions;
	__u64 flows;
	__u64 inbounds;
};

struct flow_key {
	__u64 socket;
	struct tuple tuple;
};

struct flow {
	struct tuple tuple;
	__u64 peer;               /* who admitted it; 0 for a state that needs no peer */
	__u64 seen;
	__u32 policy;
	__u32 generation;
	__u32 state;              /* enum reason: ALLOWED, RESOLVER, INBOUND (TCP), WITHDRAWN; NONE is no flow */
	__u32 phase;              /* enum phase: of TCP, on a gateway */
	__u64 seal;               /* over all of it but `seen`: two threads may tear what a datagram socket remembers */
};

/* What is kept with a socket (and inherited by what a listener accepts). */
struct socket {
	struct flow flow;
	__u64 netns;              /* in which it was bound, connected or sent from */
	__u32 passive;            /* born of a listener and silent so far */
	__u32 pid;
	char comm[16];
	__u8 server[16];          /* whom it asked for at connect(), of TCP */
	__u8 server_port[2];      /* 0: nobody, or in no workload */
	__u8 listener;            /* it is one that the proxy listens on */
	__u8 pad[5];
	__u64 asker;              /* which workload was led to the proxy; 0: it was not */
};

struct inbound_key {
	__u64 workload;
	struct tuple tuple;
};

struct inbound {
	__u64 seen;
};

/* A datagram in pieces of which the first was admitted. A workload's next one may take its slot. */
struct fragment_key {
	__u64 workload;
	__u64 slot;
};

struct fragment {
	__u8 local[16];
	__u8 remote[16];
	__u32 id;
	__u32 protocol;           /* 0 for IPv6, where it is no part of what pieces are known by (RFC 8200 4.5) */
	__u64 seen;
	__u32 end;                /* of the first piece's data, in bytes: no other begins before */
	__u32 pad;
};

/* A place among the addresses that one peer of a policy holds. */
struct holder {
	__u64 policy;
	__u64 peer;
	__u64 number;
};

struct held {
	__u8 address[16];
};

/* When a packet to this address was first held back, until peers have told what they know of it. */
struct miss {
	__u64 time;
};

/* How far that ring was written; of peer 0: how many places all peers of the policy have. */
struct holding {
	__u64 number;
	__u64 places;
};

struct pace {
	__u64 second;
	__u64 told;
};

struct counter {
	__u64 packets;
};

struct event {
	__u64 time;
	__u64 workload;           /* cgroup id */
	__u64 socket;
	__u64 peer;
	__u8 local[16];
	__u8 remote[16];
	__u8 local_port[2];
	__u8 remote_port[2];
	__u16 policy;
	__u8 protocol;
	__u8 reason;
	__u8 verdict;
	__u8 hook;
	__u8 pad[2];
	__u32 pid;
	char comm[16];
};

/* LEARNED, SEEN and NEVER_LEARNED: `event.remote` is the address, `expires` its end. */
struct answer_event {
	struct event event;
	__u64 expires;
	char name[256];
};

/* What another gateway has learned: an address of a peer of a policy, under the number that it has here. */
struct fact {
	__u64 policy;
	__u64 peer;
	__u8 address[16];
	__u64 seconds;            /* that it is good for still */
};

/* What the reader of one DNS answer keeps: outside the registers, or the verifier's states explode. */
struct record {
	__u8 address[16];
	__u32 ttl;
	__u32 mapped;             /* IPv4 dressed as IPv6: never learned */
};

struct slate {
	__u32 length;             /* of the message */
	__u32 at;                 /* the byte to read next */
	__u32 resume;             /* where to go on after a name that jumped; 0 before the first jump */
	__u32 end;                /* of this record's data */
	__u32 state;
	__u32 labels;             /* bytes of this name so far */
	__u32 left;               /* records left in all sections */
	__u32 answers;            /* of these, in the answer section */
	__u32 addresses;          /* found */
	__u32 learned;            /* of these, once for each peer */
	__u32 wants;              /* peers that want the name */
	__u32 tries;              /* places looked at for this address and peer */
	__u32 wrong;              /* enum reason */
	__u32 text_length;
	__u32 odd;                /* the question's name has a character that teaches nothing */
	__u32 label;              /* bytes left of the label being read */
	__u32 truncated;          /* TC */
	__u32 partial;            /* longer than MESSAGE: its end was not loaded */
	__u32 suffix;             /* of `suffixes`, the next to take away */
	__u32 cluster;            /* the name may teach the cluster's own addresses */
	__u64 hash;
	struct question question;
	__u64 wanting[16];        /* those of the names table, then those of the automaton; the same of an alias */
	struct suffixes suffixes;
	struct record records[64];
	struct answer_event told;
	__u8 key[8];              /* the name key's head may lie here, when the name is long */
	__u8 reversed[256];       /* the question's name, right-aligned */
	__u8 terminator[272];     /* zeroes: the reversed name's end, and room for a whole key */
	__u8 message[4096];
	__u8 margin[64];          /* so that whole words can be read near the end */
};

MAP(array, settings, __u32, struct settings, 1)
MAP(array, policies, __u32, struct policy, POLICIES)
MAP(hash, workloads, __u64, struct workload, 65536)
MAP(hash, links, __u32, struct link, 65536)
MAP(array, proxies, __u32, struct proxy, POLICIES)
MAP(sockmap, listeners, __u32, __u64, 2)
MAP(hash, own, struct own_key, __u32, 65536)
MAP(lpm, sources, struct source_key, __u64, 65536)
MAP(hash, resolvers, struct resolver_key, __u32, 65536)
MAP(lpm, names, struct name_key, struct peers, 1000000)
MAP(lpm, suffixes, struct name_key, struct suffixes, 65536)
MAP(automata, patterns, __u32, struct state, POLICIES)
MAP(lpm, prefixes, struct prefix_key, struct peers, 1000000)
MAP(lpm, never, struct prefix_key, __u32, 4096)
MAP(lpm, domains, struct name_key, __u32, 4096)
MAP(hash, rules, struct rule_key, struct rule, 262144)
MAP(lpm, services, struct service_key, struct service, 1000000)
MAP(hash, single_services, struct service_key, struct service, 262144)
MAP(hash, grants, struct grant_key, struct grant, 1000000)
MAP(hash, grant_ring, struct holder, struct held, 1000000)
MAP(hash, holdings, struct rule_key, struct holding, 262144)
MAP(hash, tallies, __u64, struct tally, 65536)
MAP(hash, questions, struct question_key, struct question, 262144)
MAP(hash, question_ring, struct place, struct question_key, 262144)
MAP(storage, sockets, __u32, struct socket, 0)
MAP(hash, carried, __u64, struct socket, 262144)
MAP(hash, flows, struct flow_key, struct flow, 262144)
MAP(hash, flow_ring, struct place, struct flow_key, 262144)
MAP(hash, inbounds, struct inbound_key, struct inbound, 524288)
MAP(hash, inbound_ring, struct place, struct inbound_key, 524288)
MAP(hash, fragments, struct fragment_key, struct fragment, 65536)
MAP(lru, misses, struct grant_key, struct miss, 65536)
MAP(percpu_array, counters, __u32, struct counter, 196608)
MAP(array, paces, __u32, struct pace, POLICIES)
MAP(rings, events, __u32, __u32, POLICIES)
MAP(percpu_array, slates, __u32, struct slate, SLATES)
MAP(hash, claims, __u32, __u32, 65536)
MAP(programs, stages, __u32, __u32, STAGES)
MAP(programs, link_stages, __u32, __u32, STAGES)
MAP(programs, gateway_stages, __u32, __u32, STAGES)
