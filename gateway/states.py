"""The record of each policy that is held, under /run, beside what the kernel's tables say of it.

Rules this file obeys:

- The tables decide; a record is for people, and for tidying up after a crash. Losing one opens nothing.
- A record is whole or not there, and whoever holds its lock owns the workload.
- Whoever changes anything of an instance holds the instance's lock.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

from gateway.place import Place

NOTHING_SAID: dict[str, Any] = {"command": [], "local_resolvers": [], "titles": {}}
COMMAND = "run-"  # how the names of commands begin


class EngineError(Exception):
    """The engine can't do this here; the message says why and what to do."""


@contextmanager
def locked(where: Place) -> Iterator[None]:
    """Nobody else may: whoever can open a file can lock it (flock(2)), and keep everybody waiting."""
    where.run.mkdir(mode=0o700, parents=True, exist_ok=True)
    where.run.chmod(0o700)
    with where.lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        yield


def write_state(fd: int, state: dict[str, Any]) -> None:
    """All of it, or an error: what is cut short can't be tidied up after."""
    data = orjson.dumps(state)
    if os.pwrite(fd, data, 0) != len(data):
        raise EngineError("the workload's state could not be written: is the file system of /run full?")
    os.ftruncate(fd, len(data))


def record(where: Place, name: str) -> Path:
    return where.run / f"{name}.json"


def records(where: Place) -> list[Path]:
    return sorted(where.run.glob("*.json"))


def is_command(path: Path) -> bool:
    """Whether a record is that of `skouter run`."""
    return path.name.startswith(COMMAND)


def write_description(where: Place, name: str, said: dict[str, Any]) -> None:
    """What the policy says, for people: apart from the record, since it is large and seldom changes."""
    scratch = _description(where, name).with_suffix(f".{os.getpid()}")
    scratch.write_bytes(orjson.dumps(said))
    scratch.replace(_description(where, name))


def read_description(where: Place, name: str) -> dict[str, Any]:
    """{mode, peers, rules, resolvers, problems}; empty where it got lost."""
    nothing = {"mode": "", "peers": {}, "rules": [], "resolvers": [], "problems": []}
    return nothing | (read_state(_description(where, name)) or {})


def _description(where: Place, name: str) -> Path:
    return where.run / f"{name}.policy"


def remove_state(where: Place, name: str) -> None:
    for path in (record(where, name), _description(where, name)):
        path.unlink(missing_ok=True)


def claim(where: Place, name: str) -> tuple[int, dict[str, Any] | None]:
    """The record called `name`, locked, as a descriptor; and what an earlier owner wrote there."""
    path = record(where, name)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise EngineError(
            f"{name} is held by another process of this instance: stop that one first"
        ) from None
    return fd, read_state(path)


def read_state(path: Path) -> dict[str, Any] | None:
    """None for a file that is half written: its owner died in the midst."""
    try:
        return dict(orjson.loads(path.read_bytes()))
    except (OSError, ValueError):
        return None


def states(where: Place) -> list[dict[str, Any]]:
    found = (read_state(path) for path in records(where))
    return [state for state in found if state]


def is_owned(path: Path) -> bool:
    """Whether the process that admitted the workload is still there: it holds the file's lock."""
    try:
        with path.open() as held:
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
