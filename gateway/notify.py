"""What a daemon tells the service manager (sd_notify(3)), and how it is to write its log (sd-daemon(3)).

Both are nothing without one: the agent runs the same by hand.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Mapping

ERR, WARNING, NOTICE, INFO = 3, 4, 5, 6  # syslog(3)


class Notifier:
    """The manager's socket; every method does nothing where there is none."""

    def __init__(self, environ: Mapping[str, str] = os.environ) -> None:
        """`NOTIFY_SOCKET` is a path, or a name of the abstract namespace after an @ (unix(7))."""
        self._environ = environ
        where = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + where[1:] if where.startswith("@") else where
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(1)

    def ready(self, status: str) -> None:
        self._send("READY=1", f"STATUS={_line(status)}")

    def reloading(self) -> None:
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        self._send("RELOADING=1", f"MONOTONIC_USEC={now}")

    def status(self, text: str) -> None:
        self._send(f"STATUS={_line(text)}")

    def stopping(self, status: str) -> None:
        self._send("STOPPING=1", f"STATUS={_line(status)}")

    def alive(self) -> None:
        self._send("WATCHDOG=1")

    @property
    def watchdog(self) -> float | None:
        """Seconds within which the manager wants to hear `alive`, if it does (sd_watchdog_enabled(3))."""
        seconds = self._environ.get("WATCHDOG_USEC", "")
        if self._environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()) or not seconds.isdigit():
            return None
        return int(seconds) / 1e6 or None

    def close(self) -> None:
        self._socket.close()

    def _send(self, *fields: str) -> None:
        if self._address:
            try:
                self._socket.sendto("\n".join(fields).encode(), self._address)
            except OSError as error:  # a manager that does not listen must not end the agent
                say(f"the service manager can't be told: {error.strerror or error}", WARNING)


def say(text: str, priority: int = INFO) -> None:
    """Lines on stderr; where that is the journal, with their priority."""
    if sys.stderr is not None:
        mark = f"<{priority}>" if _is_journal() else ""
        lines = text.splitlines() or [""]
        print("\n".join(f"{mark}{line}" for line in lines), file=sys.stderr, flush=True)


def _is_journal() -> bool:
    """JOURNAL_STREAM names the device and inode of the stream that the manager made (systemd.exec(5))."""
    try:
        stream = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stream.st_dev}:{stream.st_ino}"


def _line(text: str) -> str:
    return text.replace("\n", "; ")
