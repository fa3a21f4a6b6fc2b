"""A pod's home is the network that the runtime made, whatever the pod makes."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gateway import cgroups
from gateway.kubernetes.pod_homes import PodHomes
from routing.own import home_of
from tests.topology import end, wait_for

RUNTIME = ("unshare", "--net")
ITSELF = ("unshare", "--user", "--map-root-user", "--net")
Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def pod() -> Iterator[Path]:
    folder = cgroups.hierarchy() / f"skouter-homes-{os.getpid()}"
    folder.mkdir()
    yield folder
    cgroups.remove_cgroup(folder)


@pytest.fixture
def start(pod: Path) -> Iterator[Start]:
    """A process of the pod in a network that is made like this."""
    started = []
    host = Path("/proc/self/ns/net").stat().st_ino

    def begin(*made: str) -> subprocess.Popen[bytes]:
        line = f'echo $$ >{pod}/cgroup.procs; exec "$@"'
        process = subprocess.Popen(["sh", "-c", line, "sh", *made, "sleep", "1000"])
        started.append(process)
        wait_for(lambda: Path(f"/proc/{process.pid}/ns/net").stat().st_ino != host, "a network of its own")
        wait_for(lambda: Path(f"/proc/{process.pid}/comm").read_text() == "sleep\n", "the program")
        return process

    yield begin
    for process in started:
        end(process)


@pytest.fixture
def homes(pod: Path) -> PodHomes:
    made = PodHomes(pod.parent)
    made.keep({f"/{pod.name}": cgroups.cgroup_id(pod)})
    return made


def test_the_oldest_process_decides(pod: Path, start: Start, homes: PodHomes) -> None:
    first = start(*RUNTIME)
    start(*ITSELF)
    assert homes.look(f"/{pod.name}", 0)
    assert homes.known[f"/{pod.name}"] == home_of(first.pid)


@pytest.mark.parametrize("restarted", [False, True])
def test_ATTACK_a_pod_without_a_process_of_the_runtimes_moves_into_a_network_of_its_own(
    pod: Path, start: Start, homes: PodHomes, restarted: bool
) -> None:
    """There it could play the cluster's DNS, and teach addresses to all pods of its policy."""
    path, first = f"/{pod.name}", start(*RUNTIME)
    homes.look(path, 0)
    home = homes.known[path]
    start(*ITSELF)
    end(first)
    if restarted:
        homes = PodHomes(pod.parent)
        homes.remember({cgroups.cgroup_id(pod): home.id})
        homes.keep({path: cgroups.cgroup_id(pod)})
    assert not homes.look(path, 0)
    assert homes.known.get(path, home) == home


def test_a_sandbox_that_the_runtime_makes_anew_is_followed(pod: Path, start: Start, homes: PodHomes) -> None:
    path, first = f"/{pod.name}", start(*RUNTIME)
    homes.look(path, 0)
    second = start(*RUNTIME)
    assert not homes.look(path, 0), "for as long as somebody lives in it"
    end(first)
    assert homes.look(path, 0)
    assert homes.known[path] == home_of(second.pid)
