"""Traffic control, rules and routes of the calling thread's network namespace (rtnetlink(7)).

Rules this file obeys:

- It is the only one that knows pyroute2, which is asyncio inside: never called from trio's own thread.
- What is gone already is as good as removed; what is there already is as good as added.
- What the kernel says of others is passed on as it is: whose it is, and what may be done to it, is decided
  elsewhere.

pyroute2 is imported late: it takes half a second, and only an agent with links needs it.

Source: rtnetlink(7), linux/if_link.h, linux/rtnetlink.h, linux/pkt_cls.h, linux/fib_rules.h.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

INGRESS, EGRESS = 0xFFFFFFF2, 0xFFFFFFF3  # TC_H_MAKE(TC_H_CLSACT, TC_H_MIN_INGRESS and TC_H_MIN_EGRESS)
CLSACT = "clsact"
HANDLE = 1  # of the one filter at our preference
LOOPBACK = "lo"
IPV6 = int(socket.AF_INET6)
DEFAULTS = {int(socket.AF_INET): "0.0.0.0/0", IPV6: "::/0"}
SCOPE_HOST, FORWARDED_ROUTE, LOCAL_ROUTE = 254, 1, 2  # RT_SCOPE_HOST, RTN_UNICAST, RTN_LOCAL
MAIN = 254  # RT_TABLE_MAIN
LOOK_UP, GO_TO, NOTHING, PROHIBIT = 1, 2, 3, 8  # FR_ACT_TO_TBL, FR_ACT_GOTO, FR_ACT_NOP, FR_ACT_PROHIBIT
GONE = (errno.ENODEV, errno.ENOENT, errno.EINVAL, errno.ESRCH, errno.EOPNOTSUPP)


@dataclass(frozen=True, slots=True)
class Filter:
    """What is at a preference of a clsact hook; `name` of a BPF filter."""

    preference: int
    name: str


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """What is done with packets, in the order of priorities (ip-rule(8)): by default they look up a table.

    They are those with these bits in their mark, from these sources ("" any; else a network), that arrive by
    this interface ("": by any).
    """

    family: int
    priority: int
    mark: int = 0
    mask: int = 0
    table: int = 0
    action: int = LOOK_UP
    target: int = 0  # GO_TO: the priority to go on with
    source: str = ""
    interface: str = ""


@dataclass(frozen=True, slots=True, order=True)
class Route:
    """`local default dev lo` of a table: every packet that looks it up is for this host (ip-route(8))."""

    family: int
    table: int


# ---- Traffic control --------------------------------------------------------------------------------------


def filters(index: int, hook: int) -> list[Filter]:
    """In the order in which they see a packet; none where there is no clsact."""
    with _netlink() as netlink, _unless(*GONE):
        return [
            Filter(message["info"] >> 16, _name(message))
            for message in netlink.get_filters(index, parent=hook)
            if message["handle"]
        ]
    return []


def _name(message: Any) -> str:
    options = message.get_attr("TCA_OPTIONS")
    return str(options.get_attr("TCA_BPF_NAME") or "") if message.get_attr("TCA_KIND") == "bpf" else ""


def with_filters() -> list[int]:
    """Interfaces on which there may be any."""
    with _netlink() as netlink:
        return [int(q["index"]) for q in netlink.get_qdiscs() if q.get_attr("TCA_KIND") == CLSACT]


def set_filter(index: int, hook: int, preference: int, program: int, name: str) -> None:
    """A BPF program (its descriptor) that decides itself; at once in place of the one that was there."""
    with _netlink() as netlink:
        with _unless(errno.EEXIST):
            netlink.tc("add", CLSACT, index)
        netlink.tc(
            *("replace-filter", "bpf", index, HANDLE),
            **{"fd": program, "name": name, "parent": hook, "prio": preference},
            **{"direct_action": True, "classid": 1},
        )


def remove_filter(index: int, hook: int, preference: int) -> None:
    """With the qdisc, if nothing is left in it."""
    with _netlink() as netlink, _unless(*GONE):
        netlink.tc("del-filter", "bpf", index, HANDLE, parent=hook, prio=preference)
    if not filters(index, INGRESS) and not filters(index, EGRESS):
        with _netlink() as netlink, _unless(*GONE):
            netlink.tc("del", CLSACT, index)


# ---- Rules and routes -------------------------------------------------------------------------------------


def rules() -> list[Rule]:
    """Those that look at marks."""
    return _rules(lambda rule: bool(rule.mask))


def rules_of(priorities: range) -> list[Rule]:
    return _rules(lambda rule: rule.priority in priorities)


def _rules(wanted: Callable[[Rule], bool]) -> list[Rule]:
    with _netlink() as netlink:
        found = (
            _rule_of(family, message) for family in DEFAULTS for message in _of(family, netlink.get_rules)
        )
        return [rule for rule in found if wanted(rule)]


def _rule_of(family: int, message: Any) -> Rule:
    source = message.get_attr("FRA_SRC")
    return Rule(
        family,
        int(message.get_attr("FRA_PRIORITY") or 0),
        int(message.get_attr("FRA_FWMARK") or 0),
        int(message.get_attr("FRA_FWMASK") or 0),
        int(message.get_attr("FRA_TABLE") or message["table"]),
        int(message["action"]),
        int(message.get_attr("FRA_GOTO") or 0),
        f"{source}/{message['src_len']}" if source else "",
        str(message.get_attr("FRA_IIFNAME") or ""),
    )


def routes(table: int) -> list[Route]:
    """Families of which everything is for this host by this table."""
    with _netlink() as netlink:
        loopback = netlink.link_lookup(ifname=LOOPBACK)
        return [
            Route(family, table)
            for family in DEFAULTS
            for message in _of(family, netlink.get_routes, table=table)
            if (message["type"], message["dst_len"]) == (LOCAL_ROUTE, 0)
            and [message.get_attr("RTA_OIF")] == loopback
        ]


def add_rule(rule: Rule) -> None:
    _rule("add", rule, errno.EEXIST)


def remove_rule(rule: Rule) -> None:
    _rule("del", rule, *GONE)


def set_rules(priorities: range, wanted: frozenset[Rule]) -> None:
    """Those of these priorities are what is wanted, and no others.

    A rule that says less than another matches that one, too, when it is to be removed (net/core/fib_rules.c):
    so what is there is looked at again, until nothing else is.
    """
    while unwanted := (there := frozenset(rules_of(priorities))) - wanted:
        for rule in sorted(unwanted):
            remove_rule(rule)
    for rule in sorted(wanted - there):
        add_rule(rule)


def _rule(command: str, rule: Rule, *fine: int) -> None:
    about: dict[str, Any] = {"family": rule.family, "priority": rule.priority, "action": rule.action}
    if rule.mask:
        about |= {"fwmark": rule.mark, "fwmask": rule.mask}
    if rule.action == LOOK_UP:
        about |= {"table": rule.table}
    if rule.action == GO_TO:
        about |= {"goto": rule.target}
    if rule.source:
        address, _, length = rule.source.partition("/")
        about |= {"src": address, "src_len": int(length)}
    if rule.interface:
        about |= {"iifname": rule.interface}
    with _netlink() as netlink, _unless(*fine):
        netlink.rule(command, **about)


def add_route(route: Route) -> None:
    _route("add", route, errno.EEXIST)


def remove_route(route: Route) -> None:
    _route("del", route, *GONE)


def _route(command: str, route: Route, *fine: int) -> None:
    where = {"family": route.family, "dst": DEFAULTS[route.family], "table": route.table}
    with _netlink() as netlink, _unless(*fine):
        (loopback,) = netlink.link_lookup(ifname=LOOPBACK)
        netlink.route(command, **where, type="local", scope=SCOPE_HOST, oif=loopback)


def default_interface() -> str:
    """The one by which what is not known otherwise leaves: of IPv4's default route, or else of IPv6's.

    Raises :class:`OSError` where there is none, or several are used at once.
    """
    with _netlink() as netlink:
        for family in DEFAULTS:
            ways = [
                (message.get_attr("RTA_PRIORITY") or 0, message.get_attr("RTA_OIF"))
                for message in _of(family, netlink.get_routes, table=MAIN)
                if message["dst_len"] == 0 and message["type"] == FORWARDED_ROUTE
            ]
            if ways:
                if (found := min(ways)[1]) is None:
                    raise OSError("the default route has several ways: name the interface instead of auto")
                return str(netlink.get_links(found)[0].get_attr("IFLA_IFNAME"))
    raise OSError("there is no default route: name the interface instead of auto")


# ---- The library ------------------------------------------------------------------------------------------


def _of(family: int, ask: Any, **what: int) -> list[Any]:
    """A family that the kernel was built without, or booted without, has nothing."""
    with _unless(errno.EOPNOTSUPP, errno.EAFNOSUPPORT, errno.ENOENT):
        return [*ask(family=family, **what)]
    return []


@contextmanager
def _netlink() -> Iterator[Any]:
    from pyroute2 import IPRoute

    with IPRoute() as netlink, _unless():
        yield netlink


@contextmanager
def _unless(*fine: int) -> Iterator[None]:
    """An error of the kernel's as what it is everywhere else, an OSError, but for these."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        yield
    except NetlinkError as error:
        if error.code not in fine:
            raise OSError(error.code, f"rtnetlink: {os.strerror(error.code)}") from error
