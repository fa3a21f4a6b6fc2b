"""What the programs keep with each socket, of all sockets of this machine at once.

A BPF iterator walks over the storage map itself: so it finds every socket that the programs have seen, of
every protocol, in every network namespace, whoever holds it (sock_diag(7) tells one namespace's, and the
storage of TCP only). Twenty instructions, written by hand: a compiler for them would need the kernel's
types, and there is nothing to decide.

Needs the kernel's BTF, and bpf_get_socket_cookie() in tracing programs (Linux 5.12). Sources:
Documentation/bpf/bpf_iterators.rst, kernel/bpf/bpf_iter.c, net/core/bpf_sk_storage.c.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from struct import Struct

from bpf import kernel
from bpf.load import DatapathError

TRACING, ITERATOR = 26, 28  # enum bpf_prog_type, enum bpf_attach_type
GET_SOCKET_COOKIE, SEQ_WRITE = 46, 127  # enum bpf_func_id
INSTRUCTION = Struct("=BBhi")
LOAD, STORE, MOVE, MOVE_NUMBER, ADD_NUMBER, SKIP_ZERO, CALL, EXIT = (
    *(0x79, 0x7B, 0xBF, 0xB7),
    *(0x07, 0x15, 0x85, 0x95),
)
META, SOCKET, VALUE = 0, 16, 24  # offsets in struct bpf_iter__bpf_sk_storage_map
PIECE = 1 << 16


def sockets(table: int) -> Iterator[tuple[int, bytes]]:
    """(cookie, value) of each socket that has a value in the storage map `table`.

    Each value is as some moment saw it. While sockets open and close, one may come twice, and one whose
    neighbour went may be left out: who needs all of them asks again.

    Raises :class:`DatapathError` where the kernel can't, and :class:`OSError`.
    """
    size = int(kernel.map_info(table).value_size)
    try:
        target = kernel.iterator_target("bpf_sk_storage_map")
        program = kernel.load_program("carry", _code(size), TRACING, ITERATOR, target)
    except OSError as error:
        raise DatapathError(
            "this kernel can't tell what is kept with its sockets (Linux 5.12 with BTF can): a version with "
            "another layout of maps can't take over from the one that runs, which goes on: run "
            f"'skouter uninstall' first, and open connections end ({error.strerror})"
        ) from error
    try:
        reader = kernel.iterate(program, table)
    finally:
        os.close(program)
    with os.fdopen(reader, "rb", buffering=0) as file:
        data = b"".join(iter(lambda: file.read(PIECE), b""))
    for at in range(0, len(data), 8 + size):
        yield int.from_bytes(data[at : at + 8], sys.byteorder), data[at + 8 : at + 8 + size]


def _code(size: int) -> bytes:
    """r6: the file that is written, r7: the socket, r8: its value. NULL comes once, at the end."""
    lines = (
        (LOAD, 7, 1, SOCKET, 0),
        (SKIP_ZERO, 7, 0, 16, 0),
        (LOAD, 8, 1, VALUE, 0),
        (SKIP_ZERO, 8, 0, 14, 0),
        (LOAD, 6, 1, META, 0),
        (LOAD, 6, 6, 0, 0),
        (MOVE, 1, 7, 0, 0),
        (CALL, 0, 0, 0, GET_SOCKET_COOKIE),
        (STORE, 10, 0, -8, 0),
        *((MOVE, 1, 6, 0, 0), (MOVE, 2, 10, 0, 0), (ADD_NUMBER, 2, 0, 0, -8)),
        *((MOVE_NUMBER, 3, 0, 0, 8), (CALL, 0, 0, 0, SEQ_WRITE)),
        *((MOVE, 1, 6, 0, 0), (MOVE, 2, 8, 0, 0)),
        *((MOVE_NUMBER, 3, 0, 0, size), (CALL, 0, 0, 0, SEQ_WRITE)),
        (MOVE_NUMBER, 0, 0, 0, 0),
        (EXIT, 0, 0, 0, 0),
    )
    return b"".join(
        INSTRUCTION.pack(operation, source << 4 | target, offset, number)
        for operation, target, source, offset, number in lines
    )
