"""Homes of workloads, from a layout that kept one network namespace with each policy.

There a policy had one workload, or several in one place: `policy.netns` was the namespace's cookie, `own` was
keyed by the policy's number. Here each workload's row says where it lives (struct workload), so what stood
with the policy goes to its workloads. Where no cookie was known the policy's number stands for the namespace:
nothing but the keys of `own` is compared with it, until the engine writes what the namespace really is.
"""

from __future__ import annotations

import sys

from bpf import kernel
from bpf.contract import Contract, contract
from bpf.convert import Convert


def translations(
    layout: Contract, policies: int, convert: Convert
) -> tuple[dict[str, Convert], dict[str, Convert]]:
    """How keys are made, and values, of the tables whose rows say less in `layout` than they do here.

    `policies` is the descriptor of that layout's table of policies, and `convert` makes the rest of its rows.
    """
    if "netns" not in dict(layout.ffi.typeof("struct policy").fields):
        return {}, {}
    size = layout.maps["policies"].value_size

    def policy(number: int) -> tuple[int, int]:
        """Home and flags of the workloads of a policy."""
        raw = kernel.lookup(policies, number.to_bytes(4, sys.byteorder), size)
        if raw is None:  # EXEMPT: beyond the table
            return 0, 0
        row = layout.unpack("struct policy", raw)
        own = contract().constant("OWN_SOURCES") if row.flags & layout.constant("OWN_SOURCES") else 0
        cookie = contract().constant("COOKIE") if row.netns else 0
        return int(row.netns) or (number if own else 0), own | cookie

    def policy_row(raw: bytes) -> bytes:
        """Whose sources are asked for is said of workloads: an earlier version that takes over again finds
        no addresses under the policy's number."""
        row = contract().unpack("struct policy", convert(raw))
        row.flags &= ~contract().constant("OWN_SOURCES")
        return bytes(contract().ffi.buffer(row))

    def own_key(raw: bytes) -> bytes:
        key = layout.unpack("struct grant_key", raw)
        return contract().pack("struct own_key", (bytes(key.address), policy(int(key.policy))[0]))

    def workload(raw: bytes) -> bytes:
        number = int(layout.unpack("struct workload", raw).policy)
        home, flags = policy(number)
        exempt = number == layout.constant("EXEMPT")
        number = contract().constant("EXEMPT") if exempt else number
        return contract().pack("struct workload", (number, flags, home))

    return {"own": own_key}, {"workloads": workload, "policies": policy_row}
