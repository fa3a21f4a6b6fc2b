"""Interfaces of the calling thread's network namespace, and the numbers of other namespaces (rtnetlink(7)).

Messages by hand, not by pyroute2: each pod is asked for again and again, which takes 20 times as long there;
nor can it ask for a namespace's number. Sources: linux/rtnetlink.h, linux/if_link.h, linux/net_namespace.h.
"""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass
from struct import Struct

from routing.rtnetlink import NLM_F_DUMP, NUMBER, PIECE, ask, attribute, attributes, messages, whole

RTM_GETLINK, RTM_GETNSID = 18, 90
IFLA_ADDRESS, IFLA_IFNAME, IFLA_LINK, IFLA_LINKINFO, IFLA_EXT_MASK, IFLA_LINK_NETNSID = 1, 3, 5, 18, 29, 37
IFLA_MASTER = 10
IFLA_XDP, IFLA_INFO_KIND, IFLA_XDP_PROG_ID, NETNSA_NSID, NETNSA_FD = 43, 1, 4, 1, 3
SKIP_STATISTICS, IFF_LOOPBACK, RTMGRP_LINK = 8, 8, 1

LINK = Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
FAMILY = Struct("=B3x")  # rtgenmsg


@dataclass(frozen=True, slots=True)
class Interface:
    """`kind` is empty for a device of hardware. `peer` is the other end's number, or 0. `beyond`: in which
    namespace that is, by the number by which the calling thread's knows it; None: in this one. `master`:
    the number of the bridge or the like of which it is a port, or 0."""

    index: int
    name: str
    kind: str
    mac: bytes
    peer: int
    beyond: int | None
    is_loopback: bool
    xdp: int  # id of a program that sees packets before everybody else, or 0
    master: int = 0


def interfaces() -> list[Interface]:
    return whole(lambda: [_interface(data) for data in ask(RTM_GETLINK, NLM_F_DUMP, _link(0))])


def interface(index: int) -> Interface | None:
    try:
        return next((_interface(data) for data in ask(RTM_GETLINK, 0, _link(index))), None)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        return None


def number(namespace: int) -> int | None:
    """By which the calling thread's namespace knows that of a descriptor.

    None where it has none yet: it is given one when an interface that leads there is asked for.
    """
    question = FAMILY.pack(0) + attribute(NETNSA_FD, NUMBER.pack(namespace))
    for data in ask(RTM_GETNSID, 0, question):
        found = int(NUMBER.unpack(attributes(data, FAMILY.size)[NETNSA_NSID])[0])
        return None if found < 0 else found
    raise OSError(errno.EPROTO, "the kernel does not tell a namespace's number")


def changes() -> socket.socket:
    """Becomes readable when an interface of this network namespace comes, goes or changes."""
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    link.bind((0, RTMGRP_LINK))
    return link


def changed(news: socket.socket) -> set[int] | None:
    """Numbers of the interfaces that :func:`changes` tells of; None where some news were lost."""
    found: set[int] = set()
    while True:
        try:
            piece = news.recv(PIECE)
        except BlockingIOError:
            return found
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return None
        found |= {int(LINK.unpack_from(data)[2]) for _, _, data in messages(piece)}


# ---- Messages ---------------------------------------------------------------------------------------------


def _link(index: int) -> bytes:
    return LINK.pack(0, 0, index, 0, 0) + attribute(IFLA_EXT_MASK, NUMBER.pack(SKIP_STATISTICS))


def _interface(data: bytes) -> Interface:
    _, _, index, flags, _ = LINK.unpack_from(data)
    held = attributes(data, LINK.size)
    beyond, about = held.get(IFLA_LINK_NETNSID), attributes(held.get(IFLA_LINKINFO, b""), 0)
    return Interface(
        index=index,
        name=_text(held.get(IFLA_IFNAME, b"")),
        kind=_text(about.get(IFLA_INFO_KIND, b"")),
        mac=held.get(IFLA_ADDRESS, b""),
        peer=_number(held.get(IFLA_LINK)),
        beyond=None if beyond is None else _number(beyond),
        is_loopback=bool(flags & IFF_LOOPBACK),
        xdp=_number(attributes(held.get(IFLA_XDP, b""), 0).get(IFLA_XDP_PROG_ID)),
        master=_number(held.get(IFLA_MASTER)),
    )


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="backslashreplace")


def _number(data: bytes | None) -> int:
    return int(NUMBER.unpack(data)[0]) if data else 0
