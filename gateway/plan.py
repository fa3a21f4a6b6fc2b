"""Which cgroups of this host are held to which policy: from objects, configuration and what exists.

The rules this file must obey:

* A workload is a machine of the configuration, picked by workloadSelector, or the host's own traffic, picked
  by nodeSelector. One that no object selects is absent; what it runs is the host's own then.
* The nearest cgroup upwards decides, so that a unit may be one workload, its slice another, and the host is
  the root of all. A cgroup that two workloads name is the first's in the order of the configuration.
* A system unit's cgroup has nothing but slices above it. Whatever lies below a unit was made by the unit, or
  by a user, who must not get into a workload by choosing a name.
* Nobody is locked out unless asked twice: the host's own policy does not hold its resolver, and no workload
  holds the resolver or sshd. A cgroup that a workload holds already does not become one of these by what its
  processes do (`believable`), or they could free themselves by listening.

Paths are those below the folder that the agent looks after: "/" is that folder itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Literal

from gateway.policies.addresses import Network, Server
from gateway.policies.policy import Policy, union
from gateway.policies.records import Egress, Object
from gateway.policies.selection import Workload, selecting
from gateway.settings import HOST, SUFFIXES, Member, Settings

ROOT = "/"
EXEMPT = ""  # instead of a workload's name
Ranges = tuple[tuple[str, ...], tuple[Network, ...], tuple[Network, ...]]
Lifeline = Literal["resolver", "ssh"]
LIFELINES: tuple[Lifeline, ...] = ("resolver", "ssh")

# Units that may not be running yet, or again, when a workload is about to hold them.
UNITS: Mapping[Lifeline, tuple[str, ...]] = {
    "resolver": (
        *("systemd-resolved.service", "unbound.service", "dnsmasq.service", "named.service"),
        *("bind9.service", "knot-resolver.service", "kresd@*.service", "pdns-recursor.service"),
    ),
    "ssh": ("ssh.service", "sshd.service", "ssh@*.service", "sshd@*.service", "dropbear.service"),
}
WORDS: Mapping[Lifeline, str] = {"resolver": "the host's resolver", "ssh": "the host's SSH server"}


@dataclass(frozen=True, slots=True)
class Guard:
    """A cgroup without which nobody gets in or finds a name: what it is, and the process that was seen."""

    kind: Lifeline
    cgroup: str
    process: str


@dataclass(frozen=True, slots=True)
class Wanted:
    """A workload's policy, its cgroups as far as they exist, and the objects that select it.

    `lookups`: the DNS servers that it trusts and its search suffixes, where these are not the host's. `says`
    is the same for all that is held alike, also by an earlier agent.
    """

    policy: Policy
    cgroups: frozenset[str]
    objects: tuple[str, ...]
    lookups: tuple[tuple[Server, ...], tuple[str, ...]] | None = None
    says: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """`exempt` cgroups are held to nothing, whatever lies above. `told` are sentences for people.

    `kept` names workloads that stay as they are, with all their cgroups. `shut` cgroups reach nothing, but
    for what is placed below them; `opened` are no longer so. `titles` say what a cgroup is.
    `ranges`: domains, the networks that only names below them may teach, and networks that none may.
    """

    wanted: Mapping[str, Wanted] = field(default_factory=dict)
    exempt: frozenset[str] = frozenset()
    told: tuple[str, ...] = ()
    kept: frozenset[str] = frozenset()
    shut: frozenset[str] = frozenset()
    opened: frozenset[str] = frozenset()
    titles: Mapping[str, str] = field(default_factory=dict)
    ranges: Ranges | None = None


@dataclass(frozen=True, slots=True)
class Selected:
    """Each workload's policy and the objects that it comes from: what does not change as cgroups do."""

    policies: Mapping[str, tuple[Policy, tuple[str, ...]]]
    told: tuple[str, ...]


def select(
    objects: Collection[Object],
    settings: Settings,
    kept: Sequence[Egress] = (),
    elsewhere: Collection[str] = (),
) -> Selected:
    """The workloads that some object selects; the host stands last, and has the rules of `kept` too, so that
    nobody is locked out of what the node itself lives on. Objects that act `elsewhere` are not idle."""
    workloads = [Workload("machine", m.name, labels=dict(m.labels)) for m in settings.workloads]
    workloads.append(Workload("host", HOST, node_labels=dict(settings.node_labels)))
    policies: dict[str, tuple[Policy, tuple[str, ...]]] = {}
    for workload in workloads:
        selected = selecting(objects, workload)
        policy = union(selected)
        if policy is not None and workload.name == HOST:
            policy = union([*selected, *(replace(each, audit=policy.audit) for each in kept)])
        if policy is not None:
            policies[workload.name] = policy, tuple(map(str, selected))
    acting = {name for _policy, names in policies.values() for name in names} | {*elsewhere}
    idle = [str(item) for item in objects if isinstance(item, Egress) and str(item) not in acting]
    told = (f"{name} selects nothing on this host: compare its selectors with the labels" for name in idle)
    return Selected(policies, tuple(told))


def plan(
    selected: Selected,
    settings: Settings,
    cgroups: Collection[str],
    guards: Collection[Guard] = (),
    even: Collection[str] = (),
) -> Plan:
    """What is to be held. `cgroups` exist, `guards` were seen and are believable; `even` names the lifelines
    that policies may hold all the same."""
    return _Planning(selected, settings, cgroups, guards, even).result()


def believable(guards: Iterable[Guard], held: Mapping[str, str]) -> list[Guard]:
    """The guards whose cgroup no workload holds yet. `held`: cgroup to workload, EXEMPT for what none may."""
    return [
        guard
        for guard in guards
        if (by := _nearest(guard.cgroup, held)) is None
        or by == EXEMPT
        or (by == HOST and guard.cgroup != ROOT)
    ]


def is_of_interest(settings: Settings, path: str) -> bool:
    """Whether something below the cgroup `path` may be meant, so that it has to be watched."""
    parts = _parts(path)
    return (
        _are_slices(parts)
        or (any(member.user_units for member in settings.workloads) and _is_user_manager(parts))
        or any(
            len(parts) < len(wanted) and all(map(fnmatchcase, parts, wanted))
            for wanted in (_parts(pattern) for member in settings.workloads for pattern in member.cgroups)
        )
    )


# ---- Names ------------------------------------------------------------------------------------------------


def _parts(path: str) -> tuple[str, ...]:
    return tuple(filter(None, path.split("/")))


def _are_slices(parts: Iterable[str]) -> bool:
    return all(part.endswith(".slice") for part in parts)


def _is_user_manager(parts: tuple[str, ...]) -> bool:
    """Whether units of a user's manager lie right below: user.slice/user-N.slice/user@N.service/SLICES."""
    head = next((index for index, part in enumerate(parts) if not part.endswith(".slice")), len(parts))
    return head < len(parts) and fnmatchcase(parts[head], "user@*.service") and _are_slices(parts[head + 1 :])


def _is_unit(parts: tuple[str, ...]) -> bool:
    return bool(parts) and _are_slices(parts[:-1]) and parts[-1].rpartition(".")[2] in SUFFIXES


def _is_user_unit(parts: tuple[str, ...]) -> bool:
    return len(parts) > 1 and _is_user_manager(parts[:-1]) and parts[-1].rpartition(".")[2] in SUFFIXES


def _any(parts: tuple[str, ...], patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(parts[-1], pattern) for pattern in patterns)


def _belongs(path: str, member: Member) -> bool:
    parts = _parts(path)
    return (
        (_is_unit(parts) and _any(parts, member.units))
        or (_is_user_unit(parts) and _any(parts, member.user_units))
        or any(
            len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
            for wanted in map(_parts, member.cgroups)
        )
    )


def _above(path: str) -> Iterator[str]:
    """The cgroups around `path`, the nearest first; ROOT is the last."""
    while path != ROOT:
        path = path.rpartition("/")[0] or ROOT
        yield path


def _nearest(path: str, held: Mapping[str, str]) -> str | None:
    return next((held[each] for each in (path, *_above(path)) if each in held), None)


# ---- The plan -------------------------------------------------------------------------------------------


class _Planning:
    """One plan in the making: `owner` says whose a cgroup is, and everything else follows from it."""

    def __init__(
        self,
        selected: Selected,
        settings: Settings,
        cgroups: Collection[str],
        guards: Collection[Guard],
        even: Collection[str],
    ) -> None:
        self.policies, self.settings, self.cgroups = selected.policies, settings, cgroups
        self.guards = [guard for guard in guards if guard.kind not in even]
        self.told = [*selected.told]
        self.exempt: set[str] = set()
        self.owner: dict[str, str] = {}
        self._distribute()
        self._spare_lifelines(even)
        self._spare_exempt_units()

    def result(self) -> Plan:
        wanted = {
            name: Wanted(policy, frozenset(p for p, owner in self.owner.items() if owner == name), objects)
            for name, (policy, objects) in self.policies.items()
        }
        return Plan(wanted, frozenset(self.exempt), tuple(self.told))

    def _distribute(self) -> None:
        for member in self.settings.workloads:
            if member.name not in self.policies:
                continue
            for path in sorted(path for path in self.cgroups if path != ROOT and _belongs(path, member)):
                first = self.owner.setdefault(path, member.name)
                if first != member.name:
                    self.told.append(
                        f"{path} belongs to workload {first}, which stands before {member.name}: name it once"
                    )
        if HOST in self.policies:
            self.owner[ROOT] = HOST

    def _spare_lifelines(self, even: Collection[str]) -> None:
        for guard in (*self.guards, *self._named(even)):
            workload = self.owner.get(guard.cgroup)
            if workload is not None and not (guard.kind == "ssh" and workload == HOST):
                self._refuse(guard, workload)
            if guard.cgroup != ROOT and guard.cgroup not in self.owner:
                self._spare(guard)

    def _named(self, even: Collection[str]) -> list[Guard]:
        """Cgroups of workloads that are lifelines by their unit's name. The host needs none of these: the
        process that listens is seen, and replies to what came in pass."""
        seen = {guard.cgroup for guard in self.guards}
        return [
            Guard(kind, path, _parts(path)[-1])
            for kind in LIFELINES
            for path in sorted(self._within_workloads())
            if kind not in even and path not in seen and _any(_parts(path), UNITS[kind])
        ]

    def _within_workloads(self) -> set[str]:
        return {
            path
            for path in self.cgroups
            if _is_unit(_parts(path)) and any(self.owner.get(p, HOST) != HOST for p in (path, *_above(path)))
        }

    def _refuse(self, guard: Guard, workload: str) -> None:
        objects = ", ".join(self.policies[workload][1])
        self.told.append(
            f"NOT ENFORCED on {guard.cgroup} (workload {workload}, {objects}): it is {WORDS[guard.kind]} "
            f"({guard.process}); leave it out of the workload, or start the agent with --even {guard.kind}"
        )
        del self.owner[guard.cgroup]

    def _spare(self, guard: Guard) -> None:
        """Its cgroup is no workload's own: whatever holds one above must not hold this."""
        above = _nearest(guard.cgroup, self.owner)
        if above is None or (guard.kind == "ssh" and above == HOST):
            return
        if guard.kind == "ssh" and HOST in self.policies:
            self.owner[guard.cgroup] = HOST
        else:
            self.exempt.add(guard.cgroup)
        if above != HOST:
            self.told.append(
                f"workload {above} leaves out {guard.cgroup}: it is {WORDS[guard.kind]} ({guard.process}); "
                f"start the agent with --even {guard.kind} to hold it too"
            )

    def _spare_exempt_units(self) -> None:
        for path in self.cgroups:
            parts = _parts(path)
            if path not in self.owner and _is_unit(parts) and _any(parts, self.settings.exempt):
                self.exempt.add(path)
