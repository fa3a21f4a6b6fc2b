"""How an agent comes after another, and how it goes: to make place at an upgrade, or for good.

Rules this file obeys:

- Who holds the lock works; nobody else touches the kernel. What is enforced stays enforced in between.
- At an upgrade both are on the node for a while, and the newer is to work: that it can is what the upgrade
  waits for. It asks the older to let go, which begins anew as one that stands by: it waits for the lock, asks
  nobody, and goes on where the newer one dies.
- An agent leaves for good only when its DaemonSet is gone or going, or when its account is: then nobody is
  left to undo what it did, and pods without an agent would stay closed. In doubt it stays, and all with it.

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
from gateway.request import NodeOf
from gateway.states import EngineError

if TYPE_CHECKING:
    from gateway.api_server import Door

LET_GO = signal.SIGUSR1
STANDS_BY = "SKOUTER_STANDS_BY"
DAEMONSET = "skouter"
PATIENCE = 20.0  # seconds of an agent that is to end: kubelet kills it after a minute
LETTING_GO = 60.0  # and of one that waits for another
AGAIN = 2.0  # between two tries
UNAUTHORIZED, FORBIDDEN = 401, 403
STRANGER = 3  # refusals in a row after which the account is taken to be gone


class Parting(Enum):
    """How an agent ends, as it is said."""

    STAYS = "what is enforced stays enforced; skouter off opens"
    LEAVES = "its DaemonSet is deleted: everything is taken away"
    HANDS_OVER = "another agent takes over; this one stands by"

    def carry_out(self, where: Place) -> None:
        """When all is closed."""
        if self is Parting.LEAVES:
            for line in removal.uninstall(where):
                say(f"removed {line}", NOTICE)
        if self is Parting.HANDS_OVER:
            os.environ[STANDS_BY] = "1"
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def parting(number: int, node: NodeOf | None, door: Door | None) -> Parting:
    """What a signal means. Blocks for PATIENCE, about."""
    if number == LET_GO:
        return Parting.HANDS_OVER
    if node and node.namespace and door and _is_leaving(node.namespace, door):
        return Parting.LEAVES
    return Parting.STAYS


def _is_leaving(namespace: str, door: Door) -> bool:
    from gateway.api_questions import is_leaving
    from gateway.api_server import ServerError

    deadline, strangers = time.monotonic() + PATIENCE, 0
    while True:
        try:
            return is_leaving(door, namespace, DAEMONSET)
        except ServerError as error:
            # A token that was renewed is read anew after the first refusal.
            strangers += error.status == UNAUTHORIZED
            if strangers == STRANGER:
                return True
            # All may be deleted at once, rights in any order; and the server remembers a token for seconds.
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
