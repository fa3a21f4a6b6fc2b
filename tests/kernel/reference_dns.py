"""A second reader of DNS answers, to hold the kernel's against: slow, strict, recursive, in no hurry.

It follows the rules at the top of bpf/dns.h and shares no code and no structure with it:

- a message is believed whole or not at all; one that says it is truncated (TC) may end anywhere
- every name is followed; pointers lead backwards; a name has at most 255 bytes; no byte above 127
- A has 4 bytes, AAAA 16, CNAME exactly one name; data of other types is opaque; only OPT may have none
- A and AAAA of the answer section and of class IN count, the first 64 of them

What it calls a step is what the kernel's loop does at one turn: one cannot be read that needs too many.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection
from dataclasses import dataclass, field

from bpf.contract import contract

A, CNAME, AAAA, OPT, IN = 1, 5, 28, 41, 1
MESSAGE, RECORDS = contract().constant("MESSAGE"), contract().constant("RECORDS")
# The kernel allows 33 tail calls: to the readers of the question and of an alias, and those for 64 grants.
SURE_STEPS = (33 - 2 - RECORDS // contract().constant("GRANTS_AT_ONCE")) * contract().constant("STEPS")
ORDINARY = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_")
MAPPED = bytes(10) + b"\xff\xff"

NEVER = [
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32"),
        *("168.63.129.16/32", "100.100.100.200/32", "fd00:ec2::/32", "fd20:ce::/32"),
        *("::/64", "fe80::/10", "ff00::/8", "64:ff9b::/32"),
    )
]


class BrokenError(Exception):
    """The message says what no message may say."""


class CutError(BrokenError):
    """The message ends too early."""


@dataclass
class Reading:
    """`reasons` as the kernel should count them, `addresses` as it should learn them (16 bytes, TTL)."""

    reasons: list[str] = field(default_factory=list)
    addresses: list[tuple[bytes, int]] = field(default_factory=list)
    steps: int = 0


@dataclass(frozen=True)
class Cluster:
    """Names below `domains` may teach addresses of `networks`, unless an alias is among the answers."""

    domains: tuple[str, ...] = ()
    networks: tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...] = ()

    def has(self, name: str) -> bool:
        return any(name.endswith("." + domain) for domain in self.domains)


def is_never_learned(kind: int, data: bytes, foreign: Cluster) -> bool:
    """Of the data of an A or AAAA record; IPv4 in the guise of IPv6 is never. `foreign`: a cluster that the
    name is none of."""
    plain = ipaddress.IPv4Address(data) if kind == A else ipaddress.IPv6Address(data)
    if kind == AAAA and data.startswith(MAPPED):
        return True
    return any(
        plain in network for network in (*NEVER, *foreign.networks) if network.version == plain.version
    )


def stripped(message: bytes, suffixes: Collection[str]) -> str:
    """The name that the first record, an alias of the question's, leaves of it without a suffix; or ""."""
    end = question_end(message)
    name = message[12 : end - 4]
    for owner in (b"\xc0\x0c", name):
        head = message[end + len(owner) :][:10]
        data = message[end + len(owner) + 10 :][: int.from_bytes(head[8:10], "big")]
        if message[end:].lower().startswith(owner.lower()) and head[:4] == b"\0\5\0\1":
            for suffix in suffixes:
                tail = b"".join(bytes([len(label)]) + label.encode() for label in suffix.split(".")) + b"\0"
                if name.lower().endswith(tail) and data.lower() == name[: -len(tail)].lower() + b"\0":
                    return plain(data) if len(data) == int.from_bytes(head[8:10], "big") else ""
    return ""


def plain(name: bytes) -> str:
    """A name as people write it, in lower case."""
    labels, at = [], 0
    while name[at]:
        labels.append(name[at + 1 : at + 1 + name[at]].decode("ascii", "replace"))
        at += 1 + name[at]
    return ".".join(labels).lower()


def question_end(message: bytes) -> int:
    """Where the question section ends; its one name is not compressed."""
    if len(message) <= 12 or message[2] & 0xF8 != 0x80 or message[4:6] != b"\0\1":
        raise BrokenError
    at = 12
    while True:
        if at >= len(message) or message[at] >= 64:
            raise BrokenError
        at += 1 + message[at]
        if message[at - 1 : at] == b"\0" and _is_root(message, at - 1):
            break
    if at - 12 > 255 or at - 12 < 2 or at + 4 > len(message):
        raise BrokenError
    return at + 4


def _is_root(message: bytes, zero: int) -> bool:
    """Whether the 0 at `zero` is a length, and not the last byte of a label."""
    at = 12
    while at < zero:
        at += 1 + message[at]
    return at == zero


class _Walk:
    def __init__(self, message: bytes, at: int) -> None:
        self.message, self.at, self.steps = message, at, 0

    def name(self) -> None:
        """Moves behind the name that starts here."""
        at, size, behind = self.at, 0, 0
        while True:
            self.steps += 1
            if at >= len(self.message):
                raise CutError
            length = self.message[at]
            if length == 0:
                self.at = behind or at + 1
                return
            if length >= 0xC0:
                if at + 2 > len(self.message):
                    raise CutError
                target = int.from_bytes(self.message[at : at + 2], "big") & 0x3FFF
                behind = behind or at + 2
                if not 12 <= target < at:
                    raise BrokenError
                if target == 12:  # all of the question's name, which is known
                    if size + self.question > 255:
                        raise BrokenError
                    self.at = behind
                    return
                at = target
                continue
            if length >= 64:
                raise BrokenError
            label = self.message[at + 1 : at + 1 + length]
            if len(label) < length:
                raise CutError
            size += length + 1
            if size + 1 > 255 or max(label) > 127:
                raise BrokenError
            self.steps += -(-length // 16)
            at += 1 + length

    @property
    def question(self) -> int:
        return question_end(self.message) - 4 - 12

    def record(self) -> tuple[int, int, int, bytes]:
        """Type, class, TTL and data."""
        self.name()
        self.steps += 1
        head = self.message[self.at : self.at + 10]
        if len(head) < 10:
            raise CutError
        kind, group = int.from_bytes(head[:2], "big"), int.from_bytes(head[2:4], "big")
        ttl, length = int.from_bytes(head[4:8], "big"), int.from_bytes(head[8:], "big")
        self.at += 10
        data = self.message[self.at : self.at + length]
        if len(data) < length:
            raise CutError
        if (kind == A and length != 4) or (kind == AAAA and length != 16) or (not length and kind != OPT):
            raise BrokenError
        end = self.at + length
        if kind == CNAME:
            self.name()
            if self.at != end:
                raise BrokenError
        self.at = end
        return kind, group, 0 if ttl >> 31 else ttl, data


def read(message: bytes, number: int, question: bytes, cluster: Cluster = Cluster()) -> Reading:
    """What `message` teaches whoever asked `question` (a question section) under this id."""
    is_long, message = len(message) > MESSAGE, message[:MESSAGE]
    try:
        end = question_end(message)
    except BrokenError:
        return Reading(["ANSWER_UNREADABLE"])
    asked = message[12 : end - 4].lower() + message[end - 4 : end]
    if asked != question[:-4].lower() + question[-4:] or message[:2] != number.to_bytes(2, "big"):
        return Reading(["ANSWER_UNASKED"])
    answers = int.from_bytes(message[6:8], "big")
    if message[3] & 15 or not answers or not _is_ordinary(message[12 : end - 5]):
        return Reading()
    foreign = Cluster() if cluster.has(plain(message[12:end])) else cluster
    return _read_records(message, end, answers, is_long, cluster, foreign)


def _is_ordinary(name: bytes) -> bool:
    while name:
        if not ORDINARY.issuperset(name[1 : 1 + name[0]]):
            return False
        name = name[1 + name[0] :]
    return True


def _read_records(
    message: bytes, at: int, answers: int, is_long: bool, cluster: Cluster, foreign: Cluster
) -> Reading:
    left = answers + int.from_bytes(message[8:10], "big") + int.from_bytes(message[10:12], "big")
    truncated, walk = bool(message[2] & 2), _Walk(message, at)
    found: list[tuple[int, bytes, int]] = []
    try:
        for number in range(left):
            kind, group, ttl, data = walk.record()
            if number < answers and group == IN and kind in (A, AAAA):
                found.append((kind, data, ttl))
            foreign = cluster if kind == CNAME else foreign
    except CutError:
        if not truncated and not is_long:
            return Reading(["ANSWER_UNREADABLE"], steps=walk.steps)
    except BrokenError:
        return Reading(["ANSWER_UNREADABLE"], steps=walk.steps)
    reasons = ["ANSWER_TRUNCATED"] * truncated + ["ANSWER_LONG"] * (is_long or len(found) > RECORDS)
    learned = [
        (MAPPED + data if kind == A else data, ttl)
        for kind, data, ttl in found[:RECORDS]
        if not is_never_learned(kind, data, foreign)
    ]
    reasons += ["LEARNED"] * len(learned) + ["NEVER_LEARNED"] * (min(len(found), RECORDS) - len(learned))
    return Reading(reasons, learned, walk.steps)
