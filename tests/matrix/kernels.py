"""Debian's cloud kernels, as their suites have them today: fetched and unpacked, never installed.

They are small, and have all that is needed as modules. Each suite has an apt of its own (apt.conf(5),
``Dir::State::Lists`` and others) below the cache, with the mirror that this machine's apt uses for Debian.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SUITES = ("bullseye", "bookworm", "trixie", "sid")  # Linux 5.10, 6.1, 6.12, the newest
META = "linux-image-cloud-amd64"
PARTS = re.compile(r"^linux-(image|binary|modules)-\d\S*$", re.MULTILINE)  # newer kernels come in three


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel: its modules are in FOLDER/lib/modules/RELEASE, with their index."""

    suite: str
    folder: Path

    @property
    def image(self) -> Path:
        """boot/vmlinuz-RELEASE, or in newer packages vmlinuz beside the modules."""
        return next(path for path in self.folder.rglob("vmlinuz*") if path.is_file())

    @property
    def modules(self) -> Path:
        return next(path for path in (self.folder / "lib" / "modules").iterdir() if path.is_dir())

    @property
    def release(self) -> str:
        return self.modules.name

    def with_dependencies(self, names: Sequence[str]) -> list[Path]:
        """Files of these modules and of those that they need, in an order in which they can be inserted."""
        lines = (self.modules / "modules.dep").read_text().splitlines()
        needs = {path: rest.split() for path, _, rest in (line.partition(":") for line in lines)}
        order: dict[str, None] = {}
        for name in names:
            path = next((path for path in needs if module_name(path) == name), None)
            if path:  # else it is built in
                order.update(dict.fromkeys([*reversed(needs[path]), path]))
        return [self.modules / path for path in order]


def module_name(path: str) -> str:
    return Path(path).name.split(".")[0].replace("-", "_")


def fetch(suite: str, cache: Path) -> Kernel:
    """The newest kernel of a suite, below `cache`; unpacked anew where that is another than before."""
    options = _private_apt(suite, cache / suite / "apt")
    _run("apt-get", *options, "-q", "update")
    said = _run("apt-cache", *options, "depends", "--recurse", "--no-recommends", "--no-suggests", META)
    parts = sorted({match[0] for match in PARTS.finditer(said)})
    policy = _run("apt-cache", *options, "show", "--no-all-versions", *parts)
    kernel = Kernel(suite, cache / suite / "kernel")
    stamp = kernel.folder / "packages"
    if not stamp.is_file() or stamp.read_text() != policy:
        _unpack(options, parts, kernel)
        stamp.write_text(policy)
    return kernel


def _private_apt(suite: str, folder: Path) -> list[str]:
    for name in ("lists/partial", "archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    mirrors = _run("apt-get", "indextargets", "--format", "$(REPO_URI)", "Origin: Debian", "Label: Debian")
    (folder / "sources.list").write_text(f"deb {mirrors.split()[0]} {suite} main\n")
    settings = {
        "Dir::State::Lists": folder / "lists",
        "Dir::State::status": "/dev/null",
        "Dir::Etc::SourceList": folder / "sources.list",
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::Cache": folder,
        "Acquire::Languages": "none",
        "APT::Architecture": "amd64",
        "APT::Sandbox::User": "root",
    }
    return [word for name, value in settings.items() for word in ("-o", f"{name}={value}")]


def _unpack(options: Sequence[str], parts: Sequence[str], kernel: Kernel) -> None:
    folder = kernel.folder
    _run("rm", "-rf", folder)
    folder.mkdir(parents=True)
    _run("apt-get", *options, "-q", "download", *parts, cwd=folder)
    for package in folder.glob("*.deb"):
        _run("dpkg-deb", "-x", package, folder)
        package.unlink()
    if not (folder / "lib").exists():
        (folder / "lib").symlink_to("usr/lib")
    _run("depmod", "-b", folder, kernel.release)


def _run(*words: str | Path, cwd: Path | None = None) -> str:
    """What a command says; its own words where it fails."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False, cwd=cwd)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words))}:\n{done.stderr}")
    return done.stdout
