"""A gateway's forwarding, and its end: one table of nftables, rules, and settings of the kernel.

    nftables    who is forwarded, what is refused, SNAT (forwarding_table.py)
    rules       behind it: what nftables has not marked as admitted is refused, so that neither a gateway
                without its program nor one without its table forwards anything of clients; packets to this
                host itself have been taken before, by the table of its own addresses
    settings    forwarding, at last, where the interfaces need it

Rules this file obeys:

- `plan` and `difference` are pure; a second `apply` changes nothing, and mends what others have undone.
- Ours are the rules of PRIORITIES, the table of nftables NAME-gateway, and the settings that still have our
  values: nothing else is touched. Of two instances on one host the last one's rules hold.
- Forwarding is switched on last, and off first.

How nft(8) writes what it was given differs from version to version. So what it has written is remembered
beside what was wanted, and compared with what is there.

Source: ip-rule(8), ip-sysctl.rst, nf_conntrack-sysctl.rst, RFC 5382 (TCP behind NAT), RFC 1812 (forwarding).
"""

from __future__ import annotations

import hashlib
import json
import socket
from dataclasses import dataclass
from pathlib import Path

from routing import netlink, nft, sysctls
from routing.forwarding_table import Forwarding, table, way_for_all
from routing.netlink import GO_TO, NOTHING, PROHIBIT, Rule
from routing.nft import Json, changes
from routing.own import drain
from routing.steering import families
from routing.sysctls import Setting

__all__ = (
    "Forwarding",
    "apply",
    "changes",
    "default_interface",
    "difference",
    "drain",
    "open_to_all",
    "plan",
    "remove",
    "stands",
)

PRIORITIES = range(54, 57)  # behind steering.py's, which is for this host, before all others
ADMITTED, REFUSED, BEHIND = PRIORITIES
FAMILIES = {4: int(socket.AF_INET), 6: int(socket.AF_INET6)}
SHARED = ("rp_filter", "send_redirects")  # the greater one counts, of an interface's own and that of all
IDLE = 7440  # seconds that an idle connection is known (RFC 5382, REQ-5); five days would fill the table

default_interface = netlink.default_interface


@dataclass(frozen=True, slots=True)
class Standing:
    """What is there, or wanted; `settings` in the order in which they are written.

    `table` is a digest of what was wanted of nftables, if what is there is what came of it.
    """

    table: str = ""
    rules: frozenset[Rule] = frozenset()
    settings: tuple[Setting, ...] = ()


@dataclass(frozen=True, slots=True)
class Change:
    """From what is there to what is wanted."""

    write_table: bool = False
    add_rules: tuple[Rule, ...] = ()
    remove_rules: tuple[Rule, ...] = ()
    settings: tuple[Setting, ...] = ()


@dataclass(frozen=True, slots=True)
class Host:
    """What is as the plan finds it: families of addresses; `learning`: interfaces by which routers tell of
    IPv6 routes (RFC 4861), which they would no longer do to a host that forwards; `others`: what counts of
    SHARED on interfaces that are not the gateway's."""

    families: frozenset[int]
    learning: frozenset[str] = frozenset()
    others: frozenset[tuple[str, int]] = frozenset()


def plan(name: str, wanted: Forwarding, host: Host) -> Standing:
    return Standing(
        _digest(table(_table_name(name), wanted)), _rules(wanted, host.families), _settings(wanted, host)
    )


def difference(there: Standing, wanted: Standing) -> Change:
    """Of settings `there` has those that are otherwise, and can be changed."""
    otherwise = {setting.path for setting in there.settings}
    return Change(
        there.table != wanted.table,
        tuple(sorted(wanted.rules - there.rules)),
        tuple(sorted(there.rules - wanted.rules)),
        tuple(setting for setting in wanted.settings if setting.path in otherwise),
    )


def _rules(wanted: Forwarding, present: frozenset[int]) -> frozenset[Rule]:
    marks, made = wanted.marks, []
    for version in wanted.versions:
        if (family := FAMILIES[version]) not in present:
            continue
        made += [
            Rule(family, ADMITTED, marks.guarded, marks.mask, action=GO_TO, target=BEHIND),
            *(
                Rule(family, REFUSED, action=PROHIBIT, source=str(client), interface=interface)
                for client in wanted.clients_of(version)
                for interface in wanted.inside
            ),
            Rule(family, BEHIND, action=NOTHING),
        ]
    return frozenset(made)


def _settings(wanted: Forwarding, host: Host) -> tuple[Setting, ...]:
    """No rp_filter: it asks for the way back as if an answer were a packet of the client's, by the interface
    to it and without a mark, which the rules refuse. The table checks what clients send, in both families.
    No redirects: the table drops them, but they would take from the rate of refusals (ip_rt_error_burst)."""
    made = [
        # forwarding_table.py: the end of a gateway
        Setting("netfilter/nf_conntrack_tcp_loose", int(wanted.snat == "none")),
        # What is out of its window would be as unknown, and RST would end a connection that is well alive.
        Setting("netfilter/nf_conntrack_tcp_be_liberal", 1),
        Setting("netfilter/nf_conntrack_tcp_timeout_established", IDLE),
        Setting("netfilter/nf_conntrack_max", wanted.conntrack, at_least=True),
        Setting("netfilter/nf_conntrack_buckets", wanted.conntrack // 4, at_least=True),
    ]
    inside, both = sorted(wanted.inside), sorted(wanted.inside | wanted.outside)
    if 4 in wanted.versions:
        made += [Setting(path, value) for path, value in sorted(host.others)]
        made += [Setting(f"ipv4/conf/{name}/{what}", 0) for what in SHARED for name in (*both, "all")]
        made += [Setting(f"ipv4/conf/{name}/accept_redirects", 0) for name in inside]
        made += [Setting(f"ipv4/conf/{name}/forwarding", 1) for name in both]
    if 6 in wanted.versions:
        made += [Setting(f"ipv6/conf/{name}/accept_redirects", 0) for name in inside]
        made += [Setting(f"ipv6/conf/{name}/accept_ra", 2) for name in sorted(host.learning)]
        made.append(Setting("ipv6/conf/all/forwarding", 1))  # there is no switch for one interface alone
    return tuple(made)


# ---- This host --------------------------------------------------------------------------------------------


def apply(name: str, wanted: Forwarding, kept: Path) -> list[str]:
    """Makes it so in the calling thread's network namespace; what there was to do, in words.

    `kept` is the file that remembers what settings were. Raises :class:`OSError` with what is missing.
    """
    planned = plan(name, wanted, Host(families(), _learning(wanted), _others(wanted)))
    change = difference(_look(name, planned, kept), planned)
    done = []
    if change.write_table:  # first: where it can't be written, nothing is
        nft.write(_table_name(name), table(_table_name(name), wanted))
        _remember(name, planned.table, kept, way_for_all(_table_name(name), wanted.marks))
        done.append(f"wrote table inet {_table_name(name)} of nftables")
        done += sysctls.stuck(planned.settings)
    if change.add_rules or change.remove_rules:
        netlink.set_rules(PRIORITIES, planned.rules)
        done.append(f"wrote rules of priorities {ADMITTED} to {BEHIND}")
    return done + sysctls.write(change.settings, kept)


def open_to_all(name: str, kept: Path) -> list[str]:
    """Break-glass: whatever clients send is forwarded, marked or not, until the next :func:`apply`. What was
    done, in words; nothing where nothing is forwarded."""
    way = sysctls.remembered(kept).get("table", {}).get("way for all")
    if not way or not nft.read(_table_name(name)):
        return []
    nft.insert(way)
    return [f"the program's mark from what table inet {_table_name(name)} asks of clients"]


def remove(name: str, kept: Path) -> list[str]:
    """What was removed, in words. Without nft(8) there never was a table."""
    gone = sysctls.restore(kept)
    if netlink.rules_of(PRIORITIES):
        netlink.set_rules(PRIORITIES, frozenset())
        gone.append(f"rules of priorities {ADMITTED} to {BEHIND}")
    if nft.read(_table_name(name)):
        nft.write(_table_name(name), ())
        gone.append(f"table inet {_table_name(name)} of nftables")
    kept.unlink(missing_ok=True)
    return gone


def stands(name: str) -> bool:
    """Whether the table is there."""
    return bool(nft.read(_table_name(name)))


def _table_name(name: str) -> str:
    return f"{name}-gateway"


def _look(name: str, planned: Standing, kept: Path) -> Standing:
    memory = sysctls.remembered(kept).get("table", {})
    listed = nft.read(_table_name(name))
    is_whole = bool(listed) and memory.get("listed") == _digest(listed)
    values = sysctls.look(planned.settings)
    otherwise = (s for s in planned.settings if not s.holds(values[s.path]) and sysctls.can_change(s.path))
    return Standing(
        memory["wanted"] if is_whole else "", frozenset(netlink.rules_of(PRIORITIES)), tuple(otherwise)
    )


def _remember(name: str, wanted: str, kept: Path, way: Json) -> None:
    listed = _digest(nft.read(_table_name(name)))
    about = {"wanted": wanted, "listed": listed, "way for all": way}
    sysctls.remember(kept, sysctls.remembered(kept) | {"table": about})


def _digest(objects: tuple[Json, ...]) -> str:
    return hashlib.sha256(json.dumps(objects, sort_keys=True).encode()).hexdigest()


def _learning(wanted: Forwarding) -> frozenset[str]:
    """Also those that already learn although this host forwards; never those where only clients are."""
    others = _interfaces("ipv6") - (wanted.inside - wanted.outside)
    return frozenset(name for name in others if _value(f"ipv6/conf/{name}/accept_ra"))


def _others(wanted: Forwarding) -> frozenset[tuple[str, int]]:
    names = _interfaces("ipv4") - wanted.inside - wanted.outside
    paths = [(f"ipv4/conf/all/{what}", f"ipv4/conf/{name}/{what}") for what in SHARED for name in names]
    return frozenset((own, max(map(_value, (whole, own)))) for whole, own in paths)


def _value(path: str) -> int:
    return sysctls.read(path) or 0


def _interfaces(family: str) -> set[str]:
    folder = sysctls.PROC / family / "conf"
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return names - {"all", "default", "lo"}
