"""Taking everything away: works without an agent, and without tables that can be read."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from bpf import datapath
from gateway.cgroups import remove_cgroup
from gateway.link_programs import detach_everywhere
from gateway.place import FORWARDING, ROUTE, Place
from gateway.states import locked
from routing import forwarding, next_hops, steering


def off(where: Place) -> list[str]:
    """Break-glass: detaches every program at once; needs no agent and no tables. What was detached."""
    gone = []
    for cgroup in (where.cgroup, where.hierarchy):
        if cgroup.is_dir():
            gone += [f"{name} from {cgroup}" for name in datapath.detach_all(where.pins, cgroup)]
    steps = (
        partial(detach_everywhere, where.pins),
        partial(steering.remove, where.name),
        partial(forwarding.open_to_all, where.name, where.state / FORWARDING),
    )
    for step in steps:
        try:
            gone += step()
        except OSError as error:  # the others are not to stay for it
            gone.append(f"not all: {error}")
    return gone


def _not_forwarded(where: Place) -> list[str]:
    """Only what this instance did: rules and routes do not say whose they are."""
    kept, route = where.state / FORWARDING, where.state / ROUTE
    try:
        gone = forwarding.remove(where.name, kept) if kept.exists() or forwarding.stands(where.name) else []
        return gone + (next_hops.remove(route) if route.exists() else [])
    except OSError as error:
        return [f"not all: {error}"]


def uninstall(where: Place) -> list[str]:
    """Everything: programs, tables, cgroups, files under /run. What was removed, in words."""
    if not where.run.exists():
        return _uninstall(where)
    with locked(where):  # an engine that attached between detaching and unpinning could not be detached again
        return _uninstall(where)


def _uninstall(where: Place) -> list[str]:
    gone = [*off(where), *_not_forwarded(where)]
    for path in (where.pins, where.run, where.state):
        if path.exists():
            gone.append(str(path))
            datapath.unpin(path)
    if where.cgroup.is_dir():
        for child in where.cgroup.iterdir():
            if child.is_dir():
                remove_cgroup(child)
        with suppress(OSError):
            remove_cgroup(where.cgroup)
            gone.append(str(where.cgroup))
    return gone
