"""Runs a command with what a unit file leaves it: capabilities, system calls, folders to write.

confined.py UNIT FOLDER,FOLDER,... COMMAND: the folders are those that the manager would make for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import seccomp


def settings(unit: Path) -> dict[str, str]:
    return dict(line.split("=", 1) for line in unit.read_text().splitlines() if line[:1].isalpha())


def system_calls(word: str) -> Iterator[str]:
    """A name, or the names of a set, as the manager at hand understands them."""
    if not word.startswith("@"):
        yield word
        return
    listed = subprocess.run(
        ["systemd-analyze", "syscall-filter", word], capture_output=True, text=True, check=True
    ).stdout
    for line in listed.splitlines()[1:]:
        if line.strip() and not line.strip().startswith("#"):
            yield from system_calls(line.strip())


def forbid_system_calls(words: str) -> None:
    rules = seccomp.SyscallFilter(seccomp.ERRNO(1))
    for name in {name for word in words.split() for name in system_calls(word)}:
        try:
            rules.add_rule(seccomp.ALLOW, name)
        except (RuntimeError, ValueError):
            continue  # of another architecture
    rules.load()


def make_read_only(but: list[str]) -> None:
    """ProtectSystem=strict, without its exceptions for /proc, /dev and /sys; a mount namespace is ours."""
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    for folder in but:
        Path(folder).mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "--rbind", folder, folder], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", "/"], check=True)
    for path in ("/proc/sys", "/sys"):
        if os.path.ismount(path):
            subprocess.run(["mount", "-o", "remount,bind,ro", path], check=True)


def main(unit: str, folders: str, *command: str) -> None:
    told = settings(Path(unit))
    make_read_only([*folders.split(","), *told["ReadWritePaths"].split()])
    forbid_system_calls(told["SystemCallFilter"])
    kept = ",".join("+" + name.lower().removeprefix("cap_") for name in told["CapabilityBoundingSet"].split())
    keep = ["--bounding-set", f"-all,{kept}", "--inh-caps", "-all", "--no-new-privs"]
    os.execvp("setpriv", ["setpriv", *keep, "--pdeathsig", "KILL", "--", *command])


if __name__ == "__main__":
    main(*sys.argv[1:])
