"""A workload goes from one policy's number to another: what DNS taught under the old one goes along.

Rules this file obeys:

- A grant is copied for a peer that both policies have: peers are known by the hash of their text, so that an
  equal name is an equal peer. Whatever the new policy does not have stays behind.
- A copy takes a place in the new policy's rings, as a grant that the kernel learns does (quotas.h); where
  none is free, it is not copied, and the name must be resolved again.
- Nothing is changed in what the old policy holds: other workloads live by it.

What can't be promised: the programs write to the same rows. Where a name is learned in the very moment in
which another peer's slot is added to the same address, one of both is lost until it is resolved again.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from bpf import kernel
from bpf.contract import contract
from bpf.datapath import Datapath
from bpf.load import DatapathError
from gateway import cgroups
from gateway.numbers import OVER

COPIES = 3  # while more is learned


def carry(loaded: Datapath, old: int, new: int, peers: Collection[int], late: bool) -> list[str]:
    """Copies grants until nothing new comes; what could not be done, in words. `late`: the workload's row has
    changed, and answers that were being read then may still teach the old number."""
    if late and peers:
        kernel.wait_for_programs()
    try:
        for _ in range(COPIES):
            if not copy_grants(loaded, old, new, peers):
                break
    except DatapathError as error:
        return [f"names must be resolved again: {error}"]
    return []


def governed(loaded: Datapath, path: Path) -> set[int]:
    """Ids of a cgroup and of all below it, without those that have a row of their own nearer by."""
    found, nearer = set[int](), set[Path]()
    for folder in cgroups.below(path):
        with suppress(OSError):
            identity = cgroups.cgroup_id(folder)
            if folder.parent in nearer or (folder != path and loaded["workloads"].get(identity) is not None):
                nearer.add(folder)
            else:
                found.add(identity)
    return found


def copy_grants(loaded: Datapath, old: int, new: int, peers: Collection[int]) -> int:
    """How many grants of these peers were copied, or prolonged, under the number `new`."""
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return sum(
        _grant(loaded, new, peer, address, expires, now)
        for peer in peers
        for address, expires in _grants(loaded, old, peer)
        if expires > now
    )


def _grants(loaded: Datapath, number: int, peer: int) -> Iterator[tuple[bytes, int]]:
    """Addresses of a peer, and when it loses each."""
    holding = loaded["holdings"].get((number, peer))
    for place in range(min(int(holding.number), contract().constant("ADDRESSES")) if holding else 0):
        held = loaded["grant_ring"].get((number, peer, place))
        if held is not None:
            address = bytes(held.address)
            yield address, _expires(loaded["grants"].get((address, number)), peer)


def _expires(grant: Any, peer: int) -> int:
    return (
        max((int(slot.expires) for slot in grant.slots if int(slot.peer) == peer), default=0) if grant else 0
    )


def _grant(loaded: Datapath, number: int, peer: int, address: bytes, expires: int, now: int) -> bool:
    """Whether anything changed."""
    table, key = loaded["grants"], (address, number)
    there = table.get(key)
    before = _expires(there, peer)
    if before >= expires:
        return False
    if not before and not _take_place(loaded, number, peer, address, now):
        return False
    if table.insert(key, ([(peer, expires)],)):
        return True
    slots = [(int(slot.peer), int(slot.expires)) for slot in table[key].slots]
    mine = [index for index, slot in enumerate(slots) if slot[0] == peer]
    soonest = min(range(len(slots)), key=lambda index: slots[index][1] if slots[index][0] else 0)
    slots[mine[0] if mine else soonest] = (peer, expires)
    table[key] = (slots,)
    return True


def _take_place(loaded: Datapath, number: int, peer: int, address: bytes, now: int) -> bool:
    """take_place() of quotas.h, tried as often as learn_address() tries it."""
    quota = int(loaded["settings"][0].addresses)
    for _ in range(contract().constant("PROBES")):
        turn = _holding(loaded, number, peer)[0]
        loaded["holdings"][number, peer] = (turn + 1, 0)
        holder = (number, peer, turn % quota)
        there = loaded["grant_ring"].get(holder)
        if there is not None:
            if _expires(loaded["grants"].get((bytes(there.address), number)), peer) + OVER >= now:
                continue
            loaded["grant_ring"].discard(holder)
            _count_place(loaded, number, -1)
        if _holding(loaded, number, 0)[1] >= quota * contract().constant("GRANTS_PER_POLICY"):
            return False
        if loaded["grant_ring"].insert(holder, (address,)):
            _count_place(loaded, number, 1)
            return True
    return False


def _holding(loaded: Datapath, number: int, peer: int) -> tuple[int, int]:
    found = loaded["holdings"].get((number, peer))
    return (int(found.number), int(found.places)) if found is not None else (0, 0)


def _count_place(loaded: Datapath, number: int, more: int) -> None:
    turn, places = _holding(loaded, number, 0)
    loaded["holdings"][number, 0] = (turn, max(0, places + more))
