"""Which pod of this node is held to what: from the cluster as the API tells it, and the cgroups that exist.

The rules this file must obey:

* A pod's cgroup is placed where the API has its pod and that pod's namespace; every other one is left as it
  is. So a new one stays closed, and what runs on after its object was deleted stays under its last policy.
  Another pod of the same name has another UID, and so another cgroup.
* Static pods are known by their UID alone, and open until the API tells of them: it may be one of them that
  the API server is. Host-network pods are placed as soon as their object is there: they wait for no process.
* A pod that has finished runs nothing, says the API; while its cgroup is there it is placed like any other.
* The agent's own pods, also those of another version beside it, are held to nothing: they serve DNS to all.
* A pod trusts the servers that kubelet writes into its resolv.conf, never one that it could itself be: for a
  pod with a network of its own no loopback address.
* What can't be contained is placed all the same, and told.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import lru_cache

from gateway.kubernetes import kubelet
from gateway.kubernetes.cluster import Cluster, Labels, Pod
from gateway.policies.addresses import Address, Server
from gateway.policies.names import BadNameError, normal
from gateway.policies.policy import Policy, describe, union
from gateway.policies.records import Block, Egress, Object, Ports, Rule
from gateway.policies.selection import Workload, selecting
from gateway.settings import ClusterSettings

ADMIN = "NET_ADMIN"
RAW = frozenset({"NET_RAW", ADMIN})
ALL = frozenset({"ALL"})
BY_DEFAULT = "NET_RAW"  # what containerd and Docker give to a container that doesn't drop it
MEND = "write capabilities: {drop: [ALL]} for all containers"
UNKNOWN_YET = "static pod not known to the API yet"


@dataclass(frozen=True, slots=True)
class Terms:
    """What a pod is held to: pods of equal terms share a number of the kernel's."""

    policy: Policy
    resolvers: tuple[Server, ...] = ()
    searches: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Placement:
    """What a pod's cgroup is to be held to; no terms: nothing. `loose` says why that can't be enforced, `raw`
    why it can only where its link is judged."""

    title: str
    terms: Terms | None = None
    objects: tuple[str, ...] = ()
    host_network: bool = False
    loose: str = ""
    raw: str = ""


@dataclass(frozen=True, slots=True)
class Lookups:
    """The DNS servers and search suffixes of the node itself."""

    resolvers: tuple[Server, ...] = ()
    searches: tuple[str, ...] = ()


@dataclass(slots=True)
class Selection:
    """Which objects select which pod, remembered for as long as neither objects nor namespaces change."""

    objects: tuple[Object, ...] = ()
    namespaces: Mapping[str, Labels] = field(default_factory=dict)
    exempt: frozenset[str] = frozenset()
    _by_namespace: dict[str | None, list[Egress]] = field(default_factory=dict)
    _found: dict[tuple[str, Labels], tuple[Policy | None, tuple[str, ...]]] = field(default_factory=dict)
    _unions: dict[tuple[int, ...], tuple[tuple[Egress, ...], Policy | None]] = field(default_factory=dict)
    _used: set[tuple[int, ...]] = field(default_factory=set)

    def follow(self, cluster: Cluster, exempt: frozenset[str]) -> None:
        """Forgets what may have changed; a union of the same objects stays the same."""
        now = cluster.objects, cluster.namespaces, exempt
        if now == (self.objects, self.namespaces, self.exempt):
            return
        self.objects, self.namespaces, self.exempt = now
        self._unions = {key: self._unions[key] for key in self._used}
        self._found, self._used, self._by_namespace = {}, set(), {}
        for item in cluster.objects:
            if isinstance(item, Egress) and item.pods is not None:
                self._by_namespace.setdefault(item.namespace, []).append(item)

    def of(self, pod: Pod) -> tuple[Policy | None, tuple[str, ...]]:
        """The policy of a pod whose namespace is known, and the names of the objects that it comes from."""
        key = pod.namespace, pod.labels
        if key not in self._found:
            labels = dict(self.namespaces[pod.namespace])
            workload = Workload("pod", pod.name, pod.namespace, dict(pod.labels), labels)
            near = self._by_namespace.get(pod.namespace, []), self._by_namespace.get(None, [])
            selected = tuple(egress for part in near for egress in selecting(part, workload, self.exempt))
            self._found[key] = self._union(selected), tuple(map(str, selected))
        return self._found[key]

    def _union(self, selected: tuple[Egress, ...]) -> Policy | None:
        key = tuple(map(id, selected))  # the objects are kept beside it, so no other takes their place
        self._used.add(key)
        if key not in self._unions:
            self._unions[key] = selected, union(selected)
        return self._unions[key][1]


def place(
    cluster: Cluster,
    cgroups: Collection[str],
    selection: Selection,
    node: Lookups,
    settings: ClusterSettings,
    own_uid: str = "",
    placed: Collection[str] = (),
) -> dict[str, Placement]:
    """Cgroup of a pod to its placement, for the pods that can be placed.

    `own_uid`: the agent's own pod's; `placed`: cgroups that were placed before.
    """
    selection.follow(cluster, settings.exempt_namespaces)
    known = {kubelet.same_uid(uid): pod for uid, pod in cluster.pods.items()}
    own = known.get(kubelet.same_uid(own_uid))
    found_out: dict[str, Placement] = {}
    for path, found in kubelet.pods(cgroups, settings.cgroup_root).items():
        pod = known.get(found.uid)
        if found.uid == kubelet.same_uid(own_uid) or (pod and own and _is_agent(pod, own)):
            found_out[path] = Placement(str(pod or "the agent's own pod"))
        elif pod is not None and pod.namespace in cluster.namespaces:
            found_out[path] = _placement(pod, cluster, selection, node, settings)
        elif pod is None and found.is_static and path not in placed:
            found_out[path] = Placement(f"{UNKNOWN_YET}: {found.uid}")
    return found_out


def _is_agent(pod: Pod, own: Pod) -> bool:
    """Whether it is of the same controller: when it is rolled out, there are two on a node."""
    return pod == own or (own.owner != "" and (pod.namespace, pod.owner) == (own.namespace, own.owner))


def _placement(
    pod: Pod, cluster: Cluster, selection: Selection, node: Lookups, settings: ClusterSettings
) -> Placement:
    policy, objects = selection.of(pod)
    if policy is None:
        return Placement(str(pod), host_network=pod.host_network)
    terms = Terms(policy, _resolvers(pod, cluster, node, settings), _searches(pod, node, settings))
    return Placement(str(pod), terms, objects, pod.host_network, uncontained(pod, settings), raw_frames(pod))


# ---- DNS ------------------------------------------------------------------------------------------------


def _has_nodes_dns(pod: Pod) -> bool:
    """Source: "Pod's DNS Policy" in the documentation of Kubernetes."""
    return pod.dns_policy == "Default" or (pod.host_network and pod.dns_policy == "ClusterFirst")


def _resolvers(pod: Pod, cluster: Cluster, node: Lookups, settings: ClusterSettings) -> tuple[Server, ...]:
    servers = node.resolvers if _has_nodes_dns(pod) else settings.resolvers or cluster.resolvers
    return tuple(server for server in servers if pod.host_network or not server[0].is_loopback)


def _searches(pod: Pod, node: Lookups, settings: ClusterSettings) -> tuple[str, ...]:
    found: list[str] = []
    if pod.dns_policy != "None":
        if not _has_nodes_dns(pod):
            for domain in settings.domains:
                found += [f"{pod.namespace}.svc.{domain}", f"svc.{domain}", domain]
        found += node.searches
    for suffix in pod.searches:
        with suppress(BadNameError):
            found.append(normal(suffix))
    return tuple(dict.fromkeys(found))


# ---- What people are told -------------------------------------------------------------------------------


def uncontained(pod: Pod, settings: ClusterSettings) -> str:
    """Why a policy does not hold this pod, whatever its link: what it has, and the mend."""
    if any(fnmatchcase(pod.runtime_class, pattern) for pattern in settings.uncontained_runtimes):
        return f"runtimeClassName {pod.runtime_class} has a network stack of its own: leave it out"
    raw = _raw(pod)
    if raw and pod.host_network:
        return f"it has {', '.join(sorted(raw))} on the host's network: {MEND}"
    if raw == ALL:
        return f"it has ALL capabilities, also to change what holds it: {MEND}"
    return f"it has NET_ADMIN, and can forge what comes in: {MEND}" if ADMIN in raw else ""


def raw_frames(pod: Pod) -> str:
    """What lets a pod on a network of its own make frames that no socket hook sees; empty if nothing."""
    raw = _raw(pod)
    is_told = pod.host_network or raw == ALL or ADMIN in raw  # by uncontained()
    return "" if is_told or not raw else f"it has {', '.join(sorted(raw))}"


def _raw(pod: Pod) -> frozenset[str]:
    raw = pod.added & ALL or pod.added & RAW
    return raw or frozenset(() if pod.dropped & {*ALL, BY_DEFAULT} else {BY_DEFAULT})


def api_server(addresses: Iterable[Address], port: int) -> Egress:
    """What the node keeps whatever its policies say: the API server, by the addresses in use."""
    blocks = tuple(Block(ipaddress.ip_network(address)) for address in addresses)
    return Egress(None, "api-server", rules=(Rule(blocks=blocks, ports=(Ports("TCP", port, port),)),))


@lru_cache(maxsize=1024)
def digest(terms: Terms) -> str:
    """Equal for equal terms, also those of an earlier agent."""
    policy = terms.policy
    grants = sorted(f"{peer.kind} {peer.text} {describe(ports)}" for peer, ports in policy.grants)
    text = repr(
        (grants, policy.audit, policy.only_allowed_names, terms.searches, list(map(str, terms.resolvers)))
    )
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
