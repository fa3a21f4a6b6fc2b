"""One API server for all tests of this folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.kubernetes import crds
from gateway.policies.schema import KINDS
from tests.cluster.apiserver import ApiServer
from tests.cluster.gate import Gate
from tests.cluster.objects import NODE, OURS, create, define, delete
from tests.tools import build

CRDS = Path(__file__).parent.parent.parent / "deploy" / "crds"
DEFINITIONS = ",".join(str(CRDS / f"{names.plural}.yaml") for names in crds.NAMES.values())


# A node is emulated, in a network of its own: make test-node.
collect_ignore = [] if os.environ.get("SKOUTER_TEST_NODE") else ["node"]


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
    api.kubectl("apply", "--server-side", "--force-conflicts", "-f", DEFINITIONS)
    api.kubectl("wait", "--for=condition=Established", "--timeout=60s", "-f", DEFINITIONS)
    return api


@pytest.fixture(scope="session")
def kubeconfig(api: ApiServer) -> Path:
    """That of a cluster-admin."""
    return api.kubeconfig


@pytest.fixture(scope="module")
def server(programs: Path) -> Iterator[ApiServer]:
    """One that may be killed, with definitions that let everything through, and a node."""
    with ApiServer(programs) as api:
        for kind in KINDS:
            define(api, kind)
        create(api, "/api/v1/nodes", {"metadata": {"name": NODE}, "spec": {"podCIDRs": ["10.1.0.0/24"]}})
        yield api


@pytest.fixture
def space(server: ApiServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """A namespace of this test; what it held is gone afterwards, from it and from the whole cluster."""
    name = f"t{abs(hash(request.node.name)) % 10**8}"
    create(server, "/api/v1/namespaces", {"metadata": {"name": name}})
    yield name
    delete(server, f"{OURS}/namespaces/{name}/egresses")
    delete(server, f"/api/v1/namespaces/{name}/pods", gracePeriodSeconds=0)
    for plural in ("clusteregresses", "externalworkloads"):
        delete(server, f"{OURS}/{plural}")


@pytest.fixture
def gate(server: ApiServer) -> Iterator[Gate]:
    with Gate(server) as made:
        yield made


@pytest.fixture
def through(gate: Gate, tmp_path: Path) -> Path:
    return gate.kubeconfig(tmp_path / "kubeconfig")
