"""What the agent and the cleaning Job may do is what they do: the rights of the manifests, and none other.

The real code asks a real API server with tokens of the manifests' own ServiceAccounts.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import yaml

from gateway.kubernetes import cleanup, pod_events, startup_taint
from gateway.kubernetes.api_questions import is_leaving, may_get
from gateway.kubernetes.api_rights import RIGHTS
from gateway.kubernetes.api_server import Door, ServerError
from gateway.kubernetes.cluster import Pod
from gateway.kubernetes.source import Asked, Kubernetes
from tests.cluster.apiserver import ApiServer
from tests.cluster.rendered import DEPLOY, NAMESPACE, Object, kustomized, objects, template
from tests.tools import build

NODE = "rights-node"
PATCH = DEPLOY / "kustomize" / "cleanup" / "patch.yaml"
TAINT = {"key": startup_taint.TAINT, "effect": "NoSchedule"}
OTHER = {"key": "node.kubernetes.io/unreachable", "effect": "NoSchedule"}
OBJECTS = f"""
apiVersion: egress.skouter/v1alpha1
kind: Egress
metadata: {{name: rights, namespace: {NAMESPACE}}}
spec: {{podSelector: {{}}}}
---
apiVersion: egress.skouter/v1alpha1
kind: ClusterEgress
metadata: {{name: rights}}
spec: {{nodeSelector: {{}}}}
---
apiVersion: egress.skouter/v1alpha1
kind: ExternalWorkload
metadata: {{name: rights}}
spec: {{addresses: [192.0.2.1]}}
"""

Right = tuple[str, str, str]  # API group, resource, verb
AGAIN = ("events.k8s.io", "events", "patch")  # an event that happened once more


@pytest.fixture(scope="module")
def installed(api: ApiServer) -> Iterator[dict[tuple[str, str], Object]]:
    """The base with the start-up taint, and the hooks of the chart, all of it for real."""
    kubectl, helm = api.programs / "kubectl", build.folder("helm") / "helm"
    text = "\n---\n".join((kustomized(kubectl, "startup-taint"), hooks(template(helm))))
    api.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", input=text)
    api.kubectl("wait", "--for=condition=Established", "crd", "--all")
    node = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": NODE}}
    api.kubectl("apply", "-f", "-", input=json.dumps(node))
    yield objects(text)
    api.kubectl("delete", "node", NODE)
    api.kubectl("delete", "--ignore-not-found", "clusteregress,externalworkload", "rights")
    api.kubectl("delete", "--ignore-not-found", "--wait=false", "-f", "-", input=without_namespace(text))


def hooks(text: str) -> str:
    """Those objects of the chart that live only while it is uninstalled, but for what runs."""
    named = [
        each for (kind, name), each in objects(text).items() if name == "skouter-cleanup" and kind != "Job"
    ]
    return yaml.safe_dump_all(named)


def without_namespace(text: str) -> str:
    kept = ("Namespace", "CustomResourceDefinition")
    return yaml.safe_dump_all(each for (kind, _), each in objects(text).items() if kind not in kept)


def door(api: ApiServer, folder: Path, account: str) -> Door:
    return Door(kubeconfig(api, folder, account))


def kubeconfig(api: ApiServer, folder: Path, account: str) -> Path:
    token = api.account_token(NAMESPACE, account)
    return api.write_kubeconfig(folder / f"{account}.kubeconfig", token)


# ---- The agent --------------------------------------------------------------------------------------------


class Recorder(set[Right]):
    """Every right that a Door makes use of, by the paths that it asks for (Kubernetes API Concepts)."""

    def __init__(self, patching: pytest.MonkeyPatch) -> None:
        super().__init__()
        ask = Door._ask

        def recorded(door: Door, method: str, path: str, query: Any, *rest: Any, **more: Any) -> Any:
            self.add(right(method, path, "watch" in query))
            return ask(door, method, path, query, *rest, **more)

        patching.setattr(Door, "_ask", recorded)


def right(method: str, path: str, watches: bool) -> Right:
    """/apis/GROUP/VERSION/[namespaces/NAME/]RESOURCE[/NAME[/SUBRESOURCE]]; /api has no GROUP."""
    words = path.strip("/").split("/")
    group, words = ("", words[2:]) if words[0] == "api" else (words[1], words[3:])
    if words[0] == "namespaces" and len(words) > 2:
        words = words[2:]
    resource = "/".join([words[0], *words[2:]])
    read = "watch" if watches else "get" if len(words) > 1 else "list"
    return group, resource, {"GET": read, "POST": "create", "PATCH": "patch"}[method]


def granted(*roles: Object) -> set[Right]:
    return {
        (group, resource, verb)
        for role in roles
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def test_the_agent_may_do_all_that_it_does_and_does_all_that_it_may(
    api: ApiServer,
    installed: dict[tuple[str, str], Object],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pod_events, "AGAIN", 0.0)  # how often an event happened is told at once
    used = Recorder(monkeypatch)
    config = kubeconfig(api, tmp_path, "skouter")
    asked = Door(config)
    assert not is_leaving(asked, NAMESPACE)
    assert may_get(asked, api.token, "/metrics")
    assert not may_get(asked, "nobody's", "/metrics")
    taint(api, OTHER, TAINT)
    assert startup_taint.remove(asked, NODE)
    assert taints(api) == [OTHER]
    api.kubectl("apply", "-f", "-", input=OBJECTS)
    trio.run(follow_and_tell, api, Kubernetes(NODE, config, Asked(spread=0.1, home=NAMESPACE)), used)
    roles = (
        installed["ClusterRole", "skouter"],
        installed["Role", "skouter"],
        installed["Role", "skouter-dns"],
    )
    assert used == granted(*roles)


def test_the_roles_are_what_the_agent_says_that_it_asks() -> None:
    """The base, to the namespace and the name; the start-up taint is a right of its own."""
    found = objects((DEPLOY / "kustomize" / "base" / "skouter.yaml").read_text())
    told = {
        (right.group, right.resource, verb, names, right.namespace)
        for right in RIGHTS
        for verb in right.verbs
        for names in right.names or ("*",)
    }
    given = {
        (*each, name, found[key]["metadata"].get("namespace", "*"))
        for key in (("ClusterRole", "skouter"), ("Role", "skouter"), ("Role", "skouter-dns"))
        for rule in found[key]["rules"]
        for each in granted({"rules": [rule]})
        for name in rule.get("resourceNames", ("*",))
    }
    assert given == told


async def follow_and_tell(api: ApiServer, source: Kubernetes, used: set[Right]) -> None:
    """An agent's day: what it lists, hears, writes, and how it finds out that an object was deleted."""
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(source.run)
            assert source.cluster.node.name == NODE
            while len(ours(source)) < 3:
                await source.changed()
            for each in ours(source):
                source.accept(each)
            refused = Pod("uid-1", NAMESPACE, "web-1")
            while AGAIN not in used or not await trio.to_thread.run_sync(is_told, api):
                source.tell(refused, "EgressDenied", "refused example.net TCP 443")
                await trio.sleep(0.2)
            await trio.to_thread.run_sync(api.kubectl, "delete", "egress", "rights", "-n", NAMESPACE)
            while len(ours(source)) > 2:
                await source.changed()
            assert source.health.connected
            assert not source.health.error
            nursery.cancel_scope.cancel()


def ours(source: Kubernetes) -> list[Any]:
    return [each for each in source.cluster.objects if "rights" in str(each)]


def is_told(api: ApiServer) -> bool:
    """Conditions on all objects."""
    found = api.kubectl("get", "egress,clusteregress,externalworkload", "-n", NAMESPACE, "-o", "json")
    mine = [each for each in json.loads(found)["items"] if each["metadata"]["name"] == "rights"]
    return len(mine) == 3 and all("status" in each for each in mine)


def taint(api: ApiServer, *taints: Object) -> None:
    patch = json.dumps({"spec": {"taints": list(taints)}})
    api.kubectl("patch", "node", NODE, "--type=merge", "--patch", patch)


def taints(api: ApiServer) -> list[Object]:
    found = json.loads(api.kubectl("get", "node", NODE, "-o", "json"))["spec"].get("taints", [])
    return [{key: value for key, value in each.items() if key != "timeAdded"} for each in found]


def test_a_node_without_the_taint_is_left_alone(
    api: ApiServer, installed: dict[tuple[str, str], Object], tmp_path: Path
) -> None:
    taint(api, OTHER)
    assert not startup_taint.remove(door(api, tmp_path, "skouter"), NODE)
    assert taints(api) == [OTHER]


# ---- The cleaning Job -------------------------------------------------------------------------------------


class Controller:
    """In the place of the DaemonSet's: whoever cleans sleeps, and meanwhile it says how far it is."""

    def __init__(self, api: ApiServer, *statuses: Callable[[int], Object]) -> None:
        self.api, self.statuses = api, list(statuses)

    def sleep(self, _seconds: float) -> None:
        if not self.statuses:
            time.sleep(0.01)
            return
        found = json.loads(self.api.kubectl("get", "daemonset", "skouter", "-n", NAMESPACE, "-o", "json"))
        status = self.statuses.pop(0)(found["metadata"]["generation"])
        words = ("--subresource=status", "--type=merge", "--patch", json.dumps({"status": status}))
        self.api.kubectl("patch", "daemonset", "skouter", "-n", NAMESPACE, *words)


def progress(observed: int, updated: int, ready: int) -> Object:
    return {
        "currentNumberScheduled": 3,
        "desiredNumberScheduled": 3,
        "numberMisscheduled": 0,
        "numberReady": ready,
        "updatedNumberScheduled": updated,
        "observedGeneration": observed,
    }


def patch() -> dict[str, Any]:
    found = yaml.safe_load(PATCH.read_text())
    assert isinstance(found, dict)
    return found


def test_cleaning_ends_when_every_node_has_said_so(
    api: ApiServer, installed: dict[tuple[str, str], Object], tmp_path: Path
) -> None:
    """Ready agents of the old kind don't count, nor does a status of before the change."""
    controller = Controller(
        api,
        lambda generation: progress(generation - 1, 3, 3),
        lambda generation: progress(generation, 0, 3),
        lambda generation: progress(generation, 3, 2),
        lambda generation: progress(generation, 3, 3),
    )
    asked = door(api, tmp_path, "skouter-cleanup")
    assert cleanup.clean(asked, NAMESPACE, patch(), 60, controller.sleep) == []
    assert not controller.statuses
    found = json.loads(api.kubectl("get", "daemonset", "skouter", "-n", NAMESPACE, "-o", "json"))
    (container,) = found["spec"]["template"]["spec"]["containers"]
    assert "skouter uninstall" in container["command"][-1]
    assert "args" not in container
    assert "livenessProbe" not in container
    assert container["securityContext"] == agent_context(installed)
    assert found["spec"]["updateStrategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": "100%"}


def agent_context(installed: dict[tuple[str, str], Object]) -> Object:
    spec = installed["DaemonSet", "skouter"]["spec"]["template"]["spec"]
    return copy.deepcopy(dict(spec["containers"][0]["securityContext"]))


def test_nodes_that_are_not_clean_in_time_are_named(
    api: ApiServer, installed: dict[tuple[str, str], Object], tmp_path: Path
) -> None:
    made = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "skouter-dead",
            "namespace": NAMESPACE,
            "labels": {"app.kubernetes.io/name": "skouter"},
        },
        "spec": {"nodeName": "dead-node", "containers": [{"name": "agent", "image": "none"}]},
    }
    api.kubectl("apply", "-f", "-", input=json.dumps(made))
    controller = Controller(api, lambda generation: progress(generation, 3, 2))
    controller.sleep(0)
    try:
        asked = door(api, tmp_path, "skouter-cleanup")
        assert cleanup.clean(asked, NAMESPACE, patch(), 1, controller.sleep) == ["dead-node"]
    finally:
        api.kubectl("delete", "pod", "skouter-dead", "-n", NAMESPACE, "--grace-period=0", "--force")


def test_the_cleaner_may_do_nothing_else(
    api: ApiServer, installed: dict[tuple[str, str], Object], tmp_path: Path
) -> None:
    asked = door(api, tmp_path, "skouter-cleanup")
    for path in ("/api/v1/nodes", f"/api/v1/namespaces/{NAMESPACE}/secrets", "/api/v1/pods"):
        with pytest.raises(ServerError) as refused:
            asked.get(path)
        assert refused.value.status == 403
