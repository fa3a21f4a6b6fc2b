"""The chart on a real node: what a platform team does, in the order in which it does it.

Each test goes on from where the one before it ended.
"""

from __future__ import annotations

import subprocess

from tests.cluster.apiserver import KubectlError
from tests.cluster.node.machine import CHECKOUT
from tests.cluster.node.prepare import NAME, programs
from tests.topology import wait_for

ALLOWED, REFUSED = "example.com", "example.org"
SYSTEM = "skouter-system"
POD = """
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {app}}}}}
spec:
  hostNetwork: {host}
  dnsPolicy: ClusterFirstWithHostNet
  terminationGracePeriodSeconds: 0
  containers:
    - {{name: box, image: "docker.io/local/box:1", imagePullPolicy: Never}}
"""
EGRESS = """
apiVersion: egress.skouter/v1alpha1
kind: Egress
metadata: {name: web, namespace: default}
spec:
  podSelector: {matchLabels: {app: web}}
  rules:
    - domains: [example.com, "*.fresh.test"]
      ports: [{port: 80}]
"""


def fetch(node, pod, name):
    """What `wget` says of a name in a pod: the page, or its complaint."""
    try:
        return node.inside("default", pod, "wget", "-q", "-O-", "-T", "60", f"http://{name}/").strip()
    except KubectlError as error:
        return str(error)


def test_pods_run_and_reach_everything_by_name(node):
    for name, app, host in (("web", "web", "false"), ("other", "other", "false"), ("host", "host", "true")):
        node.api.kubectl("apply", "-f", "-", input=POD.format(name=name, app=app, host=host))
    for pod in ("web", "other", "host"):
        node.runs("default", pod)
    wait_for(lambda: fetch(node, "web", ALLOWED) == "198.51.100.10", "the cluster's DNS", 600)
    assert fetch(node, "web", REFUSED) == "198.51.100.30"


def test_the_chart_is_installed_and_every_agent_is_ready(node):
    helm = programs("helm") / "helm"
    repository, tag = NAME.rsplit(":", 1)
    done = subprocess.run(
        [
            *(helm, "install", "skouter", CHECKOUT / "deploy" / "helm" / "skouter"),
            *("--namespace", SYSTEM, "--create-namespace", "--kubeconfig", node.api.kubeconfig),
            *("--set", f"image.repository={repository},image.tag={tag},image.pullPolicy=Never"),
            *("--set", f"apiServer.host=10.0.2.2,apiServer.port={node.api.server.port}"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    node.wait(
        "the agent", "daemonset", "-n", SYSTEM, "skouter", "-o", "jsonpath={.status.numberReady}", value="1"
    )


def test_an_object_is_enforced_on_the_pods_that_it_selects_and_on_no_other(node):
    node.api.kubectl("apply", "-f", "-", input=EGRESS)
    wait_for(lambda: "not permitted" in fetch(node, "web", REFUSED), "the policy", 600)
    assert fetch(node, "web", ALLOWED) == "198.51.100.10"
    assert fetch(node, "other", REFUSED) == "198.51.100.30"
    assert fetch(node, "host", REFUSED) == "198.51.100.30"
