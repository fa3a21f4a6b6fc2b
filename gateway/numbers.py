"""What the kernel's tables say under each policy number: written, changed in place, read back, taken away.

Rules this file obeys:

- Rows are written in the order that tables.py proves; the generation grows after the last of them, so that
  flows are judged again by the whole of the new policy.
- A change leaves grants alone: what DNS taught to a name holds for as long as a peer of that name is there.
- The tables are the state. What an earlier process left is read back from them, never from a file.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bpf import datapath, kernel
from bpf.contract import contract
from bpf.datapath import Datapath
from bpf.events import pack_address
from gateway.automata import Made
from gateway.policies import names, tables
from gateway.policies.dfa import PEERS, Automaton, State
from gateway.policies.policy import Policy, describe
from gateway.policies.tables import Flags, Tables
from gateway.resolvers import Resolver
from gateway.states import EngineError

FLOOR, GRACE = 60, 60  # seconds: a grant lasts max(TTL, FLOOR) + GRACE
OWNED = ("names", "suffixes", "prefixes", "rules", "services", "single_services", "resolvers")
LEARNED = ("grants", "grant_ring", "holdings")
OVER = 10 * 10**9  # nanoseconds after its end that a grant may go: quotas.h waits as long
SYMBOLS = 40  # struct state: one more than there are, so that rows are whole words
FLAG_NAMES = {"audit": "AUDIT", "only_allowed_names": "ONLY_ALLOWED_NAMES"}


@dataclass(frozen=True, slots=True)
class Options:
    """How the workloads of one number are held, beside their policy; times in seconds."""

    resolvers: tuple[Resolver, ...] = ()
    searches: tuple[str, ...] = ()  # search suffixes: names in normal form
    host: bool = False  # the workload is the host: what keeps it on its network passes
    names: bool = False  # answers are told too, for who tells refusals by name
    trace: bool = False
    captured: bool = False  # whatever server a machine asks, the resolver of this host answers
    shared: bool = False  # what is learned, or missing, is told to other gateways
    floor: int = FLOOR
    grace: int = GRACE

    @property
    def local(self) -> list[Resolver]:
        """Those that lie on this host."""
        return [resolver for resolver in self.resolvers if resolver.is_local]


Row = tuple[str, tuple[Any, ...]]  # table and key
TableRows = dict[str, dict[Any, Any]]  # table to key to value


@dataclass(frozen=True, slots=True)
class Written:
    """What stands under one number: the policy's rows, and those that `Options` ask for."""

    tables: Tables
    rows: Mapping[Row, object]
    problems: tuple[str, ...] = ()


class Numbers:
    """All policy numbers of one kernel half."""

    def __init__(self, loaded: Datapath) -> None:
        self.datapath = loaded
        self._arrays: dict[Automaton, int] = {}  # descriptors: equal automata are one array in the kernel
        self._used: dict[int, Automaton] = {}
        self._next = 1  # the first number that may be new
        self._left: dict[int, TableRows] | None = None
        self._read_at: dict[int, int] = {}  # generations

    def close(self) -> None:
        for fd in self._arrays.values():
            os.close(fd)
        self._arrays, self._used = {}, {}

    def take(self, used: Callable[[], Collection[int]]) -> int:
        """A number under which nothing is said; `used` are those that somebody has, asked for when all have
        been given out once."""
        while self._next < contract().constant("POLICIES"):
            number, self._next = self._next, self._next + 1
            if not self.datapath["policies"][number].generation:  # nobody ever had it
                self.judge_anew(number)  # from now on somebody has
                return number
        left = set(range(1, contract().constant("POLICIES"))) - set(used())
        if not left:
            raise EngineError(
                f"all {self._next - 1} policy numbers of this host are in use: end some workloads first"
            )
        self.purge(left & self.saying())
        self.judge_anew(min(left))
        return min(left)

    def saying(self) -> set[int]:
        """The numbers under which something is said, whoever has them, or had."""
        numbers, table = range(1, contract().constant("POLICIES")), self.datapath["policies"]
        rows = ((number, table[number]) for number in numbers)
        return {number for number, row in rows if row.flags or row.floor or row.grace}

    def write(
        self, number: int, policy: Policy, made: Made, options: Options, before: Written | None = None
    ) -> Written:
        """Puts `policy` under a number, in place of what it said `before` (None: it was purged).

        `made` is its automaton (automata.py), which takes too long to be made under the instance's lock.
        """
        held, old = (before.tables, before.rows) if before else (None, {})
        automaton, left_out = made
        wanted = tables.compile(policy, number, held, automaton)
        rows = self._add_rows(number, options, old)
        for map_name, key, value in tables.difference(held, wanted).steps:
            if isinstance(value, Flags):
                self._set_policy(number, value, wanted.patterns is not None, options, grown=0)
            elif map_name == "patterns":
                assert value is None or isinstance(value, Automaton)
                self._set_automaton(number, value)
            else:
                datapath.write(self.datapath.tables, map_name, key, value)
        self._remove_rows(old, rows)
        self._set_policy(number, wanted.flags, wanted.patterns is not None, options, grown=1)
        return Written(wanted, rows, (*wanted.problems, *left_out))

    def judge_anew(self, number: int) -> None:
        """Flows that the policy admitted ask again with their next packet, whosever they are by then."""
        before = self.datapath["policies"][number]
        before.generation = (int(before.generation) + 1) & 0xFFFFFFFF
        self.datapath["policies"][number] = before[0]

    def readdress(self, number: int, options: Options, before: Written) -> Written:
        """Changes the rows that `options` ask for, and nothing of the policy. Flows to a resolver that is
        none any more are asked again."""
        rows = self._add_rows(number, options, before.rows)
        self._remove_rows(before.rows, rows)
        self._set_policy(number, before.tables.flags, before.tables.patterns is not None, options, grown=1)
        return replace(before, rows=rows)

    def read_back(self, number: int) -> Written:
        """What stands under a number, whoever wrote it."""
        return self._recovered(number, self._read_rows({number}).get(number))

    def adopt(self, number: int) -> Written:
        """The same, of one of many that an earlier process left: all are read at once, the first time. What
        somebody has changed since then is read anew."""
        if self._left is None:
            self._left = self._read_rows(range(contract().constant("POLICIES")))
            self._read_at = {n: self._generation(n) for n in self._left}
        found = self._left.pop(number, None)
        if found is None or self._read_at[number] != self._generation(number):
            return self.read_back(number)
        return self._recovered(number, found)

    def _recovered(self, number: int, found: TableRows | None) -> Written:
        found = found or {name: {} for name in OWNED}
        rows = {(name, key): found[name][key] for name in ("resolvers", "suffixes") for key in found[name]}
        flags = int(self.datapath["policies"][number].flags)
        held = tables.recover(
            number,
            Flags(**{field: bool(flags & contract().constant(name)) for field, name in FLAG_NAMES.items()}),
            found["names"],
            found["prefixes"],
            found["rules"],
            found["services"],
            self._read_automaton(number),
        )
        return Written(held, rows)

    def purge(self, numbers: Collection[int]) -> None:
        """Every row of some policy numbers, whoever wrote it; flows that they admitted end with them. The
        tables are walked through once, which takes a while where they are large."""
        if not numbers:
            return
        for number in numbers:
            before = self.datapath["policies"][number]
            self.datapath["policies"][number] = ((int(before.generation) + 1) & 0xFFFFFFFF,)
            self._set_automaton(number, None)
            self.datapath["events"].discard(number)
            self.datapath["proxies"][number] = (0,)
            for index in range(len_reasons()):
                self.datapath["counters"].zero_cpus(number * len_reasons() + index)
        for name in (*OWNED, *LEARNED):
            table, number_of = self.datapath[name], _number_in(self.datapath[name].layout.key)
            for raw in list(table.raw_keys()):
                if number_of(raw) in numbers:
                    table.remove_raw(raw)

    def sweep(self) -> None:
        """Gives back the places of peers that are gone, once what they hold is over: a policy may live for
        months, and there is room for so many places in all of it."""
        for key, holding in list(self.datapath["holdings"].items()):
            number, peer = int(key.policy), int(key.peer)
            if peer and self.datapath["rules"].get((number, peer)) is None:
                self._give_back(number, peer, min(int(holding.number), contract().constant("ADDRESSES")))

    def _give_back(self, number: int, peer: int, most: int) -> None:
        now, staying, given = time.clock_gettime_ns(time.CLOCK_BOOTTIME), 0, 0
        for place in range(most):
            held = self.datapath["grant_ring"].get((number, peer, place))
            grant = self.datapath["grants"].get((bytes(held.address), number)) if held else None
            lasting = [int(slot.peer) for slot in grant.slots if slot.expires + OVER >= now] if grant else []
            if peer in lasting:
                staying += 1
            elif held:
                if not any(lasting):
                    self.datapath["grants"].discard((bytes(held.address), number))
                self.datapath["grant_ring"].discard((number, peer, place))
                given += 1
        every = self.datapath["holdings"].get((number, 0))
        if every and given:
            self.datapath["holdings"][number, 0] = (int(every.number), max(0, int(every.places) - given))
        if not staying:
            self.datapath["holdings"].discard((number, peer))

    def counters(self, number: int) -> dict[str, int]:
        """Packets by reason, of one policy since its number was given out."""
        reasons = contract().enumerators("reason")
        found = {
            name: self.datapath["counters"].sum_cpus(number * len_reasons() + value)
            for value, name in reasons.items()
            if value < len_reasons()
        }
        return {name: count for name, count in found.items() if count}

    def _add_rows(self, number: int, options: Options, before: Mapping[Row, object]) -> Mapping[Row, object]:
        rows = _option_rows(number, options)
        for (name, key), value in rows.items():
            if before.get((name, key)) != value:
                self.datapath[name][key] = value
        return rows

    def _remove_rows(self, before: Mapping[Row, object], rows: Mapping[Row, object]) -> None:
        for name, key in before.keys() - rows.keys():
            self.datapath[name].discard(key)

    def _set_policy(
        self, number: int, flags: Flags, has_patterns: bool, options: Options, grown: int
    ) -> None:
        constant = contract().constant
        bits = sum(constant(name) for field, name in FLAG_NAMES.items() if getattr(flags, field))
        bits |= constant("PATTERNS") if has_patterns else 0
        bits |= constant("TRACE") if options.trace else 0
        bits |= constant("NAMES") if options.names else 0
        bits |= constant("HOST") if options.host else 0
        bits |= constant("CAPTURED") if options.captured else 0
        bits |= constant("SHARED") if options.shared else 0
        bits |= constant("RESOLVER_PORTS") if any(r.port != 53 for r in options.resolvers) else 0
        before = self.datapath["policies"][number]
        self.datapath["policies"][number] = (
            (int(before.generation) + grown) & 0xFFFFFFFF,
            bits,
            options.floor,
            options.grace,
        )

    # ---- What earlier processes left

    def _generation(self, number: int) -> int:
        return int(self.datapath["policies"][number].generation)

    def _read_rows(self, numbers: Collection[int]) -> dict[int, TableRows]:
        found: dict[int, TableRows] = {}
        for name in OWNED:
            table, number_of = self.datapath[name], _number_in(self.datapath[name].layout.key)
            key, value = contract().reader(table.layout.key), contract().reader(table.value)
            for raw in table.raw_keys():
                number = number_of(raw)
                if number in numbers and (row := kernel.lookup(table.fd, raw, table.layout.value_size)):
                    there = found.setdefault(number, {name: {} for name in OWNED})
                    there[name][key(raw)] = value(row)
        return found

    # ---- Automata

    def _set_automaton(self, number: int, automaton: Automaton | None) -> None:
        if automaton is None:
            self.datapath["patterns"].discard(number)
            self._used.pop(number, None)
        else:
            self.datapath["patterns"][number] = self._array(automaton)
            self._used[number] = automaton
        for unused in self._arrays.keys() - self._used.values():
            os.close(self._arrays.pop(unused))

    def _array(self, automaton: Automaton) -> int:
        if automaton not in self._arrays:
            layout = self.datapath["patterns"].layout
            fd = kernel.create_array(layout.inner_size, len(automaton.states))
            for index, state in enumerate(automaton.states):
                row = ([*state.next, 0][:SYMBOLS], [*state.peers, 0, 0, 0, 0][:PEERS])
                kernel.update(fd, _u32(index), contract().pack(layout.value, row))
            self._arrays[automaton] = fd
        return self._arrays[automaton]

    def _read_automaton(self, number: int) -> Automaton | None:
        table = self.datapath["patterns"]
        identity = table.get(number)
        if identity is None:
            return None
        fd = kernel.map_by_id(identity)
        try:
            states = []
            for index in range(int(kernel.map_info(fd).max_entries)):
                raw = kernel.lookup(fd, _u32(index), table.layout.inner_size)
                state = contract().unpack(table.layout.value, raw or bytes(table.layout.inner_size))
                states.append(State(tuple(state.next)[: SYMBOLS - 1], tuple(p for p in state.peers if p)))
            automaton = Automaton(tuple(states))
            self._arrays.setdefault(automaton, os.dup(fd))
            self._used[number] = automaton
            return automaton
        finally:
            os.close(fd)


def _option_rows(number: int, options: Options) -> dict[Row, object]:
    rows: dict[Row, object] = {
        ("resolvers", resolver_key(resolver, number)): 1 for resolver in options.resolvers
    }
    for search in options.searches:
        around = {len(other) + 1 for other in options.searches if f".{search}".endswith(f".{other}")}
        bits, text = names.suffix_key(names.Pattern(f"*.{search}", exact=False))
        lengths = sorted(around)[: contract().constant("SUFFIXES")]
        rows["suffixes", (16 + bits, number.to_bytes(2, "big"), text)] = (
            bytes(lengths).ljust(contract().constant("SUFFIXES"), b"\0"),
        )
    return rows


def differ(one: Tables, other: Tables) -> bool:
    """Whether flows may be admitted under one of them that are not under the other."""
    fields = ("names", "prefixes", "rules", "services", "patterns")
    return any(getattr(one, field) != getattr(other, field) for field in fields)


def describe_policy(policy: Policy, options: Options, problems: Sequence[str]) -> dict[str, Any]:
    """For people, and `skouter status`."""
    return {
        "mode": "Audit" if policy.audit else "Enforce",
        "peers": {str(peer.id): peer.text for peer, _ in policy.grants},
        "rules": sorted(f"{peer.text} ({describe(ports)})" for peer, ports in policy.grants),
        "resolvers": [str(resolver) for resolver in options.resolvers],
        "problems": list(problems),
    }


def resolver_key(resolver: Resolver, number: int) -> tuple[bytes, int, bytes]:
    return pack_address(resolver.address), number, resolver.port.to_bytes(2, "big")


def _number_in(kind: str) -> Callable[[bytes], int]:
    """How the policy's number is found in the bytes of a key: two bytes in network order, or a word."""
    field = dict(contract().ffi.typeof(kind).fields)["policy"]
    start, end = field.offset, field.offset + contract().ffi.sizeof(field.type)
    in_bytes = field.type.kind == "array"
    return lambda raw: int.from_bytes(raw[start:end], "big" if in_bytes else sys.byteorder)


def _u32(value: int) -> bytes:
    return value.to_bytes(4, sys.byteorder)


def len_reasons() -> int:
    return contract().constant("REASONS")
