"""Gateways that tell each other which addresses their clients' names have: soft state, sent in datagrams.

A client may be led through another gateway than the one that its DNS answer came through, or through one that
has only just begun. So what is learned is pushed to all, what is missed is asked of all, and who begins, or
hears a member again after a silence, is told everything (dumps.py).

Rules this file obeys:

- All gateways are alike: nothing is elected, no verdict is sent, and whoever is alone goes on as before.
- What is lost is lost: a push is not repeated, a query once. The kernel refuses meanwhile, as it always does.
- Policies do not come to all at the same moment. What was told of one that is not here yet is asked for again
  when it is.
- Nobody is believed for where a datagram comes from, nor without: it must be sealed (sealing.py), come from a
  member's address, and be for this very session. Only a greeting may be to nobody, and is only ever answered
  by one greeting. So a datagram that was caught moves nothing, wherever and whenever it is sent again.
- A session is a process. A member's is taken for its own when a datagram says ours, which nobody could know
  before we began.
- Whatever somebody may send, or need, has a bound: what finds no room is counted.
- The loop is never held up for long: what is more than a few facts is read and written in a thread.
"""

from __future__ import annotations

import math
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing, suppress
from itertools import islice
from time import monotonic, time
from typing import Protocol

import trio

from gateway.peers import facts, sealing, sockets
from gateway.peers.exchange import Dumps
from gateway.peers.facts import NOBODY, Answer, Done, Dump, DumpRequest, Fact, Hello, Message, Push, Query
from gateway.peers.members import PACE, Member, Members, Pace
from routing.own import Address, own_addresses

PENDING = 8192  # addresses that wait to be told, or to be asked for
QUERIES = 64  # that are open at once
AT_ONCE = 32  # datagrams read, addresses told, before others have their turn
FEW = 64  # facts that are taken at once
STRANGE = 1024  # digests of policies that are not here
Groups = list[tuple[bytes, list[Fact]]]


class Store(Protocol):
    """What this gateway has learned (ledger.py)."""

    def knows(self, digest: bytes) -> bool: ...
    def held(self) -> Iterable[tuple[bytes, Fact]]: ...
    def find(self, digest: bytes, address: bytes) -> Collection[Fact]: ...
    def adopt(self, digest: bytes, facts: Sequence[Fact]) -> int: ...


class Peers:
    """All other gateways, as one process sees them.

    `names` are DNS names or addresses; all listen on one port. Made, it listens already: raises
    :class:`OSError`. Call :meth:`learned` and :meth:`missed` from the loop that has :meth:`run`.
    """

    def __init__(
        self,
        store: Store,
        keys: sealing.Keys,
        names: Sequence[str] = (),
        listen: tuple[Address, int] = (sockets.ANY, sockets.PORT),
        dump_seconds: float = 10.0,
        pace: Pace = PACE,
        own: Callable[[], Collection[Address]] = own_addresses,
        wall: Callable[[], float] = time,
    ) -> None:
        session = secrets.token_bytes(facts.SESSION)
        self.store, self.port, self.dump_seconds = store, listen[1], dump_seconds
        self.pace, self.wall, self.ready, self.counts = pace, wall, trio.Event(), Counter[str]()
        self._session, self._sealer = session, sealing.Sealer(keys, session)
        self._opener = sealing.Opener(keys, session)
        self._members = Members(names, pace, own, self._follow, self.counts)
        self._dumps = Dumps(store, self._members, pace, self._send, self._consider, self.counts)
        self._learned: dict[tuple[bytes, bytes], None] = {}
        self._missed: dict[tuple[bytes, bytes], None] = {}
        self._new, self._needed, self._free = trio.Event(), trio.Event(), trio.Semaphore(QUERIES)
        self._queries: dict[int, tuple[set[Address], trio.Event]] = {}
        self._strange = set[bytes]()
        self._inbox: list[tuple[Groups, Member, Dump | None]] = []
        self._sockets = {made.family: made for made in sockets.listen(*listen)}
        self.use(keys)

    # ---- For the agent

    async def run(self) -> None:
        """For ever. `ready` is set when another gateway that is ready has told all it knows, when all have,
        or when `dump_seconds` are over."""
        with closing(self):
            async with trio.open_nursery() as self._nursery:
                for made in self._sockets.values():
                    self._nursery.start_soon(self._receive, made)
                for task in (self._members.follow, self._greet, self._tell, self._ask, self._end_waiting):
                    self._nursery.start_soon(task)

    def learned(self, digest: bytes, address: bytes) -> None:
        """By an answer: the others are told what the store has of it by then."""
        self._note(self._learned, digest, address, "not told")
        self._new.set()

    def missed(self, digest: bytes, address: bytes) -> None:
        """A client wants to go there and must not: the others are asked."""
        self._note(self._missed, digest, address, "not asked")
        self._needed.set()

    def members(self, addresses: Iterable[Address]) -> None:
        """All that are known by another way than `names`, in place of those that were."""
        self._members.give(addresses)

    def use(self, keys: sealing.Keys) -> None:
        """In place of the keys so far. Nobody needs to begin anew."""
        self._keys = keys
        self._sealer.use(keys)
        self._opener.use(keys)
        self._admit()

    def numbers(self) -> dict[str, int]:
        """What was done so far; `members` and `heard` are of this moment."""
        drops = sum(map(sockets.dropped, self._sockets.values()))
        heard = sum(since < self.pace.silence for since in self.heard().values())
        return {**self.counts, "refused: unheard": drops, "members": len(self.heard()), "heard": heard}

    def heard(self) -> dict[Address, float]:
        """Seconds since each member was heard last; infinite where it never was."""
        return {each.address: monotonic() - each.heard for each in self._members}

    def close(self) -> None:
        """The end of :meth:`run` does it, too."""
        for made in self._sockets.values():
            made.close()

    def _admit(self) -> None:
        for made in self._sockets.values():
            sockets.admit(made, self._keys, self.heard())

    def _note(self, where: dict[tuple[bytes, bytes], None], digest: bytes, address: bytes, lost: str) -> None:
        if len(where) < PENDING:
            where[digest, address] = None
        else:
            self.counts[lost] += 1

    # ---- Greetings

    def _follow(self, new: Iterable[Member]) -> None:
        self._admit()
        for member in new:
            self._send(member, Hello(self.ready.is_set()))
        self._consider()

    async def _greet(self) -> None:
        while True:
            came = any(map(self.store.knows, tuple(self._strange)))
            if came:
                self._strange.clear()
            for member in self._members:
                self._send(member, Hello(self.ready.is_set()))
                member.is_wanted |= came
                if member.heard + self.pace.silence > monotonic():
                    self._dumps.want(member, self._nursery)
            self._dumps.tidy()
            await trio.sleep(self.pace.greeting)

    def _consider(self) -> None:
        """Ready when a gateway that is ready has told everything, or all have that there are."""
        if any(each.has_told and each.is_ready for each in self._members) or (
            self._members.are_found and all(each.has_told for each in self._members)
        ):
            self.ready.set()

    async def _end_waiting(self) -> None:
        with trio.move_on_after(self.dump_seconds):
            await self.ready.wait()
        self.ready.set()

    # ---- Datagrams

    def _send(self, member: Member, message: Message, session: bytes = NOBODY) -> None:
        """To the member's own session, where no other is said."""
        to = next((each for each in (session, member.session, member.claimed) if each != NOBODY), NOBODY)
        made = self._sockets.get(socket.AF_INET6 if member.address.version == 6 else socket.AF_INET)
        if made is None or (to == NOBODY and not isinstance(message, Hello)):
            self.counts["not sent"] += 1
            return
        sealed = self._sealer.seal(facts.encode(message, to), self.wall())
        try:
            made.sendto(sealed, (str(member.address), self.port))
            self.counts["sent"] += 1
        except OSError:  # without room, without a way, or refused by this host's own rules
            self.counts["not sent"] += 1

    async def _receive(self, made: socket.socket) -> None:
        while True:
            await trio.lowlevel.wait_readable(made)
            with suppress(OSError):  # nothing left; or what the network says of a datagram of ours
                for _ in range(AT_ONCE):
                    self._take(*made.recvfrom(facts.DATAGRAM + 1))
            await self._adopt()

    def _take(self, datagram: bytes, source: tuple[str, int]) -> None:
        self.counts["received"] += 1
        try:
            member = self._members.find(source[0])
            if member is None or source[1] != self.port:
                raise sealing.RefusedError("no member")
            if len(datagram) > facts.DATAGRAM:
                raise sealing.RefusedError("long")
            opened = self._opener.open(datagram, self.wall(), monotonic())
            self._hear(member, opened)
        except sealing.RefusedError as error:
            self.counts[f"refused: {error}"] += 1
        except facts.MalformedError:
            self.counts["refused: malformed"] += 1

    def _hear(self, member: Member, opened: sealing.Opened) -> None:
        to, message = facts.decode(opened.message)
        if to != self._session:
            if not isinstance(message, Hello):
                self.counts["refused: another session"] += 1
            member.claimed = opened.session
            self._send(member, Hello(self.ready.is_set()), opened.session)
            return
        is_new = member.prove(opened.session, monotonic(), self.pace.silence)
        if isinstance(message, Hello):
            member.is_ready = message.is_ready
        if is_new:
            self._send(member, Hello(self.ready.is_set()))
        self._dumps.want(member, self._nursery)
        self._obey(member, message, max(0, math.ceil(opened.age)))

    def _obey(self, member: Member, message: Message, age: int) -> None:
        match message:
            case Push():
                self._inbox.append((facts.unpack(message.facts, age), member, None))
            case Query():
                known = self._known(message.asked)
                body = next(facts.pack(known), b"")
                self._send(member, Answer(message.number, body))
            case Answer():
                self._note_answer(member, message.number)
                self._inbox.append((facts.unpack(message.facts, age), member, None))
            case DumpRequest():
                self._dumps.serve(member, message, self._nursery)
            case Dump():
                if member.intake and member.intake.fits(message):
                    groups = facts.unpack(message.facts, age + message.age)
                    self._inbox.append((groups, member, message))
            case Done():
                self.counts["dumps told"] += 1
                member.since = monotonic()  # who asks again missed something: not the same once more

    async def _adopt(self) -> None:
        inbox, self._inbox = self._inbox, []
        if not inbox:
            return
        groups = [group for each, _, _ in inbox for group in each]
        if sum(len(each) for _, each in groups) > FEW:
            counts = await trio.to_thread.run_sync(self._taken, groups)
        else:
            counts = self._taken(groups)
        self.counts.update(counts)
        for _, member, dump in inbox:
            if dump and member.intake:
                member.intake.take(dump)
                member.stirred.set()

    def _taken(self, groups: Groups) -> Counter[str]:
        counts = Counter[str]()
        for digest, found in groups:
            if not self.store.knows(digest):
                counts["facts of other policies"] += len(found)
                if len(self._strange) < STRANGE:
                    self._strange.add(digest)
                continue
            try:
                adopted = self.store.adopt(digest, found)
            except OSError:
                adopted = 0
            counts["facts adopted"] += adopted
            counts["facts refused"] += len(found) - adopted
        return counts

    def _known(self, asked: Iterable[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, Fact]]:
        for digest, address in asked:
            with suppress(OSError):
                yield from ((digest, fact) for fact in self.store.find(digest, address))

    # ---- What is learned, and what is missed

    async def _tell(self) -> None:
        """At once, since the client may go another way at once; what comes soon after, together."""
        while True:
            await self._new.wait()
            self._new = trio.Event()
            while some := sorted(islice(self._learned, AT_ONCE)):
                for pair in some:
                    del self._learned[pair]
                for body in facts.pack(self._known(some)):
                    for member in self._members.proven:
                        self._send(member, Push(body))
                await trio.lowlevel.checkpoint()
            await trio.sleep(self.pace.together)

    async def _ask(self) -> None:
        for number in range(1, 1 << 63):
            while not self._missed:
                self._needed = trio.Event()
                await self._needed.wait()
            await self._free.acquire()
            some = tuple(islice(self._missed, facts.ASKED_AT_ONCE))
            for pair in some:
                del self._missed[pair]
            self._nursery.start_soon(self._query, number, some)

    async def _query(self, number: int, asked: tuple[tuple[bytes, bytes], ...]) -> None:
        silent, answered = {each.address for each in self._members.proven}, trio.Event()
        self._queries[number] = silent, answered
        try:
            for _ in range(2):
                for member in self._members.proven:
                    if member.address in silent:
                        self._send(member, Query(number, asked))
                with trio.move_on_after(self.pace.answer):
                    await answered.wait()
        finally:
            del self._queries[number]
            self._free.release()

    def _note_answer(self, member: Member, number: int) -> None:
        silent, answered = self._queries.get(number, (set[Address](), trio.Event()))
        silent.discard(member.address)
        if not silent:
            answered.set()
