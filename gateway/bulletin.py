"""What the agent of an instance has to say: to its log once, and to `skouter status` for as long as it holds.

The file under /run is also the lock that lets there be only one agent. Like the workloads' records it is for
people, and losing it opens nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gateway.kubernetes.succession import claim
from gateway.notify import ERR, NOTICE, say
from gateway.place import Place
from gateway.states import is_owned, read_state, write_state

NAME = "agent"


@dataclass(frozen=True, slots=True)
class Bulletin:
    """`problems` are of the files, in whose place an earlier set is enforced then; `failed` is what should be
    enforced and is not."""

    pid: int
    policies: str
    config: str
    workloads: int
    cgroups: int
    problems: tuple[str, ...]
    failed: tuple[str, ...]
    told: tuple[str, ...]
    pods: tuple[dict[str, Any], ...] = ()
    dns: dict[str, int] = field(default_factory=dict)  # over TCP: what the proxy did so far
    gateway: dict[str, Any] = field(default_factory=dict)  # of one: its interfaces and machines

    def __str__(self) -> str:
        text = f"workloads: {self.workloads}, cgroups: {self.cgroups}"
        if self.problems:
            text += ", files with problems: the last good set is in force"
        return "; ".join((text, *self.failed))


class Board:
    """Where the bulletin is kept, for as long as the agent lives."""

    def __init__(self, where: Place, takes_over: bool = False) -> None:
        self._said: frozenset[str] = frozenset()
        self._file = _claimed(where, takes_over)
        while not os.fstat(self._file).st_nlink:  # it went with what the agent before took away
            os.close(self._file)
            self._file = _claimed(where, takes_over)

    def post(self, bulletin: Bulletin) -> None:
        """Says what was not in the last one, and keeps it."""
        self._say_what_is_new(bulletin.failed, ERR)
        self._say_what_is_new(bulletin.told, NOTICE)
        self._said = frozenset((*bulletin.failed, *bulletin.told))
        write_state(self._file, asdict(bulletin))

    def close(self) -> None:
        os.close(self._file)

    def _say_what_is_new(self, lines: Iterable[str], priority: int) -> None:
        for line in lines:
            if line not in self._said:
                say(line, priority)


def _claimed(where: Place, takes_over: bool) -> int:
    where.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = os.open(where.run / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        claim(file, where.name, takes_over)
    except BaseException:
        os.close(file)
        raise
    return file


def read(where: Place) -> dict[str, Any] | None:
    """The last bulletin, and whether its agent is `running`; None where there never was one."""
    path: Path = where.run / NAME
    found = read_state(path)
    return None if found is None else {**found, "running": is_owned(path)}
