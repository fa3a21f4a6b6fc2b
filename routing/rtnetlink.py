"""Messages of rtnetlink(7) by hand: for what pyroute2 doesn't know, or takes too long for.

Rules this file obeys:

- An answer that was cut, interrupted or not understood is an error, never a shorter list.
- What is not known is skipped: attributes come with every new kernel.

Source: linux/netlink.h, linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from struct import Struct
from typing import TypeVar

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REPLACE, NLM_F_CREATE = (
    *(0x01, 0x04, 0x300, 0x10, 0x100, 0x400),
)
SOL_NETLINK, NETLINK_GET_STRICT_CHK = 270, 12
NLA_F_NESTED = 0x8000
NLA_TYPE = 0x3FFF  # without the flag bits

HEADER = Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
ATTRIBUTE = Struct("=HH")  # nlattr: length, type
NUMBER = Struct("=i")

PIECE = 1 << 16
ATTEMPTS = 10

Found = TypeVar("Found")


class InterruptedDumpError(Exception):
    """Something changed while the kernel made a list: it must be asked for again."""


def whole(ask_for_list: Callable[[], Found]) -> Found:
    """A list that nothing changed while it was made."""
    for _ in range(ATTEMPTS):
        try:
            return ask_for_list()
        except InterruptedDumpError:
            continue
    raise OSError(errno.EAGAIN, f"what the kernel lists changed {ATTEMPTS} times meanwhile")


def attribute(kind: int, data: bytes) -> bytes:
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(data), kind) + data + bytes(-len(data) % 4)


def attributes(data: bytes, at: int) -> dict[int, bytes]:
    found = {}
    while at + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, at)
        if length < ATTRIBUTE.size or at + length > len(data):
            raise OSError(errno.EPROTO, "an answer of rtnetlink that can't be read")
        found[kind & NLA_TYPE] = data[at + ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3
    return found


def ask(kind: int, flags: int, question: bytes, *, strict: bool = False) -> list[bytes]:
    """The answers without their heads: one, all of a dump, or none where the kernel only says "done".

    `strict`: a list has only what fits the question (Linux 4.20). Raises :class:`OSError` with the kernel's
    reason.
    """
    found: list[bytes] = []
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ) as asked:
        if strict:
            asked.setsockopt(SOL_NETLINK, NETLINK_GET_STRICT_CHK, 1)
        asked.connect((0, 0))
        asked.send(HEADER.pack(HEADER.size + len(question), kind, NLM_F_REQUEST | flags, 1, 0) + question)
        while True:
            for what, marks, data in messages(asked.recv(PIECE)):
                if marks & NLM_F_DUMP_INTR:
                    raise InterruptedDumpError
                if what == NLMSG_ERROR:
                    if reason := -int(NUMBER.unpack_from(data)[0]):
                        raise OSError(reason, f"rtnetlink: {os.strerror(reason)}")
                    return found
                if what == NLMSG_DONE:
                    return found
                found.append(data)
            if not flags & (NLM_F_DUMP | NLM_F_ACK):
                return found


def messages(piece: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Type, flags, data."""
    at = 0
    while at + HEADER.size <= len(piece):
        length, kind, flags, _, _ = HEADER.unpack_from(piece, at)
        if length < HEADER.size or at + length > len(piece):
            raise OSError(errno.EPROTO, "an answer of rtnetlink that was cut")
        yield kind, flags, piece[at + HEADER.size : at + length]
        at += (length + 3) & ~3
