"""The kernel's table of sources: which machine's packets these are, and which policy it is under.

Rules this file obeys:

- A source's row of `workloads` is there before its prefix leads to it, and goes after it: its packets are
  never nobody's.
- A machine keeps what DNS taught it when it comes under another policy that has the name, too; also when it
  gets a prefix of its own inside of another.
- The tables are the state: what an earlier agent wrote is read from there.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Mapping
from typing import Any

from bpf.contract import contract
from bpf.events import address, pack_address
from gateway.engine import Engine, Held
from gateway.homes import policy_of
from gateway.plan import EXEMPT
from gateway.policies.addresses import Network, inside
from gateway.states import locked
from routing.own import Home

MAPPED = 96  # bits before an IPv4 address that is written as IPv6


class Sources:
    """Those of one engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.titles: dict[int, str] = {}  # by the workload's id

    def rows(self) -> dict[Network, int]:
        """The id of the workload that each source leads to."""
        return {_network(key): int(identity) for key, identity in self.engine.datapath["sources"].items()}

    def at(self, held: Mapping[str, Held]) -> dict[Network, str]:
        """The group of each source, by its number; those of no group that is held are left out."""
        names = {each.number: name for name, each in held.items()}
        names[contract().constant("EXEMPT")] = EXEMPT
        table = self.engine.datapath["workloads"]
        rows = {source: table.get(identity) for source, identity in self.rows().items()}
        return {source: names[int(row.policy)] for source, row in rows.items() if row and row.policy in names}

    def apply(
        self,
        under: Mapping[Network, str],
        titles: Mapping[Network, str],
        held: Mapping[str, Held],
        home: Home,
    ) -> list[str]:
        """Makes it so; what could not be done, in words. A group that is not held reaches nothing. `home` is
        this host's: what is for one of its addresses is not forwarded."""
        self.titles = {workload_id(source): title for source, title in titles.items()}
        with locked(self.engine.where):
            self._know(home)
            before, told = self.rows(), list[str]()
            for source in sorted(under, key=lambda each: each.prefixlen):
                told += self._put(source, under[source], held, before)
            for source in before.keys() - under.keys():
                self.engine.datapath["sources"].discard(_key(source))
                self.engine.forget_workloads([before[source]])
            self.engine.room.share()
        return told

    def _know(self, home: Home) -> None:
        table, wanted = self.engine.datapath["own"], {pack_address(each) for each in home.own}
        for raw in wanted - (there := {bytes(key.address) for key, _ in table.items() if not key.home}):
            table[raw, 0] = 1
        for raw in there - wanted:
            table.discard((raw, 0))

    def _put(
        self, source: Network, name: str, held: Mapping[str, Held], before: Mapping[Network, int]
    ) -> list[str]:
        identity, table = workload_id(source), self.engine.datapath["workloads"]
        group = held.get(name)
        number = group.number if group else contract().constant("EXEMPT") if name == EXEMPT else 0
        there, told = table.get(identity), list[str]()
        if source in before and there is not None and int(there.policy) == number:
            return []
        left = self._policy(_around(source, before))
        if group:
            told += self.engine.carry_grants(left, group)
        table[identity] = (number, 0, 0)
        if source not in before:
            self.engine.datapath["sources"][_key(source)] = identity
        if left is not None and left != number:
            self.engine.numbers.judge_anew(left)
        if group:
            told += self.engine.carry_grants(left, group, late=True)
        return told

    def _policy(self, identity: int | None) -> int | None:
        return policy_of(self.engine.datapath["workloads"].get(identity)) if identity else None


def workload_id(source: Network) -> int:
    """The same after a restart, and never a cgroup's (MACHINE_BIT)."""
    digest = hashlib.blake2b(str(source).encode(), digest_size=7).digest()
    return 1 << contract().constant("MACHINE_BIT") | int.from_bytes(digest, "little")


def _around(source: Network, rows: Mapping[Network, int]) -> int | None:
    """What its packets lead to so far."""
    found = [network for network in rows if inside(source, network)]
    return rows[max(found, key=lambda network: network.prefixlen)] if found else None


def _key(source: Network) -> tuple[int, bytes]:
    return source.prefixlen + (MAPPED if source.version == 4 else 0), pack_address(source.network_address)


def _network(key: Any) -> Network:
    found = address(bytes(key.address))
    return ipaddress.ip_network((found, int(key.bits) - (MAPPED if found.version == 4 else 0)))
