"""Packets with a mark reach a socket of this host, whatever their destination: rules, routes and one table of
nftables, for what a program hands to a transparent listener (ip(7): IP_TRANSPARENT, bpf_sk_assign).

    a rule for each family    what has the mark looks up TABLE
    a route for each family   there everything is for this host
    nftables, before NAT      what has the mark, and what answers it, is not tracked: else its destination
                              would be translated (kube-proxy), and no socket would know whom it was meant for

Rules this file obeys:

- `plan` and `difference` are pure; a second `apply` changes nothing.
- Ours are the rules of PRIORITY with TABLE, the route there, and the table of nftables with our name: nothing
  else is touched. Of two instances on one host the last one's mark holds.

Source: ip-rule(8), libnftables-json(5).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from routing import netlink, nft
from routing.netlink import DEFAULTS, Route, Rule
from routing.nft import Json

PRIORITY = 53  # behind the table of this host's own addresses, before what a CNI has for its pods
TABLE = 21323  # a number that nobody chose for something else
RAW = -300  # NF_IP_PRI_RAW: before packets are tracked
IF_INET6 = Path("/proc/thread-self/net/if_inet6")


@dataclass(frozen=True, slots=True)
class Marks:
    """Of a packet's mark: the bits that are ours, those that a packet to a listener has, and those that its
    answer has."""

    mask: int
    steered: int

    @property
    def answers(self) -> int:
        return self.mask & ~self.steered

    @property
    def admitted(self) -> int:
        """Of a packet of a gateway's client which its program lets through: both bits."""
        return self.mask

    @property
    def guarded(self) -> int:
        """Of the same packet when nftables has seen it (forwarding_table.py): no answer of a listener is
        ever forwarded, so these bits mean something else there."""
        return self.answers


@dataclass(frozen=True, slots=True)
class Steering:
    """What is there, or wanted; `table` are objects of nftables."""

    rules: frozenset[Rule] = frozenset()
    routes: frozenset[Route] = frozenset()
    table: tuple[Json, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """From what is there to what is wanted."""

    add_routes: tuple[Route, ...] = ()
    add_rules: tuple[Rule, ...] = ()
    write_table: bool = False
    remove_rules: tuple[Rule, ...] = ()
    remove_routes: tuple[Route, ...] = ()

    def __bool__(self) -> bool:
        return self != Change()


def plan(marks: Marks, name: str, families: frozenset[int]) -> Steering:
    return Steering(
        frozenset(Rule(family, PRIORITY, marks.steered, marks.mask, TABLE) for family in families),
        frozenset(Route(family, TABLE) for family in families),
        _table(marks, name),
    )


def _table(marks: Marks, name: str) -> tuple[Json, ...]:
    place: Json = {"family": "inet", "table": name}
    made: list[Json] = [{"table": {"family": "inet", "name": name}}]
    hooks = {"prerouting": marks.steered, "output": marks.answers}
    for hook in hooks:
        about = {"type": "filter", "hook": hook, "prio": RAW, "policy": "accept"}
        made.append({"chain": {**place, "name": hook, **about}})
    for hook, mark in hooks.items():
        left = {"&": [{"meta": {"key": "mark"}}, marks.mask]}
        has_mark = {"match": {"op": "==", "left": left, "right": mark}}
        made.append({"rule": {**place, "chain": hook, "expr": [has_mark, {"notrack": None}]}})
    return tuple(made)


def difference(there: Steering, wanted: Steering) -> Change:
    """Routes before the rules that lead to them, and after them when they go."""
    return Change(
        tuple(sorted(wanted.routes - there.routes)),
        tuple(sorted(wanted.rules - there.rules)),
        _sorted(there.table) != _sorted(wanted.table),
        tuple(sorted(there.rules - wanted.rules)),
        tuple(sorted(there.routes - wanted.routes)),
    )


def _sorted(table: tuple[Json, ...]) -> list[str]:
    return sorted(json.dumps(item, sort_keys=True) for item in table)


# ---- This host --------------------------------------------------------------------------------------------


def apply(marks: Marks, name: str) -> Change:
    """Makes it so in the calling thread's namespace; what there was to do.

    Raises :class:`OSError` with what is missing, nft(8) for one.
    """
    wanted = plan(marks, name, families())
    change = difference(_look(name), wanted)
    if change.write_table:  # first: where it can't be written, nothing is
        nft.write(name, wanted.table)
    for route in change.add_routes:
        netlink.add_route(route)
    for rule in change.add_rules:
        netlink.add_rule(rule)
    for rule in change.remove_rules:
        netlink.remove_rule(rule)
    for route in change.remove_routes:
        netlink.remove_route(route)
    return change


def remove(name: str) -> list[str]:
    """What was removed, in words. Without nft(8) there never was a table."""
    there = _look(name)
    for rule in there.rules:
        netlink.remove_rule(rule)
    for route in there.routes:
        netlink.remove_route(route)
    if there.table:
        nft.write(name, ())
    gone = [f"rule of priority {PRIORITY}"] if there.rules else []
    gone += [f"table {TABLE}"] if there.routes else []
    return gone + ([f"table inet {name} of nftables"] if there.table else [])


def families() -> frozenset[int]:
    """Of addresses that this host has."""
    return frozenset(family for family in DEFAULTS if family != netlink.IPV6 or IF_INET6.exists())


def _look(name: str) -> Steering:
    ours = (rule for rule in netlink.rules() if (rule.priority, rule.table) == (PRIORITY, TABLE))
    return Steering(frozenset(ours), frozenset(netlink.routes(TABLE)), nft.read(name))
