"""`skouter wait`: until the cgroup that it runs in is held to a policy, or to none on purpose.

For a unit's ExecStartPre= (deploy/systemd): the unit's own processes start when its policy is on, and never
otherwise. The policy of the host does not count: what waits expects one of its own.
"""

from __future__ import annotations

import time
from pathlib import Path

from bpf.datapath import DECIDING, Datapath
from bpf.load import DatapathError
from gateway import cgroups
from gateway.place import Place

PAUSE = 0.05  # seconds: nothing tells when a row of a BPF map changes


def wait(where: Place, root: str, seconds: float) -> bool:
    """Whether it came to be within `seconds`; `root` is the cgroup that stands for the host."""
    end = time.monotonic() + seconds
    mine = [cgroups.cgroup_id(path) for path in _mine(where.hierarchy, where.hierarchy / root.strip("/"))]
    while not _is_held(where, mine):
        if time.monotonic() > end:
            return False
        time.sleep(PAUSE)
    return True


def _mine(hierarchy: Path, root: Path) -> list[Path]:
    """The cgroup of this process and those around it, without the host's."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        if line.startswith("0::"):
            path = hierarchy / line[3:].lstrip("/")
            return [each for each in (path, *path.parents) if root in each.parents]
    return []


def _is_held(where: Place, mine: list[int]) -> bool:
    try:
        loaded = Datapath(where.pins)
    except DatapathError:
        return False  # not started yet
    try:
        if not set(DECIDING) <= set(loaded.attached(where.hierarchy)):
            return False  # skouter off: rows alone hold nobody
        return any((row := loaded["workloads"].get(each)) is not None and row.policy for each in mine)
    finally:
        loaded.close()
