"""How an agent comes after another, and how it goes: to make place at an upgrade, or for good.

Rules this file obeys:

- Who holds the lock works; nobody else touches the kernel. What is enforced stays enforced in between.
- At an upgrade both are on the node for a while, and the newer is to work: that it can is what the upgrade
  waits for. It asks the older to let go, which begins anew as one that stands by: it waits for the lock, asks
  nobody, and goes on where the newer one dies.
- An agent leaves for good only when its DaemonSet is gone or going: then nobody is left to undo what it did,
  and pods without an agent would stay closed. In doubt it stays, and all with it.
- That an account counts no more says nothing of the DaemonSet: a token ends with its pod, which somebody may
  delete by force. Where the account went first, what was heard of the DaemonSet all the time is what counts.
- Whoever leaves does so while the lock is its own: what comes after it begins when it is done.

Source: flock(2), proc(5) for /proc/locks.
"""

from __future__ import annotations

import fcntl
import os
import signal
import sys
import time
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING

from gateway import removal
from gateway.notify import ERR, NOTICE, say
from gateway.place import Place
from gateway.states import EngineError

if TYPE_CHECKING:
    from gateway.kubernetes.source import Kubernetes

LET_GO = signal.SIGUSR1
STANDS_BY = "SKOUTER_STANDS_BY"
PATIENCE = 20.0  # seconds of an agent that is to end: kubelet kills it after a minute
LETTING_GO = 60.0  # and of one that waits for another
AGAIN = 2.0  # between two tries
UNAUTHORIZED, FORBIDDEN = 401, 403


class Parting(Enum):
    """How an agent ends, as it is said."""

    STAYS = "what is enforced stays enforced; skouter off opens"
    LEAVES = "its DaemonSet is deleted: everything is taken away"
    HANDS_OVER = "another agent takes over; this one stands by"

    def clear(self, where: Place) -> None:
        """What leaves nothing behind, while the lock is still held."""
        if self is Parting.LEAVES:
            for line in removal.uninstall(where):
                say(f"removed {line}", NOTICE)

    def stand_by(self) -> None:
        """What begins anew, when all is closed."""
        if self is Parting.HANDS_OVER:
            os.environ[STANDS_BY] = "1"
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def parting(number: int, source: Kubernetes | None) -> Parting:
    """What a signal means. Blocks for PATIENCE, about."""
    if number == LET_GO:
        return Parting.HANDS_OVER
    if source and source.asked.home and _is_leaving(source):
        return Parting.LEAVES
    return Parting.STAYS


def _is_leaving(source: Kubernetes) -> bool:
    from gateway.kubernetes.api_questions import is_leaving
    from gateway.kubernetes.api_server import ServerError

    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return is_leaving(source.door, source.asked.home)
        except ServerError as error:
            if source.is_leaving:
                return True
            # All may be deleted at once, rights and account first: then the rest is heard of soon.
            # A token that was renewed is read anew after the first refusal.
            if error.status not in (UNAUTHORIZED, FORBIDDEN) or time.monotonic() > deadline:
                say(f"whether this agent is to leave for good can't be asked, so it does not: {error}", ERR)
                return False
        time.sleep(AGAIN)


def claim(lock: int, instance: str, takes_over: bool) -> None:
    """Returns with the lock on this descriptor; `takes_over` from another agent, whoever else raises
    :class:`EngineError` where one is running."""
    if os.environ.pop(STANDS_BY, None):
        fcntl.flock(lock, fcntl.LOCK_EX)
        say("the other agent is gone: this one goes on", NOTICE)
        return
    deadline = time.monotonic() + (LETTING_GO if takes_over else 0)
    signal.signal(LET_GO, signal.SIG_IGN)  # until it is asked for: it may come at any time from now on
    while not _is_free(lock):
        if time.monotonic() > deadline:
            raise EngineError(
                f"another agent of instance {instance} is running: stop it first, or reload it by SIGHUP"
            )
        if holder := _holder(lock):
            os.kill(holder, LET_GO)
        time.sleep(0.2)


def _is_free(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(lock: int) -> int:
    """Whose lock it is; 0 where it is nobody's by now, or a process that can't be seen from here."""
    file = os.fstat(lock)
    wanted = f"{os.major(file.st_dev):02x}:{os.minor(file.st_dev):02x}:{file.st_ino}"
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if "FLOCK" in words and "->" not in words and words[-3] == wanted:
            return max(0, int(words[-4]))
    return 0
