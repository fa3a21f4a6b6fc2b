"""Where the cgroup v2 hierarchy is, and what lies in it.

A cgroup's id, which the kernel half knows it by, is the inode number of its folder (cgroups(7);
bpf_skb_ancestor_cgroup_id in bpf-helpers(7)). The hierarchy is found by its mount type: on hybrid hosts it
is not at /sys/fs/cgroup.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

# The initial cgroup namespace's inode (linux/proc_ns.h): only there does a path tell a cgroup's level.
INITIAL_NAMESPACE = 0xEFFFFFFB
DEEPEST = 8
LEVELS = 8  # that the kernel half looks at (flows.h)


class CgroupError(Exception):
    """The hierarchy can't be used; the message says what to do."""


def find_mount(kind: str, mounts: str, whole: bool = False) -> Path | None:
    """The first mount point of a file system type in the text of /proc/self/mountinfo (proc(5)).

    `whole`: only one that shows the file system from its root on.
    """
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        _id, _parent, _device, root, point = fields.split(" ")[:5]
        if rest.split(" ", 1)[0] == kind and (root == "/" or not whole):
            return Path(point.encode().decode("unicode_escape"))
    return None


def mounts() -> str:
    return Path("/proc/self/mountinfo").read_text()


def hierarchy() -> Path:
    """The mount point of cgroup v2."""
    found = find_mount("cgroup2", mounts(), whole=True) or find_mount("cgroup2", mounts())
    if found is None:
        raise CgroupError("no cgroup v2 hierarchy is mounted: mount -t cgroup2 none /sys/fs/cgroup")
    return found


def version_1_pods(mounts: str) -> Path | None:
    """Kubelet's folder in a hierarchy of version 1, if there is one (cgroups(7))."""
    for line in mounts.splitlines():
        if line.partition(" - ")[2].startswith("cgroup "):
            point = Path(line.split(" ")[4].encode().decode("unicode_escape"))
            found = (point / name for name in ("kubepods", "kubepods.slice", "kubelet.slice", "kubelet"))
            if there := next((path for path in found if path.is_dir()), None):
                return there
    return None


def cgroup_id(path: Path) -> int:
    return path.stat().st_ino


def levels(root: Path, below: int) -> tuple[int, int]:
    """(shallowest, deepest) levels at which `root` and `below` levels under it lie.

    Where the path does not tell (a cgroup namespace, a mount of a part), all that are looked at; a workload
    that lies deeper still is found out by commands.admit, which tries.
    """
    is_initial = Path("/proc/self/ns/cgroup").stat().st_ino == INITIAL_NAMESPACE
    if not is_initial or find_mount("cgroup2", mounts(), whole=True) is None:
        return 1, DEEPEST
    depth = len(root.relative_to(hierarchy()).parts)
    return depth, depth + below


def processes(path: Path) -> list[int]:
    """Pids in the cgroup itself; those it can't show (another namespace) as 0."""
    try:
        return [int(pid) for pid in (path / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def below(path: Path) -> Iterator[Path]:
    """The cgroup and all in it, parents first; what goes away meanwhile, or has no name that can be opened (a
    user may nest them that deep), is left out."""
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        yield folder
        with suppress(OSError), os.scandir(folder) as entries:
            waiting += [Path(entry) for entry in entries if entry.is_dir(follow_symlinks=False)]


def ids_below(path: Path) -> set[int]:
    found = set()
    for folder in below(path):
        with suppress(OSError):
            found.add(cgroup_id(folder))
    return found


def processes_below(path: Path) -> set[int]:
    return {pid for folder in below(path) for pid in processes(folder) if pid}


def has_id(path: Path, identity: int) -> bool:
    """Whether this very cgroup is there, and not a later one of its name."""
    try:
        return cgroup_id(path) == identity
    except OSError:
        return False


def is_populated(path: Path) -> bool:
    """Whether any process lives in it or below."""
    try:
        return "populated 1" in (path / "cgroup.events").read_text()
    except OSError:
        return False


def join(path: Path, pid: int = 0) -> None:
    """Moves a process (0: this one) into the cgroup."""
    with os.fdopen(os.open(path / "cgroup.procs", os.O_WRONLY), "w") as procs:
        procs.write(f"{pid}\n")


def remove_cgroup(path: Path) -> None:
    """A cgroup, its children first; processes in it move to the hierarchy's root (after `off` only)."""
    for child in [child for child in path.iterdir() if child.is_dir()]:
        remove_cgroup(child)
    for pid in processes(path):
        with suppress(OSError):
            join(hierarchy(), pid)
    path.rmdir()
