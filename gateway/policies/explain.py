"""Why a workload may reach something, or what to mend so that it may.

The rules this file must obey:

* It judges the documents as they were written, rule by rule, so that the answer names an object, a rule and a
  peer. The kernel judges their union; tests hold both to the same verdicts.
* A refusal always says the nearest thing that would have to be different.
* It knows no packets and no resolvers: an address that a DNS answer brought, and DNS to the node's own
  resolvers, pass although no rule names them. The sentence says so where it matters.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

from gateway.policies import names, patterns, policy
from gateway.policies.addresses import Network, inside
from gateway.policies.names import BadNameError, Pattern
from gateway.policies.patterns import Regex
from gateway.policies.policy import Peer, PortSet
from gateway.policies.records import Block, Egress, Object
from gateway.policies.selection import EXEMPT, Workload, selecting

Why = Literal[
    "rule", "untouched", "audit", "no-rules", "ports", "audit-only", "apex", "no-peer", "unreadable"
]
Destination = str | Network


@dataclass(frozen=True, slots=True)
class Explanation:
    """The verdict, its one cause, and where it stands; `mend` is empty where there is nothing to mend."""

    allowed: bool
    why: Why
    sentence: str
    mend: str = ""
    object: str = ""
    field: str = ""  # such as spec.rules[0]
    peer: str = ""
    ports: str = ""

    def __str__(self) -> str:
        return f"{self.sentence} {self.mend}".rstrip()

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class _Grant(NamedTuple):
    """One peer of one rule, with the rule's ports."""

    egress: Egress
    rule: int
    peer: Peer
    ports: PortSet

    @property
    def field(self) -> str:
        return f"spec.rules[{self.rule}]"


def explain(
    objects: Iterable[Object],
    workload: Workload,
    destination: str,
    port: int | None = None,
    protocol: str = "TCP",
    exempt: Collection[str] = EXEMPT,
) -> Explanation:
    """Why `workload` may or may not reach `destination`, a name or an address; without a port, any port."""
    objects = list(objects)
    try:
        wanted = _destination(destination)
    except BadNameError as error:
        return Explanation(False, "unreadable", f"Cannot tell: {error.wrong}.", _sentence(error.mend))
    selected = selecting(objects, workload, exempt)
    if not selected:
        return _untouched(objects, workload)
    enforcing = [egress for egress in selected if not egress.audit]
    asked = f"{wanted} on {_asked(protocol, port)}"
    verdict = _judge(enforcing or selected, wanted, asked, protocol, port)
    if not enforcing and not verdict.allowed:
        return _only_reported(verdict, workload)
    audit = [grant for grant in _covering(selected, wanted) if grant.egress.audit]
    if not verdict.allowed and (passing := _passing(audit, protocol, port)):
        return _audit_only(passing, asked)
    return verdict


def _judge(
    acting: Collection[Egress], wanted: Destination, asked: str, protocol: str, port: int | None
) -> Explanation:
    covering = _covering(acting, wanted)
    if passing := _passing(covering, protocol, port):
        sentence = f"{passing.egress} allows {asked}: {passing.field} names {passing.peer.text}."
        return _at(passing, True, "rule", sentence)
    if covering:
        ports = policy.describe(policy.merge(r for grant in covering for r in grant.ports))
        nearest = covering[0]
        sentence = f"{nearest.egress} names {nearest.peer.text}, but only for {ports}."
        return _at(
            nearest, False, "ports", sentence, f"Add {_asked(protocol, port)} to {nearest.field}.ports."
        )
    return _no_peer(acting, wanted, asked)


def _no_peer(acting: Collection[Egress], wanted: Destination, asked: str) -> Explanation:
    grants = list(_grants(acting))
    who = ", ".join(map(str, acting))
    if not grants:
        return Explanation(False, "no-rules", f"{who} allows nothing.", f"Add a rule for {wanted}.")
    if not isinstance(wanted, str):
        sentence = f"No rule of {who} names {wanted}; it passes only while an allowed name resolves to it."
        return Explanation(False, "no-peer", sentence, _near_address(grants, wanted))
    for grant in grants:
        if grant.peer.text == f"*.{wanted}":
            sentence = f"{grant.peer.text} is every name below {wanted}, but not {wanted} itself."
            return _at(grant, False, "apex", sentence, f"Add {wanted} to {grant.field}.domains.")
    blocks = [grant.peer.text for grant in grants if grant.peer.kind == "prefix"]
    unless = f", unless its address lies in {' or '.join(blocks)}" if blocks else ""
    sentence = f"No rule of {who} allows {asked}{unless}."
    return Explanation(False, "no-peer", sentence, _near_name(grants, wanted))


def _near_name(grants: list[_Grant], wanted: str) -> str:
    # Imported here: only a refusal needs it.
    import difflib

    written = {grant.peer.text: grant for grant in grants if grant.peer.kind == "name"}
    close = difflib.get_close_matches(wanted, written, n=1, cutoff=0.8)
    if not close:
        return f"Add {wanted} to the domains of a rule."
    near = written[close[0]]
    return f"Did you mean {close[0]}, as in {near.field} of {near.egress}? If not, add {wanted} to a rule."


def _near_address(grants: list[_Grant], wanted: Network) -> str:
    for grant in grants:
        for part in grant.peer.what.excepts if isinstance(grant.peer.what, Block) else ():
            if inside(wanted, part):
                return f"{grant.field} of {grant.egress} excepts it: narrow {part}, or add {wanted} to cidrs."
    return f"Add {wanted} to the cidrs of a rule."


def _untouched(objects: list[Object], workload: Workload) -> Explanation:
    if workload.addresses:  # behind a gateway, which forwards nobody else
        sentence = f"No object selects {workload}: a gateway refuses it everything."
        mend = f"Select it, by the labels of an ExternalWorkload or by sourceCIDRs: {workload.addresses[0]}."
        return Explanation(False, "untouched", sentence, mend)
    mend = f"To filter it, give an object a selector that matches {workload}."
    if workload.is_agent:
        mend = "The agent itself is never filtered."
    elif selecting(objects, workload, exempt=()):
        mend = f"Namespace {workload.namespace} is exempt: to filter it, name it by a namespaceSelector."
    return Explanation(True, "untouched", f"No object selects {workload}: everything passes.", mend)


def _only_reported(verdict: Explanation, workload: Workload) -> Explanation:
    sentence = f"Passes and is reported, since only Audit objects select {workload}: {verdict.sentence}"
    return Explanation(
        True, "audit", sentence, verdict.mend, verdict.object, verdict.field, verdict.peer, verdict.ports
    )


def _audit_only(grant: _Grant, asked: str) -> Explanation:
    sentence = f"Only {grant.egress} would allow {asked}, and its mode is Audit."
    return _at(grant, False, "audit-only", sentence, "Set its spec.mode to Enforce.")


def _at(grant: _Grant, allowed: bool, why: Why, sentence: str, mend: str = "") -> Explanation:
    ports = policy.describe(grant.ports)
    return Explanation(allowed, why, sentence, mend, str(grant.egress), grant.field, grant.peer.text, ports)


def _grants(egresses: Iterable[Egress]) -> Iterator[_Grant]:
    for egress in egresses:
        for index, rule in enumerate(egress.rules):
            ports = policy.port_set(rule.ports)
            yield from (_Grant(egress, index, peer, ports) for peer in policy.peers(rule))


def _covering(egresses: Iterable[Egress], wanted: Destination) -> list[_Grant]:
    return [grant for grant in _grants(egresses) if _covers(grant.peer.what, wanted)]


def _passing(grants: Iterable[_Grant], protocol: str, port: int | None) -> _Grant | None:
    return next((grant for grant in grants if policy.contains(grant.ports, protocol, port)), None)


def _covers(what: Pattern | Regex | Block, wanted: Destination) -> bool:
    if isinstance(what, Pattern):
        return isinstance(wanted, str) and names.matches(what, wanted)
    if isinstance(what, Regex):
        return isinstance(wanted, str) and patterns.matches(what, wanted)
    if isinstance(wanted, str):
        return False
    return inside(wanted, what.network) and not any(inside(wanted, part) for part in what.excepts)


def _destination(text: str) -> Destination:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return names.normal(text)
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return ipaddress.ip_network((mapped or address).packed)


def _asked(protocol: str, port: int | None) -> str:
    return protocol if port is None else f"{protocol} {port}"


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."
