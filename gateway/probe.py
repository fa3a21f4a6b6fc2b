"""Does the kernel see a cgroup where we think it is? Asked of the kernel, by trying."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from gateway import cgroups
from gateway.privileges import enter_new_network
from gateway.states import EngineError

NOWHERE = ("192.0.2.1", 9)  # RFC 5737


def check_refused(cgroup: Path) -> None:
    """Raises :class:`EngineError` where a process in a closed cgroup is not refused to connect.

    It tries in a network namespace without a way out, so that nothing can leave whatever happens.
    """
    child = os.fork()
    if child == 0:
        os._exit(_try_to_connect(cgroup))
    _pid, status = os.waitpid(child, 0)
    if status:
        raise EngineError(
            "the kernel does not see this cgroup where it should be (a container, or a mount of a part of "
            "the hierarchy): nothing would be enforced, so nothing is started"
        )


def _try_to_connect(cgroup: Path) -> int:
    try:
        cgroups.join(cgroup)
        enter_new_network()
        with socket.socket() as probe:
            return 0 if probe.connect_ex(NOWHERE) == errno.EPERM else 1
    except OSError:
        return 1
