"""The engine on this host: brings the kernel half up, gives workloads their policy and takes it away.

Rules this file obeys:

- One lock per instance: several commands and an agent may share one kernel half.
- Tables first, then the workload's row: a workload is never open before its policy is whole. The other way
  round when it goes.
- The root cgroup itself is a workload without a policy (number 0), so that whatever lies below it and is
  not classified is closed.
- The kernel's tables are the state. What is written to /run is for people, and for tidying up after a crash.
"""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpf import datapath, kernel, versions
from bpf.contract import contract
from bpf.datapath import Datapath
from bpf.events import Address, address, pack_address
from gateway import cgroups, place, tables
from gateway.policy import Policy, describe
from gateway.probe import check_refused
from gateway.resolvers import Resolver
from gateway.states import EngineError, is_owned, locked, read_state, states, write_state

FLOOR, GRACE = 60, 60  # seconds: a grant lasts max(TTL, FLOOR) + GRACE
RING_BYTES = 1 << 20
LINGER = 180  # seconds that an ended workload's sockets may need to say what they still have (tcp(7))
POLICY_TABLES = ("names", "prefixes", "rules", "services", "single_services", "grants", "resolvers", "own")


@dataclass(frozen=True, slots=True)
class Options:
    """How one workload is held, beside its policy; times in seconds."""

    resolvers: tuple[Resolver, ...] = ()
    own: tuple[Address, ...] = ()  # addresses of the workload's network namespace
    netns: int = 0  # and its cookie; 0: not asked
    trace: bool = False
    floor: int = FLOOR
    grace: int = GRACE


@dataclass(slots=True)
class Admitted:
    """A workload under its policy: its cgroup, policy number, and the ring on which its events arrive."""

    name: str
    cgroup: Path
    number: int
    ring: int
    state: int  # descriptor of the locked state file: whoever holds the lock owns the workload
    problems: tuple[str, ...]


class Engine:
    """The kernel half of one instance, loaded and attached."""

    def __init__(self, where: place.Place) -> None:
        """Adopts what runs already, else compiles and attaches. Needs root."""
        if os.geteuid() != 0:
            raise EngineError("skouter needs root to load BPF programs: run it with sudo")
        self.place = where
        with locked(where):
            place.ensure_bpffs(where)
            self.datapath: Datapath = versions.bring_up(
                where.pins, where.run, (where.cgroup, where.hierarchy)
            )
            where.cgroup.mkdir(exist_ok=True)
            shallowest, deepest = cgroups.levels(where.cgroup, 1)
            self.datapath.set(shallowest=shallowest, deepest=deepest)
            self.datapath["workloads"][cgroups.cgroup_id(where.cgroup)] = (0,)
            self.datapath.attach(where.cgroup)
            self.tidy()

    def close(self) -> None:
        """Lets go of descriptors; enforcement goes on."""
        self.datapath.close()

    # ---- Workloads --------------------------------------------------------------------------------------

    def admit(self, name: str, policy: Policy, options: Options, about: dict[str, Any]) -> Admitted:
        """Makes the cgroup `name` and puts it under `policy`; it is enforced when this returns.

        Before anything is opened, a process in the closed cgroup tries to connect: where that is not refused,
        the kernel does not see the cgroup where we think it is, and nothing is started.
        """
        if policy.only_allowed_names:
            raise EngineError(
                "spec.dns.onlyAllowedNames is not enforced by this version: remove it, or the questions that "
                "it should refuse would pass"
            )
        with locked(self.place):
            state = self._claim(name)
            cgroup = self.place.cgroup / name
            cgroup.mkdir()
            identity = cgroups.cgroup_id(cgroup)
            number = self._free_number()
            about = {**about, "name": name, "policy": number, "cgroup": identity, "ended": None}
            try:
                write_state(state, {**about, **_describe(policy, options)})
                self._purge(number)
                self.datapath["workloads"][identity] = (0,)
                check_refused(cgroup)
                wanted = tables.compile(policy, number)
                ring = kernel.create_ring(RING_BYTES)
                self.datapath["events"][number] = ring
                self._write(wanted, options)
                self.datapath["workloads"][identity] = (number,)
            except BaseException:
                os.close(state)
                self._remove(name, number)
                raise
        return Admitted(name, cgroup, number, ring, state, wanted.problems)

    def dismiss(self, admitted: Admitted) -> list[int]:
        """Takes a workload's policy away, unless processes are left in it: their pids, still enforced."""
        if not self.place.lock.exists():  # uninstalled meanwhile: nothing is left to take away
            os.close(admitted.ring)
            os.close(admitted.state)
            return []
        with locked(self.place):
            left = cgroups.processes(admitted.cgroup)
            os.close(admitted.ring)
            self.datapath["events"].discard(admitted.number)
            os.close(admitted.state)
            if not cgroups.is_populated(admitted.cgroup):
                self._end(admitted.name)
        return left

    def tidy(self) -> None:
        """Ends workloads whose owner is gone and in which nothing runs any more; removes those long ended."""
        for path in self.place.run.glob("*.json"):
            with suppress(OSError):  # one that can't be removed must not stop the others, nor the start
                if not is_owned(path) and not cgroups.is_populated(self.place.cgroup / path.stem):
                    self._end(path.stem)

    def _end(self, name: str) -> None:
        """The cgroup goes at once. The policy stays for LINGER: what the command left in its sockets is still
        on its way, and they still carry the cgroup's id."""
        path, cgroup = self.place.run / f"{name}.json", self.place.cgroup / name
        state, now = read_state(path), time.clock_gettime(time.CLOCK_BOOTTIME)
        if state is None:  # half written; its number is emptied before it is used again
            self._remove(name, None)
        elif state["ended"] is None:
            if cgroup.is_dir():
                cgroups.remove_cgroup(cgroup)
            fd = os.open(path, os.O_RDWR)
            write_state(fd, {**state, "ended": now})
            os.close(fd)
        elif not 0 <= now - state["ended"] < LINGER:
            self._remove(name, int(state["policy"]))

    def counters(self, number: int) -> dict[str, int]:
        """Packets by reason, of one policy since its number was given out."""
        reasons = contract().enumerators("reason")
        found = {
            name: self.datapath["counters"].sum_cpus(number * len_reasons() + value)
            for value, name in reasons.items()
        }
        return {name: count for name, count in found.items() if count}

    def _claim(self, name: str) -> int:
        fd = os.open(
            self.place.run / f"{name}.json", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644
        )
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return fd

    def _free_number(self) -> int:
        used = {int(value.policy) for _, value in self.datapath["workloads"].items()}
        used |= {int(state["policy"]) for state in states(self.place)}
        limit = contract().constant("POLICIES")
        for number in range(1, limit):
            if number not in used:
                return number
        raise EngineError(f"all {limit - 1} policy numbers of this host are in use: end some workloads first")

    def _write(self, wanted: tables.Tables, options: Options) -> None:
        number = wanted.number
        for index in range(len_reasons()):
            self.datapath["counters"].zero_cpus(number * len_reasons() + index)
        for step in tables.difference(None, wanted).steps:
            if step.map == "flags":
                self._set_policy(wanted, options)
            else:
                datapath.write(self.datapath.tables, step.map, step.key, step.value)
        for mine in options.own:
            self.datapath["own"][pack_address(mine), number] = 1
        for resolver in options.resolvers:
            self._trust(number, resolver)
            if resolver.is_local:
                self._trust(0, resolver)
                self.datapath.attach(self.place.hierarchy, ("resolver",))

    def _set_policy(self, wanted: tables.Tables, options: Options) -> None:
        constant = contract().constant
        flags = constant("AUDIT") if wanted.flags.audit else 0
        flags |= constant("TRACE") if options.trace else 0
        flags |= constant("RESOLVER_PORTS") if any(r.port != 53 for r in options.resolvers) else 0
        before = self.datapath["policies"][wanted.number]
        self.datapath["policies"][wanted.number] = (
            (int(before.generation) + 1) & 0xFFFFFFFF,
            flags,
            options.floor,
            options.grace,
            options.netns,
        )

    def _trust(self, number: int, resolver: Resolver) -> None:
        key = (pack_address(resolver.address), number, resolver.port.to_bytes(2, "big"))
        self.datapath["resolvers"][key] = 1

    def _remove(self, name: str, number: int | None) -> None:
        path, cgroup = self.place.run / f"{name}.json", self.place.cgroup / name
        state = read_state(path)
        identity = int(state["cgroup"]) if state else None
        if cgroup.is_dir():
            identity = cgroups.cgroup_id(cgroup)
            cgroups.remove_cgroup(cgroup)
        if identity is not None:
            self.datapath["workloads"].discard(identity)
            self._forget_questions(identity)
        if number is not None:
            self._purge(number)
        path.unlink(missing_ok=True)
        self._forget_local_resolvers()

    def _forget_questions(self, workload: int) -> None:
        for turn in range(contract().constant("OPEN_QUESTIONS")):
            found = self.datapath["question_ring"].get((workload, turn))
            if found is None:
                break
            # struct asked is nothing but the question's key.
            self.datapath["questions"].remove_raw(bytes(contract().ffi.buffer(found)))
            self.datapath["question_ring"].discard((workload, turn))
        self.datapath["tallies"].discard(workload)

    def _purge(self, number: int) -> None:
        """Every row of a policy number, whoever wrote it; flows that it admitted end with it."""
        before = self.datapath["policies"][number]
        self.datapath["policies"][number] = ((int(before.generation) + 1) & 0xFFFFFFFF, 0, 0, 0, 0)
        for name in POLICY_TABLES:
            table = self.datapath[name]
            for raw in list(table.raw_keys()):
                if _policy_of(contract().unpack(table.layout.key, raw)) == number:
                    table.remove_raw(raw)
        self._forget_what_is_over()

    def _forget_what_is_over(self) -> None:
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        constant = contract().constant
        for name, field, seconds in (
            ("questions", "time", constant("QUESTION_SECONDS")),
            ("flows", "seen", constant("FLOW_SECONDS")),
            ("inbounds", "seen", constant("INBOUND_SECONDS")),
        ):
            table = self.datapath[name]
            for raw in list(table.raw_keys()):
                value = kernel.lookup(table.fd, raw, table.layout.value_size)
                if (
                    value
                    and getattr(contract().unpack(table.layout.value, value), field) + seconds * 10**9 < now
                ):
                    table.remove_raw(raw)

    def _forget_local_resolvers(self) -> None:
        wanted = {text for state in states(self.place) for text in state["local_resolvers"]}
        table = self.datapath["resolvers"]
        for raw in list(table.raw_keys()):
            key = contract().unpack(table.layout.key, raw)
            if (
                key.policy == 0
                and f"{address(bytes(key.address))} {int.from_bytes(bytes(key.port), 'big')}" not in wanted
            ):
                table.remove_raw(raw)


def _policy_of(key: Any) -> int:
    return key.policy if isinstance(key.policy, int) else int.from_bytes(bytes(key.policy), "big")


def len_reasons() -> int:
    return contract().constant("REASONS")


def _describe(policy: Policy, options: Options) -> dict[str, Any]:
    return {
        "mode": "Audit" if policy.audit else "Enforce",
        "peers": {str(peer.id): peer.text for peer, _ in policy.grants},
        "rules": sorted(f"{peer.text} ({describe(ports)})" for peer, ports in policy.grants),
        "resolvers": [str(resolver) for resolver in options.resolvers],
        "local_resolvers": [f"{r.address} {r.port}" for r in options.resolvers if r.is_local],
    }
