"""What a workload that may make frames of its own tries on its link, each attack by its name.

Each is first seen to succeed where the link has no programs: so that a test which shows nothing fails.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.kernel import packets as p
from tests.kernel.bench import wait_until
from tests.kernel.link_lab import (
    BAD,
    FOREIGN,
    GOOD,
    LINK_LOCAL,
    NODE,
    NODE_MAC,
    ONLY_80,
    OTHER_MAC,
    POD,
    POD_MAC,
    POLICY,
    RAW,
    RESOLVER,
    SITE,
    UNREACHABLE,
    World,
    arp,
    datagram,
    frame,
    packet,
    signed,
    summed,
)

families = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
LOOT = b"loot;"
VLAN, QINQ = struct.pack(">HH", 0x8100, 7), struct.pack(">HHHH", 0x88A8, 8, 0x8100, 9)


@pytest.fixture
def w(w_link: World) -> World:
    return w_link


@dataclass(frozen=True)
class Attack:
    """Frames by the family, the reason of their drop, and whether the node's own stack would forward them."""

    make: Callable[[int], list[bytes]]
    reason: str
    versions: tuple[int, ...] = (4, 6)
    wired: bool = False


def to(version: int, address: str, protocol: int, payload: bytes, **more: int) -> bytes:
    return packet(POD[version], address, protocol, payload, **more)


def loot_syn(version: int) -> list[bytes]:
    return [frame(to(version, BAD[version], p.TCP, p.tcp(80, payload=LOOT)))]


def loot_udp(version: int) -> list[bytes]:
    return [datagram(BAD[version], LOOT)]


def with_header(header: int, **more: int) -> Callable[[int], list[bytes]]:
    def make(version: int) -> list[bytes]:
        head = p.extension(p.UDP, **more)
        return [frame(to(version, BAD[version], header, head + p.udp(80, payload=LOOT)))]

    return make


def with_option(options: bytes) -> bytes:
    return frame(signed(p.ipv4(POD[4], GOOD[4], p.UDP, p.udp(80, payload=LOOT), options=options)))


def pieces(version: int, address: str, first: bytes, *later: tuple[int, bytes]) -> list[bytes]:
    """UDP, or TCP where the first piece says so, cut into fragments at offsets in bytes."""
    kind = p.TCP if b"tcp" in first else p.UDP
    every = [(0, first.removeprefix(b"tcp")), *later]
    made = []
    for offset, data in every:
        more = offset != every[-1][0]
        if version == 4:
            field = (0x2000 if more else 0) | offset // 8
            raw = bytearray(p.ipv4(POD[4], address, kind, data, fragment=field))
            raw[4:6] = b"\x12\x34"
            made.append(frame(signed(bytes(raw))))
        else:
            head = struct.pack(">BBHI", kind, 0, offset | more, 0x1234)
            made.append(frame(p.ipv6(POD[6], address, p.FRAGMENT, head + data)))
    return made


def tiny(version: int) -> list[bytes]:
    """RFC 1858 3: the port is in the first piece, the flags are in the second."""
    whole = p.tcp(80, payload=LOOT + bytes(16))
    return pieces(version, GOOD[version], b"tcp" + whole[:8], (8, whole[8:]))


def overlapping(version: int) -> list[bytes]:
    """RFC 1858 4: what was admitted is overwritten by what follows."""
    first = p.udp(81, payload=bytes(24))
    return pieces(version, GOOD[version], first, (8, LOOT + bytes(19)))


def over_the_header(version: int) -> list[bytes]:
    return [
        *pieces(version, GOOD[version], p.udp(81, payload=bytes(24)), (32, bytes(8))),
        *pieces(version, GOOD[version], b"", (8, LOOT + bytes(3)))[1:],
    ]


def later_alone(version: int) -> list[bytes]:
    return pieces(version, BAD[version], b"", (1480, LOOT + bytes(3)))[1:]


def later_elsewhere(version: int) -> list[bytes]:
    """Behind a first piece that was admitted, to somebody else."""
    return [
        *pieces(version, GOOD[version], p.udp(81, payload=bytes(24)), (32, bytes(8)))[:1],
        *pieces(version, BAD[version], b"", (32, LOOT + bytes(3)))[1:],
    ]


def first_to_bad(version: int) -> list[bytes]:
    return pieces(version, BAD[version], p.udp(80, payload=LOOT + bytes(19)), (32, bytes(8)))


def error_with_loot(version: int) -> list[bytes]:
    """As if the forbidden address had sent something that could not be delivered."""
    quoted = packet(BAD[version], POD[version], p.UDP, p.udp(7, payload=LOOT))
    kind = p.ICMP if version == 4 else p.ICMPV6
    return [frame(to(version, BAD[version], kind, p.icmp(UNREACHABLE[version], 3, 0, quoted)))]


def error_to_another(version: int) -> list[bytes]:
    """It quotes an allowed one, and goes to another."""
    quoted = packet(GOOD[version], POD[version], p.UDP, p.udp(7, 81, payload=LOOT))
    kind = p.ICMP if version == 4 else p.ICMPV6
    return [frame(to(version, BAD[version], kind, p.icmp(UNREACHABLE[version], 3, 0, quoted)))]


def listener_report(version: int) -> list[bytes]:
    """RFC 3810, to somebody far away, with data."""
    return [frame(to(6, BAD[6], p.ICMPV6, p.icmp(143, payload=LOOT), hops=255))]


def solicitation(version: int) -> list[bytes]:
    return [frame(to(6, BAD[6], p.ICMPV6, p.icmp(135, payload=bytes(16) + LOOT), hops=255))]


def tunnel(protocol: int, address: str = "") -> Callable[[int], list[bytes]]:
    def make(version: int) -> list[bytes]:
        inner = packet(POD[version], BAD[version], p.UDP, p.udp(80, payload=LOOT))
        return [frame(to(version, address or BAD[version], protocol, bytes(4) + inner))]

    return make


ATTACKS = {
    "AF_PACKET raw SYN": Attack(loot_syn, "NOT_ALLOWED"),
    "AF_PACKET raw UDP": Attack(loot_udp, "NOT_ALLOWED"),
    "TCP payload without a SYN": Attack(
        lambda v: [frame(to(v, BAD[v], p.TCP, p.tcp(80, flags=0x18, payload=LOOT)))], "NOT_ALLOWED"
    ),
    "a SYN-ACK and a RST that nobody asked for": Attack(
        lambda v: [frame(to(v, BAD[v], p.TCP, p.tcp(80, flags=f, payload=LOOT))) for f in (p.SYN_ACK, p.RST)],
        "NOT_ALLOWED",
    ),
    "a foreign source": Attack(
        lambda v: [datagram(GOOD[v], LOOT, source=FOREIGN[v])], "SPOOFED"
    ),
    "the node's own address as the source": Attack(
        lambda v: [datagram(GOOD[v], LOOT, source=NODE[v])], "SPOOFED", wired=True
    ),
    "a forged MAC": Attack(
        lambda v: [frame(to(v, GOOD[v], p.UDP, p.udp(80, payload=LOOT)), source=OTHER_MAC)], "SPOOFED"
    ),
    "a VLAN's tag": Attack(
        lambda v: [frame(to(v, GOOD[v], p.UDP, p.udp(80, payload=LOOT)), tags=VLAN)], "VLAN_TAG", wired=True
    ),
    "a tag within a tag (QinQ)": Attack(
        lambda v: [frame(to(v, GOOD[v], p.UDP, p.udp(80, payload=LOOT)), tags=QINQ)], "VLAN_TAG", wired=True
    ),
    "a frame that is not IP": Attack(
        lambda _: [NODE_MAC + POD_MAC + b"\x88\xb5" + LOOT + bytes(50)], "NOT_IP", (4,), wired=True
    ),
    "a frame of the length kind (802.3)": Attack(
        lambda _: [NODE_MAC + POD_MAC + b"\x00\x20" + LOOT + bytes(50)], "NOT_IP", (4,), wired=True
    ),
    "ARP with a foreign sender": Attack(
        lambda _: [arp(2, POD_MAC, FOREIGN[4]) + LOOT], "SPOOFED", (4,), wired=True
    ),
    "ARP with a foreign MAC": Attack(
        lambda _: [arp(1, OTHER_MAC, POD[4]) + LOOT], "SPOOFED", (4,), wired=True
    ),
    "ARP that carries data": Attack(
        lambda _: [arp(1, POD_MAC, POD[4]) + LOOT * 9], "UNREADABLE", (4,), wired=True
    ),
    "an advertisement of a foreign address": Attack(
        lambda _: [
            frame(
                packet(
                    POD[6], "ff02::1", p.ICMPV6,
                    p.icmp(136, 0, 0x2000, socket.inet_pton(socket.AF_INET6, FOREIGN[6]) + LOOT), hops=255,
                )
            )
        ],
        "NOT_ALLOWED", (6,), wired=True,
    ),
    "an advertisement as a router": Attack(
        lambda _: [frame(packet(LINK_LOCAL, "ff02::1", p.ICMPV6, p.icmp(134, payload=LOOT), hops=255))],
        "NOT_ALLOWED", (6,), wired=True,
    ),
    "IPv6 hop-by-hop options": Attack(with_header(p.HOP_BY_HOP), "NOT_ALLOWED", (6,)),
    "IPv6 destination options": Attack(with_header(p.DESTINATION), "NOT_ALLOWED", (6,)),
    "an IPv6 routing header": Attack(with_header(p.ROUTING), "NOT_ALLOWED", (6,)),
    "an IPv6 routing header that leads on": Attack(
        with_header(p.ROUTING, kind=4, left=1), "SOURCE_ROUTE", (6,), wired=True
    ),
    "an IPv6 mobility header": Attack(with_header(p.MOBILITY), "EXTENSION_HEADER", (6,)),
    "an IPv6 fragment header that cuts nothing": Attack(with_header(p.FRAGMENT), "NOT_ALLOWED", (6,)),
    "an IPv4 option": Attack(lambda _: [with_option(b"\x44\x04\x05\x00")], "IP_OPTION", (4,), wired=True),
    "an IPv4 source route": Attack(
        lambda _: [with_option(b"\x83\x07\x04" + socket.inet_aton(BAD[4]) + b"\0")],
        "SOURCE_ROUTE", (4,), wired=True,
    ),
    "tiny fragments": Attack(tiny, "FRAGMENT"),
    "overlapping fragments": Attack(overlapping, "LATER_FRAGMENT"),
    "a fragment over the header": Attack(over_the_header, "LATER_FRAGMENT"),
    "a later fragment without a first": Attack(later_alone, "LATER_FRAGMENT"),
    "a later fragment behind another's first": Attack(later_elsewhere, "LATER_FRAGMENT"),
    "a first fragment to a forbidden address": Attack(first_to_bad, "NOT_ALLOWED"),
    "an ICMP error that carries data": Attack(error_with_loot, "ICMP_ERROR"),
    "an ICMP error to another than it quotes": Attack(error_to_another, "ICMP_ERROR"),
    "MLD to an address off the link": Attack(listener_report, "NOT_ALLOWED", (6,)),
    "ND to an address off the link": Attack(solicitation, "NOT_ALLOWED", (6,)),
    "GRE to a forbidden address": Attack(tunnel(p.GRE), "NOT_ALLOWED"),
    "ESP to a forbidden address": Attack(tunnel(p.ESP), "NOT_ALLOWED"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "version"),
    [(name, version) for name, attack in ATTACKS.items() for version in attack.versions],
    ids=lambda value: str(value),
)
def test_frames_of_ones_own(w: World, name: str, version: int) -> None:
    attack = ATTACKS[name]
    if attack.wired:
        with w.wired_through():
            compare(w, attack, version)
    else:
        compare(w, attack, version)


def compare(w: World, attack: Attack, version: int) -> None:
    frames = attack.make(version)
    with w.without():
        assert w.leaves(*frames, marker=LOOT), "it has to succeed without the link"
    with w.b.counting(POLICY) as told:
        assert not w.leaves(*frames, marker=LOOT)
    assert told[attack.reason] > 0


@families
@pytest.mark.parametrize("protocol", [p.GRE, p.IPIP], ids=["GRE", "IPIP"])
def test_a_tunnel_to_an_allowed_address_on_a_rule_with_ports(w: World, version: int, protocol: int) -> None:
    w.b.rule(POLICY, SITE, ONLY_80)
    frames = tunnel(protocol, GOOD[version])(version)
    with w.without():
        assert w.leaves(*frames, marker=LOOT)
    w.b.put("rules", (POLICY, SITE), (ONLY_80,))
    with w.b.counting(POLICY) as told:
        for each in frames:
            w.wire.send(each)
        wait_until(lambda: w.counts().get("PORT_NOT_ALLOWED", 0) > 0, "it is dropped")
    assert told["PORT_NOT_ALLOWED"] == 1


@families
def test_ip_hdrincl_with_a_foreign_source(w: World, version: int) -> None:
    """Where the cgroup's hooks know no addresses of the workload's: the link does."""
    w.b.put("workloads", w.number, (POLICY, 0, w.lab.home))
    raw = packet(FOREIGN[version], GOOD[version], p.UDP, p.udp(80, payload=LOOT))
    with w.as_workload():
        s = w.kept(socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, RAW, 255))
    if version == 6:
        s.setsockopt(socket.IPPROTO_IPV6, 36, 1)  # IPV6_HDRINCL (linux/in6.h)
    with w.without():
        s.sendto(raw, (GOOD[version], 0))
        assert w.came(LOOT)
    with w.b.counting(POLICY) as told:
        s.sendto(raw, (GOOD[version], 0))
        assert not w.came(LOOT)
    assert told["SPOOFED"] == 1


@families
def test_answers_forged_over_the_link_teach_nothing_and_leave_nothing(w: World, version: int) -> None:
    """The workload sends what looks like an answer of its resolver's, to itself by way of the node."""
    forged = packet(RESOLVER[version], POD[version], p.UDP, p.udp(40000, 53, payload=LOOT))
    with w.wired_through():
        with w.without():
            assert w.leaves(frame(forged), marker=LOOT)
        with w.b.counting(POLICY) as told:
            assert not w.leaves(frame(forged), marker=LOOT)
    assert told["SPOOFED"] == 1


@families
def test_a_frame_on_the_tuple_of_an_open_connection_is_that_connection(w: World, version: int) -> None:
    """No more is reached by it than by the connection; once its rule is withdrawn nothing is."""
    s, _ = w.connected(version)
    port = s.getsockname()[1]
    raw = frame(summed(to(version, GOOD[version], p.TCP, p.tcp(80, port, 0x18, LOOT)), 16))
    w.b.rule(POLICY, SITE, 0)
    with w.without():
        assert w.leaves(raw, marker=LOOT)
    with w.b.counting(POLICY) as told:
        w.wire.send(raw)
        wait_until(lambda: w.counts().get("PORT_NOT_ALLOWED", 0) > 0, "it is dropped")
    assert told["PORT_NOT_ALLOWED"] == 1
