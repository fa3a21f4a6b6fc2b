"""deploy/kubectl-skouter with the real kubectl and API server.

There is no kubelet to exec through: a shim in the place of kubectl hands everything on but `exec`, which it
does right here.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.apiserver import ApiServer
from tests.cluster.rendered import DEPLOY

AGENTS, SHOP = "plugin-agents", "plugin-shop"
NODE = "plugin-node"
STATUS = "instance skouter"
SHIM = """#!/bin/sh
for word; do
  [ "$word" = exec ] || continue
  printf '%s\\n' "$*" >>{log}
  while [ "$1" != -- ]; do shift; done
  shift 2  # -- skouter
  [ "$1" = status ] && exec echo "{status}"
  exec {python} -m gateway "$@"
done
exec {kubectl} "$@"
"""
OBJECTS = f"""
apiVersion: egress.skouter/v1alpha1
kind: Egress
metadata: {{name: web, namespace: {SHOP}}}
spec:
  podSelector: {{matchLabels: {{app: web}}}}
  rules: [{{domains: [example.com], ports: [{{port: 443}}]}}]
---
apiVersion: egress.skouter/v1alpha1
kind: ClusterEgress
metadata: {{name: plugin-team}}
spec:
  podSelector: {{}}
  namespaceSelector: {{matchLabels: {{team: shop}}}}
  rules: [{{domains: [example.org], ports: [{{port: 443}}]}}]
"""


class Plugin:
    """The plugin on a PATH of its own; `execs` are the exec commands that it gave."""

    def __init__(self, api: ApiServer, folder: Path) -> None:
        self.api, self.log = api, folder / "log"
        self.log.touch()
        (folder / "kubectl").write_text(
            SHIM.format(
                log=self.log,
                status=STATUS,
                python=shlex.quote(sys.executable),
                kubectl=api.programs / "kubectl",
            )
        )
        (folder / "kubectl").chmod(0o755)
        (folder / "kubectl-skouter").symlink_to(DEPLOY / "kubectl-skouter")
        self.environ = {
            **os.environ,
            "PATH": f"{folder}:{os.environ['PATH']}",
            "PYTHONPATH": str(DEPLOY.parent),
            "HOME": str(folder),
        }

    def __call__(self, *words: str) -> tuple[int, str]:
        """`kubectl skouter WORDS`: status, and all that was printed."""
        told = (f"--kubeconfig={self.api.kubeconfig}", f"--agents={AGENTS}")
        done = subprocess.run(
            ["kubectl", "skouter", *words, *told],
            env=self.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=60,
        )
        return done.returncode, done.stdout

    def execs(self) -> list[str]:
        return self.log.read_text().splitlines()


def pod(namespace: str, name: str, labels: dict[str, str], node: str = NODE) -> str:
    spec = {"nodeName": node, "containers": [{"name": "agent", "image": "none"}]}
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return json.dumps({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


@pytest.fixture(scope="module")
def world(api: ApiServer) -> Iterator[ApiServer]:
    """Two nodes, an agent on the first; pods of a shop."""
    api.kubectl("apply", "--server-side", "--force-conflicts", "-k", DEPLOY / "crds")
    api.kubectl("wait", "--for=condition=Established", "crd", "--all")
    for name in (AGENTS, SHOP):
        api.kubectl("create", "namespace", name)
    api.kubectl("label", "namespace", SHOP, "team=shop")
    pods = (
        pod(AGENTS, "agent-1", {"app.kubernetes.io/name": "skouter"}),
        pod(SHOP, "web-1", {"app": "web"}),
        pod(SHOP, "batch", {}),
        pod(SHOP, "lost", {"app": "web"}, "another-node"),
    )
    api.kubectl("apply", "-f", "-", input="\n---\n".join(pods))
    running = ("--subresource=status", "--type=merge", "--patch", '{"status": {"phase": "Running"}}')
    api.kubectl("patch", "pod", "agent-1", "--namespace", AGENTS, *running)
    api.kubectl("apply", "-f", "-", input=OBJECTS)
    yield api
    api.kubectl("delete", "clusteregress", "plugin-team")
    api.kubectl("delete", "egress", "--namespace", SHOP, "--all")
    for name in (AGENTS, SHOP):
        api.kubectl("delete", "pods", "--namespace", name, "--all", "--grace-period=0", "--force")
        api.kubectl("delete", "namespace", name, "--wait=false")


@pytest.fixture
def plugin(world: ApiServer, tmp_path: Path) -> Plugin:
    return Plugin(world, tmp_path)


def test_the_status_of_a_pod_is_asked_of_the_agent_on_its_node(plugin: Plugin) -> None:
    status, said = plugin("status", "pod/web-1", "-n", SHOP)
    assert (status, said) == (0, f"node {NODE}\n{STATUS}\n")
    (called,) = plugin.execs()
    assert called.endswith(
        f"exec --stdin --namespace {AGENTS} --container agent agent-1 -- skouter status --pod {SHOP}/web-1"
    )


def test_without_a_pod_every_node_is_asked(plugin: Plugin) -> None:
    status, said = plugin("status")
    assert (status, said) == (0, f"node {NODE}\n{STATUS}\n")


def test_a_rule_is_named_by_pod_and_labels_of_the_api(plugin: Plugin) -> None:
    status, said = plugin("explain", "web-1", "example.com:443", "-n", SHOP)
    assert status == 0, said
    assert f"Egress {SHOP}/web allows example.com on TCP 443" in said
    status, said = plugin("explain", "web-1", "example.net:443", "-n", SHOP)
    assert status == 1, said
    assert said.startswith("refused:")


def test_labels_of_the_namespace_count(plugin: Plugin) -> None:
    status, said = plugin("explain", "batch", "example.org:443", "-n", SHOP)
    assert status == 0, said
    assert "ClusterEgress plugin-team allows example.org" in said


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ((), "status or explain?"),
        (("delete",), "no command delete"),
        (("explain", "web-1"), "explain needs POD and NAME"),
        (("status", "web-1", "now"), "one word too many: now"),
        (("status", "--loud"), "no option --loud"),
        (("status", "no-such-pod", "-n", SHOP), 'pods "no-such-pod" not found'),
        (("status", "lost", "-n", SHOP), f"no agent of {AGENTS} runs on node another-node"),
    ],
)
def test_what_cannot_be_done_is_told(plugin: Plugin, words: tuple[str, ...], complaint: str) -> None:
    status, said = plugin(*words)
    assert status == 2
    assert complaint in said
    assert not plugin.execs()
