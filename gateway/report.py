"""What a workload reached and what it was refused: from events to a summary, and to a policy that suffices.

Pure: takes events one by one, knows no clock and no kernel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

PROTOCOLS = {1: "ICMP", 58: "ICMP", 6: "TCP", 17: "UDP", 132: "SCTP"}
WITH_PORTS = ("TCP", "UDP", "SCTP")
ANSWERS = ("LEARNED", "SEEN", "NEVER_LEARNED")
QUESTION = "DNS question"  # in the place of a protocol


class Told(Protocol):
    """The fields of an event that matter here (bpf.events.Event)."""

    @property
    def reason(self) -> str: ...
    @property
    def verdict(self) -> str: ...
    @property
    def protocol(self) -> int: ...
    @property
    def remote(self) -> Any: ...
    @property
    def remote_port(self) -> int: ...
    @property
    def process(self) -> str: ...
    @property
    def name(self) -> str: ...


def family(name: str) -> str:
    """Many names below one are told as one: who carries data out in names asks for another each time."""
    labels = name.split(".")
    return name if len(labels) < 3 else ".".join(["*", *labels[-2:]])


def printable(text: str) -> str:
    """What a workload chose (its process's name, say) must not write to somebody's terminal as it likes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True, slots=True)
class Destination:
    """Where packets went: the name that its address was last answered for, if any."""

    name: str
    address: str
    protocol: str
    port: int
    process: str

    def __str__(self) -> str:
        if self.protocol == QUESTION:
            return printable(f"{QUESTION} for {self.name}" + (f" by {self.process}" if self.process else ""))
        host = f"{self.name} ({self.address})" if self.name else self.address
        port = f" {self.protocol} {self.port}" if self.protocol in WITH_PORTS else f" {self.protocol}"
        return printable(host + port + (f" by {self.process}" if self.process else ""))


@dataclass
class Report:
    """Collects events; `reached` and `refused` count attempts by destination, in the order they came."""

    names: dict[str, str] = field(default_factory=dict)  # address -> name
    reached: dict[Destination, int] = field(default_factory=dict)
    refused: dict[tuple[Destination, str], int] = field(default_factory=dict)  # with the reason
    never: dict[str, str] = field(default_factory=dict)  # address that DNS may not teach -> name

    def add(self, event: Told) -> None:
        address = str(event.remote)
        if event.reason == "QUESTION_REFUSED":
            at = Destination(family(event.name), address, QUESTION, 0, event.process)
            self.refused[at, event.reason] = self.refused.get((at, event.reason), 0) + 1
            return
        if event.reason in ANSWERS:
            self.names[address] = event.name
            if event.reason == "NEVER_LEARNED":
                self.never[address] = event.name
            return
        protocol = PROTOCOLS.get(event.protocol, f"protocol {event.protocol}")
        port = event.remote_port if protocol in WITH_PORTS else 0
        at = Destination(self.names.get(address, ""), address, protocol, port, event.process)
        if event.verdict == "PASS":
            self.reached[at] = self.reached.get(at, 0) + 1
        else:
            self.refused[at, event.reason] = self.refused.get((at, event.reason), 0) + 1

    def as_json(self) -> dict[str, Any]:
        def row(at: Destination, count: int) -> dict[str, Any]:
            return {
                "name": at.name or None,
                "address": at.address,
                "protocol": at.protocol,
                "port": at.port or None,
                "process": at.process or None,
                "count": count,
            }

        return {
            "reached": [row(at, count) for at, count in self.reached.items()],
            "refused": [row(at, n) | {"reason": why} for (at, why), n in self.refused.items()],
        }

    def lines(self, sentences: Mapping[str, str], audit: bool = False) -> list[str]:
        """The summary for people, a line each."""
        verb = "would be refused" if audit else "refused"
        found = [f"reached  {at}{_times(n)}" for at, n in self.reached.items()]
        found += [f"{verb}  {at}{_times(n)}: {sentences[why]}" for (at, why), n in self.refused.items()]
        found += [
            f"not learned  {printable(name) or 'a name'} has the address {address}, which DNS may not teach"
            for address, name in self.never.items()
        ]
        return found

    def policy(self, name: str, selector: Mapping[str, str] | None = None) -> str:
        """An Egress document (YAML) under which all that was tried would have passed."""
        import yaml

        wanted: dict[tuple[str, bool], set[tuple[str, int]]] = {}
        tried = [*self.reached, *(at for at, _ in self.refused)]
        for at in (at for at in tried if at.protocol != QUESTION):
            peer = (at.name, True) if at.name else (at.address, False)
            wanted.setdefault(peer, set()).add((at.protocol, at.port))
        by_ports: dict[frozenset[tuple[str, int]], list[tuple[str, bool]]] = {}
        for peer, ports in wanted.items():
            by_ports.setdefault(frozenset(ports), []).append(peer)
        document = {
            "apiVersion": "egress.skouter/v1alpha1",
            "kind": "Egress",
            "metadata": {"name": name},
            "spec": {
                "podSelector": {"matchLabels": dict(selector)} if selector else {},
                "rules": [_rule(peers, ports) for ports, peers in by_ports.items()],
            },
        }
        return yaml.safe_dump(document, sort_keys=False)


def _rule(peers: Iterable[tuple[str, bool]], ports: frozenset[tuple[str, int]]) -> dict[str, Any]:
    rule: dict[str, Any] = {}
    for key, is_name in (("domains", True), ("ips", False)):
        found = sorted(text for text, named in peers if named == is_name)
        if found:
            rule[key] = found
    if all(protocol in (*WITH_PORTS, "ICMP") for protocol, _ in ports):
        rule["ports"] = [
            {"port": port, "protocol": protocol} if protocol in WITH_PORTS else {"protocol": protocol}
            for protocol, port in sorted(ports)
        ]
    return rule


def _times(count: int) -> str:
    return f" ({count} times)" if count > 1 else ""
