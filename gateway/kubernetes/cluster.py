"""What the API server says of a cluster as far as one node's agent asks for it, as frozen records.

The rules this file must obey:

* Values and nothing else: whoever makes one (source.py) has read it from the API.
* A snapshot is whole: nothing is enforced from a list that was read half.
* What the API does not say is empty, never guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gateway.policies.addresses import Address, Network
from gateway.policies.records import Object, Problem

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of this node (core/v1 Pod).

    `cgroup_uid` is what its cgroup is named by: the UID, but for a static pod the hash of its configuration
    (annotation kubernetes.io/config.hash), since the API knows only its mirror. `added` are capabilities that
    some container of it asks for; a privileged one asks for ALL. `dropped` are those that each of them drops
    (ALL, too): what a runtime gives by default, NET_RAW for one, a pod has unless all its containers drop it.
    """

    uid: str
    namespace: str
    name: str
    labels: Labels = ()
    config_hash: str = ""
    host_network: bool = False
    runtime_class: str = ""
    added: frozenset[str] = frozenset()
    dropped: frozenset[str] = frozenset()
    dns_policy: str = "ClusterFirst"
    searches: tuple[str, ...] = ()  # of its own dnsConfig
    owner: str = ""  # "DaemonSet skouter": who controls it
    finished: bool = False  # its phase is Succeeded or Failed: it does not run again

    @property
    def cgroup_uid(self) -> str:
        return self.config_hash or self.uid

    def __str__(self) -> str:
        return f"pod {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Node:
    """This node (core/v1 Node)."""

    name: str
    labels: Labels = ()
    addresses: tuple[Address, ...] = ()


@dataclass(frozen=True, slots=True)
class Cluster:
    """Everything that policies of this node hang on.

    `resolvers` are the cluster's DNS servers as a pod may see them, address and port: of the Service, of its
    endpoints, of the node's own cache. `ranges` are the networks of pods and Services as far as the API tells
    them to a node: of the pods of this one, and of Services where it has ServiceCIDRs.
    """

    node: Node
    objects: tuple[Object, ...] = ()
    problems: tuple[Problem, ...] = ()
    namespaces: Mapping[str, Labels] = field(default_factory=dict)
    pods: Mapping[str, Pod] = field(default_factory=dict)  # by cgroup_uid
    resolvers: tuple[tuple[Address, int], ...] = ()
    ranges: tuple[Network, ...] = ()
