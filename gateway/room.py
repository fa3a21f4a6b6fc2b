"""How much of the shared tables each workload and each peer may take, and what an ended workload gives back.

Rules this file obeys:

- All workloads together fit: quotas are halved until they do. Where a quota shrinks, the places beyond it are
  emptied: nobody turns them any more.
- Not every workload that comes counts all others anew: quotas leave room for some more, and the next count is
  due when these have come. So many workloads take no more time each than few.
- A workload with a link has rings of its own there (LINK_BIT in contract.h): where there are links, all count
  twice.
- A machine behind a gateway has its connections among its flows, which may be many more. It writes as a link
  does. What is judged again elsewhere is a connection's end there: so beyond a quota that shrank only what is
  over is emptied, and the rest when it is (`tidy`).
- Whoever calls this holds the instance's lock.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Collection, Iterable

from bpf.contract import contract
from bpf.datapath import Datapath

# Ring to the table behind it: also a field of struct tally and of struct settings, and a limit in capitals.
RINGS = {"question_ring": "questions", "flow_ring": "flows", "inbound_ring": "inbounds"}
OF_LINKS = ("flows", "inbounds")
ENDED = 2 | 4 | 8  # enum phase: one side has ended it, or it is broken
SPARE = 8  # a count leaves room for an eighth more workloads


class Room:
    """The rings of all workloads of one kernel half (quotas.h)."""

    def __init__(self, loaded: Datapath) -> None:
        self.datapath = loaded
        self._spare = 0
        self._beyond: set[int] = set()  # machines that may have connections beyond their quota

    def share(self) -> None:
        """To be called when one more workload is held. What other processes add meanwhile, they count."""
        self._spare -= 1
        if self._spare > 0:
            return
        policies = range(1, contract().constant("POLICIES"))
        held = {int(key): int(row.policy) for key, row in self.datapath["workloads"].items()}
        workloads = [identity for identity, number in held.items() if number in policies]
        numbers = len({held[identity] for identity in workloads})
        self._spare = 1 + len(workloads) // SPARE
        self._set_quotas(workloads, len(workloads) + self._spare, numbers + self._spare)

    def _set_quotas(self, workloads: list[int], count: int, numbers: int) -> None:
        constant, entries = contract().constant, {name: m.entries for name, m in contract().maps.items()}
        before = self.datapath["settings"][0]
        holders = dict.fromkeys(RINGS.values(), count)
        machines = any(map(is_machine, workloads))
        if machines or next(self.datapath["links"].raw_keys(), None) is not None:
            holders |= dict.fromkeys(OF_LINKS, 2 * count)
        quotas = {name: share(most(name, machines), entries[name], holders[name]) for name in holders}
        addresses = entries["grants"] // constant("GRANTS_PER_POLICY")
        self.datapath.set(**quotas, addresses=share(constant("ADDRESSES"), addresses, numbers))
        for ring, table in RINGS.items():
            for owner in owners(workloads) if quotas[table] < getattr(before, table) else ():
                if table == "flows" and is_machine(owner):
                    continue
                places = min(self._turned(owner, table), int(getattr(before, table)))
                self._forget_places(owner, ring, table, range(quotas[table], places))
        self._beyond |= {owner for owner in owners(workloads) if is_machine(owner)}
        self.tidy()

    def tidy(self) -> None:
        """To be called now and then: empties what is over of machines beyond their quota."""
        quota, now = int(self.datapath["settings"][0].flows), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        for owner in list(self._beyond):
            places = range(quota, min(self._turned(owner, "flows"), most("flows", True)))
            left = [number for number in places if self._lives(owner, number, now)]
            self._forget_places(owner, "flow_ring", "flows", sorted({*places} - {*left}))
            if not left:
                self._beyond.discard(owner)

    def _lives(self, owner: int, number: int, now: int) -> bool:
        key = self.datapath["flow_ring"].get((owner, number))
        flow = self.datapath["flows"].get(bytes(contract().ffi.buffer(key))) if key is not None else None
        if flow is None:
            return False
        is_open = int(flow.tuple.protocol) == socket.IPPROTO_TCP and not int(flow.phase) & ENDED
        seconds = contract().constant("TCP_SECONDS" if is_open else "FLOW_SECONDS")
        return int(flow.seen) + seconds * 10**9 > now

    def forget(self, workload: int) -> None:
        """What a workload has in its rings, and in the tables behind them."""
        for owner in owners([workload]):
            for ring, table in RINGS.items():
                places = min(self._turned(owner, table), most(table, is_machine(workload)))
                self._forget_places(owner, ring, table, range(places))
            self.datapath["tallies"].discard(owner)
        for slot in range(contract().constant("FRAGMENTS")):
            self.datapath["fragments"].discard((workload, slot))

    def _turned(self, owner: int, table: str) -> int:
        """How many places of a ring were looked at since it began: none beyond is taken."""
        tally = self.datapath["tallies"].get(owner)
        return int(getattr(tally, table)) if tally is not None else 0

    def _forget_places(self, owner: int, ring: str, table: str, places: Iterable[int]) -> None:
        for number in places:
            found = self.datapath[ring].get((owner, number))
            if found is not None:
                self.datapath[ring].discard((owner, number))
                self.datapath[table].remove_raw(bytes(contract().ffi.buffer(found)))


def is_machine(workload: int) -> bool:
    return bool(workload >> contract().constant("MACHINE_BIT") & 1)


def most(table: str, machines: bool) -> int:
    """Places in a ring, before it is shared out."""
    return contract().constant("MACHINE_FLOWS" if machines and table == "flows" else table.upper())


def owners(workloads: Collection[int]) -> list[int]:
    """By what their rings are known: their own, and those that their links write."""
    bit = 1 << contract().constant("LINK_BIT")
    return [*workloads, *(workload | bit for workload in workloads)]


def share(places: int, entries: int, holders: int) -> int:
    """So many places for each, halved until all fit. A ring that is halved goes on at its oldest place; at
    any other size it would go on somewhere among the youngest, and find none that is over."""
    while places > 1 and places * holders > entries:
        places //= 2
    return places
