"""The cgroups of a host as they come and go.

Rules this file obeys:

- A folder is watched before it is listed, so that no birth falls between; what both tell counts once.
- Only folders in which something may matter are watched: a user who makes cgroups costs nothing.
- A cgroup that went and came again under its name is another one: it has another id.

Source: inotify(7), cgroups(7). A cgroup of version 2 can't be renamed.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import trio
from inotify_simple import INotify, flags

ROOT = "/"
IGNORED = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENAMETOOLONG,
)  # removed meanwhile, or nested too deep for a path


def nothing(_path: str) -> bool:
    return False


class CgroupTree:
    """`ids`: path below the folder `root` ("/" is that folder itself) to the cgroup's id.

    `stirred`: paths at which something happened of late that `ids` doesn't tell; whoever looks takes them.
    """

    def __init__(
        self, root: Path, of_interest: Callable[[str], bool], is_followed: Callable[[str], bool] = nothing
    ) -> None:
        """`of_interest` says whether what is right below a path matters; `is_followed`, whether it matters
        that the first process comes to it or the last one goes (cgroup.events in cgroups(7))."""
        self._is_followed = is_followed
        self._followed: dict[int, str] = {}
        self.stirred: set[str] = set()
        self._root = root
        self._inotify = INotify(nonblocking=True)
        self._watched: dict[int, str] = {}
        self.watch(of_interest)

    def watch(self, of_interest: Callable[[str], bool]) -> None:
        """Begins again with other interests; what the old watches still have to tell is not looked at."""
        for watch in (*self._watched, *self._followed):
            with suppress(OSError):  # of a folder that is no more
                self._inotify.rm_watch(watch)
        self._of_interest = of_interest
        self._watched, self._followed = {}, {}
        self.ids: dict[str, int] = {}
        self._add(ROOT)

    async def changed(self) -> None:
        """Waits until a cgroup was born or removed; `ids` tells."""
        while not self.update():
            await trio.lowlevel.wait_readable(self._inotify)

    def update(self) -> bool:
        """Takes in what has happened by now; whether anything did."""
        before = dict(self.ids)
        for event in self._inotify.read(timeout=0):
            if event.mask & flags.Q_OVERFLOW:
                self.watch(self._of_interest)
                break
            if event.mask & flags.ISDIR and event.wd in self._watched:
                path = _below(self._watched[event.wd], event.name)
                if event.mask & flags.DELETE:
                    self._remove(path)
                else:
                    self._add(path)
                if self._watched.get(event.wd) in self._followed.values():
                    self.stirred.add(self._watched[event.wd])
            elif event.mask & flags.MODIFY and event.wd in self._followed:
                self.stirred.add(self._followed[event.wd])
        return self.ids != before or bool(self.stirred)

    def close(self) -> None:
        self._inotify.close()

    def _add(self, path: str) -> None:
        folder = self._root / path.lstrip("/")
        if not _is_text(path):
            return
        try:
            self.ids[path] = folder.stat().st_ino
            if self._is_followed(path):
                watch = self._inotify.add_watch(folder / "cgroup.events", flags.MODIFY)
                self._followed[watch] = path
                self.stirred.add(path)
            if self._of_interest(path):
                mask = flags.CREATE | flags.DELETE | flags.ONLYDIR
                self._watched[self._inotify.add_watch(folder, mask)] = path
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.is_dir(follow_symlinks=False):
                            self._add(_below(path, entry.name))
        except OSError as error:
            if error.errno not in IGNORED:
                raise

    def _remove(self, path: str) -> None:
        def stays(other: str) -> bool:
            return other != path and not other.startswith(path + "/")

        self.ids = {other: number for other, number in self.ids.items() if stays(other)}
        self._watched = {watch: other for watch, other in self._watched.items() if stays(other)}
        self._followed = {watch: other for watch, other in self._followed.items() if stays(other)}


def _is_text(path: str) -> bool:
    """Nobody writes another name into a file: such a cgroup is held as what lies around it."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _below(path: str, name: str) -> str:
    return f"{path.rstrip('/')}/{name}"
