"""The kernel's table of ports: a bit for every port set of a policy, and the rows that say who has which.

The rules this file must obey:

* The longest match alone decides, as in all of the tables: a row lists all port sets that contain it.
* A port set keeps its bit for as long as it is in the policy.
* Of more than BITS port sets the last ones get no bit, and are told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from gateway.policies.policy import ALL, LAST_PORT, PortRange, PortSet, describe, merge

BITS = 64  # of a ports mask
PROTOCOLS = {"ICMP": 1, "TCP": 6, "UDP": 17, "SCTP": 132}  # ICMPv6 is looked up as ICMP

Row = tuple[object, ...]
Rows = Mapping[Row, Row]


def assign_bits(wanted: set[PortSet], held: Mapping[PortSet, int], problems: list[str]) -> dict[PortSet, int]:
    """A bit for each port set: its own if it has one, else one that nothing holds, else one just freed."""
    order = sorted(wanted, key=sorted)
    problems += [f"ports {describe(p)} grant nothing: {BITS} sets fit a policy" for p in order[BITS:]]
    bits = {ports: held[ports] for ports in order[:BITS] if ports in held}
    free = [bit for bit in range(BITS) if bit not in held.values()]
    free += [bit for ports, bit in held.items() if ports not in bits]
    fresh = [ports for ports in order[:BITS] if ports not in bits]
    return bits | dict(zip(fresh, free, strict=False))


def service_rows(bits: Iterable[tuple[PortSet, int]], policy_bytes: bytes) -> Rows:
    """A row per prefix of (protocol, port), 24 bits, with the bits of every set that contains it."""
    own: dict[tuple[int, int], int] = {(0, 0): 0}
    for ports, bit in bits:
        for place in (place for port_range in ports for place in _prefixes(port_range)):
            own[place] = own.get(place, 0) | 1 << bit
    rows: dict[Row, Row] = {}
    for value, length in own:
        mask = 0
        for shorter in range(length + 1):
            mask |= own.get((value >> (24 - shorter) << (24 - shorter), shorter), 0)
        rows[16 + length, policy_bytes, value >> 16, (value & LAST_PORT).to_bytes(2, "big")] = (mask,)
    return rows


def recover_bits(rows: Rows) -> dict[PortSet, int]:
    """The inverse of `service_rows`.

    A row has the bits of every set that contains it, so a bit's ports are those of all rows that have it.
    """
    held: dict[int, list[PortRange]] = {}
    for key, mask in masks_of(rows).items():
        for bit in (bit for bit in range(BITS) if mask >> bit & 1):
            held.setdefault(bit, []).append(_range_of(key))
    return {merge(ranges): bit for bit, ranges in held.items()}


def masks_of(rows: Rows) -> dict[Row, int]:
    return {key: mask for key, (mask,) in rows.items() if isinstance(mask, int)}


def _prefixes(port_range: PortRange) -> Iterator[tuple[int, int]]:
    """The fewest (value, length) of 24 bits that are exactly this range."""
    if port_range in ALL:
        yield 0, 0
        return
    protocol, first, last = PROTOCOLS[port_range.protocol] << 16, port_range.first, port_range.last
    while first <= last:
        size = first & -first or LAST_PORT + 1
        while first + size - 1 > last:
            size //= 2
        yield protocol | first, 24 - (size.bit_length() - 1)
        first += size


def _range_of(key: Row) -> PortRange:
    """The inverse of _prefixes for one row."""
    length, _, protocol, port = key
    assert isinstance(length, int)
    assert isinstance(port, bytes)
    if length == 16:
        return next(iter(ALL))
    name = next(name for name, known in PROTOCOLS.items() if known == protocol)
    first = int.from_bytes(port, "big")
    return PortRange(name, first, first + (1 << (40 - length)) - 1)
