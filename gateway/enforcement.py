"""From a plan to the engine: what is held, what has changed, and in which order it changes.

Rules this file obeys:

- Additions before removals; a policy is whole before a cgroup is put under it. What must not be held is
  exempt before something above it is held, and a unit is placed before the slice around it.
- One workload that can't be held is told and tried again at the next change; the others are held. Its cgroups
  reach nothing meanwhile, unless it is the host: that would lock everybody out.
- What an earlier agent left is adopted as it is, and taken away only when the plan says so.
- What the plan keeps stays as it is, also what an earlier agent left of it: its policy may not be known here.
- A cgroup that has gone stays under its policy for LINGER: what it left in its sockets is still on its way.
- What is shut is shut last: nothing that is placed below it is cut off in between.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType

from bpf import versions
from bpf.contract import contract
from bpf.datapath import DECIDING, pinned_programs
from bpf.load import DatapathError
from gateway import cgroups
from gateway.commands import LINGER
from gateway.engine import RING_BYTES, Engine, Held
from gateway.groups import GROUP, MACHINES
from gateway.links import State
from gateway.numbers import Options
from gateway.open_sockets import sweep_carried
from gateway.plan import EXEMPT, Plan, Ranges, Wanted
from gateway.policies.policy import Policy
from gateway.resolvers import Resolver
from gateway.room import is_machine
from gateway.settings import HOST
from gateway.states import EngineError, locked, states
from routing.links import Ways
from routing.own import Home

GROUPS = GROUP, MACHINES
GROUP_RING = 1 << 16  # bytes: there may be hundreds of groups
NOWHERE_ELSE: Mapping[str, Home] = MappingProxyType({})
NO_WAYS: Mapping[str, Ways] = MappingProxyType({})


@dataclass(slots=True)
class Outcome:
    """What became of a plan: sentences about what is not as it should be, and about what was done."""

    failed: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)


class Enforcement:
    """The workloads of one agent. `held`: by name; `placed`: cgroup to (its id, name of its workload)."""

    def __init__(self, engine: Engine, root: Path, ids: Mapping[str, int]) -> None:
        """Knows from the start what an earlier agent placed among the cgroups that exist."""
        self.engine, self.root = engine, root
        self._homes: dict[str, Home] = {}  # where each placed cgroup lives, by path
        self._shut: dict[str, int] = {}
        self._ranges: Ranges | None = None
        self.held: dict[str, Held] = {}
        self.placed = self._left(ids)
        self._known = set(ids.values())  # cgroups that were there before: a newborn's sockets are its own
        self._inherited = {  # workloads that an earlier agent held and nobody let go of: name to what it says
            state["name"]: state.get("says") for state in states(engine.where) if state["kind"] != "command"
        }
        self._as: dict[str, tuple[Policy, Options]] = {}
        self._gone: dict[int, float] = {}  # ids without a cgroup, and since when that is known
        self._silent: set[int] = set()  # sockets that were laid down for the kernel and seem to be gone
        self._is_steered = False
        self.link_states: dict[str, State] = {}  # of the pods whose links are wanted, by path

    @property
    def is_attached(self) -> bool:
        """Whether packets are judged at all: `skouter off` and `uninstall` work beside an agent.

        Raises :class:`EngineError` where another version judges them: a command's may have taken over.
        """
        where = self.engine.where
        if set(DECIDING) <= set(self.engine.datapath.attached(where.hierarchy)):
            return True
        if versions.attached(where.hierarchy) & pinned_programs(where.pins, "egress"):
            raise EngineError(
                "another version of skouter has taken over: start this agent again to follow it"
            )
        return False

    @property
    def said(self) -> dict[str, str | None]:
        """What each workload says (`Wanted.says`), also those of an earlier agent; None: not known."""
        return {**self._inherited, **{name: held.about.get("says") for name, held in self.held.items()}}

    def homes_left(self) -> dict[int, int]:
        """What the kernel knows of where cgroups live: id to the id of a home."""
        return {int(key): int(row.home) for key, row in self.engine.datapath["workloads"].items() if row.home}

    def apply(
        self,
        plan: Plan,
        ids: Mapping[str, int],
        options: Options,
        home: Home,
        homes: Mapping[str, Home] = NOWHERE_ELSE,
        ways: Mapping[str, Ways] = NO_WAYS,
    ) -> Outcome:
        """Makes it so. `ids` are of the cgroups that exist: one that came again is another one. Pods live in
        their `homes`, one that has none there where it lived; all others in `home`. Those of their processes
        that live elsewhere decide nothing. `ways` lead out of homes of their own."""
        outcome = Outcome()
        if plan.ranges and plan.ranges != self._ranges:
            with _told(outcome, "networks of the cluster"):
                self.engine.cluster(*plan.ranges)
                self._ranges = plan.ranges
        for name, wanted in plan.wanted.items():
            with _told(outcome, f"workload {name}"):
                self._hold(name, wanted, _options(options, name, wanted), outcome)
        linked = self._linked(plan, ids)
        self._keep_links(plan, ids, linked, outcome)
        self._place_all(plan, ids, homes, home, outcome)
        self._judge_links({path: ways[path] for path in linked if path in ways}, outcome)
        self._known = set(ids.values())
        for name in {*self.held, *self._inherited} - plan.wanted.keys() - plan.kept:
            with _told(outcome, f"workload {name}"):
                self._release(name)
                if not name.startswith(GROUPS):
                    outcome.told.append(f"workload {name} is held to nothing any more")
        self._shut_all(plan, ids, outcome)
        for held in self.held.values():
            outcome.failed += [f"workload {held.name}: {problem}" for problem in held.problems]
        return outcome

    def sweep(self) -> None:
        """Forgets the cgroups that have been gone for LINGER; to be called now and then."""
        now, alive = time.monotonic(), {identity for identity, _name in self.placed.values()}
        table = self.engine.datapath["workloads"]
        theirs = {0} | {
            int(state["policy"]) for state in states(self.engine.where) if state["kind"] == "command"
        }
        rows = ((int(key), int(row.policy)) for key, row in table.items())
        gone = {key for key, policy in rows if policy not in theirs and not is_machine(key)} - alive
        self._gone = {identity: self._gone.get(identity, now) for identity in gone}
        with locked(self.engine.where):
            over = [identity for identity, since in self._gone.items() if since + LINGER < now]
            self.engine.forget_workloads(over)
            for identity in over:
                del self._gone[identity]
        self.engine.sweep()
        self._silent = sweep_carried(self.engine.datapath, self._silent)
        self._is_steered = False
        self.engine.links.look_again()

    # ---- Policies

    def _hold(self, name: str, wanted: Wanted, options: Options, outcome: Outcome) -> None:
        if self._as.get(name) == (wanted.policy, options):
            return
        self._as.pop(name, None)  # what stands there after a failure is neither the one nor the other
        about = {"kind": _kind(name), "objects": wanted.objects, "says": wanted.says or None}
        if name in self.held:
            self.held[name].about |= about
            outcome.told += self.engine.update(self.held[name], wanted.policy, options)
        else:
            ring_bytes = GROUP_RING if name.startswith(GROUP) else RING_BYTES
            self.held[name] = self.engine.hold(name, wanted.policy, options, about, ring_bytes)
            self._inherited.pop(name, None)
            outcome.told += self.held[name].ended
        self._as[name] = wanted.policy, options

    def _release(self, name: str) -> None:
        if name in self.held:
            self._as.pop(name, None)
            self.engine.release(self.held.pop(name))
        else:
            with locked(self.engine.where):
                self.engine.forget(name)
            del self._inherited[name]
        self.placed = {path: at for path, at in self.placed.items() if at[1] != name}

    # ---- Cgroups

    def _place_all(
        self, plan: Plan, ids: Mapping[str, int], homes: Mapping[str, Home], home: Home, outcome: Outcome
    ) -> None:
        wanted = {path: name for name, one in plan.wanted.items() for path in one.cgroups}
        wanted |= dict.fromkeys(plan.exempt, EXEMPT)
        for path in sorted(wanted, key=lambda path: (wanted[path] != EXEMPT, -_depth(path))):
            name = wanted[path]
            here = homes.get(path, self._homes.get(path)) if name.startswith(GROUP) else home
            if name not in (EXEMPT, HOST, *self.held):
                with _told(outcome, path, self._folder(path)):
                    self.engine.shut(self._folder(path))
            elif name in (EXEMPT, *self.held):
                with _told(outcome, path, self._folder(path)):
                    outcome.told += self._place(path, name, ids.get(path), here, plan.titles.get(path, ""))
        for path in self.placed.keys() - wanted.keys():
            identity, name = self.placed[path]
            if name in plan.kept and ids.get(path) == identity:
                continue
            with _told(outcome, path, self._folder(path)):
                self._unplace(path, identity, name)

    def _place(self, path: str, name: str, identity: int | None, home: Home | None, title: str) -> list[str]:
        folder, before = self._folder(path), self.placed.get(path)
        now = (identity if identity is not None else cgroups.cgroup_id(folder)), name
        if now == before:
            if home is not None:
                self._rehome(path, name, home)
            return []
        told: list[str] = []
        if name == EXEMPT:
            self.engine.exempt(folder)
        elif home is None:
            return []  # of a pod that came again, and is looked at next
        else:
            adopting = now[0] in self._known
            told = self.engine.place(self.held[name], folder, home, adopting=adopting, title=title)
            self._homes[path] = home
        self.placed[path] = now
        if before and before[1] != name and self._has(before[1], folder):
            self.engine.hand_over(self.held[before[1]], folder)
        return told

    def _rehome(self, path: str, name: str, home: Home) -> None:
        folder = self._folder(path)
        if self._has(name, folder) and self._homes.get(path) != home:
            self.engine.rehome(self.held[name], folder, home)
            self._homes[path] = home

    def _shut_all(self, plan: Plan, ids: Mapping[str, int], outcome: Outcome) -> None:
        for path in sorted(plan.shut):
            if self._shut.get(path) != ids[path]:
                with _told(outcome, path, self._folder(path)):
                    self.engine.shut(self._folder(path))
                    self._shut[path] = ids[path]
        for path in sorted(plan.opened):
            with _told(outcome, path, self._folder(path)):
                self.engine.open(self._folder(path))
                self._shut.pop(path, None)

    def _unplace(self, path: str, identity: int, name: str) -> None:
        folder = self._folder(path)
        exists = cgroups.has_id(folder, identity)
        if name == EXEMPT and exists:
            self.engine.unexempt(identity)
        elif self._has(name, folder) and exists:
            self.engine.unplace(self.held[name], folder)
        elif self._has(name, folder):
            self.engine.hand_over(self.held[name], folder)
        del self.placed[path]
        self._homes.pop(path, None)

    # ---- Links

    def _linked(self, plan: Plan, ids: Mapping[str, int]) -> set[str]:
        """Pods whose links are to be judged: those that are held to what is enforced."""
        groups = (one for name, one in plan.wanted.items() if name.startswith(GROUP) and not one.policy.audit)
        return {path for one in groups for path in one.cgroups if path in ids}

    def _keep_links(self, plan: Plan, ids: Mapping[str, int], linked: set[str], outcome: Outcome) -> None:
        """The others' go before their cgroups are held to nothing, or their frames would be refused."""
        kept = {identity for identity, name in self.placed.values() if name in plan.kept}
        with _told(outcome, "links"), locked(self.engine.where):
            self.engine.links.keep(kept | {ids[path] for path in linked})

    def _judge_links(self, ways: Mapping[str, Ways], outcome: Outcome) -> None:
        held = {path: self.placed[path][0] for path in ways if path in self.placed}
        if held and not self._is_steered:
            with _told(outcome, "DNS over TCP of pods"):
                self.engine.links.steer(self.engine.where.name)
                self._is_steered = True
        with _told(outcome, "links"), locked(self.engine.where):
            states = self.engine.links.follow({held[path]: ways[path] for path in held})
            self.link_states = {path: states[identity] for path, identity in held.items()}

    def _has(self, name: str, folder: Path) -> bool:
        return name in self.held and folder in self.held[name].cgroups

    def _left(self, ids: Mapping[str, int]) -> dict[str, tuple[int, str]]:
        paths = {identity: path for path, identity in ids.items()}
        exempt = contract().constant("EXEMPT")
        left = {
            paths[int(key)]: (int(key), EXEMPT)
            for key, row in self.engine.datapath["workloads"].items()
            if int(row.policy) == exempt and int(key) in paths
        }
        for state in states(self.engine.where):
            for folder, identity in state["cgroups"].items() if state["kind"] != "command" else ():
                with suppress(ValueError):  # not below the root: of an agent that looked after more
                    path = Path(folder).relative_to(self.root)
                    if cgroups.has_id(Path(folder), identity):
                        left[f"/{path}" if path.parts else "/"] = identity, state["name"]
        return left

    def _folder(self, path: str) -> Path:
        return self.root / path.lstrip("/")


def _kind(name: str) -> str:
    if name.startswith(GROUPS):
        return "pods" if name.startswith(GROUP) else "machines"
    return "host" if name == HOST else "workload"


def _options(options: Options, name: str, wanted: Wanted) -> Options:
    if name.startswith(MACHINES):  # whose names this host's resolver answers
        return replace(options, resolvers=(), searches=())
    options = replace(options, host=name == HOST, captured=False, shared=False)
    if wanted.lookups is None:
        return options
    servers, searches = wanted.lookups
    return replace(options, resolvers=tuple(Resolver(*server) for server in servers), searches=searches)


def _depth(path: str) -> int:
    return len(path.rstrip("/").split("/"))


@contextmanager
def _told(outcome: Outcome, what: str, folder: Path | None = None) -> Iterator[None]:
    """A cgroup that has gone meanwhile is nobody's problem: its end is seen, and the plan made again."""
    try:
        yield
    except (EngineError, DatapathError, OSError) as error:
        if folder is None or folder.exists():
            outcome.failed.append(f"NOT ENFORCED: {what}: {error}")
