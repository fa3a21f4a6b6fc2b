"""Next hops, resilient groups of them, and routes that lead through one (rtnetlink(7), Linux 5.13).

A resilient group is a table of buckets: a packet's hash picks the bucket, which belongs to a next hop. When
one goes, only its buckets are given to others; when one comes, it gets those that were idle for a while.

Rules this file obeys:

- Ours is what has PROTOCOL: nothing else is listed, or removed.
- What is gone already is as good as removed; what is there already is as good as added.

Messages by hand: pyroute2 knows neither next hops nor routes through them.

Source: linux/nexthop.h, linux/rtnetlink.h, Documentation/networking/nexthop-group-resilient.rst.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from dataclasses import dataclass
from struct import Struct

from routing.rtnetlink import (
    NLA_F_NESTED,
    NLM_F_ACK,
    NLM_F_CREATE,
    NLM_F_DUMP,
    NLM_F_REPLACE,
    ask,
    attribute,
    attributes,
    whole,
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PROTOCOL = 213  # of routes and next hops that we made (linux/rtnetlink.h: rtm_protocol)
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEXTHOP, RTM_DELNEXTHOP, RTM_GETNEXTHOP = 104, 105, 106
NHA_ID, NHA_GROUP, NHA_GROUP_TYPE, NHA_OIF, NHA_GATEWAY, NHA_RES_GROUP = 1, 2, 3, 5, 6, 12
RESILIENT = 1  # NEXTHOP_GRP_TYPE_RES
BUCKETS, IDLE, UNBALANCED = 1, 2, 3  # NHA_RES_GROUP_
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PRIORITY, RTA_TABLE, RTA_NH_ID = 1, 4, 5, 6, 15, 30
UNICAST, UNREACHABLE, THROW = 1, 7, 9  # RTN_
TICKS = 100  # in a second (USER_HZ)
DONE = (errno.ENODEV, errno.ENOENT, errno.ESRCH)

HOP = Struct("=BBBBI")  # nhmsg: family, scope, protocol, nothing, flags
MEMBER = Struct("=IBBH")  # nexthop_grp: id, weight less one
ROUTE = Struct("=BBBBBBBBI")  # rtmsg: family, length, -, TOS, table, protocol, scope, type, flags
WORD, HALF = Struct("=I"), Struct("=H")


@dataclass(frozen=True, slots=True, order=True)
class Hop:
    """A neighbour, by the number of the interface that leads to it."""

    id: int
    address: str
    interface: int


@dataclass(frozen=True, slots=True, order=True)
class Group:
    """Of hops, by their numbers in ascending order. `idle`: seconds after which a bucket may be given to
    another hop; `unbalanced`: seconds after which it is given away although it is busy, 0: never."""

    id: int
    members: tuple[int, ...]
    buckets: int
    idle: int
    unbalanced: int


@dataclass(frozen=True, slots=True, order=True)
class Way:
    """A route of a table: through the hop or group of that number, UNREACHABLE, or THROW (look elsewhere)."""

    table: int
    destination: str
    kind: int = UNICAST
    through: int = 0
    metric: int = 0


def hops_and_groups() -> tuple[list[Hop], list[Group]]:
    found = [data for data in _list(RTM_GETNEXTHOP, bytes(HOP.size)) if HOP.unpack_from(data)[2] == PROTOCOL]
    held = [attributes(data, HOP.size) for data in found]
    return (
        [_hop(about) for about in held if NHA_GROUP not in about],
        [_group(about) for about in held if NHA_GROUP in about],
    )


def _hop(about: dict[int, bytes]) -> Hop:
    address = about.get(NHA_GATEWAY)
    return Hop(
        _word(about[NHA_ID]),
        str(ipaddress.ip_address(address)) if address else "",
        _word(about.get(NHA_OIF, bytes(4))),
    )


def _group(about: dict[int, bytes]) -> Group:
    timers = attributes(about.get(NHA_RES_GROUP, b""), 0)
    return Group(
        _word(about[NHA_ID]),
        tuple(sorted(member[0] for member in MEMBER.iter_unpack(about[NHA_GROUP]))),
        HALF.unpack(timers[BUCKETS])[0] if timers else 0,
        _word(timers[IDLE]) // TICKS if timers else 0,
        _word(timers[UNBALANCED]) // TICKS if timers else 0,
    )


def set_hop(hop: Hop) -> None:
    """In place of the one with this number."""
    address = ipaddress.ip_address(hop.address)
    _set_hop(
        _family(address),
        attribute(NHA_ID, WORD.pack(hop.id)),
        attribute(NHA_OIF, WORD.pack(hop.interface)),
        attribute(NHA_GATEWAY, address.packed),
    )


def set_group(group: Group) -> None:
    """In place of the one with this number; buckets of hops that stay in it stay theirs."""
    timers = (
        attribute(BUCKETS, HALF.pack(group.buckets))
        + attribute(IDLE, WORD.pack(group.idle * TICKS))
        + attribute(UNBALANCED, WORD.pack(group.unbalanced * TICKS))
    )
    _set_hop(
        socket.AF_UNSPEC,
        attribute(NHA_ID, WORD.pack(group.id)),
        attribute(NHA_GROUP, b"".join(MEMBER.pack(member, 0, 0, 0) for member in group.members)),
        attribute(NHA_GROUP_TYPE, HALF.pack(RESILIENT)),
        attribute(NHA_RES_GROUP | NLA_F_NESTED, timers),
    )


def _set_hop(family: int, *about: bytes) -> None:
    question = HOP.pack(family, 0, PROTOCOL, 0, 0) + b"".join(about)
    ask(RTM_NEWNEXTHOP, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, question)


def remove_hop(number: int) -> None:
    """A hop or a group, with the routes that lead through it."""
    _unless_done(RTM_DELNEXTHOP, bytes(HOP.size) + attribute(NHA_ID, WORD.pack(number)))


# ---- Routes -----------------------------------------------------------------------------------------------


def ways(table: int) -> list[Way]:
    found = []
    for family in (socket.AF_INET, socket.AF_INET6):
        question = ROUTE.pack(family, *bytes(7), 0) + attribute(RTA_TABLE, WORD.pack(table))
        found += [
            _way(data) for data in _list(RTM_GETROUTE, question) if ROUTE.unpack_from(data)[5] == PROTOCOL
        ]
    return found


def _way(data: bytes) -> Way:
    family, length, *_, kind, _ = ROUTE.unpack_from(data)
    about = attributes(data, ROUTE.size)
    address = about.get(RTA_DST, bytes(4 if family == socket.AF_INET else 16))
    metric = _word(about.get(RTA_PRIORITY, bytes(4)))
    through = _word(about.get(RTA_NH_ID, bytes(4)))
    return Way(_word(about[RTA_TABLE]), f"{ipaddress.ip_address(address)}/{length}", kind, through, metric)


def add_way(way: Way) -> None:
    ask(RTM_NEWROUTE, NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE, _question(way))


def remove_way(way: Way) -> None:
    _unless_done(RTM_DELROUTE, _question(way))


def _question(way: Way) -> bytes:
    network = ipaddress.ip_network(way.destination)
    head = ROUTE.pack(_family(network), network.prefixlen, 0, 0, 0, PROTOCOL, 0, way.kind, 0)
    about = attribute(RTA_TABLE, WORD.pack(way.table)) + attribute(RTA_PRIORITY, WORD.pack(way.metric))
    about += attribute(RTA_DST, network.network_address.packed) if network.prefixlen else b""
    return head + about + (attribute(RTA_NH_ID, WORD.pack(way.through)) if way.through else b"")


def interface_to(address: Address) -> int | None:
    """The number of the one that leads to this neighbour; None where it is behind another, or nowhere."""
    head = ROUTE.pack(_family(address), address.max_prefixlen, *bytes(6), 0)
    try:
        (found,) = ask(RTM_GETROUTE, 0, head + attribute(RTA_DST, address.packed))
    except OSError:
        return None
    about = attributes(found, ROUTE.size)
    is_direct = ROUTE.unpack_from(found)[7] == UNICAST and RTA_GATEWAY not in about
    return _word(about[RTA_OIF]) if is_direct and RTA_OIF in about else None


# ---- Words ------------------------------------------------------------------------------------------------


def _list(kind: int, question: bytes) -> list[bytes]:
    """None of a family, or a table, that is not there."""
    try:
        return whole(lambda: ask(kind, NLM_F_DUMP, question, strict=True))
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.EAFNOSUPPORT, errno.EOPNOTSUPP):
            raise
        return []


def _unless_done(kind: int, question: bytes) -> None:
    try:
        ask(kind, NLM_F_ACK, question)
    except OSError as error:
        if error.errno not in DONE:
            raise


def _family(address: Address | Network) -> int:
    return int(socket.AF_INET if address.version == 4 else socket.AF_INET6)


def _word(data: bytes) -> int:
    return int(WORD.unpack(data)[0])
