"""One workload and its bench, for every file of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf.datapath import Datapath
from tests.kernel.bench import Bench, Namespace
from tests.kernel.gateway_lab import Machines, Site
from tests.kernel.link_lab import Lab, World


@pytest.fixture(scope="session")
def bench_of_run(datapath: Datapath, cgroup_root: Path) -> Iterator[Bench]:
    workload = cgroup_root / "workload"
    workload.mkdir()
    network, other = Namespace(), Namespace()
    network.join(other)
    yield Bench(datapath, workload, network)
    network.close()
    other.close()


@pytest.fixture
def bench(bench_of_run: Bench) -> Bench:
    """With empty tables."""
    bench_of_run.clear()
    return bench_of_run


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    made = Lab()
    yield made
    made.close()


@pytest.fixture(scope="session")
def linked(datapath: Datapath, cgroup_root: Path) -> Iterator[Path]:
    """A workload whose packets meet the cgroup's programs, before they come to its link."""
    folder = cgroup_root / "linked"
    folder.mkdir()
    datapath.attach(folder)
    yield folder
    datapath.detach(folder)


@pytest.fixture
def w_link(bench: Bench, linked: Path, lab: Lab) -> Iterator[World]:
    world = World(bench, linked, lab)
    with world.open:
        yield world
    world.detach()


@pytest.fixture(scope="session")
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.close()


@pytest.fixture
def m(bench: Bench, site: Site) -> Iterator[Machines]:
    machines = Machines(bench, site)
    yield machines
    machines.close()
