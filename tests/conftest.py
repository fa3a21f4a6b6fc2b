"""What tests of the kernel half share: programs, a folder of cgroups, and no trace of either afterwards.

Everything has the pid in its name, so that two runs do not meet and a run sweeps what a dead one left.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf import datapath as bpf_datapath
from gateway import cgroups
from tests.topology import kill_all

BPFFS = Path("/sys/fs/bpf")
PREFIX = "skouter-test"


def unique_name() -> str:
    return f"{PREFIX}-{os.getpid()}-{secrets.token_hex(3)}"


def is_stale(path: Path) -> bool:
    pid = path.name.removeprefix(f"{PREFIX}-").split("-")[0]
    return pid.isdigit() and not Path("/proc", pid).exists()


def remove_cgroup(path: Path) -> None:
    """The folder with all below it; what still lives in it is killed, and waited for."""
    kill_all(path)
    for folder in sorted((p for p in path.rglob("*") if p.is_dir()), reverse=True):
        folder.rmdir()
    path.rmdir()


def sweep() -> None:
    for path in filter(is_stale, cgroups.hierarchy().glob(f"{PREFIX}-*")):
        remove_cgroup(path)
    for path in filter(is_stale, BPFFS.glob(f"{PREFIX}-*")):
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def cgroup_root() -> Iterator[Path]:
    """A folder of its own in the cgroup v2 hierarchy, for this run's workloads."""
    if os.geteuid():
        pytest.skip("needs root: cgroups and BPF")
    sweep()
    path = cgroups.hierarchy() / unique_name()
    path.mkdir()
    yield path
    remove_cgroup(path)


@pytest.fixture(scope="session")
def datapath(cgroup_root: Path) -> Iterator[bpf_datapath.Datapath]:
    """The real programs, compiled once, attached to nothing."""
    if not BPFFS.is_mount():
        pytest.skip(f"needs a bpffs at {BPFFS}: mount -t bpf bpf {BPFFS}")
    root = BPFFS / cgroup_root.name
    try:
        loaded = bpf_datapath.load(root)
        shallowest, deepest = cgroups.levels(cgroup_root, 3)
        loaded.set(shallowest=shallowest, deepest=deepest)
        yield loaded
        for folder in (cgroup_root, *(p for p in cgroup_root.rglob("*") if p.is_dir())):
            loaded.detach(folder)
        loaded.close()
    finally:
        bpf_datapath.unpin(root)
