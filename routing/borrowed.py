"""Descriptors of other processes' sockets (pidfd_getfd(2), Linux 5.6).

For what the kernel tells of a socket only to who holds it: what BPF keeps of a datagram socket is not in the
answers of sock_diag(7), but is looked up in the map by a descriptor.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PIDFD_GETFD = 438  # on every architecture but Alpha
SO_COOKIE = 57  # asm-generic/socket.h

_libc = ctypes.CDLL(None, use_errno=True)


def sockets_of(pid: int) -> Iterator[tuple[int, socket.socket]]:
    """(cookie, socket) of every IPv4 and IPv6 socket of a process; each is closed when the next is asked for.

    What several processes hold comes from each of them. What is closed meanwhile is left out, and a process
    that is gone has none. Raises :class:`OSError`: EPERM without CAP_SYS_PTRACE.
    """
    with suppress(FileNotFoundError, ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            for number in _socket_numbers(pid):
                if (descriptor := _borrow(process, number)) is None:
                    continue
                with socket.socket(fileno=descriptor) as held:
                    if held.family in (socket.AF_INET, socket.AF_INET6):
                        yield _cookie(held), held
        finally:
            os.close(process)


def _socket_numbers(pid: int) -> Iterator[int]:
    for link in Path("/proc", str(pid), "fd").iterdir():
        with suppress(FileNotFoundError):
            if str(link.readlink()).startswith("socket:"):
                yield int(link.name)


def _borrow(process: int, number: int) -> int | None:
    descriptor = int(_libc.syscall(PIDFD_GETFD, process, number, 0))
    if descriptor >= 0:
        return descriptor
    reason = ctypes.get_errno()
    if reason in (errno.EBADF, errno.ESRCH):
        return None
    raise OSError(reason, f"pidfd_getfd: {os.strerror(reason)}")


def _cookie(held: socket.socket) -> int:
    return int.from_bytes(held.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), sys.byteorder)
