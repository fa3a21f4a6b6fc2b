"""Sockets that are open when a policy comes or changes: adopted, or ended.

Rules this file obeys:

- What came in from outside before its workload had a policy may go on to be answered. Of TCP that is told by
  its local port: one that is listened on.
- A socket is ended when neither the peer that admitted its flow nor anything else in the policy admits it any
  more, asked of the kernel's own tables, as the kernel does with the flow's next packet. So expiry of a DNS
  answer ends nothing, and of two names on one address withdrawing one leaves the other's flows alone.
- To be told early is a courtesy: the kernel drops such a flow's packets both ways whatever happens here.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import suppress
from socket import IPPROTO_ICMPV6, IPPROTO_TCP, IPPROTO_UDP
from typing import Any, TypeVar

from bpf import kernel
from bpf.contract import contract
from bpf.datapath import Datapath
from bpf.events import Reason, pack_address
from gateway.cgroups import hierarchy, processes_below
from gateway.report import PROTOCOLS, printable
from routing import sockets
from routing.borrowed import sockets_of
from routing.namespaces import inside, namespaces
from routing.own import namespace_cookie
from routing.sockets import Socket, State

T = TypeVar("T")
SINGLE_PORT = 40  # bits of a service's key that names one port
WHOLE_ADDRESS = 16 + 128  # bits of a prefix's key that names one address


def adopt(loaded: Datapath, number: int, cgroups: Collection[int], pids: Collection[int]) -> int:
    """Lays down what the kernel shall know of sockets that it has not seen; how many there were."""
    generation = int(loaded["policies"][number].generation)
    known = 0
    for cookie, found in _in_each_namespace(pids, lambda: (namespace_cookie(), sockets.dump())):
        served = {(one.protocol, one.local_port) for one in found if one.state == State.LISTEN}
        for one in (one for one in found if one.cgroup in cgroups):
            came_in = (one.protocol, one.local_port) in served and one.state != State.LISTEN
            flow = _inbound(one, number, generation) if came_in else _NO_FLOW
            loaded["carried"][one.cookie] = (flow, cookie, 0, 0, b"")
            known += 1
    if known:
        loaded.set(carrying=1)
    return known


def sweep_carried(loaded: Datapath, silent: set[int]) -> set[int]:
    """Takes away what was laid down for sockets that are no more; those that seem so, for the next time.

    A list of sockets may miss one: only who is missed twice is gone.
    """
    table = loaded["carried"]
    waiting = {int.from_bytes(raw, sys.byteorder) for raw in table.raw_keys()}
    if not waiting:
        return set()
    everybody = processes_below(hierarchy())
    alive = {one.cookie for found in _in_each_namespace(everybody, sockets.dump) for one in found}
    for cookie in waiting & silent - alive:
        table.discard(cookie)
    return waiting - alive


def end_withdrawn(
    loaded: Datapath, number: int, cgroups: Collection[int], pids: Collection[int], before: int | None = None
) -> list[str]:
    """Ends the sockets of the cgroups whose flows nothing admits any more; who and where to, in words.

    `before` is the number that they were under until now, if it was another.
    """
    ended: list[str] = []
    datagrams = dict(_datagram_flows(loaded, pids))

    def end() -> None:
        storage = loaded["sockets"].fd
        for one in sockets.dump((IPPROTO_TCP, IPPROTO_UDP), storage):
            held = (
                contract().unpack("struct socket", one.storage) if one.storage else datagrams.get(one.cookie)
            )
            if held is None or one.cgroup not in cgroups or one.state == State.LISTEN:
                continue
            if held.flow.policy not in (number, before):
                continue
            if is_withdrawn(loaded, number, held) and sockets.destroy(one):
                ended.append(_told(one, held))

    for _ in _in_each_namespace(pids, end):
        pass
    return ended


def is_withdrawn(loaded: Datapath, number: int, held: Any) -> bool:
    """Whether the kernel will drop the next packet of a socket under a policy (judge_again() in flows.h).

    `held` is its struct socket. Where the node translated the address, the one that was asked for counts.
    """
    flow, asked = held.flow, bytes(held.server_port)
    state = Reason(flow.state).name
    if state not in ("ALLOWED", "WITHDRAWN", "RESOLVER"):
        return False
    remote, port = bytes(flow.tuple.remote), bytes(flow.tuple.remote_port)
    if flow.tuple.protocol == IPPROTO_TCP and any(asked) and not held.asker:
        remote, port = bytes(held.server), asked
    ports = _ports(loaded, number, int(flow.tuple.protocol), port)
    if state == "ALLOWED" and _admits(loaded, number, int(flow.peer), ports):
        return False
    if loaded["resolvers"].get((remote, number, port)) is not None:
        return False
    return not any(_admits(loaded, number, peer, ports) for peer in _peers(loaded, number, remote))


def _peers(loaded: Datapath, number: int, remote: bytes) -> Iterator[int]:
    grant = loaded["grants"].get((remote, number))
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    yield from (int(s.peer) for s in (grant.slots if grant else ()) if s.peer and int(s.expires) >= now)
    around = loaded["prefixes"].get((WHOLE_ADDRESS, number.to_bytes(2, "big"), remote))
    yield from (int(peer) for peer in (around.id if around else ()) if peer)


def _ports(loaded: Datapath, number: int, protocol: int, port: bytes) -> int:
    protocol = 1 if protocol == IPPROTO_ICMPV6 else protocol
    port = port if PROTOCOLS.get(protocol) in ("TCP", "UDP", "SCTP") else b"\0\0"
    key = (SINGLE_PORT, number.to_bytes(2, "big"), protocol, port)
    found = loaded["single_services"].get(key) or loaded["services"].get(key)
    return int(found.ports) if found else 0


def _admits(loaded: Datapath, number: int, peer: int, ports: int) -> bool:
    rule = loaded["rules"].get((number, peer))
    return rule is not None and bool(int(rule.ports) & ports)


def _datagram_flows(loaded: Datapath, pids: Iterable[int]) -> Iterator[tuple[int, Any]]:
    """What is kept with datagram sockets is told only to who holds them."""
    seen: set[str] = set()
    for pid in pids:
        with suppress(PermissionError):  # who may not be looked at is not told early
            yield from _datagram_flows_of(loaded, pid, seen)


def _datagram_flows_of(loaded: Datapath, pid: int, seen: set[str]) -> Iterator[tuple[int, Any]]:
    layout = loaded["sockets"].layout
    for cookie, held in sockets_of(pid, seen):
        if held.proto == IPPROTO_UDP:
            raw = kernel.lookup(
                loaded["sockets"].fd, held.fileno().to_bytes(4, sys.byteorder), layout.value_size
            )
            if raw:
                yield cookie, contract().unpack(layout.value, raw)


def _in_each_namespace(pids: Collection[int], work: Callable[[], T]) -> Iterator[T]:
    """In every network namespace among the processes; in this one's own where none of them shows any."""
    with namespaces(pids) as found, namespaces([os.getpid()]) as mine:
        for descriptor in (found or mine).values():
            yield inside(descriptor, work)


_NO_FLOW = ((), 0, 0, 0, 0, 0, 0, 0)


def _inbound(one: Socket, number: int, generation: int) -> tuple[Any, ...]:
    ends = (
        pack_address(one.local),
        pack_address(one.remote),
        one.local_port.to_bytes(2, "big"),
        one.remote_port.to_bytes(2, "big"),
        one.protocol,
    )
    return (ends, 0, 0, number, generation, int(Reason["INBOUND"]), 0, 0)


def _told(one: Socket, held: Any) -> str:
    protocol = PROTOCOLS.get(one.protocol, str(one.protocol))
    process = contract().ffi.string(held.comm).decode("utf-8", "replace")
    who = f" of {printable(process)}" if process else ""
    return f"ended {protocol} to {one.remote} port {one.remote_port}{who}: its rule was withdrawn"
