"""Grants as other gateways would want them, and those that they have: the door of peers to the kernel.

Addresses are 16 bytes (the contract's), times nanoseconds of CLOCK_BOOTTIME. Errors of bpf(2) are raised as
:class:`OSError`.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterable, Iterator
from itertools import islice

from bpf import kernel
from bpf.ask import CB, CONTEXT
from bpf.contract import contract
from bpf.datapath import Datapath

FRAME = struct.pack(">12xH", 0x88B5)  # an Ethernet header, of a type for experiments (RFC 9542)
FACT = struct.Struct("=QQ16sQ")  # struct fact
KEY, GRANT = struct.Struct("=16sQ"), struct.Struct("=QQQQQQQQ")  # struct grant_key, struct grant


def adopt(datapath: Datapath, number: int, facts: Iterable[tuple[int, bytes, int]]) -> int:
    """How many of these facts (peer, address, seconds that it is good for) are grants of a policy number now.

    The rest are of a peer that the policy has not, of an address that is never learned, or had no room.
    """
    packed = (FACT.pack(number, *fact) for fact in facts)
    program, taken = datapath.programs["gateway_share"], 0
    while frame := b"".join(islice(packed, contract().constant("FACTS_AT_ONCE"))):
        _, context = kernel.test_run_context(program, FRAME + frame, bytes(CONTEXT))
        taken += int.from_bytes(context[CB : CB + 4], sys.byteorder)
    return taken


def held(datapath: Datapath, number: int) -> Iterator[tuple[bytes, int, int]]:
    """(address, peer, end) of all grants of one policy number, those that are over too."""
    return ((address, peer, end) for owner, address, peer, end in walk(datapath) if owner == number)


def walk(datapath: Datapath) -> Iterator[tuple[int, bytes, int, int]]:
    """(policy number, address, peer, end) of every grant: one walk for all, as there is but one table."""
    table = datapath["grants"]
    for keys, values in kernel.rows(table.fd, table.layout.key_size, table.layout.value_size):
        for (address, number), slots in zip(KEY.iter_unpack(keys), GRANT.iter_unpack(values), strict=True):
            for peer, end in zip(slots[::2], slots[1::2], strict=True):
                if peer:
                    yield number, address, peer, end


def find(datapath: Datapath, number: int, address: bytes) -> list[tuple[int, int]]:
    """(peer, end) of the grants of one address."""
    grants = datapath["grants"]
    raw = kernel.lookup(grants.fd, KEY.pack(address, number), grants.layout.value_size)
    slots = GRANT.unpack(raw) if raw else ()
    return [(peer, end) for peer, end in zip(slots[::2], slots[1::2], strict=True) if peer]
