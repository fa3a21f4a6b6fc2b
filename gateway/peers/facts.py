"""What gateways tell each other: facts, and the messages that carry them.

The rules this file must obey:

* Pure: bytes in, frozen records out, and back. Who may say it, and when, is sealing.py's and talk.py's.
* A fact carries no name and no number of one host's: a policy by its digest, which is the same wherever the
  same rules are in force; a peer by its id, the hash of its text; an address; and for how many seconds still.
* Seconds are rounded down, and what a message was under way is taken off by whoever reads it. So no fact
  lives longer for being passed on, however often it goes round, but by what two clocks are apart.
* A message is one datagram that no path of IPv6 cuts in pieces (RFC 8200 5), seals and headers included.
* What can't be read whole is refused whole.

    message    to (16: the session it is for), kind (1), body
    facts      any number of times: digest (16), count (1), as often: peer (8), address (16), seconds (4)
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from gateway.policies.policy import Policy, describe

DATAGRAM = 1200  # bytes, with seal
SEAL = 28 + 16 + 8  # sealing.py: header, tag and time
ADDRESS = DIGEST = SESSION = 16  # bytes
LONGEST = 604800  # seconds, as the contract's LONGEST_GRANT
CHUNKS_AT_ONCE = 32  # of a dump, in one request
ASKED_AT_ONCE = 8  # addresses in one query: what all slots of their grants say fits one answer
NOBODY = bytes(SESSION)

ENVELOPE = struct.Struct(f">{SESSION}sB")
GROUP, FACT = struct.Struct(f">{DIGEST}sB"), struct.Struct(f">Q{ADDRESS}sI")
PAIR, NUMBER, CHUNK = struct.Struct(f">{DIGEST}s{ADDRESS}s"), struct.Struct(">Q"), struct.Struct(">I")
DUMP = struct.Struct(">QIIH")
ROOM = DATAGRAM - SEAL - ENVELOPE.size - DUMP.size  # bytes of facts in any message


class Fact(NamedTuple):
    """A peer of some policy has this address (16 bytes) for so many seconds."""

    peer: int
    address: bytes
    seconds: int


@dataclass(frozen=True, slots=True)
class Hello:
    """I am there; `is_ready`: and know what the others know."""

    is_ready: bool


@dataclass(frozen=True, slots=True)
class Push:
    """What was just learned."""

    facts: bytes


@dataclass(frozen=True, slots=True)
class Query:
    """What do you know of these (digest, address)?"""

    number: int
    asked: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """To one query, also where nothing is known."""

    number: int
    facts: bytes


@dataclass(frozen=True, slots=True)
class DumpRequest:
    """For these chunks of what you hold: of a snapshot that was named, or of a new one (0)."""

    snapshot: int
    wanted: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Dump:
    """Chunk `at` of `chunks`, at least 1; the facts were good for what they say `age` seconds ago."""

    snapshot: int
    at: int
    chunks: int
    age: int
    facts: bytes


@dataclass(frozen=True, slots=True)
class Done:
    """I have all of that snapshot."""

    snapshot: int


Message = Hello | Push | Query | Answer | DumpRequest | Dump | Done
KINDS: tuple[type[Message], ...] = (Hello, Push, Query, Answer, DumpRequest, Dump, Done)


class MalformedError(ValueError):
    """Nobody who has the key would write this: another version, perhaps."""


def digest(policy: Policy) -> bytes:
    """Equal policies have one digest, on whatever host and under whatever number."""
    lines = [f"{policy.audit} {policy.only_allowed_names}"]
    lines += sorted(f"{peer.kind} {peer.text}: {describe(ports)}" for peer, ports in policy.grants)
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=DIGEST, person=b"skouter policy").digest()


# ---- Messages


def encode(message: Message, to: bytes = NOBODY) -> bytes:
    """`to` is the session that alone shall read it; only a :class:`Hello` may be to nobody."""
    return ENVELOPE.pack(to, KINDS.index(type(message))) + _body(message)


def _body(message: Message) -> bytes:
    match message:
        case Hello():
            return bytes([message.is_ready])
        case Push():
            return message.facts
        case Query():
            return NUMBER.pack(message.number) + b"".join(PAIR.pack(*pair) for pair in message.asked)
        case Answer():
            return NUMBER.pack(message.number) + message.facts
        case DumpRequest():
            return NUMBER.pack(message.snapshot) + b"".join(map(CHUNK.pack, message.wanted))
        case Dump():
            head = DUMP.pack(message.snapshot, message.at, message.chunks, min(message.age, 0xFFFF))
            return head + message.facts
        case Done():
            return NUMBER.pack(message.snapshot)


def decode(data: bytes) -> tuple[bytes, Message]:
    """The session that it is for, and the message; raises :class:`MalformedError`."""
    try:
        to, kind = ENVELOPE.unpack_from(data)
        return to, _read(KINDS[kind], data[ENVELOPE.size :])
    except (struct.error, IndexError) as error:
        raise MalformedError(str(error)) from error


def _read(kind: type[Message], body: bytes) -> Message:
    if kind is Hello:
        return Hello(bool(body[0]))
    if kind is Push:
        return Push(body)
    if kind is Dump:
        snapshot, at, chunks, age = DUMP.unpack_from(body)
        if at >= chunks:
            raise MalformedError("a chunk behind the last")
        return Dump(snapshot, at, chunks, age, body[DUMP.size :])
    (number,), rest = NUMBER.unpack_from(body), body[NUMBER.size :]
    if kind is Query:
        return Query(number, tuple(PAIR.iter_unpack(rest))[:ASKED_AT_ONCE])
    if kind is Answer:
        return Answer(number, rest)
    if kind is DumpRequest:
        return DumpRequest(number, tuple(at for (at,) in CHUNK.iter_unpack(rest))[:CHUNKS_AT_ONCE])
    return Done(number)


# ---- Facts


def pack(facts: Iterable[tuple[bytes, Fact]]) -> Iterator[bytes]:
    """Facts with their digests, as bodies that each fit a message; best those of one policy together."""
    body, owner, count = bytearray(), b"", 0
    for digest, fact in facts:
        starts = digest != owner or count == 0xFF
        if len(body) + FACT.size + GROUP.size * starts > ROOM:
            yield bytes(body)
            body, starts = bytearray(), True
        if starts:
            body += GROUP.pack(digest, 0)
            owner, count, head = digest, 0, len(body)
        count += 1
        body[head - 1] = count
        body += FACT.pack(fact.peer, fact.address, min(fact.seconds, LONGEST))
    if body:
        yield bytes(body)


def unpack(body: bytes, age: int = 0) -> list[tuple[bytes, list[Fact]]]:
    """By digest, with `age` seconds taken off; what is over is left out. Raises :class:`MalformedError`."""
    found, at = [], 0
    try:
        while at < len(body):
            digest, count = GROUP.unpack_from(body, at)
            at += GROUP.size
            rows = FACT.iter_unpack(body[at : at + count * FACT.size])
            facts = [Fact(peer, address, seconds - age) for peer, address, seconds in rows]
            if len(facts) != count:
                raise MalformedError("facts that are cut off")
            at += count * FACT.size
            found.append((digest, [fact for fact in facts if fact.seconds > 0]))
    except struct.error as error:
        raise MalformedError(str(error)) from error
    return found
