"""DNS answers of every kind, by a seed: proper ones, odd ones, broken ones.

`Answer` writes a message byte by byte, so that everything can be wrong in it that can be.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

from dnslib import AAAA, CNAME, QTYPE, RR, TXT, A, DNSQuestion, DNSRecord, EDNSOption

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789-_"
KINDS = (1, 28, 5, 16, 15, 2, 6, 33, 41, 43, 46, 47, 64, 65, 250, 257, 65280)


def wire(name: str) -> bytes:
    return b"".join(bytes([len(label)]) + label.encode() for label in name.split(".")) + b"\0"


def random_label(r: random.Random, longest: int = 12) -> str:
    return "".join(r.choices(LETTERS, k=r.randint(1, longest)))


def random_name(r: random.Random) -> str:
    labels = [random_label(r) for _ in range(r.randint(1, 5))]
    if r.random() < 0.1:
        labels = [random_label(r, 63) for _ in range(r.randint(1, 6))]
    name = ".".join(labels)
    if r.random() < 0.05:
        name = (".".join(r.choices(LETTERS, k=127)))[: r.choice((253, 251, 100))]
    return name[:253].rstrip(".")


def odd_case(r: random.Random, text: bytes) -> bytes:
    return bytes(c ^ 32 if chr(c).isalpha() and r.random() < 0.5 else c for c in text)


class Answer:
    """One message in the making."""

    def __init__(self, r: random.Random, name: str | bytes | None = None, kind: int = 1) -> None:
        self.r = r
        name = random_name(r) if name is None else name
        self.name = name if isinstance(name, bytes) else wire(name)
        self.question = self.name + struct.pack(">HH", kind, 1)
        self.number = r.randrange(65536)
        self.flags = 0x8180
        self.counts = [1, 0, 0, 0]
        self.body = self.question
        self.starts = [12]  # where names begin

    @property
    def at(self) -> int:
        return 12 + len(self.body)

    def bytes(self) -> bytes:
        return struct.pack(">HHHHHH", self.number, self.flags, *self.counts) + self.body

    def some_name(self) -> bytes:
        """A proper name in one of the ways to write it."""
        way = self.r.random()
        if way < 0.5:
            return b"\xc0\x0c"
        target = self.r.choice(self.starts)
        if way < 0.7:
            return struct.pack(">H", 0xC000 | target)
        prefix = wire(random_name(self.r))[: self.r.randint(2, 80)]
        labels = self._whole_labels(prefix)
        if way < 0.9:
            return labels + struct.pack(">H", 0xC000 | target)
        return odd_case(self.r, labels) + b"\0"

    @staticmethod
    def _whole_labels(data: bytes) -> bytes:
        at = 0
        while at < len(data) and data[at] and at + 1 + data[at] <= len(data):
            at += 1 + data[at]
        return data[:at]

    def add(
        self,
        kind: int,
        data: bytes,
        *,
        owner: bytes | None = None,
        group: int = 1,
        ttl: int | None = None,
        length: int | None = None,
        section: int = 1,
    ) -> None:
        owner = self.some_name() if owner is None else owner
        ttl = (
            self.r.choice((0, 1, 30, 300, 86400, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)) if ttl is None else ttl
        )
        self.starts.append(self.at)
        self.body += owner + struct.pack(">HHIH", kind, group, ttl, len(data) if length is None else length)
        if kind == 5:
            self.starts.append(self.at)
        self.body += data
        self.counts[section] += 1

    def add_address(self, **more: object) -> None:
        r = self.r
        if r.random() < 0.5:
            first = r.choice((203, 8, 10, 198, 100, 203, 203, 127, 169, 224, 0, 255))
            self.add(1, bytes([first, *r.choices((0, 254, 1, 100, 200), k=3)]), **more)  # type: ignore[arg-type]
        else:
            head = r.choice(
                (b"\x20\x01\x0d\xb8", b"\xfd\0\0\1", b"\xfe\x80\0\0", b"\xff\2\0\0", b"\0\x64\xff\x9b")
            )
            mapped = r.random() < 0.1
            data = bytes(10) + b"\xff\xff\xcb\0" if mapped else head + bytes(10)
            self.add(28, data + r.randbytes(2), **more)  # type: ignore[arg-type]

    def add_alias(self) -> None:
        self.add(5, self.some_name())

    def add_other(self, section: int = 1) -> None:
        r = self.r
        kind = r.choice([k for k in KINDS if k not in (1, 5, 28)])
        self.add(kind, r.randbytes(r.randint(1, 40)), section=section, group=r.choice((1, 1, 1, 3, 4, 255)))


def proper(r: random.Random) -> Answer:
    answer = Answer(r, kind=r.choice((1, 28, 65)))
    for _ in range(r.randint(0, 4)):
        answer.add_alias()
    for _ in range(r.randint(0, 12)):
        answer.add_address()
    for section in (2, 3):
        for _ in range(r.randint(0, 2)):
            answer.add_other(section)
    if r.random() < 0.5:
        answer.add(41, r.choice((b"", b"\0\x0a\0\x02ab")), owner=b"\0", group=1232, ttl=0, section=3)
    return answer


def mixed(r: random.Random) -> Answer:
    answer = Answer(r)
    for _ in range(r.randint(1, 20)):
        r.choice((answer.add_address, answer.add_alias, answer.add_other))()
        if r.random() < 0.2:
            answer.add_address(group=r.choice((0, 3, 4, 255, 256)))
        if r.random() < 0.2:
            answer.counts[1] -= 1
            answer.counts[2] += 1
    return answer


def many(r: random.Random) -> Answer:
    answer = Answer(r, name=random_label(r) + ".test")
    for i in range(r.randint(60, 100)):
        answer.add(1, bytes([203, 0, i, r.randrange(256)]), owner=b"\xc0\x0c")
    return answer


def by_dnslib(r: random.Random) -> Answer:
    name = random_name(r)
    record = DNSRecord(q=DNSQuestion(name, QTYPE.A))
    record.header.qr, record.header.ra, record.header.rcode = 1, 1, r.choice((0, 0, 0, 0, 2, 3, 5))
    owner = name
    for _ in range(r.randint(0, 3)):
        target = random_name(r)
        record.add_answer(RR(owner, QTYPE.CNAME, ttl=r.randrange(1000), rdata=CNAME(target)))
        owner = target
    for _ in range(r.randint(0, 8)):
        record.add_answer(RR(owner, QTYPE.A, ttl=r.randrange(1000), rdata=A(f"203.0.113.{r.randrange(256)}")))
    for _ in range(r.randint(0, 4)):
        record.add_answer(RR(owner, QTYPE.AAAA, ttl=60, rdata=AAAA(f"2001:db8::{r.randrange(65536):x}")))
    if r.random() < 0.3:
        record.add_auth(RR("test", QTYPE.TXT, rdata=TXT("hello")))
    if r.random() < 0.3:
        record.add_ar(RR("", QTYPE.OPT, 1232, rdata=[EDNSOption(10, b"12345678")]))
    packed = record.pack()
    answer = Answer(r, name=name)
    answer.number = record.header.id
    answer.flags, *answer.counts = struct.unpack(">HHHHH", packed[2:12])
    answer.body = packed[12:]
    return answer


def pointers(r: random.Random) -> Answer:
    """Chains, loops, pointers forward, to themselves, into the header, into data."""
    answer = Answer(r)
    for _ in range(r.randint(1, 4)):
        here = answer.at
        target = r.choice(
            (here, here + 2, here - 1, 0, 4, 11, 12, 13, r.randint(0, here), r.choice(answer.starts))
        )
        owner = wire(random_label(r))[:-1] * r.randint(0, 2) + struct.pack(">H", 0xC000 | max(0, target))
        answer.add_address(owner=owner)
    if r.random() < 0.3:  # a chain in opaque data, and a name that goes through it
        start, links = answer.at + 12, r.randint(1, 120)
        chain = b"".join(struct.pack(">H", 0xC000 | (start + 2 * i - 2 if i else 12)) for i in range(links))
        answer.add(65280, chain, owner=b"\xc0\x0c")
        answer.add_address(owner=struct.pack(">H", 0xC000 | (start + 2 * links - 2)))
    return answer


def odd_labels(r: random.Random) -> Answer:
    odd = bytes([r.choice((0, 32, 46, 42, 92, 64, 127, 128, 195, 255, 47, 58, 91, 96, 123))])
    label = odd_case(r, random_label(r).encode()) + odd * r.randint(0, 2) + r.choice((b"", b"x" * 20))
    name = bytes([len(label)]) + label + b"\4test\0"
    if r.random() < 0.5:
        answer = Answer(r, name=name)
        answer.add_address()
    else:
        answer = Answer(r)
        answer.add(5, name, owner=b"\xc0\x0c")
        answer.add_address(owner=r.choice((name, b"\xc0\x0c")))
    return answer


def sizes(r: random.Random) -> Answer:
    """Data of a wrong length, names that end elsewhere, empty data."""
    answer = Answer(r)
    for _ in range(r.randint(1, 4)):
        answer.add_address()
    kind = r.choice((1, 28, 5, 41, 16))
    proper_data = {1: b"\xcb\0\x71\1", 28: b"\x20\1\x0d\xb8" + bytes(12), 5: answer.some_name()}.get(
        kind, b"ab"
    )
    data = r.choice((b"", proper_data[:-1], proper_data + b"\0", proper_data + b"\xc0\x0c", proper_data))
    answer.add(kind, data, length=r.choice((None, len(data) + 1, max(0, len(data) - 1), 65535)))
    for _ in range(r.randint(0, 3)):
        answer.add_address()
    return answer


def long_names(r: random.Random) -> Answer:
    """Around 255 bytes, with and without the question's name behind."""
    room = r.choice((250, 251, 252, 253, 254, 255, 256, 257))
    answer = Answer(r, name=random_label(r, 40))
    tail = r.choice((b"\0", b"\xc0\x0c"))
    behind = 1 if tail == b"\0" else len(answer.name)
    labels, left = b"", room - behind
    while left > 1:
        size = min(r.choice((1, 7, 15, 16, 17, 31, 63)), left - 1)
        size -= left - size - 1 == 1
        labels += bytes([max(1, size)]) + b"n" * max(1, size)
        left -= max(1, size) + 1
    answer.add_address(owner=labels + tail)
    answer.add_address()
    return answer


def headers(r: random.Random) -> Answer:
    answer = proper(r)
    answer.flags = r.choice((0x8180, 0x8183, 0x8182, 0x0100, 0x8580, 0x8980, 0xA180, 0x8380, 0xFFFF, 0x81F0))
    if r.random() < 0.5:
        answer.counts[r.randrange(4)] += r.choice((-1, 1, 2, 255, 65534))
        answer.counts = [count % 65536 for count in answer.counts]
    return answer


def cut(r: random.Random, message: bytes) -> bytes:
    return message[: r.randint(0, len(message))]


def truncated(r: random.Random, message: bytes) -> bytes:
    """Cut, and saying so."""
    return message[:2] + bytes([message[2] | 2]) + cut(r, message[3:])


def changed(r: random.Random, message: bytes) -> bytes:
    data = bytearray(message)
    for _ in range(r.randint(1, 4)):
        at = r.randrange(len(data))
        data[at] = r.choice((data[at] ^ 1 << r.randrange(8), r.randrange(256), 0, 0xC0, 63, 64, 255))
    return bytes(data)


def spliced(r: random.Random, message: bytes) -> bytes:
    at = r.randint(12, len(message)) if len(message) > 12 else len(message)
    return message[:at] + r.choice((b"", r.randbytes(r.randint(1, 6)))) + message[at + r.randint(0, 3) :]


def prolonged(r: random.Random, message: bytes) -> bytes:
    return message + r.randbytes(r.randint(1, 40))


def unchanged(r: random.Random, message: bytes) -> bytes:
    return message


MAKERS = (proper, proper, mixed, many, by_dnslib, by_dnslib, pointers, odd_labels, sizes, long_names, headers)
CHANGES = (unchanged, unchanged, unchanged, cut, truncated, changed, changed, spliced, prolonged)


def generate(r: random.Random) -> tuple[bytes, int, bytes]:
    """A message, and the id and the question that it should answer."""
    maker: Callable[[random.Random], Answer] = r.choice(MAKERS)
    answer = maker(r)
    return r.choice(CHANGES)(r, answer.bytes())[:3400], answer.number, answer.question
