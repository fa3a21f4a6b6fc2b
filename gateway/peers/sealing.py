"""Datagrams that only a holder of the key can have made, each of which is opened once, and soon.

The rules this file must obey:

* Pure: the random bytes and both clocks are handed in.
* No nonce is used twice under one key: each process makes a session of 128 random bits at its start, mixes it
  with the key to one of its own (HKDF, RFC 5869), and counts. Nothing needs to be kept over a restart.
* What was opened once is not opened again: a window over the counters of each session (RFC 4303 3.4.3,
  RFC 6479). A session is forgotten when nothing of it could be fresh any more, and no earlier.
* What is older than SKEW, or from a future as far away, is refused: clocks must agree that much.
* Two keys open and the current one seals, so that a key is changed host by host: first the new one is given
  to all as the old one, then the two change places, then the old one goes.
* What a datagram costs us that is made by whoever has no key: a look at four bytes where they are wrong, and
  where they are right a derivation of a key, so many in a second: sessions that are known go on meanwhile.

    header   id of the key (4), session (16), counter (8)      authenticated as it stands
    sealed   milliseconds of the wall clock (8), message       ChaCha20-Poly1305 (RFC 8439), tag (16)
"""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass, field
from itertools import count

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

SECRET = 32  # bytes, at least
ID, SESSION, TAG = 4, 16, 16  # bytes
HEADER, TIME = struct.Struct(f">{ID}s{SESSION}sQ"), struct.Struct(">Q")
NONCE = struct.Struct(">4xQ")
SKEW = 30.0  # seconds
WINDOW = 2048  # counters: how far datagrams may overtake each other
SENDERS = 256  # sessions that are known at once
DERIVED = 200  # keys of sessions that nobody knows, in a second: who sees our datagrams can make up many
FORGET = 2 * SKEW + 1  # seconds of silence after which nothing of a session is fresh


class RefusedError(Exception):
    """A datagram that is not opened; the message is the name under which that is counted."""


@dataclass(frozen=True, slots=True)
class Key:
    """A secret that all gateways share, and the id by which datagrams say it."""

    secret: bytes = field(repr=False)
    id: bytes

    def session(self, session: bytes) -> ChaCha20Poly1305:
        return ChaCha20Poly1305(_derived(self.secret, session, b"skouter peers 1: session", 32))


@dataclass(frozen=True, slots=True)
class Keys:
    """`current` seals; `old`, the one before or the one to come, only opens."""

    current: Key
    old: Key | None = None

    def find(self, identity: bytes) -> Key | None:
        return next((key for key in self.all if key.id == identity), None)

    @property
    def all(self) -> tuple[Key, ...]:
        return (self.current, self.old) if self.old else (self.current,)


def read_key(text: str) -> Key:
    """From a key file: base64 in one line; raises :class:`ValueError`."""
    try:
        secret = base64.b64decode("".join(text.split()), validate=True)
    except ValueError as error:
        raise ValueError("not base64: make a key with 'skouter gateway --make-key'") from error
    if len(secret) < SECRET:
        raise ValueError(
            f"{len(secret)} bytes, at least {SECRET} are needed: make a key with 'skouter gateway --make-key'"
        )
    return Key(secret, _derived(secret, b"", b"skouter peers 1: id", ID))


def key_text(secret: bytes) -> str:
    """The key file of a secret of `SECRET` random bytes."""
    return base64.b64encode(secret).decode() + "\n"


def _derived(secret: bytes, salt: bytes, purpose: bytes, length: int) -> bytes:
    return HKDF(SHA256(), length, salt or None, purpose).derive(secret)


class Sealer:
    """Of one process; `session` are SESSION random bytes that it made at its start. For any thread."""

    def __init__(self, keys: Keys, session: bytes) -> None:
        self.session, self._counter = session, count(1)
        self.use(keys)

    def use(self, keys: Keys) -> None:
        self._now = keys.current.id, keys.current.session(self.session)

    def seal(self, message: bytes, wall: float) -> bytes:
        """`wall` in seconds since 1970."""
        (identity, cipher), counter = self._now, next(self._counter)
        header = HEADER.pack(identity, self.session, counter)
        text = TIME.pack(int(wall * 1000)) + message
        return header + cipher.encrypt(NONCE.pack(counter), text, header)


class Window:
    """Which counters of a session were there: a bit for each of the WINDOW last ones."""

    def __init__(self) -> None:
        self.top, self.seen = 0, 0

    def is_new(self, counter: int) -> bool:
        behind = self.top - counter
        return behind < 0 or (behind < WINDOW and not self.seen >> behind & 1)

    def mark(self, counter: int) -> None:
        ahead = counter - self.top
        if ahead > 0:
            kept = self.seen << ahead if ahead < WINDOW else 0
            self.top, self.seen = counter, (kept | 1) & ((1 << WINDOW) - 1)
        else:
            self.seen |= 1 << -ahead


@dataclass(slots=True)
class _Sender:
    """A session that somebody with the key has: its ciphers by the id of the key."""

    heard: float
    window: Window = field(default_factory=Window)
    ciphers: dict[bytes, ChaCha20Poly1305] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Opened:
    """`age`: seconds that it was under way, by two wall clocks, so that it may be less than 0."""

    session: bytes
    age: float
    message: bytes


class Opener:
    """What this process lets in; `own` is its own session, which it hears from nobody."""

    def __init__(self, keys: Keys, own: bytes) -> None:
        self.keys, self.own = keys, own
        self._senders: dict[bytes, _Sender] = {}
        self._second, self._derived = 0, 0

    def use(self, keys: Keys) -> None:
        self.keys = keys
        for sender in tuple(self._senders.values()):
            sender.ciphers = {each: cipher for each, cipher in sender.ciphers.items() if keys.find(each)}

    def open(self, datagram: bytes, wall: float, now: float) -> Opened:
        """`now` in seconds of a clock that never goes back; raises :class:`RefusedError`."""
        if len(datagram) < HEADER.size + TIME.size + TAG:
            raise RefusedError("short")
        identity, session, counter = HEADER.unpack_from(datagram)
        key = self.keys.find(identity)
        if key is None:
            raise RefusedError("unknown key")
        if session == self.own:
            raise RefusedError("reflected")
        sender = self._senders.get(session) or _Sender(now)
        if not sender.window.is_new(counter):
            raise RefusedError("replayed")
        cipher = sender.ciphers.get(identity) or self._derive(key, session, now)
        try:
            text = cipher.decrypt(NONCE.pack(counter), datagram[HEADER.size :], datagram[: HEADER.size])
        except InvalidTag:
            raise RefusedError("forged") from None
        age = wall - TIME.unpack_from(text)[0] / 1000
        if abs(age) > SKEW:
            raise RefusedError("clock")
        self._keep(session, sender, now)
        sender.ciphers[identity] = cipher
        sender.window.mark(counter)
        return Opened(session, age, text[TIME.size :])

    def _derive(self, key: Key, session: bytes, now: float) -> ChaCha20Poly1305:
        if self._second != int(now):
            self._second, self._derived = int(now), 0
        self._derived += 1
        if self._derived > DERIVED:
            raise RefusedError("too many sessions")
        return key.session(session)

    def _keep(self, session: bytes, sender: _Sender, now: float) -> None:
        if session not in self._senders and len(self._senders) >= SENDERS:
            for each in [e for e, known in self._senders.items() if known.heard + FORGET < now]:
                del self._senders[each]
            if len(self._senders) >= SENDERS:
                raise RefusedError("too many sessions")
        self._senders[session], sender.heard = sender, now
