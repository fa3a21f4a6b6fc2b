"""What DNS may teach of a cluster's own addresses: the tables `never` and `domains`.

Rules this file obeys:

- The networks of pods and Services are taught by names of the cluster only: any other name that is answered
  by such an address leads somebody else's client into the cluster (rebinding).
- What the operator says is never learned stays so, around and within the cluster's networks.
- What narrows comes before what widens, so that nothing is learned in between that neither state allows.
- Whoever calls this holds the instance's lock.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from bpf.contract import contract
from bpf.datapath import Table
from bpf.events import pack_address
from gateway.policies import names
from gateway.policies.addresses import V4_MAPPED, Network, inside

Rows = dict[tuple[Any, ...], int]


def write(
    tables: Any, domains: Collection[str], ranges: Collection[Network], never: Collection[Network]
) -> None:
    """Makes the tables say so. `tables` is a Datapath; `domains` are names in normal form."""
    wanted = range_rows(ranges, never), domain_rows(domains)
    held = [_held(tables[name]) for name in ("never", "domains")]
    _remove(tables["domains"], held[1].keys() - wanted[1].keys())
    _add(tables["never"], held[0], wanted[0])
    _remove(tables["never"], held[0].keys() - wanted[0].keys())
    _add(tables["domains"], held[1], wanted[1])


def range_rows(ranges: Collection[Network], never: Collection[Network]) -> Rows:
    """Key (bits, policy 0, address) to enum range. An IPv6 network around all of IPv4 means none of it."""
    constant = contract().constant
    rows = {
        _key(one): constant("NEVER" if any(inside(one, other) for other in never) else "CLUSTER")
        for one in ranges
    }
    rows |= {_key(one): constant("NEVER") for one in never}
    if any(one.version == 6 and inside(V4_MAPPED, one) for one in (*ranges, *never)):
        rows.setdefault(_key(V4_MAPPED), constant("ANYBODY"))
    return rows


def domain_rows(domains: Collection[str]) -> Rows:
    """Key (bits, policy 0, text) of all names below each."""
    rows = {}
    for domain in domains:
        bits, text = names.suffix_key(names.Pattern(f"*.{domain}", exact=False))
        rows[16 + bits, b"\0\0", text] = 1
    return rows


def _key(network: Network) -> tuple[Any, ...]:
    bits = network.prefixlen + (96 if network.version == 4 else 0)
    return 16 + bits, b"\0\0", pack_address(network.network_address)


def _held(table: Table) -> Rows:
    """The fields of a key without its padding, as the rows above have them."""
    return {contract().plain(key): int(value) for key, value in table.items()}


def _add(table: Table, held: Rows, wanted: Rows) -> None:
    for key, value in wanted.items():
        if held.get(key) != value:
            table[key] = value


def _remove(table: Table, keys: Collection[tuple[Any, ...]]) -> None:
    for key in keys:
        table.discard(key)
