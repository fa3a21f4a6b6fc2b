"""Interfaces of the calling thread's network namespace, and the numbers of other namespaces (rtnetlink(7)).

Rules this file obeys:

- An answer that was cut, interrupted or not understood is an error, never a shorter list.
- What is not known here is skipped: attributes come with every new kernel.

Structs by hand, not by pyroute2: each pod is asked for again and again, which takes 20 times as long there;
nor can it ask for a namespace's number. Sources: linux/rtnetlink.h, linux/if_link.h, linux/net_namespace.h.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from struct import Struct

RTM_GETLINK, RTM_NEWLINK, RTM_GETNSID, RTM_NEWNSID, NLMSG_ERROR, NLMSG_DONE = 18, 16, 90, 88, 2, 3
NLM_F_REQUEST, NLM_F_DUMP, NLM_F_DUMP_INTR = 0x01, 0x300, 0x10
IFLA_ADDRESS, IFLA_IFNAME, IFLA_LINK, IFLA_LINKINFO, IFLA_EXT_MASK, IFLA_LINK_NETNSID = 1, 3, 5, 18, 29, 37
IFLA_MASTER = 10
IFLA_XDP, IFLA_INFO_KIND, IFLA_XDP_PROG_ID, NETNSA_NSID, NETNSA_FD = 43, 1, 4, 1, 3
SKIP_STATISTICS, IFF_LOOPBACK, RTMGRP_LINK = 8, 8, 1
NLA_TYPE = 0x3FFF  # without the flag bits

HEADER = Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
LINK = Struct("=BxHiII")  # ifinfomsg: family, type, index, flags, change
FAMILY = Struct("=B3x")  # rtgenmsg
ATTRIBUTE = Struct("=HH")  # nlattr: length, type
NUMBER = Struct("=i")

PIECE = 1 << 16
ATTEMPTS = 10


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


class InterruptedDumpError(Exception):
    """Something changed while the kernel made a list: it must be asked for again."""


def interfaces() -> list[Interface]:
    for _ in range(ATTEMPTS):
        try:
            return [_interface(data) for data in _ask(RTM_GETLINK, NLM_F_DUMP, _link(0))]
        except InterruptedDumpError:
            continue
    raise OSError(errno.EAGAIN, f"interfaces changed {ATTEMPTS} times while they were listed")


def interface(index: int) -> Interface | None:
    try:
        return next((_interface(data) for data in _ask(RTM_GETLINK, 0, _link(index))), None)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise
        return None


def number(namespace: int) -> int | None:
    """By which the calling thread's namespace knows that of a descriptor.

    None where it has none yet: it is given one when an interface that leads there is asked for.
    """
    question = FAMILY.pack(0) + _attribute(NETNSA_FD, NUMBER.pack(namespace))
    for data in _ask(RTM_GETNSID, 0, question):
        found = int(NUMBER.unpack(_attributes(data, FAMILY.size)[NETNSA_NSID])[0])
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
        found |= {int(LINK.unpack_from(data)[2]) for _, _, data in _messages(piece)}


# ---- Messages ---------------------------------------------------------------------------------------------


def _link(index: int) -> bytes:
    return LINK.pack(0, 0, index, 0, 0) + _attribute(IFLA_EXT_MASK, NUMBER.pack(SKIP_STATISTICS))


def _interface(data: bytes) -> Interface:
    _, _, index, flags, _ = LINK.unpack_from(data)
    held = _attributes(data, LINK.size)
    beyond, about = held.get(IFLA_LINK_NETNSID), _attributes(held.get(IFLA_LINKINFO, b""), 0)
    return Interface(
        index=index,
        name=_text(held.get(IFLA_IFNAME, b"")),
        kind=_text(about.get(IFLA_INFO_KIND, b"")),
        mac=held.get(IFLA_ADDRESS, b""),
        peer=_number(held.get(IFLA_LINK)),
        beyond=None if beyond is None else _number(beyond),
        is_loopback=bool(flags & IFF_LOOPBACK),
        xdp=_number(_attributes(held.get(IFLA_XDP, b""), 0).get(IFLA_XDP_PROG_ID)),
        master=_number(held.get(IFLA_MASTER)),
    )


def _text(data: bytes) -> str:
    return data.rstrip(b"\0").decode(errors="backslashreplace")


def _number(data: bytes | None) -> int:
    return int(NUMBER.unpack(data)[0]) if data else 0


def _attribute(kind: int, data: bytes) -> bytes:
    """Data is of whole words here."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(data), kind) + data


def _attributes(data: bytes, at: int) -> dict[int, bytes]:
    found = {}
    while at + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, at)
        if length < ATTRIBUTE.size or at + length > len(data):
            raise OSError(errno.EPROTO, "an answer of rtnetlink that can't be read")
        found[kind & NLA_TYPE] = data[at + ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


def _ask(kind: int, flags: int, question: bytes) -> list[bytes]:
    """The answers without their heads: one, or all of a dump."""
    found: list[bytes] = []
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ) as asked:
        asked.connect((0, 0))
        asked.send(HEADER.pack(HEADER.size + len(question), kind, NLM_F_REQUEST | flags, 1, 0) + question)
        while True:
            for what, marks, data in _messages(asked.recv(PIECE)):
                if marks & NLM_F_DUMP_INTR:
                    raise InterruptedDumpError
                if what == NLMSG_ERROR:
                    reason = -_number(data[: NUMBER.size])
                    raise OSError(reason, f"rtnetlink: {os.strerror(reason)}")
                if what == NLMSG_DONE:
                    return found
                found.append(data)
            if not flags & NLM_F_DUMP:
                return found


def _messages(piece: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + HEADER.size <= len(piece):
        length, kind, flags, _, _ = HEADER.unpack_from(piece, at)
        if length < HEADER.size or at + length > len(piece):
            raise OSError(errno.EPROTO, "an answer of rtnetlink that was cut")
        yield kind, flags, piece[at + HEADER.size : at + length]
        at += (length + 3) & ~3
