"""One workload and its bench, for every file of this folder."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bpf.datapath import Datapath
from tests.kernel.bench import Bench, Namespace


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
