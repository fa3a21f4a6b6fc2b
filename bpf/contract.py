"""The layouts of contract.h and reasons.h as Python sees them.

They are read twice and written once: the compiler takes them as C, this module takes the same text with
cffi. What is not C (the ``MAP(kind, name, key, value, entries)`` lines) is read here into :class:`Map`.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from cffi import FFI

PARTS = ("limits.h", "reasons.h", "contract.h")
MAP = re.compile(r"^MAP\((\w+), (\w+), ([\w ]+), ([\w ]+), (\w+)\)$", re.MULTILINE)
COMMENT = re.compile(r"/\*.*?\*/", re.DOTALL)

# linux/bpf.h: enum bpf_map_type, and the flags BPF_F_NO_PREALLOC (1) and BPF_F_CLONE (1 << 9). The value of a
# table of maps is an inner map, which user space sees as a number.
KINDS = {
    "hash": ("hash", 1, 1),
    "array": ("array", 2, 0),
    "programs": ("prog", 3, 0),
    "percpu_array": ("percpu_array", 6, 0),
    "lru": ("lru_hash", 9, 0),
    "lpm": ("lpm_trie", 11, 1),
    "rings": ("array_of_maps", 12, 0),
    "automata": ("array_of_maps", 12, 0),
    "sockmap": ("sockmap", 15, 0),
    "storage": ("sk_storage", 24, 1 | 1 << 9),
}
BYTES = ("uint8_t", "char")
SIZES = {1: "B", 2: "H", 4: "I", 8: "Q"}  # struct(3)
ARRAY, ARRAY_OF_MAPS, RING = 2, 12, 27
INNER_MAP = 1 << 12  # BPF_F_INNER_MAP (Linux 5.10): inner arrays of one table may differ in length

TYPES = """
typedef uint8_t __u8; typedef uint16_t __u16; typedef uint32_t __u32; typedef uint64_t __u64;
"""


@dataclass(frozen=True)
class Map:
    """One map of the contract: its kernel type and flags, the sizes of key and value in bytes.

    Of a table of automata `value` is the row of an inner array, `inner_size` bytes long.
    """

    name: str
    kind: str
    key: str
    value: str
    entries: int
    key_size: int
    value_size: int
    inner_size: int = 0

    @property
    def is_outer(self) -> bool:
        return self.kind in ("rings", "automata")

    @property
    def bcc_type(self) -> str:
        return KINDS[self.kind][0]

    @property
    def kernel_type(self) -> int:
        return KINDS[self.kind][1]

    @property
    def flags(self) -> int:
        return KINDS[self.kind][2]


class Contract:
    """Types, limits and maps of one text of contract.h."""

    def __init__(self, text: str) -> None:
        self.text = text
        plain = COMMENT.sub("", text)
        self.ffi = FFI()
        lines = MAP.findall(plain)
        wanted = sorted({kind for line in lines for kind in line[2:4]})
        # One struct of pointers to all of them: cffi would parse each of their names by itself, for 5 ms.
        rows = "".join(f"{kind} *kind_{number};" for number, kind in enumerate(wanted))
        self.ffi.cdef(f"{TYPES}{MAP.sub('', plain)} struct kinds {{ {rows} }};")
        fields = self.ffi.typeof("struct kinds").fields
        self._pointers = {kind: field.type for kind, (_, field) in zip(wanted, fields, strict=True)}
        self._constants = self.ffi.dlopen(None)
        self.maps = {line[1]: self._map(*line) for line in lines}
        # White space and comments are not layout.
        self.layout = hashlib.blake2b(" ".join(plain.split()).encode(), digest_size=8).hexdigest()

    def _map(self, kind: str, name: str, key: str, value: str, entries: str) -> Map:
        count = int(entries) if entries.isdigit() else self.constant(entries)
        size = self.size(value)
        sizes = (4, size) if kind == "automata" else (size,)
        return Map(name, kind, key, value, count, self.size(key), *sizes)

    def size(self, type_name: str) -> int:
        """In bytes."""
        return int(self.ffi.sizeof(self._pointer(type_name).item))

    def _pointer(self, type_name: str) -> Any:
        """The type of a pointer to it."""
        if type_name not in self._pointers:
            self._pointers[type_name] = self.ffi.typeof(f"{type_name} *")
        return self._pointers[type_name]

    def constant(self, name: str) -> int:
        """The value of an enumerator, as the C half has it."""
        return int(getattr(self._constants, name))

    def enumerators(self, enum: str) -> dict[int, str]:
        """Value to name of one enum."""
        return dict(self.ffi.typeof(f"enum {enum}").elements)

    def pack(self, type_name: str, fields: object) -> bytes:
        """Bytes of one key or value; `fields` in the order of the C struct, or one integer."""
        return bytes(self.ffi.buffer(self.ffi.new(self._pointer(type_name), fields)))

    def unpack(self, type_name: str, data: bytes) -> Any:
        """A cffi struct (or an int) that owns a copy of `data`."""
        held = self.ffi.new(self._pointer(type_name))
        self.ffi.buffer(held)[:] = data[: self.size(type_name)]
        return held if type_name.startswith("struct") else held[0]

    def plain(self, held: Any) -> Any:
        """What :meth:`unpack` gave, as ints, bytes and tuples without padding; :meth:`pack` takes it."""
        if isinstance(held, (int, bytes)):
            return held
        kind = self.ffi.typeof(held)
        if kind.kind == "pointer":
            return self.plain(held[0])
        if kind.kind == "array":
            return bytes(held) if kind.item.cname in BYTES else tuple(self.plain(each) for each in held)
        return tuple(self.plain(getattr(held, name)) for name, _ in kind.fields if name != "pad")

    def reader(self, type_name: str) -> Callable[[bytes], Any]:
        """What :meth:`plain` makes of :meth:`unpack`, ten times as fast: for who reads whole tables."""
        layout, take = self._shape(self._pointer(type_name).item)
        split = struct.Struct("=" + layout)
        return lambda raw: take(iter(split.unpack(raw)))

    def _shape(self, kind: Any) -> tuple[str, Callable[[Iterator[Any]], Any]]:
        """The format of a type for struct(3), and how the values that it gives are put together."""
        if kind.kind == "primitive":
            return SIZES[self.ffi.sizeof(kind)], next
        if kind.kind == "array" and kind.item.cname in BYTES:
            return f"{kind.length}s", next
        if kind.kind == "array":
            layout, take = self._shape(kind.item)
            return layout * kind.length, lambda values: tuple([take(values) for _ in range(kind.length)])
        layout, end = "", 0
        takes: list[Callable[[Iterator[Any]], Any]] = []
        for name, field in kind.fields:
            layout += f"{field.offset - end}x"
            end = field.offset + self.ffi.sizeof(field.type)
            if name == "pad":
                layout += f"{self.ffi.sizeof(field.type)}x"
                continue
            inner, take = self._shape(field.type)
            layout, takes = layout + inner, [*takes, take]
        layout += f"{self.ffi.sizeof(kind) - end}x"
        return layout, lambda values: tuple([take(values) for take in takes])


@cache
def contract() -> Contract:
    """The contract this installation was built with."""
    return Contract("".join((files("bpf") / name).read_text() for name in PARTS))
