"""What one layout of maps knows, taken over by another while packets flow.

The problem: between the first copy of a row and the moment when the new programs decide, the row changes. A
copy after that moment comes too late, one before it is stale. So for a while both halves are attached, and
each packet runs through both, the old first; the old decides, the new is in its shadow (settings.shadow): it
learns and remembers, drops nothing, tells nothing. What happens from then on, both know; what happened before
is copied. In this order, since each step needs the one before:

    prepare     policies, which only an agent writes (and it is locked out), then workloads
    (attach)    by the caller, behind the old programs
    catch_up    sockets, in whose namespace a question counts; then questions, whose answers teach the grants;
                then grants, and flows and peers outside, each with its rings; at last, how far these were
                written
    flip        counters, events; the new half decides, then the old is put in the shadow

Rules this file obeys:

- A moving row is read in the old table, written in the new, and read again until it stayed as it was. Both
  halves write on each packet, the old first: where a stale copy covered what the new half wrote, the second
  read shows what it was. What is not in the old table is removed from the new.
- A question must be gone from both halves before its grant is looked for: hence the wait in between.
- Sockets are not written here: what was kept with each is laid into `carried`, and taken over by the new
  programs with the socket's next packet (flows.h), so that nothing fresh is overwritten.
- What does not fit is an error that names the table.

What can't be promised: a place in a ring that both halves write at once leaves a row without a place, until
its workload goes; a counter may miss what was counted while it was copied.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from bpf import homes, kernel
from bpf.contract import Contract, Map, contract
from bpf.convert import Conversion, Convert, DoesNotFitError
from bpf.datapath import Datapath
from bpf.load import DatapathError, check_layout

Sockets = Callable[[int], Iterable[tuple[int, bytes]]]

QUESTIONS = ("tallies", "question_ring", "questions")
GRANTS = ("holdings", "grant_ring", "grants")
FLOWS = ("flow_ring", "flows", "inbound_ring", "inbounds")
TURNS = {"holdings": ("number",), "tallies": ("questions", "flows", "inbounds")}  # how far rings were written
SPARE = 64  # places that are left out, since the programs take some while they are counted
MOVING = (*QUESTIONS, *GRANTS, *FLOWS, "carried")
SCRATCH = (
    *("slates", "claims", "paces", "fragments", "listeners", "misses"),
    *("stages", "link_stages", "gateway_stages"),
)
NOT_COPIED = ("settings", "workloads", "counters", "events", "sockets", *MOVING, *SCRATCH)  # as policies are
SETTINGS = (
    *("shallowest", "deepest", "flows", "inbounds", "addresses", "mark", "mark_mask"),
    *("hold_back", "pick_up", "dns_port"),
)
ATTEMPTS, LISTS = 16, 4


class Migration:
    """From the maps pinned in one folder to those of a Datapath whose programs are not attached yet."""

    def __init__(self, folder: Path, layout: Contract, new: Datapath) -> None:
        self.layout, self.new = layout, new
        self.conversion = Conversion(layout, contract())
        self.old: dict[str, int] = {}
        for name, wanted in layout.maps.items():
            self.old[name] = kernel.get(folder / name)
            check_layout(self.old[name], wanted, folder / name)
        self.shared = [name for name in layout.maps if name in new.tables]
        policy = self.conversion.of("struct policy", "struct policy")
        self.keys, self.values = homes.translations(layout, self.old["policies"], policy)

    def prepare(self) -> None:
        """Puts the new half into the shadow, and gives it all policies."""
        old = self.layout.unpack("struct settings", self._settings())
        self.new.set(shadow=1, **{name: int(getattr(old, name)) for name in SETTINGS if hasattr(old, name)})
        for name in (*(name for name in self.shared if name not in NOT_COPIED), "workloads"):
            kind = self.layout.maps[name].kind
            if kind == "automata":
                self._copy_automata(name)
            elif kind in ("hash", "lpm", "array"):
                table = Rows(self, name)
                for key in table.keys_of_old():
                    table.copy(key)

    def catch_up(self, sockets: Sockets) -> None:
        """All that moved until the new programs saw every packet; they are attached by now."""
        kernel.wait_for_programs()
        self.new.set(carrying=1)
        for names in (("carried",), QUESTIONS, GRANTS + FLOWS):
            for name in names:
                if name in self.shared:
                    Rows(self, name).follow()
            if names == ("carried",):
                self._carry(sockets)
            kernel.wait_for_programs()
        self._go_on_behind_both()
        self._carry(sockets)

    def _go_on_behind_both(self) -> None:
        """While its rings had gaps the new half passed over less than the old one, and counted more places.
        Where it began behind what it has now, the newest rows would be in its way, or the first to go."""
        for name, fields in TURNS.items():
            rows = Rows(self, name)
            for key in rows.keys_of_old():
                made = fitting(name, rows.key, key)
                mine, theirs = self.new[name].get(made), rows.old_value(key)
                if mine is None or theirs is None:
                    continue
                row = contract().unpack(rows.wanted.value, fitting(name, rows.convert, theirs))
                if bytes(contract().ffi.buffer(row)) == bytes(contract().ffi.buffer(mine)):
                    continue
                for field in fields:
                    setattr(row, field, max(getattr(row, field), getattr(mine, field)) + SPARE)
                self._put(name, made, bytes(contract().ffi.buffer(row)))

    def flip(self) -> None:
        """The new half decides. When the old one is in the shadow, only the new one does."""
        self._let_flows_be_asked_again()
        self._copy_counters()
        self._hand_over_events()
        self.new.set(shadow=0)
        raw = self.layout.unpack("struct settings", self._settings())
        raw.shadow = 1
        kernel.update(self.old["settings"], bytes(4), bytes(self.layout.ffi.buffer(raw)))
        for fd in self.old.values():
            os.close(fd)

    def _settings(self) -> bytes:
        return kernel.lookup(self.old["settings"], bytes(4), self.layout.maps["settings"].value_size) or b""

    def _copy_automata(self, name: str) -> None:
        """Policies with equal patterns share one automaton; so do their copies."""
        made: dict[bytes, int] = {}
        for key in Rows(self, name).keys_of_old():
            inner = kernel.lookup(self.old[name], key, 4)
            if inner is None:
                continue
            if inner not in made:
                made[inner] = self._automaton(name, int.from_bytes(inner, sys.byteorder))
            self._put(name, key, made[inner].to_bytes(4, sys.byteorder))
        for fd in made.values():
            os.close(fd)

    def _automaton(self, name: str, number: int) -> int:
        fd = kernel.map_by_id(number)
        old, new = self.layout.maps[name], contract().maps[name]
        if self.conversion.same(old.value) and old.value == new.value:
            return fd
        entries = int(kernel.map_info(fd).max_entries)
        copy = kernel.create_array(new.inner_size, entries)
        convert = self.conversion.of(old.value, new.value)
        for index in range(entries):
            key = index.to_bytes(4, sys.byteorder)
            row = kernel.lookup(fd, key, old.inner_size) or bytes(old.inner_size)
            kernel.update(copy, key, fitting(name, convert, row))
        os.close(fd)
        return copy

    def _carry(self, sockets: Sockets) -> None:
        """Lays down what the old half keeps with sockets, until a list of them brings nothing new.

        A socket that has not spoken since the swap before this one may have a row in the old `carried` only.
        """
        convert = self.conversion.of("struct socket", "struct socket")
        waiting = Rows(self, "carried")
        known: dict[int, bytes] = {}
        for _ in range(LISTS):
            found = {c: raw for c, raw in sockets(self.old["sockets"]) if known.get(c) != raw and any(raw)}
            for cookie, raw in found.items():
                key = cookie.to_bytes(8, sys.byteorder)
                before = waiting.old_value(key)
                value = fitting("sockets", convert, raw)
                self._put("carried", key, merge(value, waiting.convert(before)) if before else value)
            known.update(found)
            if not found:
                return

    def _let_flows_be_asked_again(self) -> None:
        """So that every socket takes over what was carried for it: see take_over() in flows.h."""
        for number, value in self.new["policies"].items():
            if value.generation:
                value.generation = (value.generation + 1) & 0xFFFFFFFF
                self.new["policies"][number] = value[0]

    def _copy_counters(self) -> None:
        old, new = self.layout.maps["counters"], contract().maps["counters"]
        convert = self.conversion.of(old.value, new.value)
        sizes, cpus = (_aligned(old.value_size), _aligned(new.value_size)), kernel.possible_cpus()
        counts = self.layout.constant("REASONS"), contract().constant("REASONS")
        for number in [0, *(number for number, value in self.new["policies"].items() if value.generation)]:
            for theirs, mine in self.conversion.reasons():
                key = (number * counts[0] + theirs).to_bytes(4, sys.byteorder)
                raw = kernel.lookup(self.old["counters"], key, sizes[0] * cpus) or bytes(sizes[0] * cpus)
                parts = (convert(raw[i * sizes[0] :][: old.value_size]) for i in range(cpus))
                value = b"".join(part.ljust(sizes[1], b"\0") for part in parts)
                self._put("counters", (number * counts[1] + mine).to_bytes(4, sys.byteorder), value)

    def _hand_over_events(self) -> None:
        """Whoever reads a ring understands the layout that it was made for, and no other."""
        if not (self.conversion.same_reasons and self.conversion.same("struct answer_event")):
            return
        for key in Rows(self, "events").keys_of_old():
            inner = kernel.lookup(self.old["events"], key, 4)
            if inner is not None:
                fd = kernel.map_by_id(int.from_bytes(inner, sys.byteorder))
                self._put("events", key, fd.to_bytes(4, sys.byteorder))
                os.close(fd)

    def _put(self, name: str, key: bytes, value: bytes) -> None:
        table = self.new[name]
        try:
            kernel.update(table.fd, key, value)
        except OSError as error:
            raise DatapathError(
                f"table {name}: what the running version holds does not fit into {table.layout.entries} rows "
                f"of this version ({os.strerror(error.errno or errno.EIO)}): end some workloads first"
            ) from error


class Rows:
    """One table in both layouts: keys and values of the old one, turned into those of the new one."""

    def __init__(self, migration: Migration, name: str) -> None:
        self.migration, self.name = migration, name
        self.layout: Map = migration.layout.maps[name]
        self.wanted: Map = contract().maps[name]
        self.fd, self.new = migration.old[name], migration.new[name]
        convert = migration.conversion.of
        self.key = migration.keys.get(name) or convert(self.layout.key, self.wanted.key)
        self.back = Conversion(contract(), migration.layout).of(self.wanted.key, self.layout.key)
        self.convert = migration.values.get(name) or convert(self.layout.value, self.wanted.value)

    def keys_of_old(self) -> Iterator[bytes]:
        """Listed before anything is done with them: a walk along with changes begins again and again."""
        found = []
        key = kernel.next_key(self.fd, None, self.layout.key_size)
        while key is not None:
            found.append(key)
            key = kernel.next_key(self.fd, key, self.layout.key_size)
        return iter(dict.fromkeys(found))

    def old_value(self, key: bytes) -> bytes | None:
        return kernel.lookup(self.fd, key, self.layout.value_size)

    def copy(self, key: bytes) -> None:
        """A row that nobody changes. Of an array, rows of zeroes need no place."""
        value = self.old_value(key)
        if value is not None and (self.layout.kind != "array" or any(value)):
            self._put(key, value)

    def follow(self) -> None:
        """All rows of a table that the programs write, while they write."""
        keys = list(filter(None, map(self._back, list(self.new.raw_keys()))))
        for key in dict.fromkeys([*keys, *self.keys_of_old()]):
            self._follow(key)

    def _back(self, key: bytes) -> bytes | None:
        """The key as the old table has it, if it can have it."""
        with suppress(DoesNotFitError):
            old = self.back(key)
            return old if self.key(old) == key else None
        return None

    def _follow(self, key: bytes) -> None:
        value = self.old_value(key)
        for _ in range(ATTEMPTS):
            if value is None:
                self.new.remove_raw(fitting(self.name, self.key, key))
            else:
                self._put(key, value)
            now = self.old_value(key)
            if now == value:
                return
            value = now

    def _put(self, key: bytes, value: bytes) -> None:
        made = fitting(self.name, self.key, key), fitting(self.name, self.convert, value)
        self.migration._put(self.name, *made)


def fitting(name: str, convert: Convert, raw: bytes) -> bytes:
    try:
        return convert(raw)
    except DoesNotFitError as error:
        raise DatapathError(f"table {name}: {error}") from error


def merge(now: bytes, before: bytes) -> bytes:
    """Two records of one socket, as take_over() in flows.h does it."""
    fresh, older = (contract().unpack("struct socket", raw) for raw in (now, before))
    if not fresh.netns:
        fresh.netns, fresh.pid, fresh.comm = older.netns, older.pid, older.comm
    if older.flow.state and not fresh.flow.state:
        fresh.flow = older.flow
    fresh.passive |= older.passive
    return bytes(contract().ffi.buffer(fresh))


def _aligned(size: int) -> int:
    """As the kernel lays out one CPU's value."""
    return (size + 7) & ~7
