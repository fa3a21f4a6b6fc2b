"""Dumps on their way: who is asked for everything, who asks, and what is sent (dumps.py keeps the books).

Rules this file obeys:

- One walk through the kernel's tables in a while, in a thread; whoever asks meanwhile is given what it finds.
- Dumps of few members are received at once, and of one member one in a while.
"""

from __future__ import annotations

import math
import secrets
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import islice
from time import monotonic
from typing import Protocol

import trio

from gateway.peers import facts
from gateway.peers.dumps import CHUNKS, Intake, Shelf
from gateway.peers.facts import Done, DumpRequest, Fact, Message
from gateway.peers.members import Member, Members, Pace
from routing.own import Address

FETCHES = 3


class Source(Protocol):
    """Whoever has all facts that there are on this host."""

    def held(self) -> Iterable[tuple[bytes, Fact]]: ...


class Dumps:
    """`finished` is called when a member has told everything."""

    def __init__(
        self,
        source: Source,
        members: Members,
        pace: Pace,
        send: Callable[[Member, Message], None],
        finished: Callable[[], None],
        counts: Counter[str],
    ) -> None:
        self.source, self.members, self.pace = source, members, pace
        self.send, self.finished, self.counts = send, finished, counts
        self._shelf, self._making, self._waiting = Shelf(), trio.Lock(), set[Address]()
        self._begun = -math.inf
        self._fetches = trio.CapacityLimiter(FETCHES)

    # ---- What others ask for

    def serve(self, member: Member, request: DumpRequest, nursery: trio.Nursery) -> None:
        snapshot = self._shelf.find(request.snapshot, member.since, monotonic())
        if snapshot:
            for at in request.wanted:
                if piece := snapshot.piece(at, monotonic()):
                    self.send(member, piece)
        elif not request.snapshot and member.address not in self._waiting:
            self._waiting.add(member.address)
            nursery.start_soon(self._make, member, request, nursery)

    def tidy(self) -> None:
        """To be called now and then."""
        self._shelf.tidy(monotonic())

    async def _make(self, member: Member, request: DumpRequest, nursery: trio.Nursery) -> None:
        try:
            async with self._making:
                if self._shelf.find(0, member.since, monotonic()) is None:
                    await trio.sleep(max(0, self._begun + self.pace.walk - monotonic()))
                    self._begun = begun = monotonic()
                    chunks = await trio.to_thread.run_sync(self._packed)
                    self._shelf.put(1 + secrets.randbits(62), begun, chunks, monotonic())
        finally:
            self._waiting.discard(member.address)
        self.serve(member, request, nursery)

    def _packed(self) -> list[bytes]:
        with suppress(OSError):
            return list(islice(facts.pack(self.source.held()), CHUNKS))
        return []

    # ---- What we ask for

    def want(self, member: Member, nursery: trio.Nursery) -> None:
        """Everything that a member knows, where that is due."""
        now = monotonic()
        if member.is_wanted and member.intake is None and member.asked + self.pace.again < now:
            member.asked, member.intake = now, Intake()
            nursery.start_soon(self._fetch, member, member.intake)

    async def _fetch(self, member: Member, intake: Intake) -> None:
        async with self._fetches:
            until = monotonic() + self.pace.patience
            while not intake.is_whole and monotonic() < until and member in self.members:
                before = intake.taken
                await self._fetch_some(member, intake)
                if intake.taken != before:
                    until = monotonic() + self.pace.patience
        member.intake = None
        if not intake.is_whole:
            self.counts["dumps broken off"] += 1
            return
        self.send(member, Done(intake.snapshot))
        self.counts["dumps"] += 1
        member.is_wanted, member.has_told = False, True
        self.finished()

    async def _fetch_some(self, member: Member, intake: Intake) -> None:
        wanted = intake.wanted()
        self.send(member, DumpRequest(intake.snapshot, wanted))
        with trio.move_on_after(self.pace.piece):
            while intake.lacks(wanted):
                member.stirred = trio.Event()
                await member.stirred.wait()
