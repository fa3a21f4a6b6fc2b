"""What an agent tells Prometheus of itself, as text.

The rules this file must obey:

* Pure: it is handed numbers, and knows neither kernel nor API server nor clock.
* A name's labels are few and bounded: policies of this node and reasons of the contract, never a pod, a name
  or an address, of which there may be any number.
* What counts up is a counter and ends in _total; it may begin at 0 again when the agent does.

Source: Prometheus, "Metric and label naming" and "Exposition formats" (text format 0.0.4).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prometheus_client.core import Metric

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Numbers:
    """Of one agent, at one moment. `packets` is by policy, then by the contract's reason; `workloads` are
    pods by what they are, an uncontained one is counted twice; `api` is what kubernetes/source.py counts."""

    version: str
    packets: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    workloads: Mapping[str, int] = field(default_factory=dict)
    links: Mapping[str, int] = field(default_factory=dict)
    problems: int = 0
    api: Mapping[str, int] = field(default_factory=dict)
    peers: Mapping[str, int] = field(default_factory=dict)  # of a gateway; `members` and `heard` are of now
    ready: bool = True
    api_connected: bool | None = None  # None: it follows files
    dns: Mapping[str, int] = field(default_factory=dict)  # over TCP; `open` is a number of connections now


def text(numbers: Numbers) -> bytes:
    """All of them in the text format."""
    from prometheus_client import exposition  # late: only who is asked for metrics pays for it

    return exposition.generate_latest(_Families(numbers))


@dataclass(frozen=True, slots=True)
class _Families:
    """As the library collects from a registry."""

    numbers: Numbers

    def collect(self) -> Iterator[Metric]:
        numbers = self.numbers
        yield _family(
            "gauge", "skouter_build_info", "Which version runs.", [({"version": numbers.version}, 1)]
        )
        yield _family(
            "counter",
            "skouter_packets",
            "Packets judged, by policy and reason.",
            (
                ({"policy": policy, "reason": reason.lower()}, count)
                for policy, reasons in numbers.packets.items()
                for reason, count in reasons.items()
            ),
        )
        held = (({"state": state}, count) for state, count in numbers.workloads.items())
        yield _family("gauge", "skouter_workloads", "Pods of this node.", held)
        links = (({"state": state}, count) for state, count in numbers.links.items())
        yield _family("gauge", "skouter_links", "Pods of this node, by what judges their frames.", links)
        yield _one("gauge", "skouter_problems", "What should be enforced and is not.", numbers.problems)
        if numbers.api_connected is not None:
            about = "Whether every watch at the API server is open."
            yield _one("gauge", "skouter_api_connected", about, int(numbers.api_connected))
        done = (({"what": what}, count) for what, count in numbers.dns.items() if what != "open")
        yield _family("counter", "skouter_dns_tcp", "DNS over TCP: what its proxy did, or met with.", done)
        about = "Connections that the proxy of DNS over TCP has."
        yield _one("gauge", "skouter_dns_tcp_connections", about, numbers.dns.get("open", 0))
        now = ("members", "heard")
        done = (({"what": what}, count) for what, count in numbers.peers.items() if what not in now)
        yield _family("counter", "skouter_peers", "Datagrams and facts of other gateways.", done)
        there = (({"state": what}, count) for what, count in numbers.peers.items() if what in now)
        yield _family("gauge", "skouter_peer_members", "Other gateways: all, and those heard lately.", there)
        yield _one("gauge", "skouter_ready", "Whether /readyz says so.", int(numbers.ready))
        sent = (({"what": what}, count) for what, count in numbers.api.items())
        yield _family("counter", "skouter_api", "What was sent to the API server, or lost.", sent)


def _one(kind: str, name: str, about: str, value: float) -> Metric:
    return _family(kind, name, about, [({}, value)])


def _family(kind: str, name: str, about: str, samples: Iterable[tuple[Mapping[str, str], float]]) -> Metric:
    from prometheus_client.core import Metric

    family = Metric(name, about, kind)
    for labels, value in samples:
        family.add_sample(name + ("_total" if kind == "counter" else ""), dict(labels), value)
    return family
