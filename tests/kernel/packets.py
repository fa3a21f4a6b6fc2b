"""Frames by hand: what a raw socket could send, well-formed or not.

Checksums are left 0, but for ICMP's, which a raw socket does not fill in: the programs run before they count.
"""

from __future__ import annotations

import ipaddress
import struct

ICMP, TCP, UDP, GRE, ESP, AH, ICMPV6, NO_NEXT, SCTP, UDPLITE, IPIP, DCCP = (
    *(1, 6, 17, 47, 50, 51, 58, 59, 132, 136, 4, 33),
)
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION, MOBILITY = 0, 43, 44, 60, 135
SYN, SYN_ACK, ACK, RST = 0x02, 0x12, 0x10, 0x04


def ether(packet: bytes, kind: int | None = None) -> bytes:
    """The Ethernet header in front that BPF_PROG_TEST_RUN wants; its type follows the version nibble."""
    if kind is None:
        kind = 0x86DD if packet[0] >> 4 == 6 else 0x0800
    return bytes(12) + struct.pack(">H", kind) + packet


def ipv4(
    source: str,
    destination: str,
    protocol: int,
    payload: bytes = b"",
    *,
    options: bytes = b"",
    fragment: int = 0,
    ttl: int = 64,
    first: int | None = None,
) -> bytes:
    """RFC 791; `fragment` is the whole field of flags and offset, `first` replaces version and length."""
    words = 5 + len(options) // 4
    head = struct.pack(
        ">BBHHHBBH4s4s",
        0x40 | words if first is None else first,
        *(0, words * 4 + len(payload), 0, fragment, ttl, protocol, 0),
        ipaddress.IPv4Address(source).packed,
        ipaddress.IPv4Address(destination).packed,
    )
    return head + options + payload


def ipv6(source: str, destination: str, following: int, payload: bytes = b"", *, hops: int = 64) -> bytes:
    """RFC 8200."""
    return struct.pack(
        ">IHBB16s16s",
        6 << 28,
        *(len(payload), following, hops),
        ipaddress.IPv6Address(source).packed,
        ipaddress.IPv6Address(destination).packed,
    ) + bytes(payload)


def extension(following: int, *, kind: int = 0, left: int = 0, words: int = 0) -> bytes:
    """One IPv6 extension header of 8 * (words + 1) bytes; `kind` and `left` are a routing header's."""
    return bytes([following, words, kind, left]) + bytes(4 + 8 * words)


def tcp(destination: int, source: int = 40000, flags: int = SYN, payload: bytes = b"") -> bytes:
    return struct.pack(">HHIIBBHHH", source, destination, 1, 0, 0x50, flags, 65535, 0, 0) + payload


def udp(destination: int, source: int = 40000, payload: bytes = b"") -> bytes:
    """Also the shape of SCTP's, UDP-Lite's and DCCP's first words."""
    return struct.pack(">HHHH", source, destination, 8 + len(payload), 0) + payload


def icmp(kind: int, code: int = 0, identifier: int = 7, payload: bytes = b"") -> bytes:
    """An echo, or whatever else `kind` says."""
    data = struct.pack(">BBHHH", kind, code, 0, identifier, 1) + payload
    words = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) // 2 * 2]))
    check = ~(words + (words >> 16)) & 0xFFFF
    return data[:2] + struct.pack(">H", check) + data[4:]


def packed(address: str) -> bytes:
    """16 bytes, IPv4 as v4-mapped: the contract's form."""
    parsed = ipaddress.ip_address(address)
    return parsed.packed if parsed.version == 6 else bytes(10) + b"\xff\xff" + parsed.packed
