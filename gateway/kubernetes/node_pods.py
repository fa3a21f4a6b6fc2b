"""The pods of a cluster's node, as the agent sees them: from the API's snapshot and /proc to a plan.

Rules this file obeys:

- What the API did not tell yet is nobody's: until the first snapshot the agent's own pod and static pods are
  opened, everything else stays as an earlier agent left it.
- Nothing here changes the kernel: enforcement.py does, by the plan.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gateway import cgroups
from gateway.enforcement import Enforcement
from gateway.kubernetes import kubelet, node_plan, pods
from gateway.kubernetes.cluster import Cluster, Node, Pod
from gateway.kubernetes.pod_homes import PodHomes
from gateway.kubernetes.pods import MEND, Lookups, Placement, Selection
from gateway.links import ATTACHED, BYPASSED, NONE, State
from gateway.plan import EXEMPT, Plan, Selected, select
from gateway.policies.addresses import Address
from gateway.policies.records import Egress, Object
from gateway.settings import HOST, Settings
from gateway.states import EngineError
from gateway.surroundings import Surroundings
from routing.own import Home

NOBODY = Cluster(Node(""))
NAMED = 5  # pods that a sentence names


@dataclass(slots=True)
class Titled:
    """A pod's cgroup: for whoever tells of it. `pod` is None where the API has none."""

    path: str
    title: str
    pod: Pod | None


@dataclass(frozen=True, slots=True)
class View:
    """What one plan is made from; `cluster` is None before the API has told everything once."""

    cluster: Cluster | None
    settings: Settings
    selected: Selected


@dataclass(slots=True)
class NodePods:
    """`root`: the cgroup below which they are; `server`: host and port of the API server."""

    root: Path
    server: tuple[str, int]
    cluster: Cluster | None = None
    by_id: dict[int, Titled] = field(default_factory=dict)
    placements: dict[str, Placement] = field(default_factory=dict)
    homes: PodHomes = field(init=False)
    _addresses: tuple[Address, ...] = ()
    _selection: Selection = field(default_factory=Selection)
    _own_uid: str | None = None

    def __post_init__(self) -> None:
        self.homes = PodHomes(self.root)

    # ---- The host's own policy ----------------------------------------------------------------------------

    def find_server(self) -> None:
        """The API server's addresses; where its name can't be resolved now, those of before stay."""
        with suppress(OSError):
            found = {at[4][0] for at in socket.getaddrinfo(*self.server, type=socket.SOCK_STREAM)}
            addresses = map(ipaddress.ip_address, found)
            self._addresses = tuple(sorted(addresses, key=lambda a: (a.version, int(a))))

    def view(self, settings: Settings, bootstrap: Iterable[Object]) -> View:
        """What selects the host: with the rules of `bootstrap`, and with the API server in any case."""
        cluster = self.cluster  # once: the source replaces it at any time
        if cluster is None:
            return View(None, settings, Selected({}, ()))
        here = replace(settings, node_labels=cluster.node.labels)
        kept = [item for item in bootstrap if isinstance(item, Egress)]
        selected = select(cluster.objects, here, [*kept, pods.api_server(self._addresses, self.server[1])])
        where = ", ".join(map(str, self._addresses)) or "NO ADDRESS"
        told = (
            f"the host keeps the API server ({where} port {self.server[1]})",
            *(f"the host keeps what {item} allows" for item in kept),
        )
        return View(cluster, settings, replace(selected, told=told if HOST in selected.policies else ()))

    # ---- The plan -----------------------------------------------------------------------------------------

    def extend(
        self,
        view: View,
        plan: Plan,
        ids: Mapping[str, int],
        stirred: Iterable[str],
        enforcement: Enforcement,
        around: Surroundings,
        now: float,
    ) -> Plan:
        """The host's plan with the pods. `stirred`: pods whose processes are to be looked at."""
        cluster, mine = view.cluster or NOBODY, view.settings.cluster
        at = {path: name for path, (number, name) in enforcement.placed.items() if ids.get(path) == number}
        node = Lookups(tuple((r.address, r.port) for r in around.resolvers), around.searches)
        own = self._own(ids, mine.cgroup_root)
        self.placements = pods.place(cluster, ids, self._selection, node, mine, own, at)
        self._name(ids, cluster)
        self._find_homes(ids, stirred, now)
        if view.cluster is None:
            plan = _as_it_is(plan, at, enforcement)
        made = node_plan.extend(plan, self.placements, ids, self.homes.known, at, enforcement.said, mine)
        if view.cluster is None:
            return replace(made, shut=frozenset(), opened=frozenset())
        return replace(made, ranges=(mine.domains, (*cluster.ranges, *mine.ranges), mine.never_learn))

    def where(self, host: Home) -> dict[str, Home]:
        """Where each pod lives, as far as it is known."""
        on_host = {path: host for path, one in self.placements.items() if one.host_network}
        return on_host | self.homes.known

    def look_again(self, now: float) -> bool:
        """Whether a pod that waits for its network has one by now."""
        found = [self.homes.look(path, now) for path in list(self.homes.waiting)]  # all of them
        return any(found)

    def rows(self, enforcement: Enforcement) -> list[dict[str, Any]]:
        """For people: every pod, its group, its link, and what keeps it from being contained."""
        return [
            {
                "pod": one.title,
                "group": _group(one, enforcement.placed.get(path)),
                "objects": list(one.objects),
                "link": state.link,
                "link_why": state.why,
                "uncontained": one.loose or _raw(one, state),
                "cgroup": path,
            }
            for path, one in sorted(self.placements.items(), key=lambda item: item[1].title)
            for state in [enforcement.link_states.get(path) or _without_link(one)]
        ]

    def loose(self, rows: Iterable[Mapping[str, Any]]) -> list[str]:
        """One sentence: with a runtime that gives NET_RAW to everybody it would be a line for each pod."""
        names = [str(row["pod"]) for row in rows if row["uncontained"]]
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        return [f"Uncontained: {', '.join(names[:NAMED])}{more}; skouter status says why"] if names else []

    def _find_homes(self, ids: Mapping[str, int], stirred: Iterable[str], now: float) -> None:
        need = {
            path: ids[path]
            for path, one in self.placements.items()
            if one.terms is not None and not one.host_network
        }
        new = self.homes.keep(need)
        for path in sorted(new | (set(stirred) & need.keys())):
            self.homes.look(path, now)

    def _name(self, ids: Mapping[str, int], cluster: Cluster) -> None:
        by_uid = {kubelet.same_uid(uid): pod for uid, pod in cluster.pods.items()}
        uids = {path: found.uid for path, found in kubelet.pods(self.placements).items()}
        self.by_id = {
            ids[path]: Titled(path, one.title, by_uid.get(uids.get(path, "")))
            for path, one in self.placements.items()
        }

    def _own(self, ids: Mapping[str, int], root: str) -> str:
        """The UID of the pod that this process is in; in a cgroup namespace its path does not tell."""
        if self._own_uid is None:
            mine = os.getpid()
            found = (
                pod.uid
                for path, pod in kubelet.pods(ids, root).items()
                if mine in cgroups.processes_below(self.root / path.lstrip("/"))
            )
            self._own_uid = next(found, "")
        return self._own_uid


def _as_it_is(plan: Plan, at: Mapping[str, str], enforcement: Enforcement) -> Plan:
    exempt = frozenset(path for path, name in at.items() if name == EXEMPT)
    return replace(plan, kept=frozenset(enforcement.said), exempt=plan.exempt | exempt)


def _without_link(placement: Placement) -> State:
    """Of a pod whose link nobody wants, or can know."""
    if placement.terms is None:
        return State(NONE, "not selected")
    if placement.host_network:
        return State(NONE, "it is on the host's network")
    if placement.terms.policy.audit:
        return State(NONE, "its policy refuses nothing")
    return State(NONE, "its network is not known yet")


def _raw(placement: Placement, state: State) -> str:
    if not placement.raw or state.link == ATTACHED:
        return ""
    how = "is bypassed" if state.link == BYPASSED else "is not judged"
    return f"{placement.raw}, and its link {how} ({state.why}): {MEND}"


def _group(placement: Placement, placed: tuple[int, str] | None) -> str:
    if placement.terms is None:
        return "not selected"
    return placed[1] if placed and placed[1] != EXEMPT else "closed until its network is known"


def refuse_version_1(root: Path, ids: Mapping[str, int], settings: Settings) -> None:
    """A node whose pods are in cgroups of version 1 would look enforced and not be so.

    Raises :class:`EngineError`.
    """
    found = cgroups.version_1_pods(cgroups.mounts())
    if found is not None and not kubelet.tops(ids, settings.cluster.cgroup_root):
        raise EngineError(
            f"the pods of this node are in {found}, a hierarchy of cgroup version 1, and not below {root}: "
            "boot it with systemd.unified_cgroup_hierarchy=1"
        )
