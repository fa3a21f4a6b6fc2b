"""Attach, adopt, detach; read and write the kernel's tables by the contract's own types.

Rules this file obeys:

- Maps are used only when every one of them has the layout of the contract. Others are told, never used.
- What is pinned and attached outlives this process: a restart adopts it without compiling.
- A program is attached before an older one of ours is detached, so that there is no gap.
- Nothing here knows policies as people write them.

Source: bpf(2), cgroups(7); attach semantics: Documentation/bpf/prog_cgroup_sockopt.rst (multi mode).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from bpf import kernel
from bpf.contract import Map, contract
from bpf.load import (
    GATEWAY,
    HOOKS,
    LINKS,
    DatapathError,
    Family,
    build,
    check_layout,
    maps_folder,
    programs_folder,
    wanted,
)

DECIDING = tuple(name for name in HOOKS if name != "resolver")


class NotLoadedError(DatapathError):
    """Nothing is pinned, or a start was interrupted."""


class Table:
    """One pinned map. Keys and values are tuples or ints in the order of the C structs.

    The value of a table of maps is written as a descriptor and read as the inner map's id.
    """

    def __init__(self, fd: int, layout: Map) -> None:
        self.fd, self.layout = fd, layout
        self.value = "__u32" if layout.is_outer else layout.value

    def __getitem__(self, key: object) -> Any:
        raw = kernel.lookup(self.fd, self._key(key), self.layout.value_size)
        if raw is None:
            raise KeyError(key)
        return contract().unpack(self.value, raw)

    def get(self, key: object) -> Any:
        try:
            return self[key]
        except KeyError:
            return None

    def __setitem__(self, key: object, value: object) -> None:
        with self._naming():
            kernel.update(self.fd, self._key(key), contract().pack(self.value, value))

    def insert(self, key: object, value: object) -> bool:
        """Whether the key was not there; if it was, its value stays."""
        with self._naming():
            return kernel.insert(self.fd, self._key(key), contract().pack(self.value, value))

    @contextmanager
    def _naming(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DatapathError(
                f"table {self.layout.name}: {error.strerror} (limit {self.layout.entries})"
            ) from error

    def __delitem__(self, key: object) -> None:
        if not kernel.delete(self.fd, self._key(key)):
            raise KeyError(key)

    def discard(self, key: object) -> None:
        kernel.delete(self.fd, self._key(key))

    def raw_keys(self) -> Iterator[bytes]:
        """Safe against removal of the key just given; a walk that a change restarts repeats keys."""
        key = kernel.next_key(self.fd, None, self.layout.key_size)
        while key is not None:
            following = kernel.next_key(self.fd, key, self.layout.key_size)
            yield key
            key = following

    def items(self) -> Iterator[tuple[Any, Any]]:
        for raw in self.raw_keys():
            value = kernel.lookup(self.fd, raw, self.layout.value_size)
            if value is not None:
                yield (
                    contract().unpack(self.layout.key, raw),
                    contract().unpack(self.value, value),
                )

    def remove_raw(self, key: bytes) -> None:
        kernel.delete(self.fd, key)

    def sum_cpus(self, index: int) -> int:
        """Sum over all CPUs of a per-CPU array of single 64-bit counters."""
        raw = kernel.lookup(self.fd, self._key(index), 8 * kernel.possible_cpus())
        return sum(memoryview(raw).cast("Q")) if raw else 0

    def zero_cpus(self, index: int) -> None:
        kernel.update(self.fd, self._key(index), bytes(8 * kernel.possible_cpus()))

    def _key(self, key: object) -> bytes:
        return key if isinstance(key, bytes) else contract().pack(self.layout.key, key)


class Datapath:
    """The kernel half below one folder of a bpffs."""

    def __init__(self, root: Path, flags: tuple[str, ...] = ()) -> None:
        """Opens what is pinned below `root`; raises :class:`DatapathError` where it is not whole."""
        self.root, self.flags = root, flags
        self.tables: dict[str, Table] = {}
        self.programs: dict[str, int] = {}
        try:
            for name, m in contract().maps.items():
                self.tables[name] = Table(kernel.get(maps_folder(root) / name), m)
                check_layout(self.tables[name].fd, m, maps_folder(root) / name)
            for name in wanted():
                self.programs[name] = kernel.get(programs_folder(root) / name)
        except OSError as error:
            self.close()
            raise NotLoadedError(f"{error.strerror}: not loaded") from error
        except DatapathError:
            self.close()
            raise

    def __getitem__(self, name: str) -> Table:
        return self.tables[name]

    def for_links(self) -> dict[str, int]:
        """Programs of links by their names, made where nobody did so before; raises :class:`DatapathError`.

        Whoever calls this holds the instance's lock.
        """
        return self._of(LINKS)

    def for_gateway(self) -> dict[str, int]:
        """The same of those that judge machines behind a gateway."""
        return self._of(GATEWAY)

    def _of(self, family: Family) -> dict[str, int]:
        names = family.wanted()
        if not names.keys() <= self.programs.keys():
            if not all((programs_folder(self.root) / name).exists() for name in names):
                build(self.root, self.flags, family)
            self.programs |= {name: kernel.get(programs_folder(self.root) / name) for name in names}
        return {name: self.programs[name] for name in names}

    def close(self) -> None:
        """Closes descriptors; what is pinned and attached stays."""
        for fd in (*(table.fd for table in self.tables.values()), *self.programs.values()):
            os.close(fd)
        self.tables, self.programs = {}, {}

    def set(self, **settings: int) -> None:
        """Changes some fields of struct settings, all at once."""
        held = self["settings"][0]
        for name, value in settings.items():
            setattr(held, name, value)
        self["settings"][0] = held[0]

    def attach(self, cgroup: Path, names: tuple[str, ...] = DECIDING) -> None:
        """Attaches what is missing to `cgroup`, then detaches older programs of ours."""
        self.join(cgroup, names)
        mine = {kernel.program_info(program).id for program in self.programs.values()}
        pinned = [path for name in names for path in self.root.glob(f"programs-*/{name}")]
        detach_programs(cgroup, identities(pinned).keys() - mine)

    def join(self, cgroup: Path, names: Iterable[str]) -> None:
        """Attaches what is missing to `cgroup`, behind whatever is there."""
        with open_folder(cgroup) as target:
            for name in names:
                program, hook = self.programs[name], HOOKS[name].attach
                if kernel.program_info(program).id not in kernel.attached(target, hook):
                    kernel.attach(program, target, hook)

    def attached(self, cgroup: Path) -> list[str]:
        """Names of our programs that are attached to `cgroup`."""
        with open_folder(cgroup) as target:
            return [
                name
                for name, hook in HOOKS.items()
                if kernel.program_info(self.programs[name]).id in kernel.attached(target, hook.attach)
            ]

    def detach(self, cgroup: Path) -> list[str]:
        """Detaches every program of ours, of this version or another; their names."""
        return detach_all(self.root, cgroup)


def pinned_programs(root: Path, name: str) -> set[int]:
    """Ids of all programs pinned under this name, of any version."""
    return set(identities(root.glob(f"programs-*/{name}")))


def identities(paths: Iterable[Path]) -> dict[int, Path]:
    """Pinned programs by their ids."""
    found = {}
    for path in paths:
        with suppress(FileNotFoundError):  # another version takes over at this moment
            fd = kernel.get(path)
            found[int(kernel.program_info(fd).id)] = path
            os.close(fd)
    return found


def detach_programs(cgroup: Path, numbers: Collection[int]) -> list[int]:
    """Detaches these programs wherever they are attached to `cgroup`, at hooks of any version; their ids."""
    with open_folder(cgroup) as target:
        gone = [(hook, number) for hook, number in kernel.attachments(target) if number in numbers]
        for hook, number in gone:
            with program_by_id(number) as program:
                kernel.detach(program, target, hook)
    return [number for _, number in gone]


def detach_all(root: Path, cgroup: Path) -> list[str]:
    """Break-glass: needs no agent, no contract and no maps, only what is pinned. Names of what was there."""
    ours = identities(root.glob("programs-*/*"))
    return [ours[number].name for number in detach_programs(cgroup, ours.keys())]


def load(root: Path, flags: tuple[str, ...] = ()) -> Datapath:
    """Adopts what is pinned below `root`, or makes it first; raises :class:`DatapathError`."""
    try:
        return Datapath(root, flags)
    except NotLoadedError:
        build(root, flags)
        return Datapath(root, flags)


def unpin(root: Path) -> None:
    """Removes every pin below `root`. Attached programs live on until they are detached."""
    shutil.rmtree(root, ignore_errors=True)


def other_layouts(root: Path) -> list[str]:
    """Map folders of another contract: told, never used."""
    return [path.name for path in root.glob("maps-*") if path.name != f"maps-{contract().layout}"]


SINGLE_PORT = 40  # bits of a service key that names one port


def write(tables: Mapping[str, Table], name: str, key: tuple[Any, ...], value: object | None) -> None:
    """One row: a value writes it, None removes it. A service of a single port stands in two tables."""
    names = (name, "single_services") if name == "services" and key[0] == SINGLE_PORT else (name,)
    for table in (tables[each] for each in names):
        if value is None:
            table.discard(key)
        else:
            table[key] = value


@contextmanager
def open_folder(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


@contextmanager
def program_by_id(number: int) -> Iterator[int]:
    fd = kernel.program_by_id(number)
    try:
        yield fd
    finally:
        os.close(fd)
