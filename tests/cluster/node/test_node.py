"""The chart on a real node: what a platform team does, in the order in which it does it.

Each test goes on from where the one before it ended.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager

from tests.cluster.apiserver import KubectlError
from tests.cluster.node.machine import CHECKOUT, PODS
from tests.cluster.node.prepare import programs
from tests.topology import wait_for

ALLOWED, REFUSED = "example.com", "example.org"
SITE = "site.default.svc.cluster.local"
SYSTEM = "skouter-system"
CHART = CHECKOUT / "deploy" / "helm" / "skouter"
AGENT = "app.kubernetes.io/name=skouter"
AGENTS = ("daemonset", "-n", SYSTEM, "skouter", "-o", "jsonpath={.status.numberReady}")
NAMES = 256  # that are new; on a quick machine they come again
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
metadata: {{name: {name}, namespace: default}}
spec:
  podSelector: {{matchLabels: {{app: {app}}}}}
  rules: [{rule}]
"""
SERVICE = """
apiVersion: v1
kind: Pod
metadata: {name: site, labels: {app: site}}
spec:
  terminationGracePeriodSeconds: 0
  containers:
    - name: box
      image: localhost/box:1
      imagePullPolicy: Never
      command: [sh, -c, "echo hello >/tmp/index.html; exec httpd -f -p 8080 -h /tmp"]
---
apiVersion: v1
kind: Service
metadata: {name: site}
spec:
  selector: {app: site}
  ports: [{port: 80, targetPort: 8080}]
"""


def helm(node, *words):
    command = [programs("helm") / "helm", *words, "--namespace", SYSTEM, "--kubeconfig", node.api.kubeconfig]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def allow(node, name, app, port=80, **peers):
    """An Egress of this name."""
    rule = json.dumps({**peers, "ports": [{"port": port}]})
    node.api.kubectl("apply", "-f", "-", input=EGRESS.format(name=name, app=app, rule=rule))


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
    server = f"apiServer.host=10.0.2.2,apiServer.port={node.api.server.port}"
    helm(node, "install", "skouter", CHART, "--create-namespace", "--set", f"image.pullPolicy=Never,{server}")
    node.wait("the agent", *AGENTS, value="1")


def test_an_object_is_enforced_on_the_pods_that_it_selects_and_on_no_other(node):
    allow(node, "web", "web", domains=[ALLOWED, "*.fresh.test"])
    wait_for(lambda: "not permitted" in fetch(node, "web", REFUSED), "the policy", 600)
    assert fetch(node, "web", ALLOWED) == "198.51.100.10"
    assert fetch(node, "other", REFUSED) == "198.51.100.30"
    assert fetch(node, "host", REFUSED) == "198.51.100.30"


def test_a_pod_on_the_host_s_network_has_a_policy_of_its_own(node):
    allow(node, "host", "host", domains=[ALLOWED])
    wait_for(lambda: "not permitted" in fetch(node, "host", REFUSED), "the policy", 600)
    assert fetch(node, "host", ALLOWED) == "198.51.100.10"


def ready_agents(node):
    """Names of their pods."""
    pods = json.loads(node.api.kubectl("get", "pods", "-n", SYSTEM, "-l", AGENT, "-o", "json"))["items"]
    states = {pod["metadata"]["name"]: pod["status"].get("containerStatuses", ()) for pod in pods}
    return {name for name, containers in states.items() if any(each["ready"] for each in containers)}


@contextmanager
def asking(node, first):
    """Pod `web` asks for fresh names, those of the number `first`, and after each for one that is refused.

    Each of the former is reached, the latter never. By its path: busybox prefers its own wget.
    """
    loop = f"""
        ask() {{ /usr/bin/wget -q --tries=1 -O- -T60 http://$1/ >/dev/null; }}
        n=0; failed=0; opened=0; rm -f /tmp/stop
        until [ -e /tmp/stop ]; do
            ask n{first}-$((n % {NAMES})).fresh.test || failed=$((failed+1))
            ask {REFUSED} && opened=$((opened+1))
            n=$((n+1))
        done
        echo $n $failed $opened
    """
    process = node.start("default", "web", "sh", "-c", loop)
    yield
    node.inside("default", "web", "sh", "-c", "touch /tmp/stop")
    tried, failed, opened = map(int, process.communicate(timeout=300)[0].split())
    print(
        f"{tried} names were asked for, {failed} not reached; {opened} times a name was open", file=sys.stderr
    )
    assert tried > 5
    assert (failed, opened) == (0, 0)


def test_new_names_are_reached_and_refused_ones_are_not_while_the_agents_are_restarted(node):
    with asking(node, 1):
        node.api.kubectl("rollout", "restart", "-n", SYSTEM, "daemonset/skouter")
        node.api.kubectl("rollout", "status", "-n", SYSTEM, "daemonset/skouter", "--timeout=900s")
    assert "not permitted" in fetch(node, "web", REFUSED)


def test_and_while_the_chart_is_upgraded(node):
    with asking(node, 2):
        helm(node, "upgrade", "skouter", CHART, "--reuse-values", "--set", "podLabels.tier=node")
        node.api.kubectl("rollout", "status", "-n", SYSTEM, "daemonset/skouter", "--timeout=900s")
    labels = node.api.kubectl("get", "pods", "-n", SYSTEM, "-l", "tier=node", "-o", "name")
    assert labels.count("pod/") == 1
    assert "not permitted" in fetch(node, "web", REFUSED)


def test_an_agent_s_pod_that_is_deleted_by_force_leaves_its_node_as_it_is(node):
    """Its token counts no more when it is told to end."""
    before = ready_agents(node)
    with asking(node, 3):
        node.api.kubectl("delete", "pod", "-n", SYSTEM, *before, "--grace-period=0", "--force")
        wait_for(lambda: ready_agents(node) - before, "another agent", 600)
    assert "not permitted" in fetch(node, "web", REFUSED)


def test_a_service_is_reached_by_its_name(node):
    node.api.kubectl("apply", "-f", "-", input=SERVICE)
    node.runs("default", "site")
    wait_for(lambda: fetch(node, "other", SITE) == "hello", "the Service", 600)
    assert "not permitted" in fetch(node, "web", SITE)
    allow(node, "web-site", "web", domains=[SITE])
    wait_for(lambda: fetch(node, "web", SITE) == "hello", "the policy", 600)


def test_and_from_the_host_s_network_where_a_rule_names_the_pods_behind_it_too(node):
    """There kube-proxy has put a pod's address into the packet before it is judged."""
    assert "not permitted" in fetch(node, "host", SITE)
    allow(node, "host-pods", "host", port=8080, cidrs=[PODS])
    allow(node, "host-site", "host", domains=[SITE])
    wait_for(lambda: fetch(node, "host", SITE) == "hello", "the policy", 600)


def test_uninstalling_leaves_nothing_behind(node):
    helm(node, "uninstall", "skouter", "--timeout", "15m")
    assert fetch(node, "web", REFUSED) == "198.51.100.30"
    left = node.inside("default", "host", "ls", "/node/bpf", "/node/run")
    assert "kubelet.log" in left, "it is the node's own folder that is seen"
    assert "skouter" not in left
