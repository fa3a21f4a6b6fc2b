"""The chart on a real node: what a platform team does, in the order in which it does it.

Each test goes on from where the one before it ended.
"""

from __future__ import annotations

import subprocess

from tests.cluster.apiserver import KubectlError
from tests.cluster.node.machine import CHECKOUT
from tests.cluster.node.prepare import programs
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
    - name: box
      image: localhost/box:1
      imagePullPolicy: Never
      volumeMounts: [{{name: bpf, mountPath: /node/bpf}}, {{name: run, mountPath: /node/run}}]
  volumes:
    - {{name: bpf, hostPath: {{path: /sys/fs/bpf}}}}
    - {{name: run, hostPath: {{path: /run}}}}
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
        return node.inside(
            "default", pod, "wget", "-nv", "--tries=1", "-O-", "-T60", f"http://{name}/"
        ).strip()
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
    done = subprocess.run(
        [
            *(helm, "install", "skouter", CHECKOUT / "deploy" / "helm" / "skouter"),
            *("--namespace", SYSTEM, "--create-namespace", "--kubeconfig", node.api.kubeconfig),
            *("--set", "image.pullPolicy=Never"),
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


def test_a_pod_on_the_host_s_network_has_a_policy_of_its_own(node):
    node.api.kubectl(
        "apply", "-f", "-", input=EGRESS.replace("name: web,", "name: host,").replace("app: web", "app: host")
    )
    wait_for(lambda: "not permitted" in fetch(node, "host", REFUSED), "the policy", 600)
    assert fetch(node, "host", ALLOWED) == "198.51.100.10"


def test_names_that_are_new_are_reached_while_the_agents_are_restarted(node):
    """A loop asks for a fresh name each time; none may fail. (By its path: busybox prefers its own wget.)"""
    loop = """
        n=1; failed=0
        while [ $n -lt 250 ] && ! [ -e /tmp/stop ]; do
            /usr/bin/wget -q --tries=1 -O- -T60 http://n$n.fresh.test/ >/dev/null || failed=$((failed+1))
            n=$((n+1))
        done
        echo $n $failed
    """
    asking = node.start("default", "web", "sh", "-c", loop)
    node.api.kubectl("rollout", "restart", "-n", SYSTEM, "daemonset/skouter")
    node.api.kubectl("rollout", "status", "-n", SYSTEM, "daemonset/skouter", "--timeout=900s")
    node.inside("default", "web", "sh", "-c", "touch /tmp/stop")
    tried, failed = map(int, asking.communicate(timeout=300)[0].split())
    assert tried > 5
    assert failed == 0
    assert "not permitted" in fetch(node, "web", REFUSED)


def test_uninstalling_leaves_nothing_behind(node):
    helm = programs("helm") / "helm"
    words = [
        "uninstall",
        "skouter",
        "--namespace",
        SYSTEM,
        "--kubeconfig",
        node.api.kubeconfig,
        "--timeout",
        "15m",
    ]
    done = subprocess.run([helm, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert fetch(node, "web", REFUSED) == "198.51.100.30"
    left = node.inside("default", "host", "ls", "/node/bpf", "/node/run")
    assert "kubelet.log" in left, "it is the node's own folder that is seen"
    assert "skouter" not in left
