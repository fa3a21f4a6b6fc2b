"""Settings of the calling thread's network namespace (proc(5): /proc/sys/net), and what they were before.

Rules this file obeys:

- What a setting was is on disk before it is changed. Only what still has our value is put back: who changed
  it since knows better.
- A setting that this kernel doesn't have is left out. One that can't be changed here is told, and no error:
  of a network namespace's settings some are the host's alone.

Source: Documentation/networking/ip-sysctl.rst, nf_conntrack-sysctl.rst.
"""

from __future__ import annotations

import errno
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROC = Path("/proc/sys/net")


@dataclass(frozen=True, slots=True)
class Setting:
    """`path` is below net, with slashes. `at_least`: a greater number is as good."""

    path: str
    value: int
    at_least: bool = False

    def holds(self, there: int | None) -> bool:
        return there == self.value or (self.at_least and there is not None and there > self.value)


def look(settings: tuple[Setting, ...]) -> dict[str, int | None]:
    """Path to value; None where this kernel has no such thing."""
    return {setting.path: read(setting.path) for setting in settings}


def read(path: str) -> int | None:
    try:
        return int((PROC / path).read_text())
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTDIR):
            raise
        return None


def can_change(path: str) -> bool:
    return os.access(PROC / path, os.W_OK)


def stuck(settings: tuple[Setting, ...]) -> list[str]:
    """What is otherwise here and has to be changed elsewhere, in words."""
    there = {setting: read(setting.path) for setting in settings}
    return [
        f"{_name(setting.path)}={value}, not {setting.value}: only the host itself can change that"
        for setting, value in there.items()
        if value is not None and not setting.holds(value) and not can_change(setting.path)
    ]


def write(settings: tuple[Setting, ...], kept: Path) -> list[str]:
    """What was changed, in words. `kept` is the file with what they were."""
    if not settings:
        return []
    before = remembered(kept)
    old: dict[str, list[int | None]] = before.setdefault("settings", {})
    there = look(settings)
    for setting in settings:
        first = old.get(setting.path, [there[setting.path]])[0]
        old[setting.path] = [first, setting.value]
    remember(kept, before)
    for setting in settings:
        (PROC / setting.path).write_text(str(setting.value))
    return [f"{_name(setting.path)}={setting.value}" for setting in settings]


def restore(kept: Path) -> list[str]:
    """What was put back, in words, the last first; the file forgets it."""
    before = remembered(kept)
    old: dict[str, list[int | None]] = before.pop("settings", {})
    done = []
    for path, (first, ours) in reversed(old.items()):
        if first is not None and first != ours and read(path) == ours:
            (PROC / path).write_text(str(first))
            done.append(f"{_name(path)}={first}")
    remember(kept, before)
    return done


def _name(path: str) -> str:
    return f"net.{path.replace('.', '/').translate(str.maketrans('/', '.'))}"


# ---- The file ---------------------------------------------------------------------------------------------


def remembered(kept: Path) -> dict[str, Any]:
    """Nothing where there is no file, or half of one."""
    try:
        found = json.loads(kept.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def remember(kept: Path, what: dict[str, Any]) -> None:
    """In place of what was there; nothing: no file."""
    if not what:
        kept.unlink(missing_ok=True)
        return
    kept.parent.mkdir(parents=True, exist_ok=True)
    new = kept.with_name(f".{kept.name}.new")
    new.write_text(json.dumps(what))
    new.replace(kept)
