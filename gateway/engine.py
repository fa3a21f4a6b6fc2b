"""The engine on this host: brings the kernel half up, holds workloads to their policies and lets them go.

Rules this file obeys:

- One lock per instance: several commands and an agent may share one kernel half.
- Tables first, then the workload's row: a workload is never open before its policy is whole. The other way
  round when it goes.
- Below the instance's own cgroup what is not classified is closed. Elsewhere on the host, where programs are
  attached to the whole hierarchy, it is nobody's business until somebody places it.
- The kernel's tables are the state. What is written to /run is for people, and for tidying up after a crash.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpf import kernel, versions
from bpf.contract import contract
from bpf.datapath import DECIDING, Datapath
from bpf.load import DatapathError
from gateway import automata, cgroups, local_resolvers, moving, place, ranges
from gateway.homes import Homes, policy_of
from gateway.link_programs import replace_on_links
from gateway.links import Links
from gateway.numbers import Numbers, Options, Written, describe_policy, differ
from gateway.policies.addresses import Network
from gateway.policies.policy import Policy
from gateway.room import Room
from gateway.states import (
    NOTHING_SAID,
    EngineError,
    claim,
    is_command,
    locked,
    read_state,
    record,
    records,
    remove_state,
    states,
    write_description,
    write_state,
)
from routing.own import UNKNOWN, Home

RING_BYTES = 1 << 20


@dataclass(slots=True)
class Held:
    """A policy that somebody holds workloads to: its number, and the ring on which its events arrive.

    Each of its cgroups is a workload, with a home of its own.
    """

    name: str
    number: int
    ring: int
    state: int  # descriptor of the locked record: whoever holds the lock owns it
    about: dict[str, Any]
    written: Written
    cgroups: dict[Path, int] = field(default_factory=dict)  # to their ids
    titles: dict[Path, str] = field(default_factory=dict)  # what people call them, where they do
    ended: list[str] = field(default_factory=list)  # at the adoption: as Engine.update() returns

    @property
    def peers(self) -> set[int]:
        """Their ids."""
        return {key[1] for key in self.written.tables.rules if isinstance(key[1], int)}

    @property
    def problems(self) -> tuple[str, ...]:
        return self.written.problems


class Engine:
    """The kernel half of one instance, loaded and attached."""

    def __init__(self, where: place.Place, host: bool = False) -> None:
        """Adopts what runs already, else compiles and attaches. Needs root.

        `host`: to the whole hierarchy, so that any cgroup can be placed; else to the instance's own.
        """
        if os.geteuid() != 0:
            raise EngineError("skouter needs root to load BPF programs: run it with sudo")
        self.where = where
        with locked(where):
            place.ensure_bpffs(where)
            self.datapath: Datapath = versions.bring_up(
                where.pins, where.run, (where.cgroup, where.hierarchy), links=replace_on_links
            )
            self.numbers = Numbers(self.datapath)
            self.homes = Homes(self.datapath)
            self.links = Links(self.datapath)
            self.room = Room(self.datapath)
            self.lead: Callable[[int], object] = int  # DNS over TCP of a number's workloads, to a proxy
            self._held: dict[int, Held] = {}
            where.cgroup.mkdir(exist_ok=True)
            self._cover(*cgroups.levels(where.cgroup, 1))
            self.datapath["workloads"][cgroups.cgroup_id(where.cgroup)] = (0,)
            if host:
                self.links.settle()
            self._attach(host)

    def close(self) -> None:
        """Lets go of descriptors; enforcement goes on."""
        self.numbers.close()
        self.datapath.close()

    def _attach(self, host: bool) -> None:
        """To the hierarchy or to our cgroup, never to both for long: a packet would be judged twice."""
        everywhere = set(DECIDING) <= set(self.datapath.attached(self.where.hierarchy))
        if not host and not everywhere:
            self.datapath.attach(self.where.cgroup)
            return
        self.datapath.attach(self.where.hierarchy)
        self.datapath.detach(self.where.cgroup)

    def _cover(self, shallowest: int, deepest: int) -> None:
        """Has the kernel look for workloads at these levels too."""
        held = self.datapath["settings"][0]
        if held.deepest:
            shallowest, deepest = min(held.shallowest, shallowest), max(held.deepest, deepest)
        if deepest - shallowest >= cgroups.LEVELS:
            raise EngineError(
                f"workloads on {deepest - shallowest + 1} levels of the cgroup hierarchy, of which "
                f"{cgroups.LEVELS} can be looked at: place a cgroup nearer to the root"
            )
        self.datapath.set(shallowest=shallowest, deepest=deepest)

    # ---- Policies

    def hold(
        self, name: str, policy: Policy, options: Options, about: dict[str, Any], ring_bytes: int = RING_BYTES
    ) -> Held:
        """Puts a policy into the kernel under a number, for cgroups to be placed under it.

        Where an earlier process did so under this name, its number is adopted, with its cgroups, grants and
        open flows, and the policy changed in place. `about` is for people: its `kind`, say. `ring_bytes` is
        the room for its events, all of it in memory from now on: a power of two, of pages at least.
        """
        made = automata.automaton_of(policy)
        with locked(self.where):
            state, before = claim(self.where, name)
            ring = -1
            try:
                number = int(before["policy"]) if before else self.numbers.take(self._used)
                if not before:
                    first = {**about, "name": name, "policy": number, "cgroups": {}, "ended": None}
                    write_state(state, {**NOTHING_SAID, **first})
                ring = kernel.create_ring(ring_bytes)
                self.datapath["events"][number] = ring
                there = self.numbers.adopt(number) if before else None
                written = self.numbers.write(number, policy, made, options, there)
                local_resolvers.trust(self.datapath, self.where, options)
                self.lead(number)
                held = Held(name, number, ring, state, about, written)
                if before:
                    held.cgroups = {
                        Path(path): identity
                        for path, identity in before["cgroups"].items()
                        if cgroups.has_id(Path(path), identity)
                    }
                    titles = before.get("titles", {})
                    held.titles = {path: titles[str(path)] for path in held.cgroups if str(path) in titles}
                self._describe(held, policy, options)
                self._held[number] = held
                if there and differ(there.tables, written.tables):
                    held.ended = self._end_withdrawn(held)
            except BaseException:
                if ring >= 0:
                    os.close(ring)
                    self.datapath["events"].discard(number)
                os.close(state)
                if not before:
                    self.forget(name)
                raise
        return held

    def update(self, held: Held, policy: Policy, options: Options) -> list[str]:
        """Changes a policy in place: grants stay, flows of what was withdrawn end. What ended, in words."""
        made = automata.automaton_of(policy)
        with locked(self.where):
            try:
                held.written = self.numbers.write(held.number, policy, made, options, held.written)
            except BaseException:
                held.written = self.numbers.read_back(held.number)  # neither the old nor the new one
                self.numbers.judge_anew(held.number)
                raise
            local_resolvers.trust(self.datapath, self.where, options)
            self._describe(held, policy, options)
        return self._end_withdrawn(held)

    def readdress(self, held: Held, options: Options) -> None:
        """Other resolvers or search suffixes; the policy is the same."""
        with locked(self.where):
            held.written = self.numbers.readdress(held.number, options, held.written)
            local_resolvers.trust(self.datapath, self.where, options)

    def release(self, held: Held) -> None:
        """Takes a policy away; its cgroups are nobody's business any more. What its number still says goes
        with the next :meth:`sweep`."""
        with locked(self.where):
            self._held.pop(held.number, None)
            for path in list(held.cgroups):
                self._unplace(held, path)
            self.datapath["events"].discard(held.number)
            os.close(held.ring)
            os.close(held.state)
            self._remove_record(held.name)

    def sweep(self) -> None:
        """Takes away what numbers say that nobody has any more, and gives back the places of peers that are
        gone; to be called now and then."""
        with locked(self.where):
            self.numbers.purge(self.numbers.saying() - self._used())
            self.numbers.sweep()
            self.room.tidy()

    def held_names(self) -> list[str]:
        """What earlier processes hold, or held: to be adopted, or released."""
        return [path.stem for path in records(self.where) if not is_command(path)]

    def counters(self, number: int) -> dict[str, int]:
        return self.numbers.counters(number)

    def cluster(
        self, domains: Collection[str], cluster: Collection[Network], never: Collection[Network]
    ) -> None:
        """Only names below `domains` teach addresses in the networks `cluster`, none those in `never`."""
        with locked(self.where):
            ranges.write(self.datapath, domains, cluster, never)

    # ---- Workloads

    def place(
        self, held: Held, path: Path, home: Home = UNKNOWN, adopting: bool = True, title: str = ""
    ) -> list[str]:
        """Holds a cgroup and all below it, unless placed nearer, to a policy.

        `home` is where it lives: what is decided elsewhere counts for nothing. `adopting`: what came in from
        outside before that may go on; where that can't be seen to, it is told. `title` is for people.

        A cgroup that was under another number keeps what DNS taught there, as far as both policies have the
        name; what the new one does not admit is ended, and told.
        """
        from gateway.open_sockets import adopt, end_withdrawn

        identity = cgroups.cgroup_id(path)
        told: list[str] = []
        with locked(self.where):
            self._cover(*cgroups.levels(path, 0))
            pids, ids = cgroups.processes_below(path), cgroups.ids_below(path)
            before = self.datapath["workloads"].get(identity)
            left = policy_of(before)
            moves = left is not None and left != held.number

            def adopt_all() -> None:
                try:
                    if pids and adopting and not moves:
                        adopt(self.datapath, held.number, ids, pids)
                except (OSError, DatapathError) as error:
                    told.append(f"{path}: connections that came in before may be refused: {error}")

            adopt_all()
            told += self.carry_grants(left, held)
            self.homes.enter(identity, held.number, home)
            if left is not None:
                self.numbers.judge_anew(left)
            told += self.carry_grants(left, held, late=True)
            adopt_all()  # what was accepted meanwhile
            held.cgroups[path] = identity
            held.titles |= {path: title} if title else {}
            self._describe_cgroups(held)
            self.room.share()
        if moves:
            return told[:1] + end_withdrawn(
                self.datapath, held.number, moving.governed(self.datapath, path), pids, left
            )
        return told[:1]

    def carry_grants(self, left: int | None, held: Held, late: bool = False) -> list[str]:
        if left is None or left == held.number:
            return []
        peers = held.peers & (self._held[left].peers if left in self._held else held.peers)
        return moving.carry(self.datapath, left, held.number, peers, late)

    def rehome(self, held: Held, path: Path, home: Home) -> None:
        """A placed cgroup lives in another network namespace, or that one has other addresses."""
        identity = held.cgroups[path]
        with locked(self.where):
            found = self.datapath["workloads"].get(identity)
            if found is not None and int(found.policy) == held.number:
                self.homes.enter(identity, held.number, home)
                self.homes.settle(home)

    def unplace(self, held: Held, path: Path) -> None:
        """Lets a cgroup go, which may be gone itself."""
        with locked(self.where):
            self._unplace(held, path)
            self._describe_cgroups(held)

    def hand_over(self, held: Held, path: Path) -> None:
        """A cgroup that is under another policy by now, or has gone, is this one's no more; its row stays."""
        with locked(self.where):
            del held.cgroups[path]
            held.titles.pop(path, None)
            self._describe_cgroups(held)

    def shut(self, path: Path) -> None:
        """A cgroup of which nobody knows what it may reach: nothing, nor may all below that is not placed."""
        self._mark(path, 0)

    def exempt(self, path: Path) -> None:
        """A cgroup that is never filtered, whatever is placed around it."""
        self._mark(path, contract().constant("EXEMPT"))

    def open(self, path: Path) -> None:
        """The end of :meth:`shut`."""
        self._unmark(cgroups.cgroup_id(path), 0)

    def unexempt(self, identity: int) -> None:
        """The end of :meth:`exempt`, by its id: the cgroup may be gone."""
        self._unmark(identity, contract().constant("EXEMPT"))

    def _mark(self, path: Path, mark: int) -> None:
        identity = cgroups.cgroup_id(path)
        with locked(self.where):
            self._cover(*cgroups.levels(path, 0))
            left = self.homes.mark(identity, mark)
            if left is not None:
                self.numbers.judge_anew(left)

    def _unmark(self, identity: int, mark: int) -> None:
        with locked(self.where):
            found = self.datapath["workloads"].get(identity)
            if found is not None and int(found.policy) == mark:
                self.datapath["workloads"].discard(identity)

    def _unplace(self, held: Held, path: Path) -> None:
        identity = held.cgroups.pop(path)
        held.titles.pop(path, None)
        found = self.datapath["workloads"].get(identity)
        if found is not None and int(found.policy) == held.number:
            self.forget_workloads([identity])
            self.numbers.judge_anew(held.number)

    def _end_withdrawn(self, held: Held) -> list[str]:
        from gateway.open_sockets import end_withdrawn  # late: few commands change anything

        ids = set[int]().union(*(cgroups.ids_below(path) for path in held.cgroups))
        pids = set[int]().union(*(cgroups.processes_below(path) for path in held.cgroups))
        return end_withdrawn(self.datapath, held.number, ids, sorted(pids))

    # ---- Records

    def _used(self) -> set[int]:
        used = {int(value.policy) for _, value in self.datapath["workloads"].items()}
        return used | {int(state["policy"]) for state in states(self.where)}

    def _describe(self, held: Held, policy: Policy, options: Options) -> None:
        write_description(self.where, held.name, describe_policy(policy, options, held.problems))
        held.about = {**held.about, "local_resolvers": [f"{r.address} {r.port}" for r in options.local]}
        self._describe_cgroups(held)

    def _describe_cgroups(self, held: Held) -> None:
        where = {str(path): identity for path, identity in held.cgroups.items()}
        titles = {str(path): title for path, title in held.titles.items()}
        about = {**held.about, "name": held.name, "policy": held.number, "cgroups": where, "titles": titles}
        write_state(held.state, {**NOTHING_SAID, **about, "ended": None})

    def forget(self, *names: str) -> None:
        """Records and all that they stand for."""
        states = [state for name in names if (state := read_state(record(self.where, name)))]
        self.forget_workloads(identity for state in states for identity in state["cgroups"].values())
        self.numbers.purge({int(state["policy"]) for state in states})
        for name in names:
            self._remove_record(name)

    def _remove_record(self, name: str) -> None:
        state = read_state(record(self.where, name))
        remove_state(self.where, name)
        if state and state["local_resolvers"]:
            local_resolvers.forget_unused(self.datapath, self.where)

    # ---- What commands use too

    def forget_workloads(self, identities: Iterable[int]) -> None:
        """Cgroups that are nobody's any more, by id: their rows, what they have in tables, their homes."""
        left: set[int] = set()
        for identity in identities:
            found = self.datapath["workloads"].get(identity)
            left |= set() if found is None else {int(found.home)}
            self.datapath["workloads"].discard(identity)
            self.room.forget(identity)
        self.homes.leave(left)
