"""From one layout of the contract to another: keys and values of maps, by the names of their fields.

Rules this file obeys:

- Pure: bytes in, bytes out.
- What has the same name means the same (contract.h). What is new is 0, what is gone is dropped.
- A number, or a list, that the new layout has no room for is an error; nothing is cut but text. A flag that
  the new layout does not know is an error too: it may have been a restriction.
- Where a number stands for an enumerator, it is the enumerator's name that counts.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

from bpf.contract import Contract

Convert = Callable[[bytes], bytes]
Copy = tuple[int, int, int]  # from, to, bytes
Step = Callable[[bytes, bytearray], None]
TCP = 6
MULTIPLIERS = (  # of seal_of() in flows.h: the tuple's five words, then peer, then policy and generation
    *(0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93),
    *(0xA0761D6478BD642F, 0xE7037ED1A0B428DB, 0x8EBC6AF09C88C6E3),
)


class DoesNotFitError(Exception):
    """The new layout can't hold a value of the old one; the message names the field."""


class Conversion:
    """From the layouts of one contract to those of another."""

    def __init__(self, old: Contract, new: Contract) -> None:
        self.old, self.new = old, new
        self.same_reasons = old.enumerators("reason") == new.enumerators("reason")
        flags = None if old.enumerators("flag") == new.enumerators("flag") else self._flags
        self._translated = {
            "flow.state": None if self.same_reasons else self._reason,
            "policy.flags": flags,
            "workload.flags": flags,
            "workload.policy": self._number if self._exempt(old) != self._exempt(new) else None,
        }

    def of(self, old_type: str, new_type: str) -> Convert:
        """The function that turns a value of `old_type` into one of `new_type`; it may raise
        :class:`DoesNotFitError`."""
        copies, steps = self._plan(old_type, new_type)
        size = self.new.ffi.sizeof(new_type)
        if self._is_same(copies, steps, old_type, size):
            return bytes

        def convert(raw: bytes) -> bytes:
            made = bytearray(size)
            for at, to, count in copies:
                made[to : to + count] = raw[at : at + count]
            for step in steps:
                step(raw, made)
            return bytes(made)

        return convert

    def same(self, type_name: str) -> bool:
        """Whether both layouts have this type, byte for byte."""
        copies, steps = self._plan(type_name, type_name)
        return self._is_same(copies, steps, type_name, self.new.ffi.sizeof(type_name))

    def reasons(self) -> Iterator[tuple[int, int]]:
        """The numbers, old and new, of each reason that both contracts know."""
        mine = self.new.ffi.typeof("enum reason").relements
        for number, name in self.old.enumerators("reason").items():
            if name in mine and name != "REASONS":
                yield number, mine[name]

    def _is_same(self, copies: list[Copy], steps: list[Step], old_type: str, size: int) -> bool:
        return not steps and copies == [(0, 0, size)] and self.old.ffi.sizeof(old_type) == size

    def _plan(self, old_type: str, new_type: str) -> tuple[list[Copy], list[Step]]:
        copies: list[Copy] = []
        steps: list[Step] = []
        for found in self._walk(self.old.ffi.typeof(old_type), self.new.ffi.typeof(new_type), 0, 0, new_type):
            if callable(found):
                steps.append(found)
                continue
            at, to, count = found
            last = copies[-1] if copies else (0, 0, 0)
            if (last[0] + last[2], last[1] + last[2]) == (at, to):
                copies[-1:] = [(last[0], last[1], last[2] + count)]
            else:
                copies.append(found)
        return copies, steps

    def _walk(self, old: Any, new: Any, at: int, to: int, name: str) -> Iterator[Copy | Step]:
        kinds = {old.kind, new.kind}
        if kinds == {"struct"}:
            theirs = dict(old.fields)
            short = new.cname.removeprefix("struct ")
            for field, mine in new.fields:
                if field in theirs:
                    there = theirs[field]
                    yield from self._walk(
                        there.type, mine.type, at + there.offset, to + mine.offset, f"{short}.{field}"
                    )
            if short == "flow" and not self.same_reasons:
                yield self._reseal(at, to)
        elif kinds == {"array"}:
            yield from self._items(old, new, at, to, name)
        elif kinds == {"primitive"}:
            sizes = self.old.ffi.sizeof(old), self.new.ffi.sizeof(new)
            if self._translated.get(name) or sizes[0] != sizes[1]:
                yield self._integer(slice(at, at + sizes[0]), slice(to, to + sizes[1]), name)
            else:
                yield at, to, sizes[0]

    def _items(self, old: Any, new: Any, at: int, to: int, name: str) -> Iterator[Copy | Step]:
        sizes = self.old.ffi.sizeof(old.item), self.new.ffi.sizeof(new.item)
        for i in range(min(old.length, new.length)):
            yield from self._walk(old.item, new.item, at + i * sizes[0], to + i * sizes[1], name)
        rest = slice(at + new.length * sizes[0], at + old.length * sizes[0])

        def check(raw: bytes, _made: bytearray) -> None:
            if any(raw[rest]):
                raise DoesNotFitError(f"{name} has room for {new.length} only")

        if old.length > new.length and new.item.cname != "char":
            yield check

    def _integer(self, at: slice, to: slice, name: str) -> Step:
        translate, size = self._translated.get(name), to.stop - to.start

        def step(raw: bytes, made: bytearray) -> None:
            number = int.from_bytes(raw[at], sys.byteorder)
            number = translate(number) if translate else number
            try:
                made[to] = number.to_bytes(size, sys.byteorder)
            except OverflowError:
                raise DoesNotFitError(f"{name} has no room for {number}") from None

        return step

    # ---- What numbers stand for

    def _reason(self, number: int) -> int:
        """A state that the new programs do not know is no state: the flow is judged anew."""
        name = self.old.enumerators("reason").get(number, "NONE")
        return int(self.new.ffi.typeof("enum reason").relements.get(name, 0))

    def _flags(self, number: int) -> int:
        known, found = self.new.ffi.typeof("enum flag").relements, 0
        for bit, name in self.old.enumerators("flag").items():
            if number & bit:
                if name not in known:
                    raise DoesNotFitError(f"a row's flags have {name}, which this version does not know")
                found |= known[name]
        return found

    def _number(self, number: int) -> int:
        return self._exempt(self.new) if number == self._exempt(self.old) else number

    @staticmethod
    def _exempt(layout: Contract) -> int:
        return int(layout.ffi.typeof("enum limit").relements["EXEMPT"])

    def _reseal(self, at: int, to: int) -> Step:
        """The seal counts the state's number in. What was torn stays torn: no flow."""
        state = self.new.ffi.offsetof("struct flow", "state")
        seal = self.new.ffi.offsetof("struct flow", "seal")

        def step(raw: bytes, made: bytearray) -> None:
            was, protocol, found = sealed(self.old, raw[at:])
            if protocol == TCP:
                return
            if was != found:
                made[to + state : to + state + 4] = bytes(4)
            made[to + seal : to + seal + 8] = sealed(self.new, bytes(made[to:]))[2].to_bytes(8, sys.byteorder)

        return step


def sealed(layout: Contract, raw: bytes) -> tuple[int, int, int]:
    """Of a struct flow: the seal that stands there, the protocol, and the seal that should stand there."""
    flow = layout.unpack("struct flow", raw)
    words = (
        *struct.unpack("=5Q", bytes(layout.ffi.buffer(layout.ffi.addressof(flow, "tuple")))[:40]),
        flow.peer,
        flow.policy << 32 | flow.generation,
    )
    total = sum(word * by for word, by in zip(words, MULTIPLIERS, strict=True))
    return int(flow.seal), int(flow.tuple.protocol), (total + flow.state + 1) % 2**64
