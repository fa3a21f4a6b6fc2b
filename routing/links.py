"""Which interfaces of this host lead into a network namespace: the host's sides of its veths (veth(4)).

Rules this file obeys:

- A link counts when both sides say so: the number of an interface is another one's in every namespace, so
  each side names the other by its number *and* by the namespace that this is in.
- What leads out of a namespace in another way is named: nobody judges what is sent there.
- Nothing is asked of names, addresses or files: those are the CNI's own matter.

Source: rtnetlink(7): IFLA_LINK and IFLA_LINK_NETNSID, RTM_GETNSID.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from routing.interfaces import Interface, interface, interfaces, number
from routing.namespaces import inside

VETH, BRIDGE = "veth", "bridge"


@dataclass(frozen=True, slots=True)
class Link:
    """The host's side of a veth, by its number and name; `mac` is that of the other side.

    `xdp`: id of a program that sees its packets before everybody else, or 0. `bridge`: the number
    of that of which it is a port, or 0.
    """

    index: int
    name: str
    mac: bytes
    xdp: int = 0
    bridge: int = 0


@dataclass(frozen=True, slots=True)
class Ways:
    """The links of a namespace, and in words what else leads out of it."""

    links: tuple[Link, ...] = ()
    astray: tuple[str, ...] = ()


def ways_of(namespace: int) -> Ways:
    """Those that lead from the namespace of a descriptor to that of the calling thread, and elsewhere.

    Raises :class:`OSError`: what changed in between is asked for again by who hears of it.
    """
    here = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there, home = inside(namespace, lambda: (interfaces(), number(here)))
    finally:
        os.close(here)
    links, astray = [], []
    for one in there:
        if not _leads_out(one):
            continue
        found = _other_side(one, namespace) if one.kind == VETH and one.beyond == home is not None else None
        if found is not None:
            links.append(Link(found.index, found.name, one.mac, found.xdp, _bridge(found)))
        else:
            astray.append(f"{one.name} ({one.kind or 'a device of hardware'}) is no veth to this host")
    return Ways(tuple(links), tuple(astray))


def _bridge(port: Interface) -> int:
    master = interface(port.master) if port.master else None
    return master.index if master is not None and master.kind == BRIDGE else 0


def _leads_out(one: Interface) -> bool:
    """Bridges, tunnels and VLANs that were made inside lead to what is there: that is looked at itself."""
    return not one.is_loopback and (not one.kind or one.beyond is not None)


def _other_side(one: Interface, namespace: int) -> Interface | None:
    found = interface(one.peer)
    if found is None or (found.kind, found.peer) != (VETH, one.index):
        return None
    return found if found.beyond is not None and found.beyond == number(namespace) else None
