"""The kernel's tables for one policy, and the safe order in which to change them.

The rules this file must obey:

* The longest match alone decides: a row carries everything that the shorter rows it hides would have said.
  `names` and `prefixes` list all peers that cover a row; the rows of `services` are services.py's.
  Expressions have no rows: the automaton of all of them, dfa.py's, is one value.
* IPv4 is kept as ::ffff:a.b.c.d, so a wide IPv6 prefix would cover it too: ::ffff:0:0/96 is an exception of
  every IPv6 prefix around it ("::/0" is every IPv6 address, and no IPv4 address).
* What the tables cannot hold grants nothing and is told; the rest of the policy stands. Of more than PEERS
  nested peers the narrowest go, and so do those whose ports got no bit. Such a peer is nowhere in the
  tables: either a peer is in every row that it covers, or in none.

The kernel admits a packet where `rules[policy, peer] & services[policy, protocol, port]` is not 0 for one of
the peers that `prefixes` gives for its address, or that `names` or the automaton gave for a name answered
with that address.

Rows are written one at a time while packets pass, so in between nothing may be allowed that neither the old
nor the new policy allows, nor refused what both allow. `difference` keeps that by two facts:

1. Within one longest-prefix table, write rows from the longest to the shortest, then delete from the shortest
   to the longest: every lookup then answers either exactly as in the old table or exactly as in the new one.
   An automaton is changed as a whole, so this holds for it too; but it and `names` are two answers to one
   lookup. What one of them lets go the other may take on, so where both change, `names` first passes through
   rows that have the peers of both policies.
2. A peer's coverage and a bit's ports never change, they only come and go. So first give every port its old
   and new bits, then every peer its old and new bits, then change what covers what (1), and then take the old
   bits from the peers and from the ports. Whichever answer a lookup gives meanwhile, old peers add only what
   the old or the new policy allows them, and new peers likewise.

The exceptions: where old and new port sets together need more than BITS bits, some must be reused. Their old
users lose them first, so that nothing too much is allowed; what both policies allow by such a bit is refused
until the change is through. And where more than PEERS old and new peers nest around one name while the
automaton changes, so is what a name too many allowed before and an expression allows then.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeVar, cast

from gateway.policies.addresses import V4_MAPPED, Network
from gateway.policies.dfa import PEERS, Automaton
from gateway.policies.names import KEY_BYTES, Pattern, suffix_key
from gateway.policies.policy import Peer, Policy, PortSet
from gateway.policies.records import Block
from gateway.policies.services import Row, Rows, assign_bits, masks_of, recover_bits, service_rows

MapName = Literal["names", "patterns", "prefixes", "rules", "services", "flags"]
Place = TypeVar("Place")


class Flags(NamedTuple):
    """What holds for a whole policy; a step's value as it stands, the contract has the bits."""

    audit: bool = False
    only_allowed_names: bool = False


NO_FLAGS = Flags()


@dataclass(frozen=True, slots=True)
class Tables:
    """The rows of one policy number: fields in the order of the contract's structs, plain ints and bytes."""

    number: int
    flags: Flags = NO_FLAGS
    names: Rows = field(default_factory=dict)  # (prefixlen, policy, text) -> ((peer, peer, peer, peer),)
    prefixes: Rows = field(default_factory=dict)  # (prefixlen, policy, address) -> ((peer, ...),)
    rules: Rows = field(default_factory=dict)  # (policy, peer) -> (mask,)
    services: Rows = field(default_factory=dict)  # (prefixlen, policy, protocol, port) -> (mask,)
    bits: Mapping[PortSet, int] = field(default_factory=dict)
    patterns: Automaton | None = None
    problems: tuple[str, ...] = ()


class Step(NamedTuple):
    """Write `value` at `key`, or delete the key where it is None; the key of `patterns` is the policy."""

    map: MapName
    key: Row
    value: Row | Automaton | None


@dataclass(frozen=True, slots=True)
class Change:
    """Steps to be taken in this order; after a failure, go on with the step that failed."""

    steps: tuple[Step, ...]


def compile(
    policy: Policy, number: int, previous: Tables | None = None, automaton: Automaton | None = None
) -> Tables:
    """The rows that `policy` wants under `number`; `previous` is what the kernel holds there now.

    `automaton` is that of the policy's expressions: one that it has not grants nothing, and whoever made it
    (automata.py) tells which and why.
    """
    problems: list[str] = []
    bits = assign_bits({ports for _, ports in policy.grants}, previous.bits if previous else {}, problems)
    masks = {peer: 1 << bits[ports] for peer, ports in policy.grants if ports in bits}
    names = _fit((p for p in masks if p.kind == "name"), _name_place, _names_above, problems)
    blocks = _fit((p for p in masks if p.kind == "prefix"), _block_place, _prefixes_above, problems)
    matched = automaton.ids() if automaton else frozenset()
    policy_bytes = number.to_bytes(2, "big")
    fitting = [peer for index in (names, blocks) for peers in index.values() for peer in peers]
    fitting += [peer for peer in masks if peer.kind == "pattern" and peer.id in matched]
    return Tables(
        number,
        flags=Flags(policy.audit, policy.only_allowed_names),
        names={
            (16 + 8 * len(text), policy_bytes, text.ljust(KEY_BYTES, b"\0")): _slots(
                names, text, _names_above
            )
            for text in names
        },
        prefixes={
            (16 + at.length, policy_bytes, at.value.to_bytes(16, "big")): _slots(blocks, at, _prefixes_above)
            for at in _prefix_rows(blocks)
        },
        rules={(number, peer.id): (masks[peer],) for peer in fitting},
        services=service_rows(bits.items(), policy_bytes),
        bits=bits,
        patterns=automaton,
        problems=tuple(problems),
    )


def recover(
    number: int,
    flags: Flags,
    names: Rows,
    prefixes: Rows,
    rules: Rows,
    services: Rows,
    patterns: Automaton | None = None,
) -> Tables:
    """The tables that an earlier agent left in the kernel, to be the `previous` of the next ones."""
    return Tables(number, flags, names, prefixes, rules, services, recover_bits(services), patterns)


def difference(old: Tables | None, new: Tables | None) -> Change:
    """The steps from `old` to `new`, either of which may be nothing; see above for their order."""
    given = old or new
    if given is None:
        return Change(())
    before, after = old or Tables(given.number), new or Tables(given.number)
    reused = _mask(bit for ports, bit in before.bits.items() if _taken(bit, ports, after.bits))
    kept = {ports: bit for ports, bit in before.bits.items() if not reused >> bit & 1}
    held = _without(before.rules, reused)
    policy_bytes = before.number.to_bytes(2, "big")
    services = service_rows([*kept.items(), *after.bits.items()], policy_bytes)
    rules = _either(held, after.rules)
    names = after.names if before.patterns == after.patterns else _shared(before.names, after.names)
    return Change(
        (
            *_flag_steps(before, after, first=True),
            *_steps("rules", before.rules, held),
            *_steps("services", before.services, services),
            *_steps("rules", held, rules),
            *_steps("prefixes", before.prefixes, after.prefixes),
            *_steps("names", before.names, names),
            *_pattern_steps(before, after),
            *_steps("names", names, after.names),
            *_steps("rules", rules, after.rules),
            *_steps("services", services, after.services),
            *_flag_steps(before, after, first=False, always=old is None),
        )
    )


# ---- Peers ------------------------------------------------------------------------------------------------


class _Prefix(NamedTuple):
    """A prefix of the one space of 128 bits in which IPv4 is ::ffff:0:0/96."""

    value: int
    length: int

    def within(self, outer: _Prefix) -> bool:
        return self.length >= outer.length and self.cut(outer.length) == outer

    def cut(self, length: int) -> _Prefix:
        return _Prefix(self.value >> (128 - length) << (128 - length), length)


def _prefix(network: Network) -> _Prefix:
    if network.version == 6:
        return _Prefix(int(network.network_address), network.prefixlen)
    return _Prefix(_IPV4.value | int(network.network_address), _IPV4.length + network.prefixlen)


_IPV4 = _prefix(V4_MAPPED)


def _excepts(block: Block) -> list[_Prefix]:
    hides_ipv4 = block.network.version == 6 and _IPV4.within(_prefix(block.network))
    return [_prefix(part) for part in block.excepts] + ([_IPV4] if hides_ipv4 else [])


def _covers(peer: Peer, place: object) -> bool:
    """Whether a peer whose own place is around `place` covers all of it."""
    if not isinstance(peer.what, Block) or not isinstance(place, _Prefix):
        return True
    return not any(place.within(part) for part in _excepts(peer.what))


def _name_place(peer: Peer) -> bytes:
    assert isinstance(peer.what, Pattern)
    bits, text = suffix_key(peer.what)
    return text[: bits // 8]


def _names_above(text: bytes) -> Iterator[bytes]:
    """The places of all patterns that cover the one at `text`, itself first, then the nearest."""
    yield text
    ends = (end for end in range(len(text) - 1, 0, -1) if text[end - 1 : end] == b".")
    yield from (text[:end] for end in ends)
    if text:
        yield b""


def _block_place(peer: Peer) -> _Prefix:
    assert isinstance(peer.what, Block)
    return _prefix(peer.what.network)


def _prefixes_above(place: _Prefix) -> Iterator[_Prefix]:
    return (place.cut(length) for length in range(place.length, -1, -1))


def _prefix_rows(blocks: Mapping[_Prefix, list[Peer]]) -> set[_Prefix]:
    rows = set(blocks)
    for peer in (peer for peers in blocks.values() for peer in peers):
        rows.update(_excepts(peer.what) if isinstance(peer.what, Block) else ())
    return rows


def _fit(
    peers: Iterable[Peer],
    place: Callable[[Peer], Place],
    above: Callable[[Place], Iterator[Place]],
    problems: list[str],
) -> dict[Place, list[Peer]]:
    """The peers by place, from the widest on, less those that would be one too many in a row."""
    index: dict[Place, list[Peer]] = {}
    order = sorted(((place(peer), peer) for peer in peers), key=lambda at: (_width(at[0]), at[1].text))
    for at, peer in order:
        around = _around(index, at, above)
        if len(around) < PEERS:
            index.setdefault(at, []).append(peer)
        else:
            inside = ", ".join(other.text for other in around)
            problems.append(f"{peer.text} grants nothing: it lies in {inside}, and {PEERS} can nest")
    return index


def _width(place: object) -> int:
    return place.length if isinstance(place, _Prefix) else len(place)  # type: ignore[arg-type]


def _around(
    index: Mapping[Place, list[Peer]], place: Place, above: Callable[[Place], Iterator[Place]]
) -> list[Peer]:
    return [peer for at in above(place) for peer in index.get(at, ()) if _covers(peer, place)]


def _slots(index: Mapping[Place, list[Peer]], place: Place, above: Callable[[Place], Iterator[Place]]) -> Row:
    ids = [peer.id for peer in _around(index, place, above)]
    return (tuple(ids + [0] * (PEERS - len(ids))),)


# ---- Steps ------------------------------------------------------------------------------------------------


def _steps(name: MapName, before: Rows, after: Rows) -> list[Step]:
    """Writes from the longest prefix on, then deletions from the shortest; key[0] is the prefix's length."""

    def length(step: Step) -> int:
        first = step.key[0]
        assert isinstance(first, int)
        return first

    writes = [Step(name, key, value) for key, value in after.items() if before.get(key) != value]
    deletions = [Step(name, key, None) for key in before if key not in after]
    return sorted(writes, key=length, reverse=True) + sorted(deletions, key=length)


def _shared(one: Rows, other: Rows) -> Rows:
    """Rows of `names` where every lookup gives the peers of both, as far as they have room."""
    return {key: (_joined(_found(other, key), _found(one, key)),) for key in {**one, **other}}


def _found(names: Rows, key: Row) -> tuple[int, ...]:
    """The peers that a lookup of a row's own text gives."""
    length, policy, text = key
    assert isinstance(length, int)
    assert isinstance(text, bytes)
    for above in _names_above(text[: (length - 16) // 8]):
        if row := names.get((16 + 8 * len(above), policy, above.ljust(KEY_BYTES, b"\0"))):
            return cast(tuple[int, ...], row[0])
    return (0,) * PEERS


def _joined(one: tuple[int, ...], other: tuple[int, ...]) -> tuple[int, ...]:
    ids = [peer for peer in dict.fromkeys(one + other) if peer][:PEERS]
    return tuple(ids + [0] * (PEERS - len(ids)))


def _pattern_steps(before: Tables, after: Tables) -> list[Step]:
    changed = before.patterns != after.patterns
    return [Step("patterns", (before.number,), after.patterns)] if changed else []


def _flag_steps(before: Tables, after: Tables, first: bool, always: bool = False) -> list[Step]:
    """Flags change to the looser of both before everything else, and to what is wanted after it."""
    loose = Flags(
        audit=before.flags.audit or after.flags.audit,
        only_allowed_names=before.flags.only_allowed_names and after.flags.only_allowed_names,
    )
    now, then = (before.flags, loose) if first else (loose, after.flags)
    return [Step("flags", (before.number,), then)] if now != then or always else []


def _taken(bit: int, ports: PortSet, bits: Mapping[PortSet, int]) -> bool:
    return any(other == bit and others != ports for others, other in bits.items())


def _mask(bits: Iterable[int]) -> int:
    mask = 0
    for bit in bits:
        mask |= 1 << bit
    return mask


def _without(rules: Rows, taken: int) -> Rows:
    return {key: (mask & ~taken,) for key, mask in masks_of(rules).items() if mask & ~taken}


def _either(one: Rows, other: Rows) -> Rows:
    left, right = masks_of(one), masks_of(other)
    return {key: (left.get(key, 0) | right.get(key, 0),) for key in left | right}
