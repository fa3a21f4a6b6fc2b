"""The cluster as one node's agent needs it, followed at the API server; and what the agent says there.

The rules this file must obey:

- A snapshot is made when every list was read to its end once, and is replaced as a whole. While the server is
  away, or an API is missing that was there, the last one stays; `health` says since when and why.
- Only what this node needs is asked for: its own pods, itself, the Services of the cluster's DNS. Namespaces
  and policies are the same for every node.
- Requests block, so they run in threads of their own; whatever changes, changes in trio's.

A node's own DNS cache (NodeLocal DNSCache) is believed where its pod runs on this node in the host's network:
its address is link-local and the pod adds it to the node, so that packets to it never leave the node. Where
it does not run, anybody on the same link could have that address, and it is no resolver.
"""

from __future__ import annotations

import ipaddress
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import trio

from gateway.kubernetes import api_objects, api_questions
from gateway.kubernetes.api_objects import Item, OnNode, Server
from gateway.kubernetes.api_rights import OF_MACHINES
from gateway.kubernetes.api_server import SERVICE_ACCOUNT, Data, Door, ServerError
from gateway.kubernetes.api_writer import Writer
from gateway.kubernetes.cluster import Cluster, Node, Pod
from gateway.kubernetes.conditions import RULES_IGNORED
from gateway.kubernetes.crds import NAMES
from gateway.kubernetes.follow import Follower, Pace, Resource
from gateway.policies.addresses import Address, Network
from gateway.policies.records import Object, Problem
from gateway.policies.schema import API_VERSION, GROUP, KINDS

CLUSTER_DNS = (("kube-system", "k8s-app=kube-dns"),)
OPENSHIFT_DNS = (("openshift-dns", "dns.operator.openshift.io/owning-dns=default"),)
NODE_CACHE: tuple[Address, ...] = (ipaddress.ip_address("169.254.20.10"),)
NODE_CACHE_POD = "kube-system", ("k8s-app", "node-local-dns")
DNS_PORT = 53


@dataclass(frozen=True, slots=True)
class Asked:
    """What may be set. `dns` names the Services of the cluster's DNS, by namespace and label, and so their
    EndpointSlices, which carry the labels of their Service. `home` is the namespace of the agent's DaemonSet,
    which is followed there; none: it is no pod's. A `gateway` follows what may select machines, and keeps
    these documents; `peers` is the Service, by namespace and name, whose endpoints the other gateways are."""

    dns: tuple[tuple[str, str], ...] = CLUSTER_DNS
    node_cache: tuple[Address, ...] = NODE_CACHE
    pace: Pace = field(default_factory=Pace)
    spread: float = 30.0  # seconds within which some agent writes a condition
    account: Path = SERVICE_ACCOUNT
    home: str = ""
    gateway: bool = False
    peers: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Health:
    """`since` is in seconds since 1970; `errors` are sentences, one for each list that can't be followed;
    `error` is the last one, also of what works again."""

    connected: bool
    since: float
    error: str = ""
    errors: tuple[str, ...] = ()


class Kubernetes:
    """The API server by `kubeconfig`, or by the service account of this pod, for the node of this name."""

    def __init__(self, node_name: str, kubeconfig: Path | None = None, asked: Asked | None = None) -> None:
        self.node_name, self.asked = node_name, asked or Asked()
        self.door = Door(kubeconfig, self.asked.account)
        self.health = Health(False, time.time())
        resources = _resources(node_name, self.asked)
        threads = trio.CapacityLimiter(2 * len(resources))
        self._lists = {
            name: Follower(self.door, resource, self.asked.pace, threads, self._heard, self._weigh)
            for name, resource in resources.items()
        }
        self._writer = Writer(self.door, node_name, self.asked.spread, self.asked.pace.most, self._item)
        # As it was seen last: a node deleted from the API is still this one. A gateway is none.
        self._here = OnNode(Node(node_name)) if self.asked.gateway else None
        self._cluster: Cluster | None = None
        self._whole, self._news = trio.Event(), trio.Event()

    @property
    def cluster(self) -> Cluster:
        """The snapshot; the same one until something changes."""
        if self._cluster is None:
            if not self._whole.is_set():
                raise ServerError(0, "the cluster was not listed yet")
            self._cluster = self._snapshot()
        return self._cluster

    @property
    def documents(self) -> list[Data]:
        """Of a gateway: what may select machines, of each the last version without a problem."""
        items = [item for kind in OF_MACHINES for _, item in sorted(self._items(kind).items())]
        return [item.document for item in items if item.document and (item.stale or not item.problems)]

    @property
    def peers(self) -> tuple[Address, ...]:
        """Of a gateway: the addresses behind its Service."""
        return tuple(sorted({each for found in self._items("peers").values() for each in found}, key=str))

    @property
    def server(self) -> tuple[str, int]:
        """Host and port of the API server, as this agent reaches it. Raises ServerError."""
        return self.door.endpoint()

    @property
    def trouble(self) -> str:
        """Why a condition or an Event could not be written; empty once one was again."""
        return self._writer.error

    @property
    def is_leaving(self) -> bool:
        """Whether the last word on the agent's DaemonSet was that it is gone, or about to be."""
        own = self._lists.get("daemonset")
        return own is not None and own.listed and (not own.items or any(tuple(own.items.values())))

    async def changed(self) -> None:
        """Returns when something changed since it last returned, however much."""
        await self._news.wait()
        self._news = trio.Event()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """For ever; started when `cluster` is whole."""
        async with trio.open_nursery() as nursery:
            for each in self._lists.values():
                nursery.start_soon(each.run)
            nursery.start_soon(self._writer.run)
            await self._whole.wait()
            self._news = trio.Event()
            task_status.started()

    # ---- What the agent says ------------------------------------------------------------------------------

    def accept(self, object: Object, problems: Iterable[Problem] = (), reason: str = RULES_IGNORED) -> None:
        """The condition of an object of the snapshot: `problems` are those that reading did not find. It is
        written by whichever agent is first, and only where it is not there yet."""
        kind = str(object).partition(" ")[0]
        key = str(object).partition(" ")[2]
        item = self._item(kind, key)
        if item is not None and item.object == object:
            self._writer.accept(kind, key, item, tuple(problems), reason)

    def tell(self, about: Pod | Node, reason: str, note: str, count: int = 1) -> None:
        """An Event: what happened `count` times more. The same note is the same event, so no number in it."""
        self._writer.tell(about, reason, note, count)

    def counts(self) -> dict[str, int]:
        """Since the start, for metrics: requests sent, conditions and events written, events lost."""
        return {"requests": self.door.requests, **self._writer.counts()}

    # ---- What it hears ------------------------------------------------------------------------------------

    def _heard(self, follower: Follower) -> None:
        self._cluster = None
        self._here = self._items("node").get(self.node_name, self._here)
        self._tell_what_is_unreadable(follower)
        self._weigh()
        if self._here and all(each.listed for each in self._lists.values()):
            self._whole.set()
        self._news.set()

    def _weigh(self) -> None:
        errors = [each.error for each in self._lists.values() if each.error]
        if "node" in self._lists and self._lists["node"].listed and not self._here:
            errors.append(f"there is no node {self.node_name!r}: set NODE_NAME to spec.nodeName")
        connected = not errors and all(each.connected for each in self._lists.values())
        since = self.health.since if connected == self.health.connected else time.time()
        self.health = Health(connected, since, errors[0] if errors else self.health.error, tuple(errors))

    def _tell_what_is_unreadable(self, follower: Follower) -> None:
        """Of such an object nobody else hears."""
        kind = next((kind for kind in KINDS if self._lists.get(kind) is follower), None)
        for key, item in follower.items.items() if kind else ():
            if item.object is None or item.stale:
                self._writer.accept(str(kind), key, item, (), RULES_IGNORED)

    def _item(self, kind: str, key: str) -> Item | None:
        return self._items(kind).get(key)

    def _items(self, name: str) -> dict[str, Any]:
        """None of a list that is not followed."""
        return self._lists[name].items if name in self._lists else {}

    def _snapshot(self) -> Cluster:
        assert self._here is not None
        items = [item for kind in KINDS for _, item in sorted(self._items(kind).items())]
        pods = [pod for _, pod in sorted(self._items("pods").values(), key=lambda each: each[0])]
        return Cluster(
            node=self._here.node,
            objects=tuple(item.object for item in items if item.object is not None),
            problems=tuple(problem for item in items for problem in item.problems),
            namespaces=MappingProxyType(dict(self._items("namespaces"))),
            pods=MappingProxyType(api_objects.by_cgroup(pods)),
            resolvers=self._resolvers(pods),
            ranges=tuple(sorted({*self._here.ranges, *self._service_ranges()}, key=lambda n: (n.version, n))),
        )

    def _service_ranges(self) -> Iterable[Network]:
        return (network for found in self._items("ranges").values() for network in found)

    def _resolvers(self, pods: Iterable[Pod]) -> tuple[Server, ...]:
        found: set[Server] = set()
        for number in range(len(self.asked.dns)):
            services = self._items(f"dns {number}")
            found.update(server for servers in services.values() for server in servers)
            for owner, servers in self._items(f"dns {number} endpoints").values():
                found.update(servers if owner in services else ())
        if any(map(_is_node_cache, pods)):
            found.update((address, DNS_PORT) for address in self.asked.node_cache)
        return tuple(sorted(found, key=lambda server: (server[0].version, server)))


def _is_node_cache(pod: Pod) -> bool:
    namespace, label = NODE_CACHE_POD
    return pod.namespace == namespace and label in pod.labels and pod.host_network and not pod.finished


def _resources(node_name: str, asked: Asked) -> dict[str, Resource]:
    if asked.gateway:
        return _resources_of_gateway(asked)
    found = {kind: _ours(kind) for kind in KINDS}
    found["node"] = Resource("/api/v1/nodes", api_objects.node, fields=f"metadata.name={node_name}")
    found["namespaces"] = Resource("/api/v1/namespaces", api_objects.labels)
    found["pods"] = Resource("/api/v1/pods", _aged_pod, fields=f"spec.nodeName={node_name}")
    ranges = "/apis/networking.k8s.io/v1/servicecidrs"
    found["ranges"] = Resource(ranges, api_objects.service_cidr, optional=True)
    if asked.home:
        own = api_questions.daemonsets(asked.home)
        mine = f"metadata.name={api_questions.DAEMONSET}"
        found["daemonset"] = Resource(own, api_questions.is_deleted, fields=mine)
    for number, (namespace, labels) in enumerate(asked.dns):
        services = f"/api/v1/namespaces/{namespace}/services"
        slices = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        found[f"dns {number}"] = Resource(services, api_objects.service, labels=labels)
        found[f"dns {number} endpoints"] = Resource(slices, api_objects.endpoint_slice, labels=labels)
    return found


def _resources_of_gateway(asked: Asked) -> dict[str, Resource]:
    found = {kind: _ours(kind, keeps=True) for kind in OF_MACHINES}
    if asked.peers:
        namespace, name = asked.peers
        slices = f"/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        mine = f"{api_objects.SERVICE_NAME}={name}"
        found["peers"] = Resource(slices, api_objects.addresses_behind, labels=mine)
    return found


def _ours(kind: str, keeps: bool = False) -> Resource:
    return Resource(
        f"/apis/{API_VERSION}/{NAMES[kind].plural}",
        lambda data: api_objects.item(kind, data, keeps),
        api_objects.succeed,
        definition=f"{NAMES[kind].plural}.{GROUP}",
    )


def _aged_pod(data: Data) -> tuple[tuple[Any, ...], Pod]:
    """A pod behind what sorts it by age."""
    metadata = data["metadata"]
    return (metadata["creationTimestamp"], metadata["uid"]), api_objects.pod(data)
