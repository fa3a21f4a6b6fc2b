"""Where workloads live, as the kernel half knows it: the rows of `own`, and what a workload's row says of it.

Rules this file obeys:

- Several workloads, held by several processes, may share a network namespace: its addresses are there once,
  and go when no workload's row names it any more.
- An address comes before the first row that asks for it, and goes after the last.
- Whoever calls this holds the instance's lock.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from bpf.contract import contract
from bpf.datapath import Datapath
from bpf.events import pack_address
from routing import own
from routing.own import Home

MOST = 256  # addresses of a home that is not ours


class Homes:
    """All network namespaces of one kernel half."""

    def __init__(self, loaded: Datapath) -> None:
        self.datapath, self._here = loaded, own.number()
        self._seen: dict[int, set[bytes]] | None = None  # by whoever wrote them before, and by this process

    def enter(self, workload: int, number: int, home: Home) -> None:
        """A workload is held to a policy's number, and lives in `home`: its row is written once, whole."""
        rows, table = self.datapath["workloads"], self.datapath["own"]
        for address in self._asked_for(home):
            table[pack_address(address), home.id] = 1
            self._of(home.id).add(pack_address(address))
        before = rows.get(workload)
        stays = before is not None and int(before.home) == home.id
        linked = int(before.flags) & contract().constant("LINKED") if stays else 0  # links.py says so
        rows[workload] = (number, _flags(home, self._here) | linked, home.id)
        if before is not None and int(before.home) != home.id:
            self.leave({int(before.home)})

    def _asked_for(self, home: Home) -> tuple[own.Address, ...]:
        """Those that get a row: a pod that may give itself addresses must not fill the table of all."""
        return () if not home.id else home.own if home.id == self._here else home.own[:MOST]

    def settle(self, home: Home) -> None:
        """Forgets what is no address of it any more. Only for who has just looked and hears of changes: else
        what another process knows better would be forgotten."""
        there = {pack_address(address) for address in home.own}
        for address in self._of(home.id) - there:
            self.datapath["own"].discard((address, home.id))
        self._of(home.id).intersection_update(there)

    def mark(self, workload: int, number: int) -> int | None:
        """A row that is no policy's: closed or exempt. The number of the policy that it had."""
        before = self.datapath["workloads"].get(workload)
        self.datapath["workloads"][workload] = (number,)
        self.leave({int(before.home)} if before is not None else ())
        return policy_of(before)

    def leave(self, homes: Collection[int]) -> None:
        """Forgets those of them in which no workload lives any more."""
        left = set(homes) - {0}
        if left:
            left -= {int(row.home) for _, row in self.datapath["workloads"].items()}
        if not left:
            return
        for key in [(bytes(key.address), int(key.home)) for key, _ in self.datapath["own"].items()]:
            if key[1] in left:
                self.datapath["own"].discard(key)
        for home in left:
            self._of(home).clear()

    def _of(self, home: int) -> set[bytes]:
        if self._seen is None:
            self._seen = {}
            for key, _ in self.datapath["own"].items():
                self._seen.setdefault(int(key.home), set()).add(bytes(key.address))
        return self._seen.setdefault(home, set())


def policy_of(row: Any) -> int | None:
    """Of a workload's row; None where it is closed, exempt or nobody's."""
    number = int(row.policy) if row is not None else 0
    return number if 0 < number < contract().constant("POLICIES") else None


def _flags(home: Home, here: int) -> int:
    """What a row says of a workload's home. Whoever is in ours has not been given what it takes to translate
    addresses there, or can't be contained at all: so what the node translates for it is believed."""
    wanted = {
        "OWN_SOURCES": home.own and home.id,
        "COOKIE": home.is_cookie,
        "TRANSLATED": home.id == here,
    }
    return sum(contract().constant(name) for name, is_so in wanted.items() if is_so)
