"""succession.py and duties.py with real agents of one node: upgrades, the DaemonSet's end, health."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trio

from gateway import bulletin, status
from gateway.ask import ask
from gateway.kubernetes import startup_taint, succession
from gateway.kubernetes.api_questions import DAEMONSET
from gateway.kubernetes.api_rights import RIGHTS
from gateway.kubernetes.api_server import Door, ServerError
from gateway.kubernetes.source import Asked, Kubernetes
from gateway.kubernetes.succession import Parting, parting
from gateway.states import EngineError, is_owned
from tests.cluster.apiserver import ApiServer
from tests.cluster.kubelet import Kubelet
from tests.cluster.objects import RBAC, create, delete, following, off, rules
from tests.cluster.test_agent_kubernetes import allow, defined, lab, node, space
from tests.topology import wait_for

__all__ = ["defined", "lab", "node", "space"]  # the fixtures

TERM = signal.SIGTERM


def is_ready(socket: Path) -> bool:
    return ask(str(socket), "/readyz")[0] == 200


# ---- Upgrades ----------------------------------------------------------------------------------------------


def test_the_newer_agent_takes_over_and_the_older_is_its_spare(node: Kubelet, tmp_path: Path) -> None:
    older_health, newer_health = tmp_path / "older", tmp_path / "newer"
    with node.agent("--health", older_health) as older:
        wait_for(lambda: is_ready(older_health), "the older agent")
        with node.agent("--health", newer_health) as newer:
            wait_for(lambda: is_ready(newer_health), "the newer agent")
            assert Parting.HANDS_OVER.value in node.said()
            assert older.poll() is None
            assert ask(str(older_health), "/livez")[0] == 0
            newer.kill()
        wait_for(lambda: is_ready(older_health), "the older agent again", 60)
        assert "the other agent is gone: this one goes on" in node.said()


def test_one_that_stands_by_ends_as_it_is_told(node: Kubelet, tmp_path: Path) -> None:
    with node.agent() as older, node.agent("--health", tmp_path / "newer"):
        older.send_signal(TERM)
        older.wait(60)
        wait_for(lambda: is_ready(tmp_path / "newer"), "the newer agent")


# ---- The end of a DaemonSet -------------------------------------------------------------------------------


def daemonset(namespace: str) -> str:
    labels = {"app": "x"}
    spec = {"containers": [{"name": "agent", "image": "none"}]}
    template = {"metadata": {"labels": labels}, "spec": spec}
    return json.dumps(
        {
            "apiVersion": "apps/v1",
            "kind": "DaemonSet",
            "metadata": {"name": DAEMONSET, "namespace": namespace},
            "spec": {"selector": {"matchLabels": labels}, "template": template},
        }
    )


def test_an_agent_stays_in_force_until_its_daemonset_is_deleted(
    node: Kubelet, api: ApiServer, space: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two pods of a DaemonSet everything stays; when that is gone, nothing does."""
    monkeypatch.setenv("POD_NAMESPACE", space)
    pins = Path("/sys/fs/bpf", node.instance)
    api.kubectl("apply", "-f", "-", input=daemonset(space))
    with node.agent() as agent:
        agent.send_signal(TERM)
        assert agent.wait(60) == 0
    assert Parting.STAYS.value in node.said()
    assert pins.is_dir()
    with node.agent() as agent:
        api.kubectl("delete", "daemonset", DAEMONSET, "-n", space)
        agent.send_signal(TERM)
        assert agent.wait(60) == 0
    assert Parting.LEAVES.value in node.said()
    assert not pins.exists()
    assert node.status()["attached"] == {}


def test_an_agent_whose_namespace_is_deleted_leaves(api: ApiServer, space: str) -> None:
    """Its pods may go before the DaemonSet does."""
    api.kubectl("apply", "-f", "-", input=daemonset(space))
    source = Kubernetes("node", api.kubeconfig, Asked(home=space))
    assert parting(TERM, source) is Parting.STAYS
    api.kubectl("delete", "namespace", space, "--wait=false")
    assert parting(TERM, source) is Parting.LEAVES


@pytest.fixture
def account(api: ApiServer, space: str) -> Iterator[str]:
    """The name of a service account that has an agent's rights."""
    subject = {"kind": "ServiceAccount", "name": "agent", "namespace": space}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": space}
    create(api, f"/api/v1/namespaces/{space}/serviceaccounts", {"metadata": {"name": "agent"}})
    create(api, f"{RBAC}/clusterroles", {"metadata": {"name": space}, "rules": rules(RIGHTS)})
    binding = {"metadata": {"name": space}, "roleRef": reference, "subjects": [subject]}
    create(api, f"{RBAC}/clusterrolebindings", binding)
    yield "agent"
    for plural in ("clusterrolebindings", "clusterroles"):
        delete(api, f"{RBAC}/{plural}/{space}")


def is_stranger(door: Door) -> bool:
    """Whether the server knows the account no more: it remembers a token for some seconds."""
    try:
        door.get("/api/v1/namespaces")
    except ServerError as error:
        return error.status == 401
    return False


def test_a_token_that_ended_with_its_pod_says_nothing_of_the_daemonset(
    api: ApiServer, space: str, account: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by `kubectl delete pod --force`: another pod comes, and what is enforced stays meanwhile."""
    monkeypatch.setattr(succession, "PATIENCE", 1.0)
    monkeypatch.setattr(succession, "AGAIN", 0.1)
    api.kubectl("apply", "-f", "-", input=daemonset(space))
    containers = [{"name": "agent", "image": "none"}]
    spec = {"serviceAccountName": account, "automountServiceAccountToken": False, "containers": containers}
    pods = f"/api/v1/namespaces/{space}/pods"
    create(api, pods, {"metadata": {"name": "agent"}, "spec": spec})
    bound = ("--bound-object-kind=Pod", "--bound-object-name=agent")
    token = api.kubectl("create", "token", account, "-n", space, *bound).strip()
    source = Kubernetes("node", api.write_kubeconfig(tmp_path / "config", token), Asked(home=space))
    delete(api, f"{pods}/agent", gracePeriodSeconds=0)
    wait_for(lambda: is_stranger(source.door), "the end of the token", 60)
    assert parting(TERM, source) is Parting.STAYS


def test_an_agent_whose_account_is_deleted_first_has_heard_of_its_daemonset(
    node: Kubelet, api: ApiServer, space: str, account: str, tmp_path: Path
) -> None:
    api.kubectl("apply", "-f", "-", input=daemonset(space))
    config = api.write_kubeconfig(tmp_path / "config", api.account_token(space, account))

    async def main() -> None:
        async with following(node.node, config, Asked(home=space)) as source:
            await off(lambda: delete(api, f"/api/v1/namespaces/{space}/serviceaccounts/{account}"))
            await off(lambda: wait_for(lambda: is_stranger(source.door), "the end of the token", 60))
            assert not source.is_leaving
            await off(lambda: api.kubectl("delete", "daemonset", DAEMONSET, "-n", space))
            assert await off(lambda: parting(TERM, source)) is Parting.LEAVES

    trio.run(main)


def test_in_doubt_an_agent_stays(
    api: ApiServer, space: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(succession, "PATIENCE", 0.0)
    monkeypatch.setattr(succession, "AGAIN", 0.0)
    api.kubectl("create", "serviceaccount", "poor", "-n", space)
    poor = api.write_kubeconfig(tmp_path / "config", api.account_token(space, "poor"))
    assert parting(TERM, Kubernetes("node", poor, Asked(home=space))) is Parting.STAYS
    text = json.loads(poor.read_text())
    text["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    (tmp_path / "away").write_text(json.dumps(text))
    assert parting(TERM, Kubernetes("node", tmp_path / "away", Asked(home=space))) is Parting.STAYS
    assert parting(TERM, Kubernetes("node", api.kubeconfig)) is Parting.STAYS
    assert parting(TERM, None) is Parting.STAYS


LEAVING = """
import fcntl, os, signal, sys
path = sys.argv[1]
held = os.open(path, os.O_RDWR | os.O_CREAT)
fcntl.flock(held, fcntl.LOCK_EX)
signal.signal(signal.SIGUSR1, lambda *_: (os.unlink(path), os._exit(0)))
print("held", flush=True)
signal.pause()
"""


def test_who_waited_for_an_agent_that_left_does_not_hold_the_lock_that_left_with_it(node: Kubelet) -> None:
    """Else whoever comes third would have one of its own, and two would work."""
    node.place.run.mkdir(mode=0o700, exist_ok=True)
    words = [sys.executable, "-c", LEAVING, node.place.run / bulletin.NAME]
    before = signal.getsignal(succession.LET_GO)
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as leaving:
        assert leaving.stdout is not None
        assert leaving.stdout.readline() == "held\n"
        try:
            with closing(bulletin.Board(node.place, takes_over=True)):
                assert is_owned(node.place.run / bulletin.NAME)
        finally:
            signal.signal(succession.LET_GO, before)


# ---- How it is --------------------------------------------------------------------------------------------


def test_an_agent_says_how_it_is_and_frees_its_node(
    node: Kubelet, api: ApiServer, space: str, tmp_path: Path
) -> None:
    taint = {"spec": {"taints": [{"key": startup_taint.TAINT, "effect": "NoSchedule"}]}}
    api.kubectl("patch", "node", node.node, "--type=merge", "--patch", json.dumps(taint))
    allow(api, space, "web", "example.com", app="web")
    socket = tmp_path / "health"
    with node.agent("--health", socket, "--startup-taint"):
        wait_for(lambda: is_ready(socket), "the agent")
        assert ask(str(socket), "/livez") == (200, "ok\n")
        wait_for(
            lambda: "skouter_api_connected 1.0" in ask(str(socket), "/metrics")[1], "every watch to be open"
        )
        answered, text = ask(str(socket), "/metrics")
        assert answered == 200
        assert 'skouter_workloads{state="held"}' in text
        assert 'skouter_api_total{what="requests"}' in text
        wait_for(lambda: "taints" not in json.loads(read(api, node))["spec"], "the node without its taint")


def test_the_status_of_one_pod_is_that_of_its_group(node: Kubelet, api: ApiServer, space: str) -> None:
    for name in ("web", "api"):
        allow(api, space, name, f"{name}.example.com", app=name)
        node.run(node.create(name, {"app": name}, space))
    with node.agent():
        wait_for(
            lambda: (
                {node.groups().get(f"pod {space}/{name}", "")[:5] for name in ("web", "api")} == {"pods-"}
            ),
            "both pods held",
        )
        whole = node.status()
        found = status.only(whole, f"{space}/web")
        (workload,) = found["workloads"]
        assert workload["rules"] == ["web.example.com (every port and protocol)"]
        text = "\n".join(status.lines(found))
        assert f"pod {space}/web:" in text
        assert f"{space}/api" not in text
        with pytest.raises(EngineError, match="is not known here"):
            status.only(whole, f"{space}/no-such")


def read(api: ApiServer, node: Kubelet) -> str:
    return api.kubectl("get", "node", node.node, "-o", "json")


def test_metrics_need_a_place_for_their_key() -> None:
    words = [sys.executable, "-m", "gateway", "agent", "--metrics", "127.0.0.1:9472"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "--metrics needs --health" in done.stderr
