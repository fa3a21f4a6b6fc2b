"""A router in front of several gateways: what its clients send out goes to one of those that are alive.

    rules       what comes from a client, by an inside interface, looks up TABLE
    routes      there everything goes through a group of gateways, one group for each family; gateways
                themselves are looked for elsewhere; and where no group is left everything is unreachable
    a group     is resilient: who loses its gateway gets another, all others keep theirs
    settings    by which part of a packet its gateway is picked

Rules this file obeys:

- `plan` and `difference` are pure; a second `apply` changes nothing, and mends what others have undone.
- Ours are the rules of PRIORITY, the routes of TABLE, and what has hops.PROTOCOL. Of two instances on one
  host the last one's hold.
- There is no way around the gateways. Without any that is known to be alive all of them are taken: who knows
  better than they whether they work? And without a link to any there is no way.

Source: Documentation/networking/nexthop-group-resilient.rst, ip-sysctl.rst (fib_multipath_hash_policy), RFC
2992 (what a change of a group disturbs).
"""

from __future__ import annotations

import socket
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from routing import hops, netlink, sysctls
from routing.hops import THROW, UNREACHABLE, Address, Group, Hop, Network, Way
from routing.netlink import Rule
from routing.sysctls import Setting

PRIORITY = 57
RULES = range(PRIORITY, PRIORITY + 1)
TABLE = 21324
FIRST_HOP, FIRST_GROUP = 0x53000000, 0x54000000  # numbers that nobody chose for something else
LAST_RESORT = 2**32 - 1  # a metric: what has it comes after everything else
FAMILIES = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}
EVERYTHING = {4: "0.0.0.0/0", 6: "::/0"}
SOURCE, BY_FIELDS, BY_FLOW = 0x1, 3, 1  # fib_multipath_hash_fields, and policies


@dataclass(frozen=True, slots=True)
class Spread:
    """What `clients` behind the interfaces `inside` send is spread over `gateways`, which are neighbours.

    `by_flow`: by addresses, protocol and ports, else by source alone. Seconds as :class:`hops.Group` has
    them.
    """

    gateways: tuple[Address, ...]
    clients: tuple[Network, ...]
    inside: frozenset[str]
    by_flow: bool = False
    buckets: int = 256
    idle: int = 120
    unbalanced: int = 0


@dataclass(frozen=True, slots=True)
class Standing:
    """What is there, or wanted."""

    hops: frozenset[Hop] = frozenset()
    groups: frozenset[Group] = frozenset()
    ways: frozenset[Way] = frozenset()
    rules: frozenset[Rule] = frozenset()
    settings: tuple[Setting, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """From what is there to what is wanted."""

    set_hops: tuple[Hop, ...] = ()
    set_groups: tuple[Group, ...] = ()
    add_ways: tuple[Way, ...] = ()
    remove_ways: tuple[Way, ...] = ()
    remove_hops: tuple[int, ...] = ()
    write_rules: bool = False
    settings: tuple[Setting, ...] = ()


def plan(wanted: Spread, interfaces: Mapping[Address, int], alive: frozenset[Address]) -> Standing:
    """`interfaces` has the gateways that are neighbours now, with the numbers of the interfaces to them."""
    members = [Hop(_number(address), str(address), number) for address, number in interfaces.items()]
    groups = []
    for version in FAMILIES:
        near = [address for address in interfaces if address.version == version]
        if chosen := [address for address in near if address in alive] or near:
            numbers = tuple(sorted(map(_number, chosen)))
            timers = (wanted.buckets, wanted.idle, wanted.unbalanced)
            groups.append(Group(_group_number(wanted, version), numbers, *timers))
    return Standing(
        frozenset(members),
        frozenset(groups),
        frozenset(_ways(wanted, {group.id for group in groups})),
        frozenset(
            Rule(FAMILIES[client.version], PRIORITY, table=TABLE, source=str(client), interface=name)
            for client in wanted.clients
            for name in wanted.inside
        ),
        _settings(wanted),
    )


def _number(gateway: Address) -> int:
    """The same whatever other gateways there are: by it buckets are kept."""
    return FIRST_HOP + zlib.crc32(gateway.packed) % (FIRST_GROUP - FIRST_HOP)


def _group_number(wanted: Spread, version: int) -> int:
    """A group never changes the number of its buckets (EINVAL): with another number it is another group."""
    return FIRST_GROUP + wanted.buckets * 16 + version


def _ways(wanted: Spread, groups: set[int]) -> list[Way]:
    made = [Way(TABLE, f"{gateway}/{gateway.max_prefixlen}", THROW, metric=1) for gateway in wanted.gateways]
    for version in sorted({client.version for client in wanted.clients}):
        made.append(Way(TABLE, EVERYTHING[version], UNREACHABLE, metric=LAST_RESORT))
        if (group := _group_number(wanted, version)) in groups:
            made.append(Way(TABLE, EVERYTHING[version], through=group, metric=1))
    return made


def _settings(wanted: Spread) -> tuple[Setting, ...]:
    """Who is told of a shorter way (a redirect) would stay with a gateway that may die."""
    made = [Setting(f"ipv4/conf/{name}/send_redirects", 0) for name in (*sorted(wanted.inside), "all")]
    for version in sorted({client.version for client in wanted.clients}):
        if not wanted.by_flow:
            made.append(Setting(f"ipv{version}/fib_multipath_hash_fields", SOURCE))
        policy = BY_FLOW if wanted.by_flow else BY_FIELDS
        made.append(Setting(f"ipv{version}/fib_multipath_hash_policy", policy))
    return tuple(made)


def difference(there: Standing, wanted: Standing) -> Change:
    """Of settings `there` has those that are otherwise."""
    kept = {hop.id for hop in wanted.hops} | {group.id for group in wanted.groups}
    otherwise = {setting.path for setting in there.settings}
    numbers = {hop.id for hop in there.hops} | {group.id for group in there.groups}
    return Change(
        tuple(sorted(wanted.hops - there.hops)),
        tuple(sorted(wanted.groups - there.groups)),
        tuple(sorted(wanted.ways - there.ways)),
        tuple(sorted(there.ways - wanted.ways)),
        tuple(sorted(numbers - kept, reverse=True)),  # groups first
        there.rules != wanted.rules,
        tuple(setting for setting in wanted.settings if setting.path in otherwise),
    )


# ---- This host --------------------------------------------------------------------------------------------


def apply(wanted: Spread, alive: frozenset[Address], kept: Path) -> list[str]:
    """Makes it so in the calling thread's network namespace; what there was to do, in words.

    `kept` is the file that remembers what settings were. Raises :class:`OSError` with what is missing.
    """
    planned = plan(wanted, neighbours(wanted.gateways), alive)
    _refuse_older_kernels(planned.settings)
    change = difference(_look(planned.settings), planned)
    done = sysctls.write(change.settings, kept)
    for hop in change.set_hops:
        hops.set_hop(hop)
    names = {hop.id: hop.address for hop in planned.hops}
    for group in change.set_groups:
        hops.set_group(group)
        done.append(f"gateways: {', '.join(names[member] for member in group.members)}")
    # What is to go was there: an older route with the same destination would go instead of the new one.
    for way in change.remove_ways:
        hops.remove_way(way)
    for way in change.add_ways:
        hops.add_way(way)
    if change.add_ways or change.remove_ways:
        done.append(f"wrote table {TABLE}")
    if change.write_rules:
        netlink.set_rules(RULES, planned.rules)
        done.append(f"wrote rules of priority {PRIORITY}")
    for number in change.remove_hops:
        hops.remove_hop(number)
    return done


def remove(kept: Path) -> list[str]:
    """What was removed, in words."""
    there, gone = _look(()), []
    if there.rules:
        netlink.set_rules(RULES, frozenset())
        gone.append(f"rules of priority {PRIORITY}")
    if there.ways:
        gone.append(f"table {TABLE}")
    for way in there.ways:
        hops.remove_way(way)
    for group in there.groups:
        hops.remove_hop(group.id)
    for hop in there.hops:
        hops.remove_hop(hop.id)
    if there.hops:
        gone.append("next hops")
    gone += sysctls.restore(kept)
    kept.unlink(missing_ok=True)
    return gone


def neighbours(gateways: tuple[Address, ...]) -> dict[Address, int]:
    found = {gateway: hops.interface_to(gateway) for gateway in gateways}
    return {gateway: number for gateway, number in found.items() if number is not None}


def _look(settings: tuple[Setting, ...]) -> Standing:
    found, groups = hops.hops_and_groups()
    values = sysctls.look(settings)
    return Standing(
        frozenset(found),
        frozenset(groups),
        frozenset(hops.ways(TABLE)),
        frozenset(netlink.rules_of(RULES)),
        tuple(setting for setting in settings if not setting.holds(values[setting.path])),
    )


def _refuse_older_kernels(settings: tuple[Setting, ...]) -> None:
    for path, value in sysctls.look(settings).items():
        if value is None and "multipath" in path:
            raise OSError(f"/proc/sys/net/{path} is not there: picking gateways by source needs Linux 5.14")
