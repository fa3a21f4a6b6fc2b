"""The grants of this host's kernel as facts: the one place where digests are policy numbers.

Rules this file obeys:

- Policies may share a digest: what is said of it holds for each number that has it.
- The kernel decides what is taken (bpf/share.h). A digest that nobody here has is nobody's loss.
- All methods may be called in any thread.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from bpf import share
from bpf.datapath import Datapath
from gateway.peers.facts import FACT, Fact

SECOND = 10**9

Numbers = Callable[[], Mapping[bytes, Collection[int]]]


class Ledger:
    """`numbers`: which policy numbers have each digest now."""

    def __init__(self, datapath: Datapath, numbers: Numbers) -> None:
        self.datapath, self.numbers = datapath, numbers

    def held(self) -> Iterator[tuple[bytes, Fact]]:
        """All facts, those of one policy together. Takes about a second for 100,000 of them."""
        digests = {number: digest for digest, numbers in self.numbers().items() for number in numbers}
        by_number = {number: bytearray() for number in digests}  # packed: there may be a million
        now = _now()
        for number, address, peer, end in share.walk(self.datapath):
            if number in by_number and end >= now + SECOND:
                by_number[number] += FACT.pack(peer, address, (end - now) // SECOND)
        for number, facts in by_number.items():
            for row in FACT.iter_unpack(facts):
                yield digests[number], Fact._make(row)

    def find(self, digest: bytes, address: bytes) -> list[Fact]:
        """What is known of one address."""
        now, latest = _now(), dict[int, int]()
        for number in self.numbers().get(digest, ()):
            for peer, end in share.find(self.datapath, number, address):
                latest[peer] = max(end, latest.get(peer, 0))
        return [
            Fact(peer, address, (end - now) // SECOND) for peer, end in latest.items() if end >= now + SECOND
        ]

    def adopt(self, digest: bytes, facts: Sequence[Fact]) -> int:
        """How many were taken, by one policy at least."""
        numbers = self.numbers().get(digest, ())
        return max((share.adopt(self.datapath, number, facts) for number in numbers), default=0)

    def knows(self, digest: bytes) -> bool:
        return digest in self.numbers()


def _now() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
