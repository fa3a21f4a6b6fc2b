"""Who the other gateways are, and what is known of each.

Rules this file obeys:

- Members come from names, which are resolved again and again, and from whoever else knows some. A name that
  can't be resolved keeps the addresses that it had.
- This host is no member of its own. There are so many members, and no more.
"""

from __future__ import annotations

import ipaddress
import math
import socket
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import trio

from gateway.peers.dumps import Intake
from gateway.peers.facts import NOBODY
from routing.own import Address

MEMBERS = 64


@dataclass(frozen=True, slots=True)
class Pace:
    """In seconds."""

    greeting: float = 1.0
    silence: float = 10.0  # after which a member that is heard again is asked for everything
    together: float = 0.005  # after something was told: what is learned meanwhile is told together
    answer: float = 0.04  # that answers to a query are waited for, twice
    piece: float = 0.2  # that pieces of a dump are waited for until they are asked for again
    patience: float = 10.0  # and until it is given up
    again: float = 5.0  # between two dumps of one member
    walk: float = 1.0  # between two walks through the tables, whoever asks
    names: float = 30.0  # until names are resolved again; where one can't be, `unresolved`
    unresolved: float = 2.0


PACE = Pace()


@dataclass(slots=True)
class Member:
    """Another gateway. `session`: of which it has proven to be there; `claimed`: which a greeting said."""

    address: Address
    session: bytes = NOBODY
    claimed: bytes = NOBODY
    heard: float = -math.inf
    since: float = -math.inf  # what is learned is pushed to it; it wants no older snapshot
    is_ready: bool = False
    asked: float = -math.inf  # for a dump
    is_wanted: bool = True  # what it knows should be asked for
    has_told: bool = False  # everything, once
    intake: Intake | None = None
    stirred: trio.Event = field(default_factory=trio.Event)

    @property
    def is_proven(self) -> bool:
        return self.session != NOBODY

    def prove(self, session: bytes, now: float, silence: float) -> bool:
        """It is there; whether as another process than the last time."""
        is_new, was_away = self.session != session, self.heard + silence < now
        self.session, self.heard = session, now
        if is_new or was_away:
            self.is_wanted, self.since = True, now
        self.has_told &= not is_new
        return is_new


class Members:
    """`changed` is called when some came, with them, or may have gone."""

    def __init__(
        self,
        names: Sequence[str],
        pace: Pace,
        own: Callable[[], Collection[Address]],
        changed: Callable[[list[Member]], None],
        counts: Counter[str],
    ) -> None:
        self.names, self.pace, self.own, self.changed, self.counts = names, pace, own, changed, counts
        self._members: dict[Address, Member] = {}
        self._by_text: dict[str, Member] = {}
        self._given, self._found = frozenset[Address](), dict[str, frozenset[Address]]()

    def __iter__(self) -> Iterator[Member]:
        return iter(tuple(self._members.values()))

    def find(self, text: str) -> Member | None:
        """By the address as a socket tells it (inet_ntop(3))."""
        return self._by_text.get(text)

    @property
    def are_found(self) -> bool:
        """Whether each name was resolved once."""
        return len(self._found) == len(self.names)

    @property
    def proven(self) -> list[Member]:
        return [each for each in self if each.is_proven]

    def give(self, addresses: Iterable[Address]) -> None:
        """All that are known by another way than names, in place of those that were."""
        self._given = frozenset(addresses)
        self._count()

    async def follow(self) -> None:
        """For ever."""
        while True:
            for name in self.names:
                try:
                    self._found[name] = await _resolve(name)
                except OSError:
                    self.counts["unresolved"] += 1
                self._count()
            self._count()  # also where there are no names; this host's own addresses may have changed
            await trio.sleep(self.pace.names if self.are_found else self.pace.unresolved)

    def _count(self) -> None:
        wanted = self._given.union(*self._found.values()) - set(self.own())
        for gone in self._members.keys() - wanted:
            del self._members[gone]
        came = [Member(address) for address in sorted(wanted - self._members.keys(), key=str)]
        room = MEMBERS - len(self._members)
        if came[room:]:
            self.counts["members left out"] += len(came[room:])
        self._members |= {member.address: member for member in came[:room]}
        self._by_text = {_text(member.address): member for member in self}
        self.changed(came[:room])


async def _resolve(name: str) -> frozenset[Address]:
    """The addresses of a name, or the one that it is; raises :class:`OSError`."""
    with suppress(ValueError):
        return frozenset({ipaddress.ip_address(name)})
    found = await trio.socket.getaddrinfo(name, None, type=socket.SOCK_DGRAM)
    return frozenset(ipaddress.ip_address(str(where[0]).partition("%")[0]) for *_, where in found)


def _text(address: Address) -> str:
    return socket.inet_ntop(socket.AF_INET if address.version == 4 else socket.AF_INET6, address.packed)
