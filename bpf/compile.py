"""From C text to instructions: the only importer of bcc, run in a child that ends when it is done.

``import bcc`` brings 60 MB of LLVM along, and compiling takes seconds: neither a daemon nor a command should
carry or wait for that twice. So ``python -m bpf.compile OBJECT`` writes the instructions of every program to
a file, with the places that refer to a map, and is gone. The file depends on the text alone: it serves every
kernel, after every boot (load.py), until the text changes.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import struct
import sys
import sysconfig
import tempfile
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from bpf.contract import INNER_MAP, MAP, Contract, contract

INCLUDE = re.compile(r'^#include "([\w.]+)"$', re.MULTILINE)
ENTRY = re.compile(r"^int (\w+)\(struct (__sk_buff|bpf_sock_addr) \*\w+\)$", re.MULTILINE)
# Each text is compiled on its own. Program types cannot share a table of stages: what a text calls `stages`
# is the map that stands here.
TEXTS = {"cgroup.c": "stages", "link.c": "link_stages", "gateway.c": "gateway_stages"}
INSTRUCTION = struct.Struct("=BBhi")  # struct bpf_insn: opcode, registers, offset, immediate
LOAD_IMMEDIATE_64, PSEUDO_MAP = 0x18, 1


@cache
def flatten(name: str) -> str:
    """The text of one C file with our own headers laid in.

    BCC rewrites map calls in the main text only, hence one text; ``#line`` keeps file and line in the
    compiler's messages.
    """
    text = (files("bpf") / name).read_text()

    def lay_in(match: re.Match[str]) -> str:
        line = text[: match.start()].count("\n") + 2
        return f'#line 1 "{match[1]}"\n{flatten(match[1])}\n#line {line} "{name}"'

    return INCLUDE.sub(lay_in, text)


@cache
def text_hash() -> str:
    """Names the programs: any change of any C file changes it."""
    return hashlib.blake2b("".join(map(flatten, TEXTS)).encode(), digest_size=8).hexdigest()


def declare_maps(text: str, layout: Contract) -> str:
    """MAP() lines become BCC's declarations. Instructions do not depend on sizes: one entry will do."""

    def declare(match: re.Match[str]) -> str:
        m = layout.maps[match[2]]
        if m.kind == "rings":
            # A policy's events go to the ring of whoever reads them, and nowhere where nobody does.
            return (
                f"BPF_RINGBUF_OUTPUT({m.name}_inner, 1);\n"
                f'BPF_TABLE("array_of_maps${m.name}_inner", int, int, {m.name}, 1);'
            )
        if m.kind == "automata":
            return (
                f'BPF_F_TABLE("array", u32, {m.value}, {m.name}_inner, 1, {INNER_MAP});\n'
                f'BPF_TABLE("array_of_maps${m.name}_inner", int, int, {m.name}, 1);'
            )
        key = "int" if m.kind in ("storage", "programs") else m.key
        entries = 0 if m.kind == "storage" else 1
        return f'BPF_F_TABLE("{m.bcc_type}", {key}, {m.value}, {m.name}, {entries}, {m.flags});'

    return MAP.sub(declare, text)


def instructions(extra: tuple[str, ...] = ()) -> dict[str, Any]:
    """Program -> {"code": hex, "maps": {instruction: map}}, for every entry point: "link.c:question".

    Raises :class:`RuntimeError`; the compiler's own words are on stderr.
    """
    with tempfile.TemporaryDirectory() as tree:
        # BCC wants a kernel tree; these few lines stand in for one, the UAPI headers are linux-libc-dev's.
        Path(tree, "include").symlink_to(str(files("bpf") / "include"))
        os.environ["BCC_KERNEL_SOURCE"] = tree
        import bcc

        architecture = sysconfig.get_config_var("MULTIARCH")
        flags = ["-I/usr/include", f"-I/usr/include/{architecture}", *extra]
        found: dict[str, Any] = {}
        for text, stages in TEXTS.items():
            try:
                module = bcc.BPF(text=declare_maps(flatten(text), contract()), cflags=flags)
            except Exception as error:
                raise RuntimeError("the kernel half does not compile") from error
            descriptors = {_descriptor(bcc, module, name): name for name in contract().maps}
            descriptors[_descriptor(bcc, module, "stages")] = stages
            for name, _context in ENTRY.findall(flatten(text)):
                found[f"{text}:{name}"] = _program(module.dump_func(name.encode()), descriptors)
    return found


def _descriptor(bcc: Any, module: Any, name: str) -> int:
    return int(bcc.lib.bpf_table_fd(ctypes.c_void_p(module.module), name.encode()))


def _program(code: bytes, descriptors: dict[int, str]) -> dict[str, Any]:
    maps = {}
    for index, (opcode, registers, _offset, immediate) in enumerate(INSTRUCTION.iter_unpack(code)):
        if opcode == LOAD_IMMEDIATE_64 and registers >> 4 == PSEUDO_MAP:
            maps[str(index)] = descriptors[immediate]
    return {"code": code.hex(), "maps": maps}


def main(path: Path, *extra: str) -> None:
    found = instructions(extra)
    scratch = path.with_suffix(f".{os.getpid()}")
    scratch.write_text(json.dumps(found))
    scratch.replace(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
