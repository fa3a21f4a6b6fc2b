"""What a machine behind a gateway tries that makes packets of its own, each attack by its name.

Each is first seen to succeed where the gateway has no programs, and forwards what comes from inside.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count

import pytest

from bpf import kernel
from bpf.ask import CONTEXT, MARK
from tests.kernel import packets as p
from tests.kernel.bench import LATER, now
from tests.kernel.gateway_lab import (
    BAD,
    GOOD,
    HERE,
    HERE_MAC,
    MACHINE,
    OTHERS,
    POLICY,
    SILENT,
    SITE,
    VM,
    VM_MAC,
    Machines,
    datagram,
    segment,
)
from tests.kernel.link_lab import frame, packet, signed, summed

families = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
LOOT = b"loot;"
UNREACHABLE = {4: 3, 6: 1}
_identifiers = count(1)  # what the kernel waits for of an earlier test is not to meet with a later one's
PING = {4: p.ICMP, 6: p.ICMPV6}


@dataclass(frozen=True)
class Attack:
    """Packets by the family, the reason of their drop, and of which families the kernel forwards them."""

    make: Callable[[int], list[bytes]]
    reason: str
    versions: tuple[int, ...] = (4, 6)
    forwarded: tuple[int, ...] = (4, 6)


def to(version: int, address: str, protocol: int, payload: bytes, **more: int) -> bytes:
    return packet(VM[version], address, protocol, payload, **more)


def with_header(header: int, **more: int) -> Callable[[int], list[bytes]]:
    def make(_: int) -> list[bytes]:
        return [to(6, BAD[6], header, p.extension(p.UDP, **more) + p.udp(80, payload=LOOT))]

    return make


def with_option(options: bytes) -> Callable[[int], list[bytes]]:
    return lambda _: [signed(p.ipv4(VM[4], GOOD[4], p.UDP, p.udp(80, payload=LOOT), options=options))]


def pieces(version: int, address: str, kind: int, *parts: tuple[int, bytes]) -> list[bytes]:
    """Fragments at offsets in bytes; the last one ends the packet."""
    made, number = [], next(_identifiers)
    for offset, data in parts:
        more = offset != parts[-1][0]
        if version == 4:
            raw = bytearray(
                p.ipv4(VM[4], address, kind, data, fragment=(0x2000 if more else 0) | offset // 8)
            )
            raw[4:6] = struct.pack(">H", number)
            made.append(signed(bytes(raw)))
        else:
            head = struct.pack(">BBHI", kind, 0, offset | more, number)
            made.append(p.ipv6(VM[6], address, p.FRAGMENT, head + data))
    return made


def tiny(version: int) -> list[bytes]:
    """RFC 1858 3: the port is in the first piece, the flags are in the second."""
    whole = p.tcp(80, payload=LOOT + bytes(16))
    return pieces(version, GOOD[version], p.TCP, (0, whole[:8]), (8, whole[8:]))


def to_bad_in_pieces(version: int) -> list[bytes]:
    return pieces(version, BAD[version], p.UDP, (0, p.udp(80, payload=LOOT + bytes(19))), (32, bytes(8)))


def error(version: int) -> list[bytes]:
    """As if the forbidden address had sent something that could not be delivered."""
    quoted = packet(BAD[version], VM[version], p.UDP, p.udp(7, payload=LOOT))
    return [to(version, BAD[version], PING[version], p.icmp(UNREACHABLE[version], 3, 0, quoted))]


def error_to_another(version: int) -> list[bytes]:
    """It quotes an allowed one, and goes to another."""
    quoted = packet(GOOD[version], VM[version], p.UDP, p.udp(7, 81, payload=LOOT))
    return [to(version, BAD[version], PING[version], p.icmp(UNREACHABLE[version], 3, 0, quoted))]


def error_about_another(version: int) -> list[bytes]:
    """It quotes what was never sent to this machine."""
    quoted = packet(GOOD[version], HERE[version], p.UDP, p.udp(7, 81, payload=LOOT))
    return [to(version, GOOD[version], PING[version], p.icmp(UNREACHABLE[version], 3, 0, quoted))]


ROUTE = b"\x83\x07\x04" + bytes([203, 0, 113, 2])  # RFC 791: loose, to the forbidden address


def tunnel(protocol: int) -> Callable[[int], list[bytes]]:
    def make(version: int) -> list[bytes]:
        return [to(version, BAD[version], protocol, bytes(4) + LOOT)]

    return make


def flags(*every: int) -> Callable[[int], list[bytes]]:
    return lambda v: [segment(address[v], each, LOOT) for each in every for address in (GOOD, BAD)]


ATTACKS = {
    "a raw SYN": Attack(lambda v: [segment(BAD[v], p.SYN, LOOT)], "NOT_ALLOWED"),
    "a raw datagram": Attack(lambda v: [datagram(BAD[v], LOOT)], "NOT_ALLOWED"),
    "from port 53, as if it were an answer": Attack(
        lambda v: [summed(to(v, BAD[v], p.UDP, p.udp(4000, 53, b"\0\1\x81\x80" + LOOT)), 6)], "NOT_ALLOWED"
    ),
    "TCP without a SYN, also to whom it may talk": Attack(flags(0x18, 0), "OUT_OF_STATE"),
    "a SYN-ACK, a RST and a FIN of no connection": Attack(flags(p.SYN_ACK, p.RST, 0x11), "OUT_OF_STATE"),
    "a loose source route": Attack(with_option(ROUTE + b"\0"), "SOURCE_ROUTE", (4,), ()),
    "a source route behind padding": Attack(with_option(b"\1" + ROUTE), "SOURCE_ROUTE", (4,), ()),
    "a timestamp option": Attack(with_option(b"\x44\x08\x05\0" + bytes(4)), "IP_OPTION", (4,)),
    "a destination option": Attack(with_header(p.DESTINATION), "NOT_ALLOWED", (6,)),
    "a routing header": Attack(with_header(p.ROUTING, kind=4, left=0), "NOT_ALLOWED", (6,)),
    "too many extension headers": Attack(
        lambda _: [to(6, GOOD[6], p.DESTINATION, p.extension(p.DESTINATION) * 8 + p.extension(p.UDP) + LOOT)],
        "EXTENSION_HEADER",
        (6,),
    ),
    "a mobility header": Attack(with_header(p.MOBILITY), "EXTENSION_HEADER", (6,)),
    "a tiny first piece": Attack(tiny, "FRAGMENT", forwarded=(4,)),
    "pieces to whom it may not talk": Attack(to_bad_in_pieces, "NOT_ALLOWED"),
    "an ICMP error with data": Attack(error, "ICMP_ERROR"),
    "an ICMP error to another than it quotes": Attack(error_to_another, "ICMP_ERROR"),
    "an ICMP error about another machine": Attack(error_about_another, "ICMP_ERROR"),
    "GRE": Attack(tunnel(p.GRE), "NOT_ALLOWED"),
    "ESP": Attack(tunnel(p.ESP), "NOT_ALLOWED"),
    "IP in IP": Attack(tunnel(p.IPIP), "NOT_ALLOWED"),
    "SCTP": Attack(lambda v: [to(v, BAD[v], p.SCTP, p.udp(80, payload=LOOT))], "NOT_ALLOWED"),
}


@pytest.mark.parametrize(
    ("name", "version"), [(name, version) for name, each in ATTACKS.items() for version in each.versions]
)
def test_ATTACK(m: Machines, name: str, version: int) -> None:
    attack = ATTACKS[name]
    with m.without():
        assert m.leaves(*attack.make(version), marker=LOOT) is (version in attack.forwarded)
    with m.b.counting(POLICY) as told:
        assert not m.leaves(*attack.make(version), marker=LOOT)
    told.pop("ALLOWED", 0)
    told.pop("ESTABLISHED", 0)
    assert told.pop(attack.reason) >= 1
    assert set(told) <= {"NOT_ALLOWED", "LATER_FRAGMENT"}


@families
def test_pieces_follow_the_one_that_was_admitted_and_no_other(m: Machines, version: int) -> None:
    """Those of another datagram, or that overlap it, do not (RFC 1858, RFC 5722)."""
    first, last = p.udp(81, payload=bytes(1272)), LOOT + bytes(3)  # less is too small for IPv6 (RFC 8200 5)
    assert m.leaves(*pieces(version, GOOD[version], p.UDP, (0, first), (1280, last)), marker=LOOT)
    with m.b.counting(POLICY) as told:
        assert not m.leaves(*pieces(version, BAD[version], p.UDP, (1280, last)), marker=LOOT)
        assert not m.leaves(*pieces(version, GOOD[version], p.UDP, (8, last)), marker=LOOT)
    assert told["LATER_FRAGMENT"] == 2


@families
def test_ATTACK_a_frame_for_everybody(m: Machines, version: int) -> None:
    """The kernel forwards none, and the gateway's programs see in it what they see in others."""
    raw = frame(datagram(BAD[version], LOOT), VM_MAC, b"\xff" * 6)
    m.wire.send(raw)
    with m.b.counting(POLICY) as told:
        m.wire.send(raw)
        assert not m.came(LOOT)
    assert told["NOT_ALLOWED"] == 1


@families
def test_ATTACK_the_gateway_s_own_address_as_the_source(m: Machines, version: int) -> None:
    """It lies within the clients' network, whose policy would hold for it."""
    bits, network = {4: (120, "10.20.0.0"), 6: (64, "fd20::")}[version]
    m.b.put("sources", (bits, p.packed(network)), MACHINE + 1)
    with m.b.counting(OTHERS) as told:
        assert not m.leaves(datagram(GOOD[version], LOOT, source=HERE[version]), marker=LOOT)
    assert told == {"SPOOFED": 1}


@families
@pytest.mark.parametrize(("to", "admitted"), [(GOOD, True), (BAD, False), (HERE, False)])
def test_the_mark_s_bits_are_written_and_no_others(
    m: Machines, version: int, to: dict[int, str], admitted: bool
) -> None:
    """Whatever the packet had when it came."""
    raw = frame(datagram(to[version], LOOT), VM_MAC, HERE_MAC)
    for before in (0, 0x130, 0x110, 0x120):
        context = bytearray(CONTEXT)
        context[MARK : MARK + 4] = struct.pack("=I", before)
        _, after = kernel.test_run_context(m.programs["gateway_ingress"], raw, bytes(context))
        mark = struct.unpack_from("=I", after, MARK)[0]
        assert mark == (before & ~0x30) | (0x30 if admitted else 0)


@families
def test_ATTACK_a_withdrawn_rule_s_connection_is_used_for_new_ones(m: Machines, version: int) -> None:
    s, server = m.connected(version)
    s.sendall(b"x")
    assert server.recv(1) == b"x"
    m.b.rule(POLICY, SITE, 0)
    m.b.rule(POLICY, SITE + 1, 1)
    m.b.grant(POLICY, SILENT[4], (SITE + 1, now() + LATER))
    m.b.policy(POLICY)
    port = s.getsockname()[1]
    again = [segment(GOOD[version], each, LOOT, ports=(port, 80)) for each in (0x18, p.SYN, 0x11, p.RST)]
    with m.b.counting(POLICY) as told:
        assert not m.leaves(*again, marker=LOOT)
    assert told["WITHDRAWN"] >= 1
