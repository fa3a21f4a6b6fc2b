"""The only importer of bcc: flattens, compiles, loads and pins, in a child that ends when it is done.

``import bcc`` brings 60 MB of LLVM along; neither a daemon nor a command should carry that. So this file is
run as ``python -m bpf.compile ROOT``, leaves maps and programs pinned below ROOT, and is gone. What it pins:

    ROOT/maps-LAYOUT/NAME       LAYOUT: hash of contract.h
    ROOT/programs-TEXT/NAME     TEXT: hash of all C text, hence also of the layout

Maps that are there already are used again by BCC without a look at their layout (iovisor/bcc); the caller
checks them (datapath.py).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import sys
import sysconfig
import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path

from bpf.contract import MAP, Contract, contract

INCLUDE = re.compile(r'^#include "([\w.]+)"$', re.MULTILINE)

# Program -> hook it attaches to. linux/bpf.h: enum bpf_attach_type; the prog types are BCC's names.
SKB, ADDR = "CGROUP_SKB", "CGROUP_SOCK_ADDR"
HOOKS: dict[str, tuple[str, str, int]] = {
    # name: (function, program type, attach type)
    "ingress": ("ingress", SKB, 0),
    "egress": ("egress", SKB, 1),
    "connect4": ("connect4", ADDR, 10),
    "connect6": ("connect6", ADDR, 11),
    "sendmsg4": ("sendmsg", ADDR, 14),
    "sendmsg6": ("sendmsg", ADDR, 15),
    "resolver": ("resolver", SKB, 1),
}
STAGES = ("question", "answer", "records", "grant")  # in the order of enum stage


@cache
def flatten(name: str = "cgroup.c") -> str:
    """The text of one C file with our own headers laid in.

    BCC rewrites map calls in the main text only, hence one text; ``#line`` keeps file and line in the
    compiler's messages.
    """
    text = (files("bpf") / name).read_text()

    def lay_in(match: re.Match[str]) -> str:
        line = text[: match.start()].count("\n") + 2
        return f'#line 1 "{match[1]}"\n{flatten(match[1])}\n#line {line} "{name}"'

    return INCLUDE.sub(lay_in, text)


def text_hash() -> str:
    """Names the programs: any change of any C file changes it."""
    return hashlib.blake2b(flatten().encode(), digest_size=8).hexdigest()


def declare_maps(text: str, layout: Contract, where: Path) -> str:
    """MAP() lines become BCC's declarations, pinned below `where`."""

    def declare(match: re.Match[str]) -> str:
        m = layout.maps[match[2]]
        pin = where / m.name
        if m.kind == "rings":
            # A policy's events go to the ring of whoever reads them, and nowhere where nobody does.
            return (
                f"BPF_RINGBUF_OUTPUT({m.name}_inner, 1);\n"
                f'BPF_TABLE_PINNED("array_of_maps${m.name}_inner", int, int, {m.name}, {m.entries}, "{pin}");'
            )
        key = "int" if m.kind in ("storage", "programs") else m.key
        return (
            f'BPF_TABLE_PINNED("{m.bcc_type}", {key}, {m.value}, {m.name}, {m.entries}, "{pin}", {m.flags});'
        )

    return MAP.sub(declare, text)


def build(root: Path, extra: tuple[str, ...] = ()) -> None:
    """Compile, load and pin everything below `root` (a folder of a bpffs).

    Raises :class:`RuntimeError` with the compiler's or the verifier's words.
    """
    layout = contract()
    maps, programs = root / f"maps-{layout.layout}", root / f"programs-{text_hash()}"
    maps.mkdir(parents=True, exist_ok=True)
    programs.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as tree:
        # BCC wants a kernel tree; these few lines stand in for one, the UAPI headers are linux-libc-dev's.
        Path(tree, "include").symlink_to(str(files("bpf") / "include"))
        os.environ["BCC_KERNEL_SOURCE"] = tree
        import bcc

        flags = ["-I/usr/include", f"-I/usr/include/{sysconfig.get_config_var('MULTIARCH')}", *extra]
        text = declare_maps(flatten(), layout, maps)
        module = load_text(bcc, text, flags)
    pin_programs(bcc, module, programs)


def load_text(bcc, text: str, flags: list[str]):  # type: ignore[no-untyped-def]
    """Compiled; with the process's name in events where the kernel has the helper for it (6.1)."""
    module = bcc.BPF(text=text, cflags=["-DCURRENT_PROCESS", *flags])
    try:
        module.load_func("connect4", bcc.BPF.CGROUP_SOCK_ADDR, attach_type=10)
    except Exception:
        module = bcc.BPF(text=text, cflags=flags)
    return module


def pin_programs(bcc, module, where: Path) -> None:  # type: ignore[no-untyped-def]
    loaded = {}
    stages = module["stages"]
    for index, name in enumerate(STAGES):
        function = module.load_func(name, bcc.BPF.CGROUP_SKB, attach_type=0)
        loaded[name] = function.fd
        stages[ctypes.c_int(index)] = ctypes.c_int(function.fd)
    for name, (function, kind, attach) in HOOKS.items():
        if function.encode() in module.funcs:
            del module.funcs[function.encode()]  # the same text once more, for another attach type
        # Programs that share a table of stages must be loaded for one attach type; for cgroup_skb the kernel
        # holds them to it only where they return more than 0 and 1.
        attach = 0 if kind == SKB else attach
        loaded[name] = module.load_func(function, getattr(bcc.BPF, kind), attach_type=attach).fd
    for name, fd in loaded.items():
        path = where / name
        path.unlink(missing_ok=True)
        if bcc.lib.bpf_obj_pin(fd, str(path).encode()) < 0:
            raise RuntimeError(f"{path}: cannot be pinned: {os.strerror(ctypes.get_errno())}")


if __name__ == "__main__":
    build(Path(sys.argv[1]), tuple(sys.argv[2:]))
