"""Which objects select which workload.

The rules this file must obey:

* An Egress picks pods of its own namespace and nothing else: the owner of a namespace must neither widen nor
  cut what is not theirs. Only a ClusterEgress picks nodes and machines behind a gateway.
* Selectors are Kubernetes label selectors (metav1.LabelSelector): all labels and all expressions hold, NotIn
  holds where the key is missing. `{}` picks everything, a missing selector nothing.
* Without a namespaceSelector a ClusterEgress leaves the EXEMPT namespaces alone, else the cluster's DNS is
  its first victim. An Egress inside of one is meant, and counts. The agent itself is never selected.
* A command started by `skouter run` is picked like a pod with the namespace and labels it was given.
* Machines are told apart by source prefix, the nearest wins, as in the kernel's table of sources.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from gateway.policies.addresses import Network, inside
from gateway.policies.records import Egress, Expression, ExternalWorkload, Object, Selector

EXEMPT = frozenset({"kube-system", "skouter-system"})


@dataclass(frozen=True, slots=True)
class Workload:
    """What is filtered: a pod, the host itself, a command, or a machine behind a gateway."""

    kind: Literal["pod", "host", "machine", "command"]
    name: str = ""
    namespace: str = "default"
    labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    namespace_labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    node_labels: Mapping[str, str] = field(default_factory=dict, hash=False)
    addresses: tuple[Network, ...] = ()  # of a machine: the source prefix that it is told apart by
    is_agent: bool = False

    def __str__(self) -> str:
        inner = f"{self.namespace}/{self.name}" if self.kind == "pod" else self.name
        return f"{self.kind} {inner}".rstrip()


def selecting(
    objects: Iterable[Object], workload: Workload, exempt: Collection[str] = EXEMPT
) -> tuple[Egress, ...]:
    """The objects that select `workload`, Audit ones too, in the order given."""
    return tuple(item for item in objects if isinstance(item, Egress) and selects(item, workload, exempt))


def selects(egress: Egress, workload: Workload, exempt: Collection[str] = EXEMPT) -> bool:
    """Whether `egress` says what `workload` may reach."""
    if workload.is_agent:
        return False
    if workload.kind in ("pod", "command"):
        return _matches(egress.pods, workload.labels) and _in_its_namespaces(egress, workload, exempt)
    if egress.namespace is not None:
        return False
    if workload.kind == "host":
        return _matches(egress.nodes, workload.node_labels)
    return _matches(egress.machines, workload.labels) or _is_source(egress.sources, workload.addresses)


def machines(objects: Iterable[Object], networks: Iterable[Network] = ()) -> list[Workload]:
    """A workload for every source prefix that some object names, and for each of these `networks`.

    A prefix carries the labels of the nearest ExternalWorkload around it (of equal ones the first by name),
    so that a machine inside of a `sourceCIDRs` network keeps its own labels.
    """
    objects = list(objects)
    owners = [
        (address, external)
        for external in sorted((o for o in objects if isinstance(o, ExternalWorkload)), key=lambda o: o.name)
        for address in external.addresses
    ]
    prefixes = {*networks, *(address for address, _ in owners)}
    for egress in objects:
        prefixes.update(egress.sources if isinstance(egress, Egress) and egress.namespace is None else ())
    found = []
    for prefix in sorted(prefixes, key=lambda p: (p.version, p.network_address, p.prefixlen)):
        around = [(address.prefixlen, owner) for address, owner in owners if inside(prefix, address)]
        owner = max(around, key=lambda entry: entry[0])[1] if around else None
        labels = dict(owner.labels) if owner else {}
        found.append(
            Workload("machine", owner.name if owner else str(prefix), "", labels, addresses=(prefix,))
        )
    return found


def machine_at(objects: Iterable[Object], address: Network) -> Workload:
    """The machine whose packets come from there, as a gateway tells them apart; one without a name where no
    object has the address."""
    around = [each for each in machines(objects) if inside(address, each.addresses[0])]
    nobody = Workload("machine", str(address.network_address), addresses=(address,))
    return max(around, key=lambda each: each.addresses[0].prefixlen, default=nobody)


def _in_its_namespaces(egress: Egress, workload: Workload, exempt: Collection[str]) -> bool:
    if egress.namespace is not None:
        return egress.namespace == workload.namespace
    if egress.namespaces is None:
        return workload.namespace not in exempt
    return _matches(egress.namespaces, workload.namespace_labels)


def _is_source(sources: tuple[Network, ...], addresses: tuple[Network, ...]) -> bool:
    return bool(addresses) and all(any(inside(a, source) for source in sources) for a in addresses)


def _matches(selector: Selector | None, labels: Mapping[str, str]) -> bool:
    return (
        selector is not None
        and all(labels.get(key) == value for key, value in selector.labels)
        and all(_holds(expression, labels) for expression in selector.expressions)
    )


def _holds(expression: Expression, labels: Mapping[str, str]) -> bool:
    value = labels.get(expression.key)
    match expression.operator:
        case "In":
            return value is not None and value in expression.values
        case "NotIn":
            return value not in expression.values
        case "Exists":
            return value is not None
        case "DoesNotExist":
            return value is None
    raise AssertionError(f"documents.py lets no operator {expression.operator!r} through")
