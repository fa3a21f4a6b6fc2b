"""DNS messages over TCP: which question one asks, and what an answer has for the kernel to learn.

Rules this file obeys:

- It decides nothing. Which names may be asked for, and which addresses are learned, the kernel says; here a
  long answer is only laid out in portions as its reader takes them (bpf/dns.h).
- What the kernel's reader calls broken is broken here: an answer is believed whole or not at all. One that
  says that it is truncated may end early.
- An answer of another's making may be 64 KiB of nonsense: nothing here takes longer than its length says.

Sources: RFC 1035 4, RFC 6891, RFC 7766, RFC 5936 (transfers).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dnslib.buffer import BufferError as TooShortError
from dnslib.dns import DNSHeader
from dnslib.label import DNSBuffer

HEADER, NAME_WIRE, POINTER = 12, 255, 0xC0
ADDRESS_BYTES = {1: 4, 28: 16}  # A and AAAA
CNAME, OPT, IN = 5, 41, 1
TRANSFERS = (251, 252)  # IXFR, AXFR: many messages may answer one question
RESPONSE, KIND_BITS, TRUNCATED, RD_BITS, RA, NXDOMAIN, REFUSED = 0x80, 0xF8, 0x02, 0x79, 0x80, 3, 5

RECORDS = 64  # addresses that the kernel learns from one answer
WHOLE = 3072  # bytes of a message that the kernel takes as it is: a frame of BPF_PROG_TEST_RUN has one page
HOPS = 127  # pointers of one name: each of its labels might be elsewhere
QUESTION = HEADER + NAME_WIRE + 4  # bytes that a message's question ends in

OWNER = b"\xc0\x0c"  # the question's name


class BrokenMessageError(ValueError):
    """It teaches nothing."""


@dataclass(frozen=True, slots=True)
class Question:
    """The one question of a message; `text` is its section as it stands there."""

    id: int
    text: bytes

    @property
    def key(self) -> tuple[int, bytes]:
        """By which an answer is known: servers may change the case of letters (0x20)."""
        return self.id, self.text[:-4].lower() + self.text[-4:]

    @property
    def is_transfer(self) -> bool:
        return int.from_bytes(self.text[-4:-2], "big") in TRANSFERS


def question_of(message: bytes) -> Question | None:
    """None where a message has not exactly one, or one that is compressed or cut."""
    if message[4:6] != b"\0\1":
        return None
    at = HEADER
    while at < len(message) and 0 < message[at] < 64:
        at += 1 + message[at]
    if at + 5 > len(message) or message[at] or at + 1 - HEADER > NAME_WIRE:
        return None
    return Question(id_of(message), message[HEADER : at + 5])


def id_of(message: bytes) -> int:
    return int.from_bytes(message[:2], "big")


def is_query(message: bytes) -> bool:
    """Neither an answer nor another operation than asking (RFC 1035 4.1.1)."""
    return not message[2] & KIND_BITS


def is_error_without_question(message: bytes) -> bool:
    """As servers write that can't read what they are asked."""
    return message[4:6] == b"\0\0" and bool(message[3] & 15)


def refusal(message: bytes) -> bytes:
    """No such name, in answer to a question; where there is none that can be read, REFUSED."""
    question = question_of(message) if is_query(message) else None
    head = message[:2] + bytes([RESPONSE | message[2] & RD_BITS, RA | (NXDOMAIN if question else REFUSED)])
    return head + (b"\0\1" + bytes(6) + question.text if question else bytes(8))


def portions(message: bytes) -> list[bytes]:
    """The messages to hand to the kernel, in whose place it would read this answer.

    Raises :class:`BrokenMessageError`.
    """
    if len(message) <= WHOLE and int.from_bytes(message[6:8], "big") <= RECORDS:
        return [message]
    return divided(message)


def divided(message: bytes) -> list[bytes]:
    """The same of any answer, read here; none where it has nothing to learn."""
    question = question_of(message)
    if question is None or message[2] & KIND_BITS != RESPONSE:
        raise BrokenMessageError("no answer to one question")
    if message[3] & 15 or message[6:8] == b"\0\0":
        return []
    try:
        reading = _read(message, question)
    except (TooShortError, RecursionError) as error:
        raise BrokenMessageError(str(error)) from error
    return list(_portions(message, question, reading))


def _portions(message: bytes, question: Question, reading: _Reading) -> Iterator[bytes]:
    before, after = reading.alias, b"" if reading.alias or not reading.has_alias else _record(CNAME, 0, OWNER)
    for start in range(0, len(reading.addresses), RECORDS):
        some = reading.addresses[start : start + RECORDS]
        count = len(some) + bool(before) + bool(after)
        head = message[:2] + bytes([message[2] & ~TRUNCATED, message[3]]) + b"\0\1" + count.to_bytes(2, "big")
        yield b"".join((head, bytes(4), question.text, before, *some, after))


def _record(kind: int, ttl: int, data: bytes, owner: bytes = OWNER) -> bytes:
    head = kind.to_bytes(2, "big") + IN.to_bytes(2, "big") + ttl.to_bytes(4, "big")
    return owner + head + len(data).to_bytes(2, "big") + data


@dataclass(slots=True)
class _Reading:
    """`addresses` and `alias` (the first record, where it is one of the question's name) are records as
    they are written anew; `has_alias`: there is one somewhere."""

    addresses: list[bytes]
    alias: bytes = b""
    has_alias: bool = False


def _read(message: bytes, question: Question) -> _Reading:
    reading, buffer = _Reading([]), _Buffer(message)
    header = DNSHeader.parse(buffer)
    buffer.offset = HEADER + len(question.text)
    try:
        for number in range(header.a + header.auth + header.ar):
            _read_record(reading, buffer, question, number, number < header.a)
    except TooShortError:
        if not message[2] & TRUNCATED:
            raise
    return reading


def _read_record(
    reading: _Reading, buffer: _Buffer, question: Question, number: int, is_answer: bool
) -> None:
    owner = buffer.pass_name()
    kind, group, ttl, length = buffer.unpack("!HHIH")
    if length > buffer.remaining():
        raise TooShortError("the data of a record")
    if ADDRESS_BYTES.get(kind, length) != length or (not length and kind != OPT):
        raise BrokenMessageError("data of a wrong length")
    if kind == CNAME:
        end = buffer.offset + length
        target = buffer.pass_name()
        if buffer.offset != end:
            raise BrokenMessageError("a name of a wrong length")
        reading.has_alias = True
        is_first = not number and is_answer and group == IN
        if is_first and buffer.name_at(owner).lower() == question.text[:-4].lower():
            reading.alias = _record(CNAME, ttl, buffer.name_at(target))
        return
    data = buffer.get(length)
    if is_answer and kind in ADDRESS_BYTES and group == IN:
        reading.addresses.append(_record(kind, ttl, data))


class _Buffer(DNSBuffer):  # type: ignore[misc]
    """dnslib's, but as strict about names as the kernel is, without its recursion, and each byte of a name is
    looked at once, however many pointers lead to it."""

    offset: int

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._known: dict[int, tuple[int, int, int]] = {}  # offset of a name: its size, pointers and end

    def pass_name(self) -> int:
        """Moves behind a name, which may lie elsewhere; where it began."""
        start = at = self.offset
        passed: list[tuple[int, int]] = []  # offsets, and how much longer the name is there
        while at not in self._known:
            length = self._byte(at)
            if length >= POINTER:
                target = (length & 0x3F) << 8 | self._byte(at + 1)
                if not HEADER <= target < at or len(passed) > NAME_WIRE:
                    raise BrokenMessageError("a pointer that leads nowhere")
                passed.append((at, 0))
                at = target
            elif length >= 64:
                raise BrokenMessageError("a label of an unknown kind")
            elif length:
                self._byte(at + length)
                if not self.data[at + 1 : at + 1 + length].isascii():
                    raise BrokenMessageError("a name that is not of ASCII")
                passed.append((at, 1 + length))
                at += 1 + length
            else:
                self._known[at] = 1, 0, at + 1
        size, pointers, end = self._known[at]
        for offset, more in reversed(passed):
            size, pointers, end = size + more, pointers + (not more), end if more else offset + 2
            if size > NAME_WIRE or pointers > HOPS:
                raise BrokenMessageError("a name too long")
            self._known[offset] = size, pointers, end
        self.offset = end
        return start

    def name_at(self, at: int) -> bytes:
        """One that was passed, written out."""
        name = b""
        while length := self.data[at]:
            if length >= POINTER:
                at = (length & 0x3F) << 8 | self.data[at + 1]
            else:
                name += self.data[at : at + 1 + length]
                at += 1 + length
        return name + b"\0"

    def _byte(self, at: int) -> int:
        if at >= len(self.data):
            raise TooShortError("a name")
        return int(self.data[at])
