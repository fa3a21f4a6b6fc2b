"""From the rules of all objects that select a workload to one policy, which is a value.

The rules this file must obey:

* Equal unions are equal values, whatever the order of the rules or their split across objects: workloads
  with the same policy share one number in the kernel.
* Any enforcing object makes a workload default-deny, and the union of the enforcing ones is all it may
  reach. Audit objects take no part then; where only they select, the policy is their union in audit mode.
  An object without rules denies everything. Selected by nothing is no policy at all, not an empty one.
* The peers of a rule are OR-ed, then AND-ed with its ports (as in NetworkPolicy). No ports is every port of
  every protocol, which is more than TCP, UDP, SCTP and ICMP together.
* A peer's id is a hash of its text, never a counter: it means the same after a restart, and in every policy.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

from gateway.policies.addresses import Network
from gateway.policies.names import Pattern
from gateway.policies.patterns import Regex
from gateway.policies.records import Block, Egress, Ports, Rule

LAST_PORT = 65535


class PortRange(NamedTuple):
    """Ports first to last of one protocol; all of them, 0 included, where no port was given."""

    protocol: str
    first: int
    last: int


PortSet = frozenset[PortRange]
ALL: PortSet = frozenset({PortRange("ANY", 0, LAST_PORT)})


@dataclass(frozen=True, slots=True)
class Peer:
    """Something that may be reached: names by wildcard or by expression, or the addresses of a block."""

    what: Pattern | Regex | Block

    @property
    def kind(self) -> Literal["name", "pattern", "prefix"]:
        if isinstance(self.what, Block):
            return "prefix"
        return "name" if isinstance(self.what, Pattern) else "pattern"

    @property
    def text(self) -> str:
        """The one spelling of this peer: *.example.com, /api-[0-9]+/, 10.0.0.0/8 except 10.1.0.0/16."""
        if not isinstance(self.what, Block):
            return str(self.what)
        excepts = ", ".join(map(str, self.what.excepts))
        return f"{self.what.network} except {excepts}" if excepts else str(self.what.network)

    @property
    def id(self) -> int:
        return _hash(self.text)


@dataclass(frozen=True, slots=True)
class Policy:
    """What a workload may reach: each peer once, with all the ports that any rule gives it."""

    grants: frozenset[tuple[Peer, PortSet]] = frozenset()
    audit: bool = False
    only_allowed_names: bool = False


def union(selected: Iterable[Egress]) -> Policy | None:
    """The policy of a workload that `selected` select, or None where it is none's business."""
    selected = list(selected)
    acting = [egress for egress in selected if not egress.audit] or selected
    if not acting:
        return None
    grants: dict[Peer, set[PortRange]] = {}
    for rule in (rule for egress in acting for rule in egress.rules):
        for peer in peers(rule):
            grants.setdefault(peer, set()).update(port_set(rule.ports))
    return Policy(
        grants=frozenset((peer, merge(ranges)) for peer, ranges in grants.items()),
        audit=acting[0].audit,
        only_allowed_names=any(egress.only_allowed_names for egress in acting),
    )


def peers(rule: Rule) -> list[Peer]:
    """The peers of a rule, in canonical form."""
    found = [Peer(name) for name in rule.domains] + [Peer(regex) for regex in rule.regex]
    return found + [Peer(_canonical(block)) for block in rule.blocks]


def port_set(ports: Iterable[Ports]) -> PortSet:
    """The ports of a rule; none given is every port of every protocol."""
    return merge(PortRange(p.protocol, p.first, p.last) for p in ports) or ALL


def merge(ranges: Iterable[PortRange]) -> PortSet:
    """The same ports with the fewest ranges, so that equal sets are equal."""
    merged: list[PortRange] = []
    for port_range in sorted(ranges):
        if port_range.protocol == "ANY":
            return ALL
        previous = merged[-1] if merged else None
        if previous and previous.protocol == port_range.protocol and port_range.first <= previous.last + 1:
            merged[-1] = previous._replace(last=max(previous.last, port_range.last))
        else:
            merged.append(port_range)
    return frozenset(merged)


def contains(ports: PortSet, protocol: str, port: int | None) -> bool:
    """Whether `port` of `protocol` is one of `ports`; without a port, whether any of the protocol's is."""
    return any(r.protocol in ("ANY", protocol) and (port is None or r.first <= port <= r.last) for r in ports)


def describe(ports: PortSet) -> str:
    """The ports as people write them: "TCP 80, TCP 8000-8080, ICMP"."""
    return ", ".join(map(_describe, sorted(ports)))


def _describe(r: PortRange) -> str:
    if r.protocol == "ANY":
        return "every port and protocol"
    if r.protocol == "ICMP":
        return "ICMP"
    if (r.first, r.last) == (0, LAST_PORT):
        return f"every {r.protocol} port"
    return f"{r.protocol} {r.first}" + (f"-{r.last}" if r.last != r.first else "")


def _canonical(block: Block) -> Block:
    # One family at a time, as collapse_addresses wants it: all excepts lie inside of the network.
    excepts: list[Network] = list(ipaddress.collapse_addresses(block.excepts))  # type: ignore[type-var]
    return Block(block.network, tuple(excepts))


@lru_cache(maxsize=65536)
def _hash(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") or 1  # 0 marks an empty slot
