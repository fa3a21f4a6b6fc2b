"""From objects of the API server, as it sends them in JSON, to the records that an agent keeps of them.

The rules this file must obey:

* Only what a record needs is kept; the object itself, with its managed fields and its history, is let go.
* The API server leaves out what is empty: a missing field is the API's own default, never an error.
* What people write freely (annotations, an item that is no address) opens nothing: it is left out.
* Objects of ours are read by documents.py. One that is wrong elsewhere than in its rules keeps the place of
  the last version that could be read: the definition in the cluster was older than this agent, or bypassed.

Source: the API reference of Kubernetes (core/v1, discovery.k8s.io/v1, networking.k8s.io/v1).
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from gateway.kubernetes.cluster import Labels, Node, Pod
from gateway.policies import documents
from gateway.policies.addresses import Address, Network
from gateway.policies.records import Object, Problem
from gateway.policies.schema import API_VERSION

Data = Mapping[str, Any]
Server = tuple[Address, int]

FILE = "cluster"  # where a problem lies that is in no file
CONFIG_HASH, CONFIG_MIRROR = "kubernetes.io/config.hash", "kubernetes.io/config.mirror"
SERVICE_NAME = "kubernetes.io/service-name"

_HASH = re.compile(r"[0-9a-f]{16,128}")  # never the form of a UID: nobody can write another pod's there
_CONTAINERS = ("initContainers", "containers", "ephemeralContainers")


@dataclass(frozen=True, slots=True)
class Condition:
    """The condition Accepted of an object; `since` is its lastTransitionTime (RFC 3339)."""

    status: bool
    reason: str
    message: str
    generation: int = 0
    since: str = ""


@dataclass(frozen=True, slots=True)
class Item:
    """An object of ours with what the API says beside it, which does not count when two are compared.

    `object` is None where nothing of it can be read; `stale` where it is an earlier version of it.
    `document` is what it was read from, less what the API adds.
    """

    object: Object | None
    problems: tuple[Problem, ...] = ()
    stale: bool = False
    uid: str = field(default="", compare=False)
    version: str = field(default="", compare=False)  # its resourceVersion
    generation: int = field(default=0, compare=False)
    condition: Condition | None = field(default=None, compare=False)
    document: Data = field(default_factory=dict, compare=False)


@dataclass(frozen=True, slots=True)
class OnNode:
    """What the API says of this node: the record, and the networks of the pods that run here."""

    node: Node
    ranges: tuple[Network, ...] = ()


# ---- Kubernetes' own ------------------------------------------------------------------------------------


def pod(data: Data) -> Pod:
    metadata, spec = data["metadata"], data.get("spec") or {}
    contexts = [c.get("securityContext") or {} for group in _CONTAINERS for c in spec.get(group) or ()]
    dns = spec.get("dnsConfig") or {}
    return Pod(
        uid=metadata["uid"],
        namespace=metadata["namespace"],
        name=metadata["name"],
        labels=labels(data),
        config_hash=_config_hash(metadata),
        host_network=bool(spec.get("hostNetwork")),
        runtime_class=spec.get("runtimeClassName") or "",
        added=frozenset().union(*map(_added, contexts)),
        dropped=frozenset.intersection(*map(_dropped, contexts)) if contexts else frozenset(),
        dns_policy=spec.get("dnsPolicy") or "ClusterFirst",
        searches=tuple(dns.get("searches") or ()),
        owner=_controller(metadata),
        finished=(data.get("status") or {}).get("phase") in ("Succeeded", "Failed"),
    )


def labels(data: Data) -> Labels:
    return tuple(sorted((data["metadata"].get("labels") or {}).items()))


def node(data: Data) -> OnNode:
    spec, status = data.get("spec") or {}, data.get("status") or {}
    texts = [a["address"] for a in status.get("addresses") or () if a["type"] in ("InternalIP", "ExternalIP")]
    record = Node(data["metadata"]["name"], labels(data), tuple(dict.fromkeys(_addresses(texts))))
    return OnNode(record, tuple(_networks(spec.get("podCIDRs") or [spec.get("podCIDR") or ""])))


def service(data: Data) -> tuple[Server, ...]:
    """The servers that a Service of the cluster's DNS is, as its clients see it."""
    spec = data.get("spec") or {}
    own = _addresses(spec.get("clusterIPs") or [spec.get("clusterIP") or ""])  # "None" is no address
    return _servers(own, spec.get("ports"))


def endpoint_slice(data: Data) -> tuple[str, tuple[Server, ...]]:
    """The Service (namespace/name) that it belongs to, and the servers behind it, ready or not: an answer
    that a server sent before it became unready is still its answer."""
    metadata = data["metadata"]
    owner = f"{metadata['namespace']}/{(metadata.get('labels') or {}).get(SERVICE_NAME, '')}"
    texts = [text for endpoint in data.get("endpoints") or () for text in endpoint.get("addresses") or ()]
    return owner, _servers(_addresses(texts), data.get("ports"))


def addresses_behind(data: Data) -> tuple[Address, ...]:
    """Of an EndpointSlice, ready or not."""
    texts = [text for endpoint in data.get("endpoints") or () for text in endpoint.get("addresses") or ()]
    return tuple(_addresses(texts))


def service_cidr(data: Data) -> tuple[Network, ...]:
    return tuple(_networks((data.get("spec") or {}).get("cidrs") or ()))


def by_cgroup(pods: Iterable[Pod]) -> dict[str, Pod]:
    """Pods by `cgroup_uid`, from the oldest to the newest. An annotation can claim the cgroup of a static pod
    only; the one that was there first has it."""
    found: dict[str, Pod] = {}
    for each in pods:
        found.setdefault(each.cgroup_uid, each)
    return found


def _config_hash(metadata: Data) -> str:
    annotations = metadata.get("annotations") or {}
    text = annotations.get(CONFIG_HASH, "")
    return text if _HASH.fullmatch(text) and CONFIG_MIRROR in annotations else ""


def _added(context: Data) -> frozenset[str]:
    if context.get("privileged"):
        return frozenset(["ALL"])
    return _capabilities(context, "add")


def _dropped(context: Data) -> frozenset[str]:
    return frozenset() if context.get("privileged") else _capabilities(context, "drop")


def _capabilities(context: Data, what: str) -> frozenset[str]:
    names = (context.get("capabilities") or {}).get(what) or ()
    return frozenset(name.upper().removeprefix("CAP_") for name in names)


def _controller(metadata: Data) -> str:
    owners = metadata.get("ownerReferences") or ()
    return next((f"{o['kind']} {o['name']}" for o in owners if o.get("controller")), "")


def _servers(addresses: Iterable[Address], ports: Iterable[Data] | None) -> tuple[Server, ...]:
    """DNS over TCP has the number of DNS over UDP; what is TCP alone are metrics."""
    numbers = [port["port"] for port in ports or () if port.get("protocol") == "UDP" and port.get("port")]
    return tuple((address, number) for address in addresses for number in numbers)


def _addresses(texts: Iterable[str]) -> Iterator[Address]:
    for text in texts:
        try:
            yield ipaddress.ip_address(text)
        except ValueError:
            continue


def _networks(texts: Iterable[str]) -> Iterator[Network]:
    for text in texts:
        try:
            yield ipaddress.ip_network(text, strict=False)
        except ValueError:
            continue


# ---- Ours -------------------------------------------------------------------------------------------------


def item(kind: str, data: Data, keeps: bool = False) -> Item:
    """An Egress, ClusterEgress or ExternalWorkload. Raises nothing: what is wrong is among its problems.
    `keeps`: its document, too."""
    metadata = data["metadata"]
    known = {key: metadata[key] for key in ("name", "namespace", "labels") if key in metadata}
    document = {"apiVersion": API_VERSION, "kind": kind, "metadata": known, "spec": data.get("spec")}
    found, problems = documents.read_object(document, FILE)
    return Item(
        object=found,
        problems=tuple(problems),
        uid=metadata["uid"],
        version=metadata["resourceVersion"],
        generation=int(metadata.get("generation") or 0),
        condition=_accepted(data),
        document=document if keeps else {},
    )


def succeed(before: Item | None, new: Item) -> Item:
    """What is kept of `new` after `before`: where it can't be read, the object as it was."""
    if new.object is not None or before is None or before.uid != new.uid:
        return new
    return replace(new, object=before.object, document=before.document, stale=before.object is not None)


def _accepted(data: Data) -> Condition | None:
    for each in (data.get("status") or {}).get("conditions") or ():
        if each.get("type") == "Accepted":
            return Condition(
                status=each.get("status") == "True",
                reason=each.get("reason") or "",
                message=each.get("message") or "",
                generation=int(each.get("observedGeneration") or 0),
                since=each.get("lastTransitionTime") or "",
            )
    return None
