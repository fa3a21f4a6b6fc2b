"""Policies and configuration from files: read whole, followed as they change, the last good set kept.

Rules this file obeys:

- A set is all files at once. A problem in any of them, a file that vanished or an empty folder is no new set:
  what was good before stays, also across a restart (`keep`), and every problem is told.
- Watches are put up before anything is read, so that no change falls between. A change is read when nothing
  has happened for a moment and no file is still being written.
- Followed are names in the folder itself: editors that rename, symbolic links that are swapped as a whole
  (Kubernetes' `..data`). Not followed is what a link points to elsewhere, changed in place: SIGHUP reads it.

inotify_simple rather than a library with threads: a descriptor for the one loop there is, and nothing more.
Source: inotify(7).
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import orjson
import trio
from inotify_simple import INotify, flags

from gateway import settings
from gateway.policies import documents
from gateway.policies.records import Object, Problem
from gateway.settings import Settings

SUFFIXES = (".yaml", ".yml", ".json")
LARGEST = 4 << 20  # bytes of one file
QUIET, LONGEST = 0.1, 5.0  # seconds without a change before it is read, and for how long they are waited for

CHANGES = flags.CREATE | flags.MODIFY | flags.CLOSE_WRITE | flags.MOVED_TO | flags.MOVED_FROM | flags.DELETE
GONE = flags.DELETE_SELF | flags.MOVE_SELF | flags.UNMOUNT | flags.Q_OVERFLOW


@dataclass(frozen=True, slots=True)
class Texts:
    """What the files held at one moment; `config` is None where there is no such file."""

    config: str | None = None
    policies: tuple[tuple[str, str], ...] = ()  # path, text


@dataclass(frozen=True, slots=True)
class Documents:
    """A whole set without a problem."""

    settings: Settings
    objects: tuple[Object, ...]


class PolicyFiles:
    """A folder of policies and a configuration file, watched from the first `read` on."""

    def __init__(self, folder: Path, config: Path, may_be_none: bool = False, gateway: bool = False) -> None:
        """`may_be_none`: no policy is a good set, too, as where others come from elsewhere. `gateway`: whose
        the configuration is."""
        self.folder, self.config, self.may_be_none, self.gateway = folder, config, may_be_none, gateway
        self._inotify = INotify(nonblocking=True)
        self._watched: dict[int, Path] = {}
        self._writing: set[tuple[int, str]] = set()

    def read(self) -> tuple[Texts, list[Problem]]:
        """All texts, and a problem for each that can't be read."""
        self._watch()
        problems: list[Problem] = []
        policies = [(str(path), _text(path, problems)) for path in self._policies(problems)]
        config = _text(self.config, problems) if os.path.lexists(self.config) else None
        return Texts(config, tuple(policies)), problems

    async def changed(self) -> None:
        """Returns when something has changed since the last `read` and has come to rest."""
        while not self._drain():
            await trio.lowlevel.wait_readable(self._inotify)
        with trio.move_on_after(LONGEST):
            while True:
                with trio.move_on_after(QUIET) as quiet:
                    await trio.lowlevel.wait_readable(self._inotify)
                self._drain()
                if quiet.cancelled_caught and not self._writing:
                    return
        while self._writing:  # half a set would let go of what the other half holds
            await trio.lowlevel.wait_readable(self._inotify)
            self._drain()

    def close(self) -> None:
        self._inotify.close()

    def _policies(self, problems: list[Problem]) -> list[Path]:
        try:
            found = sorted(p for p in self.folder.iterdir() if _is_policy(p.name) and not p.is_dir())
        except OSError as error:
            if self.may_be_none and isinstance(error, FileNotFoundError):
                return []
            problems.append(_unreadable(self.folder, error, "make the folder, or name another"))
            return []
        if not found and not self.may_be_none:
            wrong = f"holds no policy ({', '.join('*' + suffix for suffix in SUFFIXES)})"
            mend = "write one; to end all enforcement run skouter off"
            problems.append(Problem(str(self.folder), None, "", "", wrong, mend))
        return found

    def _watch(self) -> None:
        """The folder, and what holds it and the configuration: as far down as it exists."""
        before, self._watched = self._watched, {}
        self._writing.clear()
        for path in (self.folder, self.folder.parent, self.config.parent):
            there = next(p for p in (path, *path.parents) if p.is_dir())
            with suppress(FileNotFoundError, NotADirectoryError):  # gone again: seen from above
                self._watched[self._inotify.add_watch(there, CHANGES | GONE | flags.ONLYDIR)] = there
        for watch in before.keys() - self._watched:
            with suppress(OSError):  # of a folder that is no more
                self._inotify.rm_watch(watch)

    def _drain(self) -> bool:
        """Whether anything that matters has happened."""
        matters = False
        for event in self._inotify.read(timeout=0):
            at = event.wd, event.name
            if not (event.mask & GONE or self._matters(*at)):
                continue
            matters = True
            if event.mask & flags.MODIFY:
                self._writing.add(at)
            elif not event.mask & flags.CREATE:
                self._writing.discard(at)
        return matters

    def _matters(self, watch: int, name: str) -> bool:
        folder = self._watched.get(watch)
        if folder is None:
            return False  # of a watch that is no more
        if folder == self.folder and (_is_policy(name) or name.startswith("..")):
            return True
        path = folder / name
        return path in (self.folder, *self.folder.parents, self.config, *self.config.parents) or (
            folder == self.config.parent and name.startswith("..")
        )


def understand(
    texts: Texts, config: str, before: Texts | None = None, gateway: bool = False
) -> tuple[Documents | None, list[Problem]]:
    """What the texts mean, or every problem of all of them. `before` are those of the last good set."""
    read, problems = settings.read(texts.config or "", config, gateway)
    if texts.config is None and before is not None and before.config is not None:
        problems.append(Problem(config, None, "", "", "is gone", "restore it; an empty file is the defaults"))
    objects: dict[str, Object] = {}
    origin: dict[str, str] = {}
    for path, text in texts.policies:
        found, wrong = documents.read(text, path)
        problems += wrong
        for name, item in ((str(item), item) for item in found):
            if name in objects:
                twice = f"is the name of an object in {origin[name]} too"
                problems.append(Problem(path, None, name, "metadata.name", twice, "write another name"))
            objects[name], origin[name] = item, path
    if problems or read is None:
        return None, problems
    return Documents(read, tuple(objects.values())), []


# ---- The last good set ----------------------------------------------------------------------------------


def keep(path: Path, texts: Texts) -> None:
    """Whole or not at all, also if the machine stops in the midst."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
        file.write(orjson.dumps(texts))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


def kept(path: Path) -> Texts | None:
    """What was kept last; None where that is nothing, or can't be read."""
    try:
        found = orjson.loads(path.read_bytes())
        return Texts(found["config"], tuple((str(name), str(text)) for name, text in found["policies"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None


# ---- One file -------------------------------------------------------------------------------------------


def _is_policy(name: str) -> bool:
    return name.endswith(SUFFIXES) and not name.startswith(".")


def _text(path: Path, problems: list[Problem]) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST + 1)
        if len(data) > LARGEST:
            mend = "split it into several files"
            problems.append(Problem(str(path), None, "", "", f"is larger than {LARGEST} bytes", mend))
        return data.decode()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(_unreadable(path, error, "name a readable YAML file"))
        return ""


def _unreadable(path: Path, error: OSError | UnicodeDecodeError, mend: str) -> Problem:
    why = error.strerror if isinstance(error, OSError) and error.strerror else "not UTF-8 text"
    return Problem(str(path), None, "", "", why.lower(), mend)
