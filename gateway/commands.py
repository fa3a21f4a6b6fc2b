"""Commands of `skouter run` as workloads: admitted before they start, dismissed when they have ended.

Rules this file obeys:

- A cgroup is closed before its policy is whole, and tried before it is opened.
- An ended command keeps its policy for LINGER: what it left in its sockets is still on its way, and they
  still carry the cgroup's id.
- Whoever comes next tidies up after those that died.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any

from gateway import cgroups
from gateway.engine import Engine, Held
from gateway.numbers import Options
from gateway.policies.policy import Policy
from gateway.probe import check_refused
from gateway.states import is_command, is_owned, locked, read_state, record, records, write_state
from routing.own import Home

LINGER = 180  # seconds that an ended workload's sockets may need to say what they still have (tcp(7))


def admit(
    engine: Engine, name: str, policy: Policy, options: Options, home: Home, about: dict[str, Any]
) -> Held:
    """Makes the cgroup `name` and puts it under `policy`; it is enforced when this returns.

    Before it is opened, a process in the closed cgroup tries to connect: where that is not refused, the
    kernel does not see the cgroup where we think it is, and nothing is started.
    """
    with locked(engine.where):
        tidy(engine)
    held = engine.hold(name, policy, options, {**about, "kind": "command"})
    cgroup = engine.where.cgroup / name
    try:
        cgroup.mkdir()
        engine.datapath["workloads"][cgroups.cgroup_id(cgroup)] = (0,)
        check_refused(cgroup)
        engine.place(held, cgroup, home)
    except BaseException:
        engine.release(held)
        if cgroup.is_dir():
            engine.datapath["workloads"].discard(cgroups.cgroup_id(cgroup))
            cgroups.remove_cgroup(cgroup)
        raise
    return held


def dismiss(engine: Engine, held: Held) -> list[int]:
    """Takes a command's policy away, unless processes are left in it: their pids, still enforced."""
    if not engine.where.lock.exists():  # uninstalled meanwhile: nothing is left to take away
        os.close(held.ring)
        os.close(held.state)
        return []
    with locked(engine.where):
        (cgroup,) = held.cgroups
        left = cgroups.processes(cgroup)
        os.close(held.ring)
        engine.datapath["events"].discard(held.number)
        os.close(held.state)
        if not cgroups.is_populated(cgroup):
            _end(engine, held.name)
    return left


def tidy(engine: Engine) -> None:
    """Ends commands whose owner is gone and in which nothing runs any more; removes those long ended."""
    over = []
    for path in filter(is_command, records(engine.where)):
        with suppress(OSError):  # one that can't be removed must not stop the others, nor the start
            if not is_owned(path) and not cgroups.is_populated(engine.where.cgroup / path.stem):
                over += [path.stem] if _end(engine, path.stem) else []
    engine.forget(*over)


def _end(engine: Engine, name: str) -> bool:
    """The cgroup goes at once, the rest when LINGER is over: then it is to be forgotten."""
    path, cgroup = record(engine.where, name), engine.where.cgroup / name
    state, now = read_state(path), time.clock_gettime(time.CLOCK_BOOTTIME)
    if state is not None and state["ended"] is not None and 0 <= now - state["ended"] < LINGER:
        return False
    if cgroup.is_dir():
        identity = cgroups.cgroup_id(cgroup)
        cgroups.remove_cgroup(cgroup)
        if state is None:  # half written; its number is emptied before it is used again
            engine.datapath["workloads"].discard(identity)
    if state is None or state["ended"] is not None:
        return True
    fd = os.open(path, os.O_RDWR)
    write_state(fd, {**state, "ended": now})
    os.close(fd)
    return False
