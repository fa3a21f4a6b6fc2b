"""One API server for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.apiserver import ApiServer
from tests.tools import build


@pytest.fixture(scope="session")
def programs() -> Path:
    """The folder of etcd, kube-apiserver and kubectl."""
    return build.folder("envtest")


@pytest.fixture(scope="session")
def api(programs: Path) -> Iterator[ApiServer]:
    """A running API server, the same for all: who writes tidies up, or keeps to a namespace of its own."""
    with ApiServer(programs) as running:
        yield running


@pytest.fixture(scope="session")
def kubeconfig(api: ApiServer) -> Path:
    """That of a cluster-admin."""
    return api.kubeconfig
