"""What a policy says, as frozen records, and what is wrong with a file, as one too.

The rules this file must obey:

* Values and nothing else: whoever makes one (documents.py, allow.py) has checked it before.
* Frozen all the way down, tuples of pairs and not dicts, so that every record has a hash.
"""

from __future__ import annotations

from dataclasses import dataclass

from gateway.policies.addresses import Network
from gateway.policies.names import Pattern
from gateway.policies.patterns import Regex


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong in a file; `field` is a path such as spec.rules[2].ports[0].port."""

    file: str
    line: int | None
    object: str
    field: str
    wrong: str
    mend: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return ": ".join(filter(None, (place, self.object, self.field, self.wrong))) + f"; {self.mend}"


@dataclass(frozen=True, slots=True)
class Expression:
    key: str
    operator: str
    values: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Selector:
    """A label selector: all of the labels and all of the expressions must hold; empty matches everything."""

    labels: tuple[tuple[str, str], ...] = ()
    expressions: tuple[Expression, ...] = ()


@dataclass(frozen=True, slots=True)
class Block:
    """A network without some parts of it; an address of `ips` is a network of one."""

    network: Network
    excepts: tuple[Network, ...] = ()


@dataclass(frozen=True, slots=True)
class Ports:
    protocol: str
    first: int = 0
    last: int = 65535


@dataclass(frozen=True, slots=True)
class Rule:
    """Any of the peers, on any of the ports; no ports is every port. Without peers it grants nothing."""

    domains: tuple[Pattern, ...] = ()
    regex: tuple[Regex, ...] = ()
    blocks: tuple[Block, ...] = ()
    ports: tuple[Ports, ...] = ()


@dataclass(frozen=True, slots=True)
class Egress:
    """An Egress or, where `namespace` is None, a ClusterEgress. A selector that is None selects nothing."""

    namespace: str | None
    name: str
    pods: Selector | None = None
    namespaces: Selector | None = None
    nodes: Selector | None = None
    machines: Selector | None = None
    sources: tuple[Network, ...] = ()
    audit: bool = False
    only_allowed_names: bool = False
    rules: tuple[Rule, ...] = ()

    def __str__(self) -> str:
        return (
            f"ClusterEgress {self.name}" if self.namespace is None else f"Egress {self.namespace}/{self.name}"
        )


@dataclass(frozen=True, slots=True)
class ExternalWorkload:
    name: str
    labels: tuple[tuple[str, str], ...] = ()
    addresses: tuple[Network, ...] = ()

    def __str__(self) -> str:
        return f"ExternalWorkload {self.name}"


Object = Egress | ExternalWorkload
