"""What tests of the kernel half share: programs, a folder of cgroups, and no trace of either afterwards.

Everything has the pid in its name, so that two runs, or two processes of one, do not meet, and each sweeps
what a dead one left.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from bpf import datapath as bpf_datapath
from gateway import cgroups
from tests.topology import in_turn, kill_all, lacking, stale

# How long an example takes is up to whatever else this machine does.
settings.register_profile("shared", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared")

BPFFS = Path("/sys/fs/bpf")
PREFIX = "skouter-test"


def unique_name() -> str:
    return f"{PREFIX}-{os.getpid()}-{secrets.token_hex(3)}"


def remove_cgroup(path: Path) -> None:
    """The folder with all below it; what still lives in it is killed, and waited for."""
    kill_all(path)
    for folder in sorted((p for p in path.rglob("*") if p.is_dir()), reverse=True):
        folder.rmdir()
    path.rmdir()


def sweep() -> None:
    with in_turn():
        for path in stale(cgroups.hierarchy(), PREFIX):
            remove_cgroup(path)
        for path in stale(BPFFS, PREFIX):
            shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="session")
def superuser() -> None:
    """Who asks for this may load programs and make namespaces and cgroups."""
    if os.geteuid():
        pytest.skip("needs root: namespaces, cgroups and BPF")


@pytest.fixture(scope="session")
def lab_tools(superuser: None) -> None:
    """Who asks for this may build a lab."""
    if needed := lacking():
        pytest.skip(f"needs {needed}")


@pytest.fixture(scope="session")
def cgroup_root(superuser: None) -> Iterator[Path]:
    """A folder of its own in the cgroup v2 hierarchy, for this run's workloads."""
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
