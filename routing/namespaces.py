"""Network namespaces: which there are among some processes, and working in one (setns(2)).

Rules this file obeys:

- Only a thread made for it ever enters a namespace, and it ends there. So nothing is to be restored, and no
  failure leaves the agent, or a thread that is used again, where it doesn't belong.
- A namespace is held by a descriptor, not by a process id, which may be somebody else's a moment later.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TypeVar

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
NS_GET_USERNS = 0xB701  # linux/nsfs.h

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def namespaces(pids: Iterable[int]) -> Iterator[dict[int, int]]:
    """Inode to descriptor, which is open within the block; a process that is gone has none.

    A process that may not be looked at has none either: one such must not keep a host from its policy.
    What a process opened before it moved elsewhere, and the namespaces of its threads, are not seen.
    """
    with ExitStack() as held:
        found: dict[int, int] = {}
        for pid in pids:
            with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                path = f"/proc/{pid}/ns/net"
                if os.stat(path).st_ino not in found:  # noqa: PTH116 - once for each process of a host
                    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                    held.callback(os.close, descriptor)
                    found.setdefault(os.fstat(descriptor).st_ino, descriptor)
        yield found


def owner(pid: int) -> int:
    """The inode of the user namespace that a process's network namespace belongs to (ioctl_nsfs(2)): that of
    whoever made it. Raises :class:`OSError` where the process is gone."""
    with namespaces([pid]) as found:
        for descriptor in found.values():
            above = fcntl.ioctl(descriptor, NS_GET_USERNS)
            try:
                return os.fstat(above).st_ino
            finally:
                os.close(above)
    raise ProcessLookupError(pid)


def inside(namespace: int, work: Callable[[], T]) -> T:
    """What `work` returns or raises, done in the network namespace of a descriptor.

    Raises :class:`OSError` where it can't be entered: `work` was not begun then.
    """
    from concurrent.futures import ThreadPoolExecutor  # slow to import, and not every command needs it

    def entered() -> T:
        if _libc.setns(namespace, CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, f"setns: {os.strerror(number)}")
        return work()

    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(entered).result()
