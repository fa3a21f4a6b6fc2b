"""Single questions of an agent: does its DaemonSet go away, and who may read its metrics."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.kubernetes.api_questions import is_leaving, may_get
from gateway.kubernetes.api_server import Door, ServerError
from tests.cluster.apiserver import ApiServer
from tests.cluster.gate import Gate
from tests.cluster.objects import RBAC, create, delete, patch

SETS = "/apis/apps/v1/namespaces/default/daemonsets"
ACCOUNTS = "/api/v1/namespaces/default/serviceaccounts"


@pytest.fixture
def door(api: ApiServer) -> Door:
    return Door(api.kubeconfig)


@pytest.fixture
def daemons(api: ApiServer) -> Iterator[str]:
    labels = {"app": "skouter"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "a", "image": "none"}]}}
    spec = {"selector": {"matchLabels": labels}, "template": template}
    metadata = {"name": "skouter", "finalizers": ["example.com/held"]}
    path = f"{SETS}/skouter"
    create(api, SETS, {"metadata": metadata, "spec": spec})
    yield path
    if api.request("GET", path)[0] == 200:
        patch(api, path, {"metadata": {"finalizers": None}})
        delete(api, path)


def test_a_daemonset_that_stays(door: Door, daemons: str) -> None:
    assert not is_leaving(door, "default")


def test_a_daemonset_that_is_being_deleted_and_one_that_is_gone(
    api: ApiServer, door: Door, daemons: str
) -> None:
    delete(api, daemons)
    assert is_leaving(door, "default")
    patch(api, daemons, {"metadata": {"finalizers": None}})
    assert api.request("GET", daemons)[0] == 404
    assert is_leaving(door, "default")


def test_a_server_that_is_away_is_no_answer(api: ApiServer, tmp_path: Path) -> None:
    with Gate(api) as gate:
        door = Door(gate.kubeconfig(tmp_path / "kubeconfig"))
        gate.close()
        with pytest.raises(ServerError, match="can't be reached"):
            is_leaving(door, "default")


def test_who_may_read_metrics(api: ApiServer, door: Door) -> None:
    name = "skouter-metrics"
    create(api, ACCOUNTS, {"metadata": {"name": name}})
    token = api.account_token("default", name)
    paths = [f"{ACCOUNTS}/{name}", f"{RBAC}/clusterroles/{name}", f"{RBAC}/clusterrolebindings/{name}"]
    try:
        assert not may_get(door, token, "/metrics")
        role = {"rules": [{"nonResourceURLs": ["/metrics"], "verbs": ["get"]}]}
        create(api, f"{RBAC}/clusterroles", {"metadata": {"name": name}, **role})
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name}
        subject = {"kind": "ServiceAccount", "name": name, "namespace": "default"}
        binding = {"metadata": {"name": name}, "roleRef": reference, "subjects": [subject]}
        create(api, f"{RBAC}/clusterrolebindings", binding)
        assert any(may_get(door, token, "/metrics") for _ in range(200)), "once the server knows of it"
        assert not may_get(door, token, "/debug")
        assert not may_get(door, token + "x", "/metrics")
        assert not may_get(door, "", "/metrics")
    finally:
        for path in paths:
            delete(api, path)
