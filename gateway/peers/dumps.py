"""All that a gateway knows, told to another one piece by piece, by datagrams of which any may be lost.

The rules this file must obey:

* Pure: bookkeeping of both ends; exchange.py sends and receives.
* Who wants a dump asks for every piece of it, and asks again for what did not come. So nobody is sent more
  than it asked for, nor faster than it can take it, and of one who has gone a snapshot is kept for a while.
* A snapshot is one moment's. Who asks for a new one gets one that another asked for, if it was begun when
  what is learned was pushed to both already: gateways that meet again ask at the same time.
* Memory is bounded on both ends: so many snapshots of so many chunks; and of what is received, a bit each.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

from gateway.peers.facts import CHUNKS_AT_ONCE, Dump

SNAPSHOTS = 4
CHUNKS = 16384  # of one snapshot: more than half a million facts
UNUSED = 10.0  # seconds without a request after which a snapshot goes


@dataclass(slots=True)
class Snapshot:
    """`chunks`: facts as they are packed in a message, good for what they say when it was `begun`."""

    number: int
    begun: float
    chunks: list[bytes]
    asked: float

    def piece(self, at: int, now: float) -> Dump | None:
        """None behind the end. The age is rounded up: no fact lives longer for being passed on."""
        if at >= len(self.chunks):
            return None
        return Dump(self.number, at, len(self.chunks), int(now - self.begun) + 1, self.chunks[at])


class Shelf:
    """The snapshots that somebody may still ask for."""

    def __init__(self) -> None:
        self._kept: dict[int, Snapshot] = {}

    def find(self, number: int, since: float, now: float) -> Snapshot | None:
        """The one of this number; of 0, the last that was begun `since` then. None: there is none."""
        self.tidy(now)
        young = (each for each in reversed(self._kept.values()) if each.begun >= since)
        found = self._kept.get(number) if number else next(young, None)
        if found:
            found.asked = now
        return found

    def put(self, number: int, begun: float, chunks: Sequence[bytes], now: float) -> Snapshot:
        """What nobody has asked for, for the longest time, makes room. No facts are one empty chunk."""
        while len(self._kept) >= SNAPSHOTS:
            del self._kept[min(self._kept.values(), key=lambda each: each.asked).number]
        self._kept[number] = Snapshot(number, begun, list(chunks[:CHUNKS]) or [b""], now)
        return self._kept[number]

    def tidy(self, now: float) -> None:
        for each in [each for each in self._kept.values() if each.asked + UNUSED < now]:
            del self._kept[each.number]


@dataclass(slots=True)
class Intake:
    """What came of one dump so far: of snapshot 0, nothing."""

    snapshot: int = 0
    chunks: int = 0
    _missing: set[int] = field(default_factory=set)

    @property
    def is_whole(self) -> bool:
        return bool(self.snapshot) and not self._missing

    @property
    def taken(self) -> int:
        """Chunks."""
        return self.chunks - len(self._missing)

    def lacks(self, wanted: Iterable[int]) -> bool:
        """Whether one of these is still to come."""
        return not self.snapshot or not self._missing.isdisjoint(wanted)

    def wanted(self) -> tuple[int, ...]:
        """What to ask for next."""
        if not self.snapshot:
            return tuple(range(CHUNKS_AT_ONCE))
        return tuple(islice(self._missing, CHUNKS_AT_ONCE))

    def fits(self, dump: Dump) -> bool:
        """Whether the chunk is one of this dump's, or begins it."""
        return dump.chunks <= CHUNKS and (dump.snapshot == self.snapshot or not self.snapshot)

    def take(self, dump: Dump) -> None:
        """A chunk whose facts are kept; of another dump, nothing."""
        if not self.fits(dump):
            return
        if not self.snapshot:
            self.snapshot, self.chunks = dump.snapshot, dump.chunks
            self._missing = set(range(dump.chunks))
        self._missing.discard(dump.at)
