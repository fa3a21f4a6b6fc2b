"""The plan of a cluster's node: the host's own, and its pods in groups.

The rules this file must obey:

* What is not placed is not touched: it stays where an earlier plan put it, or closed where none did.
* A pod with a network of its own is held to a policy as soon as it is known which network that is. Until then
  it is closed, also where it was held to nothing before.
* The pods' root is shut in the plan that places the pods that are there, so that none of them is cut off.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace

from gateway.groups import GROUP, assign
from gateway.kubernetes import kubelet
from gateway.kubernetes.pods import Placement, Terms, digest
from gateway.plan import EXEMPT, Plan, Wanted
from gateway.settings import ClusterSettings


def extend(
    plan: Plan,
    placements: Mapping[str, Placement],
    cgroups: Collection[str],
    homes: Collection[str],
    at: Mapping[str, str],
    said: Mapping[str, str | None],
    settings: ClusterSettings,
) -> Plan:
    """`plan` with the pods. `homes`: cgroups whose network is known; `at`: where each cgroup is now, EXEMPT
    for what is held to nothing; `said`: what each workload says now (`pods.digest`)."""
    there = kubelet.pods(cgroups, settings.cgroup_root)
    ready = {
        path: placement
        for path, placement in placements.items()
        if placement.terms is None or placement.host_network or path in homes
    }
    terms = {path: one.terms for path, one in ready.items() if one.terms is not None}
    free = {path for path, one in ready.items() if one.terms is None}
    staying = [path for path in there if path in at and path not in ready]
    says = {path: digest(one) for path, one in terms.items()}
    meant = {says[path]: one for path, one in terms.items()}
    grouped = {path: name for path, name in at.items() if name.startswith(GROUP)}
    saying = {name: key for name, key in said.items() if name.startswith(GROUP)}
    groups = assign(says, [path for path in staying if path in grouped], grouped, saying, free)
    members: dict[str, list[str]] = {name: [] for name in groups.says}
    for path, name in groups.of.items():
        members[name].append(path)
    wanted = {
        name: _wanted(meant[key], key, members[name], placements)
        for name, key in groups.says.items()
        if key in meant
    }
    tops = frozenset(kubelet.tops(cgroups, settings.cgroup_root))
    return replace(
        plan,
        wanted={**plan.wanted, **wanted},
        exempt=plan.exempt
        | free
        | {path for path in staying if at[path] == EXEMPT and path not in placements},
        kept=plan.kept | {name for name, key in groups.says.items() if key not in meant},
        shut=tops if settings.closed else frozenset(),
        opened=frozenset() if settings.closed else tops,
        titles={path: placement.title for path, placement in placements.items()},
    )


def _wanted(terms: Terms, key: str, cgroups: Collection[str], placements: Mapping[str, Placement]) -> Wanted:
    objects = {name for path in cgroups if path in placements for name in placements[path].objects}
    lookups = terms.resolvers, terms.searches
    return Wanted(terms.policy, frozenset(cgroups), tuple(sorted(objects)), lookups, key)
