"""In which network each pod lives, that of its oldest process which is not in the host's; and the ways out.

Rules this file obeys:

- A runtime puts a container's first process into the pod's cgroup before that process enters the pod's
  network. So one that is seen in the host's network is looked at again, within milliseconds, until it left.
- The oldest process decides: the runtime's own. What a process of the pod makes later is not the pod's home.
- A home that is known stays for as long as any process of the pod lives in it; a sandbox that was made anew
  has another, which belongs to the same user namespace: a runtime made it. One that a pod without privileges
  makes for itself belongs to a user namespace of its own, and is no home, though all of the pod moves there
  (not every runtime leaves a process of its own in a pod). After a restart the home that the kernel's row
  names is the known one, and the host's user namespace the one it belongs to.
- Addresses may come after the first process: they are looked at again when a container comes or goes, and now
  and then. So may interfaces, of which the host's side is heard of.

Source: runc's and crun's creation of a container; proc_pid_stat(5), field 22.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import trio

from gateway import cgroups
from routing import interfaces
from routing.links import Ways, ways_of
from routing.namespaces import namespaces, owner
from routing.own import Home, home_of

PROC = Path("/proc")
SOON, LATER = 0.002, 0.25  # seconds between two looks at a process that is still in the host's network
PATIENT = 1.0  # seconds after which it is looked at less often
LATE = 60.0  # seconds in which an interface may come after the first process; then it is asked for seldom


@dataclass(slots=True)
class PodHomes:
    """`known`: path of a pod's cgroup below `root` to its home; `ways` lead out of it.

    `waiting`: those all of whose processes are in the host's network so far, and since when.
    """

    root: Path
    known: dict[str, Home] = field(default_factory=dict)
    waiting: dict[str, float] = field(default_factory=dict)
    ways: dict[str, Ways] = field(default_factory=dict)
    _since: dict[str, float] = field(default_factory=dict)
    _ids: dict[str, int] = field(default_factory=dict)
    _left: Mapping[int, int] = field(default_factory=dict)
    _owners: dict[str, int] = field(default_factory=dict)

    def remember(self, homes: Mapping[int, int]) -> None:
        """What an earlier agent knew: a cgroup's id to its home's."""
        self._left = homes

    def keep(self, ids: Mapping[str, int]) -> set[str]:
        """Forgets all but these pods: path to the cgroup's id. Those that are new are to be looked at."""
        for path in [path for path, identity in self._ids.items() if ids.get(path) != identity]:
            del self._ids[path]
            self.known.pop(path, None)
            self._owners.pop(path, None)
            self.waiting.pop(path, None)
            self.ways.pop(path, None)
            self._since.pop(path, None)
        new = ids.keys() - self._ids.keys()
        self._ids |= ids
        return new

    def kept(self) -> set[str]:
        return set(self._ids)

    def look(self, path: str, now: float) -> bool:
        """Whether anything is new about a pod that is kept."""
        before = self.known.get(path)
        wanted = before.id if before else self._left.get(self._ids[path], 0)
        belongs = self._owners.get(path, _user_namespace() if wanted else 0)
        found, owned_by, any_process = _look(self.root / path.lstrip("/"), wanted, belongs)
        ways = self.ways.get(path)
        if found is not None:
            home, self.ways[path] = found
            self.known[path], self._owners[path] = home, owned_by
            self._since.setdefault(path, now)
            self.waiting.pop(path, None)
        elif any_process and before is None:
            self.waiting.setdefault(path, now)
        else:
            self.waiting.pop(path, None)
        return found is not None and found != (before, ways)

    def concerned(self, interfaces: set[int] | None, now: float) -> set[str]:
        """Pods that changes of these interfaces of the host concern (None: of any): theirs, and for a while
        those that have none yet."""
        if interfaces is None:
            return set(self.ways)
        return {
            path
            for path, ways in self.ways.items()
            if interfaces.intersection(link.index for link in ways.links)
            or (not ways.links and now < self._since[path] + LATE)
        }

    def pause(self, now: float) -> float | None:
        """Seconds until the next look at those that wait; None where none does."""
        if not self.waiting:
            return None
        return SOON if now < max(self.waiting.values()) + PATIENT else LATER


def _user_namespace() -> int:
    return os.stat(PROC / "self/ns/user").st_ino  # noqa: PTH116 - as below


Found = tuple[Home, Ways]


def _look(folder: Path, wanted: int, belongs: int) -> tuple[Found | None, int, bool]:
    """The home and its ways, if it is seen, and what it belongs to; and whether there is any process.
    `wanted`: id of the one known so far; another one must belong to the user namespace `belongs`, where that
    is known."""
    host = os.stat(PROC / "self/ns/net").st_ino  # noqa: PTH116 - inodes of processes are asked for likewise
    first: tuple[Found | None, int] = None, 0
    seen: set[int] = set()
    pids = sorted(filter(None, map(_aged, cgroups.processes_below(folder))))
    for started, pid in pids:
        with suppress(OSError):
            inode = os.stat(PROC / str(pid) / "ns/net").st_ino  # noqa: PTH116
            if inode == host or inode in seen:
                continue
            found, owned_by = _found(pid), owner(pid)
            if found is None or _aged(pid) != (started, pid) or pid not in cgroups.processes_below(folder):
                continue  # another process has its number by now, perhaps of another pod
            seen.add(inode)
            if wanted and found[0].id == wanted:
                return found, owned_by, True
            if first[0] is None and belongs in (0, owned_by):
                first = found, owned_by
            if not wanted:
                break
    return *first, bool(pids)


def _found(pid: int) -> Found | None:
    home = home_of(pid)
    with namespaces([pid]) as held:
        return next(((home, _ways(each)) for each in held.values() if home), None)


def _ways(namespace: int) -> Ways:
    """A pod whose interfaces can't be asked for need not wait: that its link is not judged is told."""
    try:
        return ways_of(namespace)
    except OSError as error:
        return Ways(astray=(f"its interfaces can't be asked for: {error}",))


def _aged(pid: int) -> tuple[int, int] | None:
    """When a process began, in clock ticks, and its number."""
    with suppress(OSError, ValueError, IndexError):
        stat = (PROC / str(pid) / "stat").read_text(errors="replace")
        return int(stat.rpartition(")")[2].split()[19]), pid
    return None


async def follow_interfaces(homes: PodHomes, look_at: Callable[[str], None]) -> None:
    """For ever: a pod may get its interfaces after its first process, or others in their place."""
    with interfaces.changes() as news:
        while True:
            await trio.lowlevel.wait_readable(news)
            for path in homes.concerned(interfaces.changed(news), trio.current_time()):
                look_at(path)
