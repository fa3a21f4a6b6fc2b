"""Every verdict by name: one packet at a time through the real programs, attached to nothing.

The world that the rows below speak of is laid by `world()`; a row is a sentence, a packet, the reasons that
are counted for it. Whether it passed must follow from the first reason, but for audit mode.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from dnslib import DNSRecord

from bpf import kernel
from bpf.contract import contract
from tests.kernel import packets as p
from tests.kernel.bench import LATER, SECOND, Bench, now

MINE, THEIRS = 7, 8  # policy numbers
ME4, ME6 = "10.1.0.2", "fd01::2"
ANY, WEB, HIGH, NTP, PING, STREAMS, SIP, LAST = (1 << bit for bit in (0, 1, 2, 3, 4, 5, 6, 63))
GONE, ANYWHERE, WEBSITE, HIGHPORTS, CLOCK, PINGED, ALLTCP, PHONE, FARBIT, WEBNPING = range(100, 110)
PASSED = {"ALLOWED", "ESTABLISHED", "LOOPBACK", "RESOLVER", "INBOUND", "NEIGHBOUR"}
QUESTION = DNSRecord.question("www.example.com").pack()


def world(b: Bench) -> None:
    b.classify(b.cgroup, MINE)
    b.policy(MINE)
    b.policy(THEIRS)
    ports(b)
    peers(b)
    learned(b)
    for policy, address, port in (
        (MINE, "10.0.0.53", 53),
        (MINE, "fd00::53", 53),
        (MINE, "127.0.0.53", 53),
        (MINE, "10.0.0.54", 5353),
        (THEIRS, "10.0.0.55", 53),
    ):
        b.resolver(policy, address, port)


def ports(b: Bench) -> None:
    """The longest row holds the bits of all shorter ones."""
    b.service(MINE, ANY)
    b.service(MINE, ANY | STREAMS, p.TCP)
    b.service(MINE, ANY | STREAMS | WEB, p.TCP, 80)
    b.service(MINE, ANY | STREAMS | WEB, p.TCP, 443)
    b.service(MINE, ANY | STREAMS | HIGH, p.TCP, 8192, bits=32)  # 8192 to 8447
    b.service(MINE, ANY | STREAMS | LAST, p.TCP, 9999)
    b.service(MINE, ANY | NTP, p.UDP, 123)
    b.service(MINE, ANY | PING, p.ICMP)
    b.service(MINE, ANY | SIP, p.SCTP, 5060)
    b.service(THEIRS, ANY)


def peers(b: Bench) -> None:
    for peer, mask in (
        *((ANYWHERE, ANY), (WEBSITE, WEB), (HIGHPORTS, HIGH), (CLOCK, NTP), (PINGED, PING)),
        *((ALLTCP, STREAMS), (PHONE, SIP), (FARBIT, LAST), (WEBNPING, WEB | PING)),
    ):
        b.rule(MINE, peer, mask)
    b.rule(THEIRS, ANYWHERE, ANY)
    for network, *who in (
        ("192.0.2.0/24", WEBSITE),
        ("192.0.2.64/26", ANYWHERE, WEBSITE),
        ("192.0.2.128/25",),  # an except
        ("192.0.2.200/32", CLOCK),  # in the except
        ("198.51.100.10/32", ANYWHERE),
        ("198.51.100.20/32", CLOCK),
        ("198.51.100.30/32", PINGED),
        ("198.51.100.40/32", HIGHPORTS),
        ("198.51.100.50/32", ALLTCP),
        ("198.51.100.60/32", PHONE),
        ("198.51.100.70/32", GONE),
        ("198.51.100.80/32", FARBIT),
        ("198.51.100.90/32", GONE, CLOCK, PHONE, WEBSITE),
        ("198.51.100.100/32", WEBNPING),
        ("224.0.1.0/24", ANYWHERE),
        ("2001:db8:1::/48", WEBSITE),
        ("2001:db8:1:bad::/64",),
        ("2001:db8:2::/64", ANYWHERE),
        ("2001:db8:3::1/128", PINGED),
        ("2001:db8:4::1/128", HIGHPORTS),
    ):
        b.prefix(MINE, network, *who)
    b.prefix(THEIRS, "192.88.99.0/24", ANYWHERE)


def learned(b: Bench) -> None:
    live, over = now() + LATER, now() - SECOND
    for address, *slots in (
        ("203.0.113.1", (WEBSITE, live)),
        ("203.0.113.2", (WEBSITE, over)),
        ("203.0.113.3", (WEBSITE, over), (ANYWHERE, live)),
        ("203.0.113.4", (GONE, live)),
        ("203.0.113.5", (GONE, live), (WEBSITE, over), (CLOCK, live), (WEBSITE, live)),
        ("203.0.113.6", (WEBSITE, over), (CLOCK, live)),
        ("203.0.113.7", (0, 0), (0, 0), (0, 0), (WEBSITE, live)),
        ("203.0.113.8", (GONE, over)),
        ("203.0.113.9", (CLOCK, over), (WEBSITE, live)),
        ("192.0.2.7", (WEBSITE, over)),  # and by its prefix
        ("192.0.2.129", (WEBSITE, live)),  # an except of a prefix, not of a name
        ("2001:db8:f::1", (WEBSITE, live)),
        ("2001:db8:f::2", (WEBSITE, over)),
    ):
        b.grant(MINE, address, *slots)
    b.grant(THEIRS, "203.0.113.99", (ANYWHERE, live))


# ---- The rows ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    says: str
    frame: bytes
    reasons: tuple[str, ...]
    program: str = "egress"
    loopback: bool = False
    given: Callable[[Bench], object] | None = None
    passes: bool | None = None

    @property
    def verdict(self) -> bool:
        if self.passes is not None:
            return self.passes
        return not self.reasons or self.reasons[0] in PASSED


def out(says: str, packet: bytes, *reasons: str, **more: object) -> Row:
    return Row(says, p.ether(packet), reasons, **more)  # type: ignore[arg-type]


def came(says: str, packet: bytes, *reasons: str, **more: object) -> Row:
    more = {"passes": reasons != ("SPOOFED",), **more}
    return Row(says, p.ether(packet), reasons, program="ingress", **more)  # type: ignore[arg-type]


def answers(says: str, packet: bytes, *reasons: str, **more: object) -> Row:
    more = {"loopback": True, **more}
    return Row(says, p.ether(packet), reasons, program="resolver", **more)  # type: ignore[arg-type]


def ip(destination: str, protocol: int, payload: bytes, source: str | None = None, **more: object) -> bytes:
    if ":" in destination:
        return p.ipv6(source or ME6, destination, protocol, payload, **more)  # type: ignore[arg-type]
    return p.ipv4(source or ME4, destination, protocol, payload, **more)  # type: ignore[arg-type]


def tcp(destination: str, port: int = 80, **more: object) -> bytes:
    return ip(destination, p.TCP, p.tcp(port, flags=more.pop("flags", p.SYN)), **more)  # type: ignore[arg-type]


def udp(destination: str, port: int, payload: bytes = b"", **more: object) -> bytes:
    return ip(destination, p.UDP, p.udp(port, payload=payload), **more)


def ping(destination: str, kind: int | None = None, **more: object) -> bytes:
    six = ":" in destination
    kind = (128 if six else 8) if kind is None else kind
    return ip(destination, p.ICMPV6 if six else p.ICMP, p.icmp(kind), **more)


def chain(*headers: tuple[int, bytes], destination: str = "2001:db8:2::1", last: bytes = b"") -> bytes:
    """IPv6 extension headers in a row, each given as (its own number, its bytes)."""
    return ip(destination, headers[0][0], b"".join(data for _, data in headers) + last)


def padded(number: int, following: int, **more: int) -> tuple[int, bytes]:
    return number, p.extension(following, **more)


HTTP = p.tcp(80)

ALLOWED_ROWS = [
    out("A web server in an allowed prefix is reached on port 80.", tcp("192.0.2.1"), "ALLOWED"),
    out("The same on port 443.", tcp("192.0.2.1", 443), "ALLOWED"),
    out("The same over IPv6.", tcp("2001:db8:1::5", 443), "ALLOWED"),
    out("Any segment of TCP is judged, not only a SYN.", tcp("192.0.2.1", flags=p.ACK), "ALLOWED"),
    out(
        "Data without a SYN is dropped where the address is not.",
        tcp("192.1.2.1", flags=p.ACK),
        "NOT_ALLOWED",
    ),
    out("The prefix' first address is in it.", tcp("192.0.2.0"), "ALLOWED"),
    out("The address before the prefix is not.", tcp("192.0.1.255"), "NOT_ALLOWED"),
    out("The address behind the prefix is not.", tcp("192.0.3.0"), "NOT_ALLOWED"),
    out("Another port of an allowed prefix is told as such.", tcp("192.0.2.1", 22), "PORT_NOT_ALLOWED"),
    out("So it is over IPv6.", tcp("2001:db8:1::5", 22), "PORT_NOT_ALLOWED"),
    out("The same port of another protocol is another port.", udp("192.0.2.1", 80), "PORT_NOT_ALLOWED"),
    out("Port 0 is a port like others.", tcp("192.0.2.1", 0), "PORT_NOT_ALLOWED"),
    out("Port 0 passes where all ports do.", tcp("198.51.100.50", 0), "ALLOWED"),
    out("A source port of 80 opens nothing.", ip("192.0.2.1", 6, p.tcp(22, source=80)), "PORT_NOT_ALLOWED"),
    out("An address nobody named is not allowed.", tcp("8.8.8.8"), "NOT_ALLOWED"),
    out("So it is over IPv6.", tcp("2001:4860::8888"), "NOT_ALLOWED"),
    out("An except cuts its part out of the prefix.", tcp("192.0.2.130"), "NOT_ALLOWED"),
    out("So it does over IPv6.", tcp("2001:db8:1:bad::1"), "NOT_ALLOWED"),
    out("A block inside the except is allowed again.", udp("192.0.2.200", 123), "ALLOWED"),
    out("But not for what surrounds the except.", tcp("192.0.2.200"), "PORT_NOT_ALLOWED"),
    out("A nested prefix adds its own peer.", tcp("192.0.2.65", 22), "ALLOWED"),
    out("A nested prefix keeps the outer peer.", tcp("192.0.2.65"), "ALLOWED"),
    out("A peer of all ports takes any UDP port.", udp("198.51.100.10", 40001), "ALLOWED"),
    out("A peer of all ports takes GRE.", ip("198.51.100.10", p.GRE, bytes(8)), "ALLOWED"),
    out("A peer of all ports takes IP in IP.", ip("198.51.100.10", p.IPIP, bytes(20)), "ALLOWED"),
    out("A peer of all ports takes ESP.", ip("198.51.100.10", p.ESP, bytes(8)), "ALLOWED"),
    out("A peer of all ports takes UDP-Lite.", ip("198.51.100.10", p.UDPLITE, p.udp(9)), "ALLOWED"),
    out(
        "A peer of all ports takes DCCP.", ip("198.51.100.10", p.DCCP, p.udp(9, payload=bytes(8))), "ALLOWED"
    ),
    out("A peer of all ports takes an unknown protocol.", ip("198.51.100.10", 253, b"?"), "ALLOWED"),
    out("A peer of all ports takes it over IPv6.", ip("2001:db8:2::1", 253, b"?"), "ALLOWED"),
    out("GRE is not TCP.", ip("192.0.2.1", p.GRE, bytes(8)), "PORT_NOT_ALLOWED"),
    out("IP in IP is not TCP.", ip("192.0.2.1", p.IPIP, tcp("192.0.2.1")), "PORT_NOT_ALLOWED"),
    out("IPv6 in IPv4 is not TCP.", ip("192.0.2.1", 41, tcp("2001:db8:2::1")), "PORT_NOT_ALLOWED"),
    out("UDP-Lite is not UDP.", ip("198.51.100.20", p.UDPLITE, p.udp(123)), "PORT_NOT_ALLOWED"),
    out("NTP is allowed by protocol and port.", udp("198.51.100.20", 123), "ALLOWED"),
    out("The port next to it is not.", udp("198.51.100.20", 124), "PORT_NOT_ALLOWED"),
    out("SCTP has ports.", ip("198.51.100.60", p.SCTP, p.udp(5060)), "ALLOWED"),
    out("Another port of SCTP is refused.", ip("198.51.100.60", p.SCTP, p.udp(5061)), "PORT_NOT_ALLOWED"),
    out("A range of ports starts with its first.", tcp("198.51.100.40", 8192), "ALLOWED"),
    out("A range of ports ends with its last.", tcp("198.51.100.40", 8447), "ALLOWED"),
    out("The port before a range is outside.", tcp("198.51.100.40", 8191), "PORT_NOT_ALLOWED"),
    out("The port behind a range is outside.", tcp("198.51.100.40", 8448), "PORT_NOT_ALLOWED"),
    out("A range holds over IPv6.", tcp("2001:db8:4::1", 8300), "ALLOWED"),
    out("A whole protocol is allowed.", tcp("198.51.100.50", 31337), "ALLOWED"),
    out("A whole protocol includes ports named elsewhere.", tcp("198.51.100.50", 80), "ALLOWED"),
    out("A whole protocol is not the other one.", udp("198.51.100.50", 80), "PORT_NOT_ALLOWED"),
    out("The highest bit of the mask counts.", tcp("198.51.100.80", 9999), "ALLOWED"),
    out("And only where it is set.", tcp("198.51.100.80", 9998), "PORT_NOT_ALLOWED"),
    out("The last of four peers in one row may admit.", tcp("198.51.100.90"), "ALLOWED"),
    out("So may the second.", udp("198.51.100.90", 123), "ALLOWED"),
    out("None of four peers wants this port.", tcp("198.51.100.90", 25), "PORT_NOT_ALLOWED"),
    out("A peer of two sets of ports is reached by one.", tcp("198.51.100.100"), "ALLOWED"),
    out("And by the other.", ping("198.51.100.100"), "ALLOWED"),
    out("A withdrawn peer's prefix admits nothing.", tcp("198.51.100.70"), "NOT_ALLOWED"),
    out("Another policy's prefix is not ours.", tcp("192.88.99.1"), "NOT_ALLOWED"),
]

GRANT_ROWS = [
    out("A learned address is reached.", tcp("203.0.113.1"), "ALLOWED"),
    out("So it is over IPv6.", tcp("2001:db8:f::1"), "ALLOWED"),
    out("A learned address is bound to the ports of its name.", tcp("203.0.113.1", 22), "PORT_NOT_ALLOWED"),
    out("A grant that ran out admits no new flow.", tcp("203.0.113.2"), "EXPIRED"),
    out("So it is over IPv6.", tcp("2001:db8:f::2"), "EXPIRED"),
    out("One name ran out, another holds.", tcp("203.0.113.3"), "ALLOWED"),
    out("A withdrawn peer's grant is nothing, live or not.", tcp("203.0.113.4"), "NOT_ALLOWED"),
    out("A withdrawn peer's grant is nothing, ended or not.", tcp("203.0.113.8"), "NOT_ALLOWED"),
    out("The fourth slot admits.", tcp("203.0.113.5"), "ALLOWED"),
    out("The third slot admits.", udp("203.0.113.5", 123), "ALLOWED"),
    out("An empty slot hides no other.", tcp("203.0.113.7"), "ALLOWED"),
    out("One slot ran out, the other is of other ports.", tcp("203.0.113.6"), "PORT_NOT_ALLOWED"),
    out("The other one still admits its port.", udp("203.0.113.6", 123), "ALLOWED"),
    out("A slot that ran out hides none behind it.", tcp("203.0.113.9"), "ALLOWED"),
    out("A prefix admits what a grant does not any more.", tcp("192.0.2.7"), "ALLOWED"),
    out("A name admits what is an except of a prefix.", tcp("192.0.2.129"), "ALLOWED"),
    out("Another policy's grant is not ours.", tcp("203.0.113.99"), "NOT_ALLOWED"),
]


def audit(b: Bench) -> None:
    b.policy(MINE, "AUDIT")


def unclassified(b: Bench) -> None:
    b.classify(b.cgroup, 0)


def unselected(b: Bench) -> None:
    del b.d["workloads"][b.cgroup.stat().st_ino]


def custom_ports(b: Bench) -> None:
    b.policy(MINE, "RESOLVER_PORTS")


WHO_ROWS = [
    out("A workload that nobody classified yet reaches nothing.", tcp("192.0.2.1"), "UNCLASSIFIED",
        given=unclassified),
    out("Not over IPv6.", tcp("2001:db8:1::5"), "UNCLASSIFIED", given=unclassified),
    out("Not a resolver.", udp("10.0.0.53", 53, QUESTION), "UNCLASSIFIED", given=unclassified),
    out("Not itself.", tcp("127.0.0.1"), "UNCLASSIFIED", given=unclassified, loopback=True),
    out("Not what cannot be read.", tcp("192.0.2.1", first=0x55), "UNCLASSIFIED", given=unclassified),
    out("What nobody selected is not touched.", tcp("8.8.8.8"), given=unselected),
    out("Not over IPv6.", tcp("2001:4860::8888"), given=unselected),
    out("Not where it cannot be read.", tcp("8.8.8.8", first=0x55), given=unselected),
    out("Not where it is a fragment.", udp("8.8.8.8", 53, fragment=0x2000), given=unselected),
    came("What nobody selected gets what comes.", udp(ME4, 53, source="10.0.0.53"), given=unselected),
    out("Audit mode drops nothing, and tells.", tcp("8.8.8.8"), "NOT_ALLOWED", given=audit, passes=True),
    out("So it does for another port.", tcp("192.0.2.1", 22), "PORT_NOT_ALLOWED", given=audit, passes=True),
    out("So it does for an ended grant.", tcp("203.0.113.2"), "EXPIRED", given=audit, passes=True),
    out("So it does for fragments.", tcp("8.8.8.8", fragment=1), "FRAGMENT", given=audit, passes=True),
    out("So it does for the unreadable.", tcp("8.8.8.8", first=0x41), "UNREADABLE", given=audit, passes=True),
    out("Audit mode allows under the same names.", tcp("192.0.2.1"), "ALLOWED", given=audit),
    came("Audit mode lets forgeries in, and tells.", tcp(ME4, source="8.8.8.8"), "SPOOFED", given=audit,
         loopback=True, passes=True),
]  # fmt: skip

LOOPBACK_ROWS = [
    out("Loopback passes.", tcp("127.0.0.1", source="127.0.0.1"), "LOOPBACK", loopback=True),
    out("Any address of 127/8 does.", udp("127.8.8.8", 9, source="127.9.9.9"), "LOOPBACK", loopback=True),
    out("Loopback passes over IPv6.", tcp("::1", source="::1"), "LOOPBACK", loopback=True),
    out("Its own address, from its own address.", tcp(ME4), "LOOPBACK", loopback=True),
    out("Its own address from loopback.", tcp(ME4, source="127.0.0.1"), "LOOPBACK", loopback=True),
    out("Its own address over IPv6.", tcp(ME6), "LOOPBACK", loopback=True),
    out("Loopback from an outside address is forged.", tcp("127.0.0.1", source="8.8.8.8"), "SPOOFED",
        loopback=True),
    out("So it is over IPv6.", tcp("::1", source="2001:4860::8888"), "SPOOFED", loopback=True),
    out("An answer forged in a resolver's name is.", ip("127.0.0.1", 17, p.udp(40000, 53),
        source="10.0.0.53"),
        "SPOOFED", loopback=True),
    out("Its own address from an outside one is forged.", tcp(ME4, source="8.8.8.8"), "SPOOFED",
        loopback=True),
    out("So it is over IPv6.", tcp(ME6, source="2001:4860::8888"), "SPOOFED", loopback=True),
    out("A fragment does not pass over loopback either.", tcp("127.0.0.1", source="127.0.0.1", fragment=1),
        "FRAGMENT", loopback=True),
    out("Nor a source route.", tcp("127.0.0.1", source="127.0.0.1", options=b"\x83\7\4\1\1\1\1\0"),
        "SOURCE_ROUTE", loopback=True),
    out("A question to a resolver on this host is one.", udp("127.0.0.53", 53, QUESTION, source="127.0.0.1"),
        "RESOLVER", loopback=True),
    out("Another port of it is loopback.", udp("127.0.0.53", 54, QUESTION, source="127.0.0.1"), "LOOPBACK",
        loopback=True),
    out("Loopback's address on a real device is judged.", udp("127.0.0.9", 9, source="127.0.0.1"),
        "NOT_ALLOWED"),
    out("So it is over IPv6.", udp("::1", 9, source="::1"), "NOT_ALLOWED"),
    came("What comes over loopback from loopback passes.", tcp("127.0.0.1", source="127.0.0.1"),
        loopback=True),
    came("So does what comes from the very address.", tcp(ME4, source=ME4), loopback=True),
    came("So it is over IPv6.", tcp(ME6, source=ME6), loopback=True),
    came("From an outside address it is forged.", tcp(ME4, source="8.8.8.8"), "SPOOFED", loopback=True),
    came("So it is for datagrams.", udp(ME4, 9, source="8.8.8.8"), "SPOOFED", loopback=True),
    came("So it is over IPv6.", tcp(ME6, source="2001:4860::8888"), "SPOOFED", loopback=True),
    came("An allowed address is forged as well.", tcp(ME4, source="192.0.2.1"), "SPOOFED", loopback=True),
]  # fmt: skip

MORE, LATER_FRAGMENT, DONT = 0x2000, 0x0001, 0x4000
NOP, END = b"\x01", b"\x00"
ROUTE = b"\x07\x04\x01\x02\x03\x04"  # length, pointer, one hop
ALERT = b"\x94\x04\x00\x00"

IPV4_ROWS = [
    out("The first fragment is dropped, allowed or not.", tcp("192.0.2.1", fragment=MORE), "FRAGMENT"),
    out("So is a middle one.", ip("192.0.2.1", 6, bytes(8), fragment=MORE | 185), "FRAGMENT"),
    out("So is the last one.", ip("192.0.2.1", 6, bytes(8), fragment=370), "FRAGMENT"),
    out("So is one that overlaps the ports.", ip("192.0.2.1", 6, bytes(8), fragment=LATER_FRAGMENT),
        "FRAGMENT"),
    out("So is one to a resolver.", udp("10.0.0.53", 53, QUESTION, fragment=MORE), "FRAGMENT"),
    out("Don't-fragment is no fragment.", tcp("192.0.2.1", fragment=DONT), "ALLOWED"),
    out("The reserved bit is no fragment.", tcp("192.0.2.1", fragment=0x8000), "ALLOWED"),
    out("A router alert passes.", ip("198.51.100.10", 2, bytes(8), options=ALERT), "ALLOWED"),
    out("A router alert opens nothing.", ip("8.8.8.8", 2, bytes(8), options=ALERT), "NOT_ALLOWED"),
    out("A router alert of another length is unknown.", tcp("192.0.2.1", options=b"\x94\x03\0\0"),
        "IP_OPTION"),
    out("Ports behind a router alert are found.", tcp("192.0.2.1", 22, options=ALERT), "PORT_NOT_ALLOWED"),
    out("A router alert with more behind it is not read.", tcp("192.0.2.1", options=ALERT + NOP * 4),
        "IP_OPTION"),
    out("Mere padding is an option.", tcp("192.0.2.1", options=NOP * 4), "IP_OPTION"),
    out("A mere end of options is one.", tcp("192.0.2.1", options=END * 4), "IP_OPTION"),
    out("A loose source route leads elsewhere.", tcp("192.0.2.1", options=b"\x83" + ROUTE + END),
        "SOURCE_ROUTE"),
    out("A strict one does.", tcp("192.0.2.1", options=b"\x89" + ROUTE + END), "SOURCE_ROUTE"),
    out("One behind padding does.", tcp("192.0.2.1", options=NOP + b"\x83" + ROUTE), "SOURCE_ROUTE"),
    out("One behind more padding does.", tcp("192.0.2.1", options=NOP * 3 + b"\x89" + ROUTE + END * 2),
        "SOURCE_ROUTE"),
    out("Whatever is behind four paddings is dropped.", tcp("192.0.2.1",
        options=NOP * 4 + b"\x83" + ROUTE + END),
        "IP_OPTION"),
    out("A record of the route is dropped.", tcp("192.0.2.1", options=b"\x07" + ROUTE + END), "IP_OPTION"),
    out("A timestamp is dropped.", tcp("192.0.2.1", options=b"\x44\x08\x05\x00" + bytes(4)), "IP_OPTION"),
    out("A security label is dropped.", tcp("192.0.2.1", options=b"\x82\x0b" + bytes(10)), "IP_OPTION"),
    out("An unknown option is dropped.", tcp("192.0.2.1", options=b"\xde\x04\x00\x00"), "IP_OPTION"),
    out("Forty bytes of options are dropped.", tcp("192.0.2.1", options=b"\xde\x28" + bytes(38)),
        "IP_OPTION"),
    out("Options announced but not there.", tcp("192.0.2.1", first=0x4F)[:20], "UNREADABLE"),
    out("Version 5 is no IPv4.", tcp("192.0.2.1", first=0x55), "UNREADABLE"),
    out("Version 0 is none.", tcp("192.0.2.1", first=0x05), "UNREADABLE"),
    Row("Version 6 under IPv4's type is none.", p.ether(tcp("2001:db8:2::1"), 0x0800), ("UNREADABLE",)),
    Row("Version 4 under IPv6's type is none.", p.ether(tcp("192.0.2.1"), 0x86DD), ("UNREADABLE",)),
    out("A header of 16 bytes is none.", tcp("192.0.2.1", first=0x44), "UNREADABLE"),
    out("A header of no bytes is none.", tcp("192.0.2.1", first=0x40), "UNREADABLE"),
    Row("ARP is nothing that a socket of ours sends.", p.ether(bytes(28), 0x0806), ("UNREADABLE",)),
    Row("A VLAN's tag is not read.", p.ether(bytes(28), 0x8100), ("UNREADABLE",)),
]  # fmt: skip

SEGMENTS_LEFT = p.extension(6, kind=4, left=1, words=2)

IPV6_ROWS = [
    out("Hop-by-hop options are followed.", chain(padded(0, 6), last=HTTP), "ALLOWED"),
    out("Destination options are followed.", chain(padded(60, 6), last=HTTP), "ALLOWED"),
    out("A finished routing header is followed.", chain(padded(43, 6), last=HTTP), "ALLOWED"),
    out("A long header is followed.", chain(padded(60, 6, words=20), last=HTTP), "ALLOWED"),
    out("Headers behind headers are followed.", chain(padded(0, 60), padded(60, 43), padded(43, 60),
        padded(60, 6),
        last=HTTP), "ALLOWED"),
    out("The ports behind them count.", chain(padded(0, 60), padded(60, 6), destination="2001:db8:1::5",
        last=p.tcp(22)), "PORT_NOT_ALLOWED"),
    out("The address counts, whatever header is there.", chain(padded(0, 6), destination="2001:4860::1",
        last=HTTP),
        "NOT_ALLOWED"),
    out("Six headers are followed.", chain(*[padded(60, 60)] * 5, padded(60, 6), last=HTTP), "ALLOWED"),
    out("Seven are too many.", chain(*[padded(60, 60)] * 6, padded(60, 6), last=HTTP), "EXTENSION_HEADER"),
    out("A routing header of type 0 leads elsewhere.", chain((43, p.extension(6, left=1, words=2)),
        last=HTTP),
        "SOURCE_ROUTE"),
    out("A segment routing header leads elsewhere.", chain((43, SEGMENTS_LEFT), last=HTTP), "SOURCE_ROUTE"),
    out("So it does behind another header.", chain(padded(60, 43), (43, SEGMENTS_LEFT), last=HTTP),
        "SOURCE_ROUTE"),
    out("A mobile's routing header leads elsewhere.", chain((43, p.extension(6, kind=2, left=1, words=2)),
        last=HTTP),
        "SOURCE_ROUTE"),
    out("The first fragment is dropped.", chain((44, b"\x06\0\0\x01" + bytes(4)), last=HTTP), "FRAGMENT"),
    out("A later fragment is dropped.", chain((44, b"\x06\0\x05\xa8" + bytes(4)), last=HTTP), "FRAGMENT"),
    out("An atomic fragment is dropped.", chain((44, b"\x06" + bytes(7)), last=HTTP), "FRAGMENT"),
    out("A fragment behind options is dropped.", chain(padded(0, 44), (44, b"\x06" + bytes(7)), last=HTTP),
        "FRAGMENT"),
    out("A fragment behind six headers is dropped.", chain(*[padded(60, 60)] * 5, padded(60, 44), (44,
        b"\x06" +
        bytes(7)), last=HTTP), "EXTENSION_HEADER"),
    out("An authentication header is not followed.", chain((51, p.extension(6, words=1)), last=HTTP),
        "EXTENSION_HEADER"),
    out("Neither is it behind options.", chain(padded(60, 51), (51, p.extension(6, words=1)), last=HTTP),
        "EXTENSION_HEADER"),
    out("A mobility header is not followed.", chain((135, p.extension(59)), last=b""), "EXTENSION_HEADER"),
    out("An authentication header behind six headers is not.", chain(*[padded(60, 60)] * 5, padded(60, 51),
        (51, p.extension(6, words=1)), last=HTTP), "EXTENSION_HEADER"),
    out("A mobility header behind six headers is not.", chain(*[padded(60, 60)] * 5, padded(60, 135),
        (135, p.extension(59)), last=b""), "EXTENSION_HEADER"),
    out("ESP is a protocol without ports.", ip("2001:db8:2::1", p.ESP, bytes(16)), "ALLOWED"),
    out("ESP is not TCP.", ip("2001:db8:1::5", p.ESP, bytes(16)), "PORT_NOT_ALLOWED"),
    out("No next header is a protocol without ports.", ip("2001:db8:2::1", p.NO_NEXT, b""), "ALLOWED"),
    out("No next header is not TCP.", ip("2001:db8:1::5", p.NO_NEXT, HTTP), "PORT_NOT_ALLOWED"),
    out("An extension header announced but not there.", ip("2001:db8:2::1", 0, b""), "UNREADABLE"),
    out("Ports announced but not there, behind a header.", chain(padded(60, 6)), "UNREADABLE"),
    out("A header that ends behind the packet.", chain(padded(60, 6, words=0), last=b"")[:47], "UNREADABLE"),
    out("A header whose length leads out of the packet.", ip("2001:db8:2::1", 60, b"\x06\xff" + bytes(30)),
        "UNREADABLE"),
    out("So it is where no ports would be read.", ip("2001:db8:2::1", 60, b"\x2f\xff" + bytes(30)),
        "UNREADABLE"),
    out("Version 7 is no IPv6.", b"\x76" + tcp("2001:db8:2::1")[1:], "UNREADABLE"),
    out("IPv4 dressed as IPv6 has no place on a wire.", tcp("::ffff:192.0.2.1"), "UNREADABLE"),
    out("Nor where the address is not allowed.", tcp("::ffff:8.8.8.8"), "UNREADABLE"),
    out("A v4-compatible destination is not that IPv4 address.", tcp("::192.0.2.1"), "NOT_ALLOWED"),
    out("A NAT64 destination is not that IPv4 address.", tcp("64:ff9b::192.0.2.1"), "NOT_ALLOWED"),
    out("A 6to4 destination is not that IPv4 address.", tcp("2002:c000:201::1"), "NOT_ALLOWED"),
    out("The unspecified address is not allowed.", tcp("::"), "NOT_ALLOWED"),
]  # fmt: skip

LINK_LOCAL, ALL_ROUTERS, SOLICITED = "fe80::2", "ff02::2", "ff02::1:ff00:1"


def discovery(kind: int, destination: str = SOLICITED, hops: int = 255, source: str = LINK_LOCAL) -> bytes:
    return p.ipv6(source, destination, p.ICMPV6, p.icmp(kind, payload=bytes(16)), hops=hops)


ICMP_ROWS = [
    out("An allowed host is pinged.", ping("198.51.100.30"), "ALLOWED"),
    out("So it is over IPv6, by the same rule.", ping("2001:db8:3::1"), "ALLOWED"),
    out("A host allowed for TCP is not pinged.", ping("192.0.2.1"), "PORT_NOT_ALLOWED"),
    out("So it is over IPv6.", ping("2001:db8:1::5"), "PORT_NOT_ALLOWED"),
    out("A host not allowed is not pinged.", ping("8.8.8.8"), "NOT_ALLOWED"),
    out("Nor answered.", ping("8.8.8.8", 0), "NOT_ALLOWED"),
    out("ICMP cut short is unreadable.", ping("198.51.100.30")[:25], "UNREADABLE"),
    *(
        out(f"A socket's own {name} is dropped, allowed or not.", ping("198.51.100.30", kind), "ICMP_ERROR")
        for kind, name in (
            *((3, "unreachable"), (4, "source quench"), (5, "redirect"), (11, "time exceeded")),
            (12, "parameter problem"),
        )
    ),
    *(
        out(f"A socket's own {name} is dropped, allowed or not.", ping("2001:db8:3::1", kind), "ICMP_ERROR")
        for kind, name in (
            *((1, "unreachable (IPv6)"), (2, "packet too big"), (3, "time exceeded (IPv6)")),
            *((4, "parameter problem (IPv6)"), (100, "private error"), (127, "reserved error")),
        )
    ),
    out("An ICMP error to a stranger is one.", ping("8.8.8.8", 3), "ICMP_ERROR"),
    out("IPv6's errors inside IPv4 are errors.", ip("198.51.100.30", 58, p.icmp(1)), "ICMP_ERROR"),
    out("IPv4's errors inside IPv6 are errors.", ip("2001:db8:3::1", 1, p.icmp(3)), "ICMP_ERROR"),
    *(
        out(f"{name} on the link passes.", discovery(kind), "NEIGHBOUR")
        for kind, name in (
            *((133, "Router solicitation"), (134, "Router advertisement"), (135, "Neighbour solicitation")),
            *((136, "Neighbour advertisement"), (137, "Redirect")),
        )
    ),
    out("Discovery from a global address passes.", discovery(135, source=ME6), "NEIGHBOUR"),
    out("Discovery to a neighbour's link-local address passes.", discovery(136, LINK_LOCAL), "NEIGHBOUR"),
    out("With hop limit 254 it is judged.", discovery(135, hops=254), "NOT_ALLOWED"),
    out("With hop limit 64 it is judged.", discovery(135, hops=64), "NOT_ALLOWED"),
    out("Multicast listening is not discovery.", discovery(143, "ff02::16"), "NOT_ALLOWED"),
    out("An echo with hop limit 255 is not discovery.", discovery(128, "2001:4860::1"), "NOT_ALLOWED"),
    out("Discovery's types inside IPv4 are not discovery.", ip("8.8.8.8", 58, p.icmp(135), ttl=255),
        "NOT_ALLOWED"),
    out("IPv4's message of such a type is not discovery.", ip("8.8.8.8", 1, p.icmp(135), ttl=255),
        "NOT_ALLOWED"),
    out("IPv6 in a v4-mapped guise is not discovery.", discovery(135, "::ffff:8.8.8.8"), "UNREADABLE"),
    out("Discovery to a host far away is judged.", discovery(135, "2001:4860::1", source=ME6), "NOT_ALLOWED"),
    out("Discovery to a group beyond the link is judged.", discovery(135, "ff0e::1", source=ME6),
        "NOT_ALLOWED"),
    out("Discovery behind an extension header is.", ip(SOLICITED, 0, p.extension(58) + p.icmp(135,
        payload=bytes(16)),
        hops=255), "NEIGHBOUR"),
]  # fmt: skip

RESOLVER_ROWS = [
    out("A question to a resolver passes.", udp("10.0.0.53", 53, QUESTION), "RESOLVER"),
    out("So it does over IPv6.", udp("fd00::53", 53, QUESTION), "RESOLVER"),
    out("TCP to a resolver passes.", tcp("10.0.0.53", 53), "RESOLVER"),
    out("So it does over IPv6.", tcp("fd00::53", 53), "RESOLVER"),
    out("Another port of a resolver is a port like others.", udp("10.0.0.53", 54, QUESTION), "NOT_ALLOWED"),
    out("Port 853 is one.", tcp("10.0.0.53", 853), "NOT_ALLOWED"),
    out("SCTP to a resolver is not DNS.", ip("10.0.0.53", p.SCTP, p.udp(53)), "NOT_ALLOWED"),
    out("A ping to a resolver is not DNS.", ping("10.0.0.53"), "NOT_ALLOWED"),
    out("Another policy's resolver is not ours.", udp("10.0.0.55", 53, QUESTION), "NOT_ALLOWED"),
    out("Nor is a server that nobody named.", udp("8.8.8.8", 53, QUESTION), "NOT_ALLOWED"),
    out("A resolver on another port needs the policy's flag.", udp("10.0.0.54", 5353, QUESTION),
        "NOT_ALLOWED"),
    out("With the flag it passes.", udp("10.0.0.54", 5353, QUESTION), "RESOLVER", given=custom_ports),
    out("Its port 53 is not a resolver.", udp("10.0.0.54", 53, QUESTION), "NOT_ALLOWED", given=custom_ports),
    out("Port 53 of others goes on with the flag.", udp("10.0.0.53", 53, QUESTION), "RESOLVER",
        given=custom_ports),
    out("What is no question is told, and passes.", udp("10.0.0.53", 53, b"hello"), "RESOLVER",
        "QUESTION_UNREADABLE"),
    out("No payload is no question.", udp("10.0.0.53", 53), "RESOLVER", "QUESTION_UNREADABLE"),
    out("An answer is no question.", udp("10.0.0.53", 53, QUESTION[:2] + b"\x81" + QUESTION[3:]), "RESOLVER",
        "QUESTION_UNREADABLE"),
    out("An update is no question.", udp("10.0.0.53", 53, QUESTION[:2] + b"\x28" + QUESTION[3:]), "RESOLVER",
        "QUESTION_UNREADABLE"),
    out("Two questions are none.", udp("10.0.0.53", 53,
        QUESTION[:5] + b"\x02" + QUESTION[6:] + QUESTION[12:]),
        "RESOLVER", "QUESTION_UNREADABLE"),
    out("A question cut short is none.", udp("10.0.0.53", 53, QUESTION[:-1]), "RESOLVER",
        "QUESTION_UNREADABLE"),
    out("A question for the root is none.", udp("10.0.0.53", 53, QUESTION[:12] + bytes(1) + QUESTION[-4:]),
        "RESOLVER", "QUESTION_UNREADABLE"),
    out("A compressed question is none.", udp("10.0.0.53", 53, QUESTION[:12] + b"\xc0\x0c" + QUESTION[-4:]),
        "RESOLVER", "QUESTION_UNREADABLE"),
    came("An answer that nobody asked for is told.", ip(ME4, 17, p.udp(40000, 53, b"\0\1\x81" + QUESTION[3:]),
        source="10.0.0.53"), "ANSWER_UNASKED"),
    came("A question from a resolver is no answer.", ip(ME4, 17, p.udp(40000, 53, QUESTION),
        source="10.0.0.53"),
        "ANSWER_UNREADABLE"),
    came("An empty answer is unreadable.", ip(ME4, 17, p.udp(40000, 53), source="10.0.0.53"),
        "ANSWER_UNREADABLE"),
    came("Other servers' answers are not read.", ip(ME4, 17, p.udp(40000, 53, b"?"), source="8.8.8.8")),
    came("Another policy's resolver is not read.", ip(ME4, 17, p.udp(40000, 53, b"?"), source="10.0.0.55")),
    came("A resolver's other port is not read.", ip(ME4, 17, p.udp(40000, 54, b"?"), source="10.0.0.53")),
]  # fmt: skip

OTHER_ROWS = [
    out("Multicast is an address like others.", udp("239.255.255.250", 1900), "NOT_ALLOWED"),
    out("Allowed multicast passes.", udp("224.0.1.1", 123), "ALLOWED"),
    out("Multicast DNS is not a resolver.", udp("224.0.0.251", 5353), "NOT_ALLOWED"),
    out("Multicast over IPv6 is an address like others.", udp("ff02::fb", 5353), "NOT_ALLOWED"),
    out("Broadcast is an address like others.", udp("255.255.255.255", 67), "NOT_ALLOWED"),
    out("Cloud metadata is an address like others.", tcp("169.254.169.254"), "NOT_ALLOWED"),
    out("The unspecified address is too.", tcp("0.0.0.0"), "NOT_ALLOWED"),
    out("Link-local is an address like others.", tcp("fe80::1"), "NOT_ALLOWED"),
    out("A foreign source does not help.", tcp("8.8.8.8", source="192.0.2.1"), "NOT_ALLOWED"),
    out("A loopback source does not help.", tcp("8.8.8.8", source="127.0.0.1"), "NOT_ALLOWED"),
    came("A SYN from outside comes in.", tcp(ME4, source="8.8.8.8")),
    came("A datagram from outside comes in.", udp(ME4, 9, source="8.8.8.8")),
    came("A ping from outside comes in.", ping(ME4, source="8.8.8.8")),
    came("It comes in over IPv6.", udp(ME6, 9, source="2001:4860::1")),
    came("A fragment comes in.", udp(ME4, 9, source="8.8.8.8", fragment=MORE)),
    came("An unclassified workload gets what comes.", tcp(ME4, source="8.8.8.8"), given=unclassified),
    answers("What a resolver here sends elsewhere is not read.", udp("10.0.0.9", 40000), loopback=False),
    answers("TCP of a resolver here is not read.", ip("127.0.0.1", 6, p.tcp(40000, 53), source="127.0.0.53")),
    answers("Loopback of others is not read.", ip("127.0.0.1", 17, p.udp(40000, 53, b"?"),
        source="127.0.0.99")),
    answers("Nor where the headers cannot be read.", b"\x44" + udp("127.0.0.1", 53, source="127.0.0.53")[1:]),
]  # fmt: skip

ROWS = [
    *(ALLOWED_ROWS + GRANT_ROWS + WHO_ROWS + LOOPBACK_ROWS + IPV4_ROWS + IPV6_ROWS),
    *(ICMP_ROWS + RESOLVER_ROWS + OTHER_ROWS),
]


@pytest.fixture
def laid(bench: Bench) -> Iterator[Bench]:
    world(bench)
    bench.resolver(0, "127.0.0.53")
    with bench.seated():
        yield bench


def cut(b: Bench, row: Row) -> tuple[bool, dict[str, int]]:
    with b.counting(0, MINE, THEIRS) as told:
        value = b.run(row.program, row.frame, loopback=row.loopback)
    assert value in (0, 1)
    return bool(value), told


GOES_ON = (
    "So ",
    "The same",
    "Nor ",
    "Not ",
    "Neither",
    "But ",
    "And ",
    "The other",
    "With the flag",
    "Seven",
)


def parameters(rows: list[Row]) -> Iterator[object]:
    """A sentence that leans on the one before it is read with it."""
    last = ""
    for row in rows:
        says = f"{last} {row.says}" if row.says.startswith(GOES_ON) else row.says
        last = last if row.says.startswith(GOES_ON) else row.says
        yield pytest.param(row, id=says)


@pytest.mark.parametrize("row", list(parameters(ROWS)))
def test_a_packet(laid: Bench, row: Row) -> None:
    if row.given:
        row.given(laid)
    assert cut(laid, row) == (row.verdict, dict.fromkeys(row.reasons, 1))


# ---- Cut short at every length ----------------------------------------------------------------------------

WHOLE = {
    "TCP": (tcp("192.0.2.1"), 20 + 14),
    "UDP": (udp("198.51.100.20", 123), 20 + 4),
    "SCTP": (ip("198.51.100.60", p.SCTP, p.udp(5060)), 20 + 4),
    "an echo": (ping("198.51.100.30"), 20 + 6),
    "a router alert": (ip("198.51.100.10", 2, bytes(4), options=ALERT), 20 + 4),
    "TCP over IPv6": (tcp("2001:db8:1::5"), 40 + 14),
    "UDP over IPv6": (udp("2001:db8:2::5", 123), 40 + 4),
    "an echo over IPv6": (ping("2001:db8:3::1"), 40 + 6),
    "TCP behind options": (chain(padded(0, 60), padded(60, 6, words=1), last=HTTP), 40 + 24 + 14),
}


@pytest.mark.parametrize("name", WHOLE)
def test_a_packet_cut_short_anywhere_passes_only_with_what_decides(laid: Bench, name: str) -> None:
    packet, decides = WHOLE[name]
    shortest = 40 if packet[0] >> 4 == 6 else 20  # the kernel runs no shorter one
    for length in range(shortest, len(packet) + 1):
        reason = "ALLOWED" if length >= decides else "UNREADABLE"
        row = Row("", p.ether(packet[:length]), (reason,))
        assert cut(laid, row) == (row.verdict, {reason: 1}), f"{length} of {len(packet)} bytes"


def test_a_shorter_one_is_refused_by_the_kernel_itself(laid: Bench) -> None:
    for packet, shortest in ((tcp("192.0.2.1"), 20), (tcp("2001:db8:1::5"), 40)):
        with pytest.raises(OSError, match="Invalid argument"):
            laid.run("egress", p.ether(packet[: shortest - 1]))


NOT_ASKED = {p.TCP: "ALLOWED", p.ICMPV6: "ICMP_ERROR"}  # type 0 is an error in IPv6's ICMP


def test_every_protocol_number_is_judged_by_its_ports_or_dropped_by_name(laid: Bench) -> None:
    """198.51.100.50 is allowed for TCP only: no other number may pass there."""
    for number in range(256):
        with laid.counting(MINE) as told:
            passed = laid.run("egress", p.ether(ip("198.51.100.50", number, bytes(40))))
        assert passed == (number == p.TCP), number
        told.pop("EVENTS_LOST", 0)  # more a second are not told
        assert told == {NOT_ASKED.get(number, "PORT_NOT_ALLOWED"): 1}, number


NOT_FOLLOWED = {
    p.ICMPV6: "ICMP_ERROR",
    p.AH: "EXTENSION_HEADER",
    p.MOBILITY: "EXTENSION_HEADER",
    p.FRAGMENT: "FRAGMENT",
    **dict.fromkeys((p.HOP_BY_HOP, p.ROUTING, p.DESTINATION), "UNREADABLE"),  # 0 follows 0, up to the end
}


def test_so_is_every_next_header_of_ipv6(laid: Bench) -> None:
    for number in range(256):
        with laid.counting(MINE) as told:
            passed = laid.run("egress", p.ether(ip("2001:db8:1::5", number, bytes(20))))
        assert not passed, number
        told.pop("EVENTS_LOST", 0)
        assert told == {NOT_FOLLOWED.get(number, "PORT_NOT_ALLOWED"): 1}, number


# ---- More than one packet ---------------------------------------------------------------------------------


def test_a_flow_is_admitted_once_and_then_established(laid: Bench) -> None:
    with laid.counting(MINE) as told:
        assert laid.run("egress", p.ether(tcp("192.0.2.1")), repeat=10)
    assert told == {"ALLOWED": 1, "ESTABLISHED": 9}


def test_a_refused_flow_is_judged_each_time(laid: Bench) -> None:
    with laid.counting(MINE) as told:
        assert not laid.run("egress", p.ether(tcp("8.8.8.8")), repeat=10)
    assert told == {"NOT_ALLOWED": 10}


def test_every_question_is_read_established_or_not(laid: Bench) -> None:
    with laid.counting(MINE) as told:
        assert laid.run("egress", p.ether(udp("10.0.0.53", 53, QUESTION)), repeat=3)
    assert told == {"RESOLVER": 3}
    assert len(list(laid.d["questions"].raw_keys())) == 1


@pytest.mark.parametrize(("me", "stranger"), [(ME4, "8.8.8.8"), (ME6, "2001:4860::8888")])
def test_a_datagram_from_outside_may_be_answered_to_where_it_came_from_and_nowhere_else(
    laid: Bench, me: str, stranger: str
) -> None:
    laid.run("ingress", p.ether(ip(me, p.UDP, p.udp(5000, 6000), source=stranger)))
    for source, destination, protocol, reason in (
        (5000, 6000, p.UDP, "INBOUND"),
        (5000, 6001, p.UDP, "NOT_ALLOWED"),
        (5001, 6000, p.UDP, "NOT_ALLOWED"),
        (5000, 6000, p.UDPLITE, "NOT_ALLOWED"),
    ):
        with laid.counting(MINE) as told:
            laid.run("egress", p.ether(ip(stranger, protocol, p.udp(destination, source), source=me)))
        assert told == {reason: 1}
    with laid.counting(MINE) as told:
        laid.run(
            "egress",
            p.ether(ip(stranger, p.UDP, p.udp(6000, 5000), source="10.1.0.3" if me == ME4 else "fd01::3")),
        )
    assert told == {"NOT_ALLOWED": 1}


def test_a_datagram_from_outside_may_be_answered_for_three_minutes(laid: Bench) -> None:
    laid.run("ingress", p.ether(ip(ME4, p.UDP, p.udp(5000, 6000), source="8.8.8.8")))
    ((key, _value),) = laid.d["inbounds"].items()
    for age, reason in ((170, "INBOUND"), (181, "NOT_ALLOWED")):
        laid.d["inbounds"][kernel_key(key)] = (now() - age * SECOND,)
        with laid.counting(MINE) as told:
            laid.run("egress", p.ether(ip("8.8.8.8", p.UDP, p.udp(6000, 5000))))
        assert told == {reason: 1}, age


def kernel_key(key: object) -> bytes:
    return bytes(contract().ffi.buffer(key))


def test_another_workload_may_not_answer_it(laid: Bench) -> None:
    laid.run("ingress", p.ether(ip(ME4, p.UDP, p.udp(5000, 6000), source="8.8.8.8")))
    ((key, value),) = laid.d["inbounds"].items()
    laid.d["inbounds"].remove_raw(kernel_key(key))
    key.workload += 1
    laid.d["inbounds"][kernel_key(key)] = (value.seen,)
    with laid.counting(MINE) as told:
        assert not laid.run("egress", p.ether(ip("8.8.8.8", p.UDP, p.udp(6000, 5000))))
    assert told == {"NOT_ALLOWED": 1}


@pytest.mark.parametrize(
    "packet",
    [
        udp(ME4, 5000, source="127.0.0.1"),
        udp(ME4, 5000, source=ME4),
        udp(ME4, 5000, source="8.8.8.8"),
        udp(ME6, 5000, source=ME6),
    ],
    ids=["from loopback", "from itself", "forged", "from itself over IPv6"],
)
def test_what_comes_over_loopback_is_not_from_outside(laid: Bench, packet: bytes) -> None:
    laid.run("ingress", p.ether(packet), loopback=True)
    assert not list(laid.d["inbounds"].raw_keys())


@pytest.mark.parametrize(
    ("packet", "says"),
    [
        (tcp(ME4, source="8.8.8.8"), "TCP needs no row"),
        (ip(ME4, p.UDP, p.udp(40000, 53, b"?"), source="10.0.0.53"), "a resolver's answer is none"),
        (udp(ME4, 9, source="8.8.8.8", fragment=MORE), "a fragment has no ports"),
        (udp(ME4, 9, source="8.8.8.8", first=0x55), "what is unreadable is none"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_makes_no_inbound_row(laid: Bench, packet: bytes, says: str) -> None:
    laid.run("ingress", p.ether(packet))
    assert not list(laid.d["inbounds"].raw_keys())


# ---- Events -----------------------------------------------------------------------------------------------


@pytest.fixture
def told(laid: Bench) -> Iterator[list[object]]:
    """What policy MINE tells, read at each look."""
    samples: list[object] = []
    fd = kernel.create_ring(1 << 18)
    ring = kernel.Ring(fd, lambda data: samples.append(contract().unpack("struct event", data)))
    laid.d["events"][MINE] = fd
    yield Samples(ring, samples)
    del laid.d["events"][MINE]
    ring.close()


class Samples(list):  # type: ignore[type-arg]
    def __init__(self, ring: kernel.Ring, samples: list[object]) -> None:
        self.ring, self.samples = ring, samples

    def read(self) -> list[object]:
        self.ring.consume()
        taken, self.samples[:] = list(self.samples), []
        return taken


def test_a_drop_tells_who_where_and_why(laid: Bench, told: Samples) -> None:
    laid.run("egress", p.ether(tcp("8.8.8.8", 22)))
    (event,) = told.read()
    names = contract()
    assert event.workload == laid.cgroup.stat().st_ino
    assert bytes(event.local) == p.packed(ME4)
    assert bytes(event.remote) == p.packed("8.8.8.8")
    assert (bytes(event.local_port), bytes(event.remote_port)) == (b"\x9c\x40", b"\0\x16")
    assert (event.policy, event.protocol) == (MINE, p.TCP)
    assert event.reason == names.constant("NOT_ALLOWED")
    assert event.verdict == names.constant("DROP")
    assert event.hook == names.constant("HOOK_EGRESS")


def test_audit_mode_tells_what_would_have_been_dropped(laid: Bench, told: Samples) -> None:
    audit(laid)
    laid.run("egress", p.ether(tcp("8.8.8.8")))
    assert [event.verdict for event in told.read()] == [contract().constant("WOULD_DROP")]


def test_what_passes_is_told_only_of_a_traced_policy(laid: Bench, told: Samples) -> None:
    laid.run("egress", p.ether(tcp("192.0.2.1")))
    assert told.read() == []
    laid.policy(MINE, "TRACE")
    laid.run("egress", p.ether(tcp("192.0.2.1")), repeat=5)
    (event,) = told.read()
    assert (event.peer, event.verdict) == (WEBSITE, contract().constant("PASS"))


def test_a_million_drops_are_counted_but_not_told_one_by_one(laid: Bench, told: Samples) -> None:
    limit = contract().constant("EVENTS_PER_SECOND")
    with laid.counting(MINE) as counted:
        laid.run("egress", p.ether(tcp("8.8.8.8")), repeat=1000)
    heard = len(told.read())
    assert counted["NOT_ALLOWED"] == 1000
    assert limit <= heard <= 2 * limit  # the second may have ended meanwhile
    assert counted["EVENTS_LOST"] == 1000 - heard


def test_where_nobody_listens_a_drop_is_still_a_drop(laid: Bench) -> None:
    with laid.counting(MINE) as told:
        assert not laid.run("egress", p.ether(tcp("8.8.8.8")))
    assert told == {"NOT_ALLOWED": 1}
