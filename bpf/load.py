"""From instructions to what is pinned: makes the maps, loads the programs, fills the table of stages.

Rules this file obeys:

- Maps are made by the contract, exactly; one that is there already is used only if it has that layout.
- What is pinned is whole or not there: programs are pinned only when all of them are loaded, and a folder
  that a crash left half full is completed by the next start.

    ROOT/maps-LAYOUT/NAME       LAYOUT: hash of contract.h
    ROOT/programs-TEXT/NAME     TEXT: hash of all C text, hence also of the layout

Compiled objects are kept in OBJECTS, beside the installation or in /var/cache (hier(7), file-hierarchy(7)).
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpf import kernel
from bpf.compile import INSTRUCTION, text_hash
from bpf.contract import Map, contract

OBJECTS = Path("/var/cache/skouter")
SKB, ADDRESS, LINK = 8, 18, 3  # enum bpf_prog_type: CGROUP_SKB, CGROUP_SOCK_ADDR, SCHED_CLS


class DatapathError(Exception):
    """The kernel half cannot be used; the message says why and what to do."""


@dataclass(frozen=True)
class Hook:
    """Where a program is attached (enum bpf_attach_type), and the function it is made of."""

    function: str
    kind: int
    attach: int


HOOKS = {
    "ingress": Hook("ingress", SKB, 0),
    "egress": Hook("egress", SKB, 1),
    "connect4": Hook("connect4", ADDRESS, 10),
    "connect6": Hook("connect6", ADDRESS, 11),
    "bind4": Hook("note", ADDRESS, 8),
    "bind6": Hook("note", ADDRESS, 9),
    "sendmsg4": Hook("note", ADDRESS, 14),
    "sendmsg6": Hook("note", ADDRESS, 15),
    "getpeername4": Hook("peer4", ADDRESS, 29),
    "getpeername6": Hook("peer6", ADDRESS, 30),
    "resolver": Hook("resolver", SKB, 1),
}
# In the order of enum stage; which of them each text has.
EVERY_STAGE = ("question", "ask", "answer", "pattern", "alias", "records", "grant", "alone", "proxied")
STAGES = EVERY_STAGE[:-2]
PROXY = ("whose", "outside", "inquire", "teach")  # attached nowhere: bpf/ask.py has them run


@dataclass(frozen=True)
class Family:
    """Programs of interfaces: by tcx at `hooks`, or as classifiers; most hosts have none of them. What is
    `called` is attached nowhere.

    Their text and their table of stages are named like the family; what is pinned begins with its name.
    """

    name: str
    stages: tuple[str, ...]
    called: tuple[str, ...] = ()

    @property
    def hooks(self) -> dict[str, int]:
        """What comes from a workload is judged last of all: what it leads to is there by then."""
        return {f"{self.name}_egress": kernel.TCX_EGRESS, f"{self.name}_ingress": kernel.TCX_INGRESS}

    def wanted(self) -> dict[str, tuple[str, int, int]]:
        """As :func:`wanted`."""
        called = (*self.stages, *self.called)
        named = {f"{self.name}_{name}": (f"{self.name}.c:{name}", LINK, 0) for name in called}
        return {**named, **{name: (f"{self.name}.c:{name}", LINK, 0) for name in self.hooks}}


LINKS = Family("link", ("question", "ask", "alone", "proxied"))
GATEWAY = Family("gateway", EVERY_STAGE, ("share",))  # which bpf/share.py has run


def maps_folder(root: Path) -> Path:
    return root / f"maps-{contract().layout}"


def programs_folder(root: Path) -> Path:
    return root / f"programs-{text_hash()}"


def build(root: Path, flags: tuple[str, ...] = (), family: Family | None = None) -> None:
    """Makes and pins everything below `root`, or else the programs of a family, compiled with more `flags`.

    Raises :class:`DatapathError`.
    """
    maps_folder(root).mkdir(parents=True, exist_ok=True)
    maps = {m.name: open_map(maps_folder(root) / m.name, m) for m in contract().maps.values()}
    programs: dict[str, int] = {}
    set_defaults(maps["settings"])
    try:
        code = compiled(flags)
        for name, (function, kind, attach) in (family.wanted() if family else wanted()).items():
            programs[name] = load_program(name, code[function], maps, kind, attach)
        if family:
            stages = {name: programs[f"{family.name}_{name}"] for name in family.stages}
            fill_stages(maps[f"{family.name}_stages"], stages)
        else:
            fill_stages(maps["stages"], {name: programs[name] for name in STAGES})
        programs_folder(root).mkdir(exist_ok=True)
        for name, fd in programs.items():
            path = programs_folder(root) / name
            path.unlink(missing_ok=True)
            kernel.pin(fd, path)
    finally:
        for fd in (*maps.values(), *programs.values()):
            os.close(fd)


def wanted() -> dict[str, tuple[str, int, int]]:
    """Every program that is always loaded: its file and function, program type and attach type."""
    # Programs that share a table of stages must be loaded for one attach type; the kernel holds cgroup_skb to
    # it only where it returns more than 0 and 1 (bpf_prog_attach_check_attach_type).
    hooks = {
        name: (f"cgroup.c:{hook.function}", hook.kind, 0 if hook.kind == SKB else hook.attach)
        for name, hook in HOOKS.items()
    }
    return {**{name: (f"cgroup.c:{name}", SKB, 0) for name in (*STAGES, *PROXY)}, **hooks}


def fill_stages(table: int, programs: dict[str, int]) -> None:
    for name, program in programs.items():
        index = EVERY_STAGE.index(name)
        kernel.update(table, index.to_bytes(4, sys.byteorder), program.to_bytes(4, sys.byteorder))


def open_map(path: Path, wanted: Map) -> int:
    """The map pinned at `path`, made if it is missing."""
    if path.exists():
        fd = kernel.get(path)
        try:
            check_layout(fd, wanted, path)
        except DatapathError:
            os.close(fd)
            raise
        return fd
    fd = kernel.create_map(wanted)
    kernel.pin(fd, path)
    return fd


def set_defaults(settings: int) -> None:
    """The quotas and the mark of the contract, where nobody has set any."""
    size = contract().maps["settings"].value_size
    held = contract().unpack("struct settings", kernel.lookup(settings, bytes(4), size) or bytes(size))
    if not held.addresses:
        for name in ("questions", "flows", "inbounds", "addresses", "mark", "mark_mask"):
            setattr(held, name, contract().constant(name.upper()))
        kernel.update(settings, bytes(4), bytes(contract().ffi.buffer(held)))


def check_layout(fd: int, wanted: Map, path: Path) -> None:
    info = kernel.map_info(fd)
    found = (info.type, info.key_size, info.value_size, info.max_entries)
    if found != (wanted.kernel_type, wanted.key_size, wanted.value_size, wanted.entries):
        raise DatapathError(
            f"{path}: a map of another layout (type, key, value, entries: found {found}, wanted "
            f"{(wanted.kernel_type, wanted.key_size, wanted.value_size, wanted.entries)}); it is not used. "
            "Run 'skouter uninstall' to remove it"
        )


def load_program(name: str, program: dict[str, Any], maps: dict[str, int], kind: int, attach: int) -> int:
    try:
        return kernel.load_program(name, linked(program, maps), kind, attach)
    except OSError as error:
        raise DatapathError(f"the kernel refuses program {name}: {error.strerror}") from error


def linked(program: dict[str, Any], maps: dict[str, int]) -> bytes:
    """A program's instructions, with the descriptors of its maps in them."""
    code = bytearray.fromhex(program["code"])
    for index, map_name in program["maps"].items():
        at = int(index) * INSTRUCTION.size
        opcode, registers, offset, _immediate = INSTRUCTION.unpack_from(code, at)
        INSTRUCTION.pack_into(code, at, opcode, registers, offset, maps[map_name])
    return bytes(code)


def compiled(flags: tuple[str, ...] = ()) -> dict[str, Any]:
    """The instructions, compiled where nobody did so before."""
    name = f"{text_hash()}-{os.uname().machine}{''.join(flags).replace('-D', '-').lower()}.json"
    for folder in (Path(sys.prefix) / "share" / "skouter", OBJECTS):
        if (folder / name).is_file():
            return dict(json.loads((folder / name).read_text()))
    OBJECTS.mkdir(mode=0o755, parents=True, exist_ok=True)
    with (OBJECTS / f"{name}.lock").open("w") as lock:  # one compiles, the others wait for what it makes
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (OBJECTS / name).is_file():
            compile_object(OBJECTS / name, flags)
    return dict(json.loads((OBJECTS / name).read_text()))


def compile_object(path: Path, flags: tuple[str, ...]) -> None:
    """In a child, which takes the compiler's memory with it."""
    child = subprocess.run(
        [sys.executable, "-m", "bpf.compile", str(path), *flags],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    if child.returncode:
        said = child.stderr.strip().splitlines()
        words = [line for line in said if "error" in line.lower()] or said
        raise DatapathError("the kernel half could not be compiled:\n" + "\n".join(words[:12]))


def main() -> None:
    """`python -m bpf.load FOLDER`: compiles for an installation, so that its first start need not."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    global OBJECTS
    OBJECTS = folder
    compiled()


if __name__ == "__main__":
    main()
