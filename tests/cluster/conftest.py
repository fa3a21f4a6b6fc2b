"""One API server for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway import crds
from tests.cluster.apiserver import ApiServer
from tests.tools import build

CRDS = Path(__file__).parent.parent.parent / "deploy" / "crds"
DEFINITIONS = ",".join(str(CRDS / f"{names.plural}.yaml") for names in crds.NAMES.values())


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
def crds_applied(api: ApiServer) -> ApiServer:
    """The same server, with the definitions of this checkout."""
    api.kubectl("apply", "--server-side", "-f", DEFINITIONS)
    api.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", DEFINITIONS)
    return api


@pytest.fixture(scope="session")
def kubeconfig(api: ApiServer) -> Path:
    """That of a cluster-admin."""
    return api.kubeconfig
