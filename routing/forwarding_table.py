"""The one table of nftables of a gateway, as objects of libnftables-json(5): pure.

    capture     before routing       questions to any DNS server go to the one of this host
    guard       behind that          refuses what clients send on, but for what has the mark of the gateway's
                                     program, and changes that for one which says "this table stands"
    forward     between interfaces   takes clients' packets with that mark, and answers; drops everything else
    translate   on the way out       SNAT, both families
    private     behind that          what still has a client's address as its source does not leave
    questions   to this host         DNS is for clients: this is no open resolver
    redirects   from this host       no client is told of a way around the gateway

Rules this file obeys:

- Who is a client is told by address *and* by interface. The mark alone lets nothing through, nor does the
  address alone.
- A refusal is told: RST for TCP, ICMP "administratively prohibited" for the rest. What no client sends is
  dropped silently, since the source may be forged.
- Refusals come before routing. Behind it the rules of forwarding.py, which know no RST, would have refused
  first. And the mark "this table stands", which only `guard` writes, is what those rules let through: who
  flushes nftables stops forwarding, and nothing leaves without SNAT until the table is written again.

The connections of a gateway that died arrive here in mid-stream. Without nf_conntrack_tcp_loose they belong
to no connection (`invalid`), and the client is sent RST at once. Where nothing is translated they go on here,
whoever speaks first: conntrack takes them for new ones, which began where that end is.

Source: nft(8), nft_reject(4.20: prerouting since Linux 5.9), RFC 4884, RFC 8201 (packet too big).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from routing.nft import FAMILY, Json
from routing.steering import Marks

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Sources = tuple[ipaddress.IPv4Address | None, ipaddress.IPv6Address | None]

DNS = 53
DSTNAT, AFTER_DSTNAT, FILTER, SRCNAT, AFTER_SRCNAT = -100, -90, 0, 100, 110  # linux/netfilter_ipv4.h
FAMILIES = {4: "ip", 6: "ip6"}
HERE = ["local", "broadcast", "multicast", "anycast"]  # kinds of destinations that are not forwarded


@dataclass(frozen=True, slots=True)
class Forwarding:
    """What a gateway forwards, and how.

    `inside` and `outside` are names of interfaces, which may be the same ones. Only packets of `clients` are
    forwarded. `dns_port` is where this host's resolver listens. `snat`: the addresses of IPv4 and IPv6 that
    clients are given; a family with None there is not translated. `conntrack`: connections that can be known
    at once.
    """

    inside: frozenset[str]
    outside: frozenset[str]
    clients: tuple[Network, ...]
    marks: Marks
    capture: bool = True
    dns_port: int = DNS
    snat: Literal["masquerade", "none"] | Sources = "masquerade"
    conntrack: int = 262144

    @property
    def is_one_armed(self) -> bool:
        return bool(self.inside & self.outside)

    def clients_of(self, version: int) -> list[Network]:
        """Of one family, without those that lie within others."""
        found: list[Any] = [network for network in self.clients if network.version == version]
        return [*ipaddress.collapse_addresses(found)]

    @property
    def versions(self) -> list[int]:
        return [version for version in FAMILIES if self.clients_of(version)]


def table(name: str, wanted: Forwarding) -> tuple[Json, ...]:
    made = _Table(name)
    made.group("inside", "ifname", sorted(wanted.inside))
    made.group("outside", "ifname", sorted(wanted.outside))
    for version in wanted.versions:
        kind = "ipv4_addr" if version == 4 else "ipv6_addr"
        clients = [*map(_element, wanted.clients_of(version))]
        made.group(f"clients{version}", kind, clients, flags=["interval"])
    _refusals(made)
    _capture(made, wanted)
    _guard(made, wanted)
    _forward(made, wanted)
    _translate(made, wanted)
    _questions(made, wanted)
    made.chain("redirects", "filter", "output", FILTER)
    made.rule("redirects", _is(_field("icmp", "type"), "redirect"), DROP)
    made.rule("redirects", _is(_field("icmpv6", "type"), "nd-redirect"), DROP)
    return tuple(made.objects)


def way_for_all(name: str, marks: Marks) -> Json:
    """A rule that lets through whatever clients send on, in front of all that refuses it."""
    stands = {"|": [{"&": [MARK, 0xFFFFFFFF & ~marks.mask]}, marks.guarded]}
    place: Json = {"family": FAMILY, "table": name, "chain": "judge"}
    return {"rule": {**place, "expr": [_set_mark(stands), ACCEPT]}}


# ---- Chains -----------------------------------------------------------------------------------------------


def _refusals(made: _Table) -> None:
    made.chain("refuse")
    made.rule("refuse", TCP, RESET)
    made.rule("refuse", {"reject": {"type": "icmpx", "expr": "admin-prohibited"}})
    made.chain("unknown")
    made.rule("unknown", TCP, RESET)
    made.rule("unknown", DROP)


def _capture(made: _Table, wanted: Forwarding) -> None:
    made.chain("capture", "nat", "prerouting", DSTNAT)
    kinds = [] if wanted.capture else ["local"]
    if not wanted.capture and wanted.dns_port == DNS:
        return
    elsewhere = HERE if wanted.dns_port == DNS else [kind for kind in HERE if kind != "local"]
    where = [_is(_kind("daddr"), kind) for kind in kinds] or [_is_not(_kind("daddr"), {"set": elsewhere})]
    for client in _from_clients(made, wanted):
        question = _is(_field("udp", "dport"), DNS)
        made.rule("capture", *client, question, *where, {"redirect": {"port": wanted.dns_port}})


def _guard(made: _Table, wanted: Forwarding) -> None:
    made.chain("judge")
    admitted = _marked(wanted.marks, wanted.marks.admitted)
    stands = _set_mark({"&": [MARK, 0xFFFFFFFF & ~wanted.marks.steered]})
    # By far the most; where the connection's first one came from was looked at then.
    made.rule("judge", admitted, _state("established"), _is(DIRECTION, "original"), stands, ACCEPT)
    if not wanted.is_one_armed:  # who forges the address of a client behind another interface
        way_back = {"fib": {"result": "oif", "flags": ["saddr", "iif"]}}
        made.rule("judge", _is(way_back, False), COUNTER, DROP)
    made.rule("judge", admitted, _state("new"), stands, ACCEPT)
    made.rule("judge", _is(_kind("daddr"), {"set": HERE}), ACCEPT)
    made.rule(
        "judge", TCP, _marked(wanted.marks, wanted.marks.steered), ACCEPT
    )  # to a listener here, by a rule
    known = {"|": [{"&": [MARK, 0xFFFFFFFF & ~wanted.marks.mask]}, wanted.marks.guarded]}
    for too_big in TOO_BIG:  # of a router that has a client's address
        made.rule("judge", _state("related"), *too_big, _set_mark(known), ACCEPT)
    made.rule("judge", _state("invalid"), {"goto": {"target": "unknown"}})
    made.rule("judge", admitted, stands, ACCEPT)
    made.rule("judge", {"goto": {"target": "refuse"}})
    made.chain("guard", "filter", "prerouting", AFTER_DSTNAT)
    for client in _from_clients(made, wanted):
        made.rule("guard", *client, {"goto": {"target": "judge"}})


def _forward(made: _Table, wanted: Forwarding) -> None:
    made.chain("forward", "filter", "forward", FILTER, "drop")
    is_first = {"&": [_field("tcp", "flags"), ["syn", "rst"]]}
    clamp = {"key": {"tcp option": {"name": "maxseg", "field": "size"}}, "value": {"rt": {"key": "mtu"}}}
    made.rule("forward", _is(is_first, "syn"), {"mangle": clamp})
    made.rule("forward", _is(DIRECTION, "reply"), _state("established", "related"), ACCEPT)
    marks = wanted.marks
    for client in _from_clients(made, wanted):
        admitted = {"|": [MARK, marks.steered]}
        made.rule("forward", *client, _marked(marks, marks.guarded), _set_mark(admitted), ACCEPT)
    inside = _is(INPUT, made.among("inside"))  # from routers there, which are no clients
    for too_big in TOO_BIG:
        made.rule("forward", inside, _state("related"), *too_big, ACCEPT)
    if wanted.snat == "none":
        for version in wanted.versions:
            to_client = _is(_field(FAMILIES[version], "daddr"), made.among(f"clients{version}"))
            goes_on = _is({"&": [_field("tcp", "flags"), "syn"]}, 0)
            made.rule("forward", _is(INPUT, made.among("outside")), to_client, goes_on, ACCEPT)
    made.rule("forward", DROP)  # where the chain is there already and its policy is not


def _translate(made: _Table, wanted: Forwarding) -> None:
    if wanted.snat == "none":
        return
    made.chain("translate", "nat", "postrouting", SRCNAT)
    made.chain("private", "filter", "postrouting", AFTER_SRCNAT)
    for version in wanted.versions:
        source: Json = {"masquerade": None}
        if wanted.snat != "masquerade":
            address = wanted.snat[0 if version == 4 else 1]
            if address is None:
                continue
            source = {"snat": {"addr": str(address), "family": FAMILIES[version]}}
        clients = made.among(f"clients{version}")
        leaves = [
            _is(_field(FAMILIES[version], "saddr"), clients),
            _is({"meta": {"key": "oifname"}}, made.among("outside")),
            _is_not(_field(FAMILIES[version], "daddr"), clients),
        ]
        made.rule("translate", _is(INPUT, made.among("inside")), *leaves, source)
        # This host's own addresses may be among its clients': one NIC does both.
        made.rule("private", *leaves, _is_not(_kind("saddr"), "local"), COUNTER, DROP)


def _questions(made: _Table, wanted: Forwarding) -> None:
    made.chain("questions", "filter", "input", FILTER)
    question = [
        _is_not(INPUT, "lo"),
        _is({"meta": {"key": "l4proto"}}, {"set": ["tcp", "udp"]}),
        _is(_field("th", "dport"), {"set": sorted({DNS, wanted.dns_port})}),
    ]
    for client in _from_clients(made, wanted):
        made.rule("questions", *client, *question, ACCEPT)
    made.rule("questions", *question, DROP)


# ---- Words ------------------------------------------------------------------------------------------------

ACCEPT: Json = {"accept": None}
DROP: Json = {"drop": None}
COUNTER: Json = {"counter": None}
RESET: Json = {"reject": {"type": "tcp reset"}}
MARK: Json = {"meta": {"key": "mark"}}
INPUT: Json = {"meta": {"key": "iifname"}}
DIRECTION: Json = {"ct": {"key": "direction"}}


def _match(op: str, left: Any, right: Any) -> Json:
    return {"match": {"op": op, "left": left, "right": right}}


def _is(left: Any, right: Any) -> Json:
    return _match("==", left, right)


def _is_not(left: Any, right: Any) -> Json:
    return _match("!=", left, right)


TCP = _is({"meta": {"key": "l4proto"}}, "tcp")


def _field(protocol: str, field: str) -> Json:
    return {"payload": {"protocol": protocol, "field": field}}


def _state(*states: str) -> Json:
    return _match("in", {"ct": {"key": "state"}}, [*states])


def _kind(address: str) -> Json:
    return {"fib": {"result": "type", "flags": [address]}}


def _marked(marks: Marks, mark: int) -> Json:
    return _is({"&": [MARK, marks.mask]}, mark)


def _set_mark(value: Json) -> Json:
    return {"mangle": {"key": MARK, "value": value}}


def _from_clients(made: _Table, wanted: Forwarding) -> Iterator[list[Json]]:
    inside = _is(INPUT, made.among("inside"))
    for version in wanted.versions:
        yield [_is(_field(FAMILIES[version], "saddr"), made.among(f"clients{version}")), inside]


def _element(network: Network) -> Any:
    if network.prefixlen == network.max_prefixlen:
        return str(network.network_address)
    return {"prefix": {"addr": str(network.network_address), "len": network.prefixlen}}


class _Table:
    """Its objects, in the order in which they are added."""

    def __init__(self, name: str) -> None:
        self.place: Json = {"family": FAMILY, "table": name}
        self.objects: list[Json] = [{"table": {"family": FAMILY, "name": name}}]
        self._groups: dict[str, Any] = {}

    def group(self, name: str, kind: str, elements: list[Any], **more: Any) -> None:
        """What rules ask for by `among`: a set, unless it is one element, which is compared faster."""
        self._groups[name] = elements[0] if len(elements) == 1 else f"@{name}"
        if len(elements) != 1:
            self.objects.append({"set": {**self.place, "name": name, "type": kind, "elem": elements, **more}})

    def among(self, name: str) -> Any:
        return self._groups[name]

    def chain(
        self, name: str, kind: str = "", hook: str = "", priority: int = 0, policy: str = "accept"
    ) -> None:
        """Without a hook: one that rules go to."""
        about = {"type": kind, "hook": hook, "prio": priority, "policy": policy} if hook else {}
        self.objects.append({"chain": {**self.place, "name": name, **about}})

    def rule(self, chain: str, *words: Json) -> None:
        self.objects.append({"rule": {**self.place, "chain": chain, "expr": [*words]}})


TOO_BIG = (
    [_is(_field("icmp", "type"), "destination-unreachable"), _is(_field("icmp", "code"), "frag-needed")],
    [_is(_field("icmpv6", "type"), "packet-too-big")],
)
