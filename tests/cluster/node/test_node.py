"""The chart on a real node: what a platform team does, in the order in which it does it.

Each test goes on from where the one before it ended.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from contextlib import contextmanager

import pytest

from tests.cluster.apiserver import KubectlError
from tests.cluster.node.machine import CHECKOUT
from tests.cluster.node.prepare import programs
from tests.topology import wait_for

ALLOWED, REFUSED = "example.com", "example.org"
ADDRESS, OTHER_ADDRESS = "198.51.100.10", "198.51.100.77"  # of the first; of no name
SITE = "site.default.svc.cluster.local"
SYSTEM = "skouter-system"
CHART = CHECKOUT / "deploy" / "helm" / "skouter"
AGENT = "app.kubernetes.io/name=skouter"
AGENTS = ("daemonset", "-n", SYSTEM, "skouter", "-o", "jsonpath={.status.numberReady}")
KINDS = ("syn", "syn6", "header", "vlan")  # of frames.c
METRICS = ("python", "-I", "-m", "gateway.ask", "/run/agent/health", "/metrics")
OVER_TCP = ("env", "RES_OPTIONS=use-vc")  # resolv.conf(5)
NAMES = 256  # that are new; on a quick machine they come again
STEERING = "lookup 21323"  # routing/steering.py
TAUGHT = ("skouter_dns_tcp_total", 'what="taught"')
FORGED = {"not_allowed": 2, "spoofed": 2, "vlan_tag": 1}  # what becomes of KINDS and the honest datagram
REFUSALS = (
    rf".*{re.escape(OTHER_ADDRESS)}\)? TCP 80.*: no rule allows this address",
    r".*2001:db8::1 TCP 80.*: a forged source",
    rf".*{re.escape(ADDRESS)}\)? TCP 80.*: a forged source",
    r".*: a frame of a VLAN",
)
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


def fetch(node, pod, name, *before):
    """What `wget` says of a name in a pod: the page, or its complaint. `before` is put before the command.

    By its path: busybox prefers its own.
    """
    words = (*before, "/usr/bin/wget", "-nv", "--tries=1", "-O-", "-T60", f"http://{name}/")
    try:
        return node.inside("default", pod, *words).strip()
    except KubectlError as error:
        return str(error)


def plugin(node, pod):
    """What `kubectl skouter status` says of a pod."""
    words = ["status", pod, "--namespace", "default", "--kubeconfig", node.api.kubeconfig]
    done = subprocess.run(
        [CHECKOUT / "deploy" / "kubectl-skouter", *words],
        env={**os.environ, "PATH": f"{programs('node')}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def ready_agents(node):
    """Names of their pods."""
    pods = json.loads(node.api.kubectl("get", "pods", "-n", SYSTEM, "-l", AGENT, "-o", "json"))["items"]
    states = {pod["metadata"]["name"]: pod["status"].get("containerStatuses", ()) for pod in pods}
    return {name for name, containers in states.items() if any(each["ready"] for each in containers)}


def counted(node, metric, label):
    """By the agent, for all policies together."""
    (agent,) = ready_agents(node)
    lines = node.inside(SYSTEM, agent, *METRICS).splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.startswith(metric) and label in line)


def refused(node):
    """Packets so far, by the reasons of FORGED."""
    return {reason: counted(node, "skouter_packets_total", f'reason="{reason}"') for reason in FORGED}


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
    allow(node, "host", "host", domains=[ALLOWED, "n102-1.fresh.test"])
    wait_for(lambda: "not permitted" in fetch(node, "host", REFUSED), "the policy", 600)
    assert fetch(node, "host", ALLOWED) == "198.51.100.10"


def test_the_link_that_the_cni_made_for_a_pod_is_judged(node):
    wait_for(lambda: "  link: attached\n" in plugin(node, "web"), "the link", 600)
    assert "  Uncontained: it has NET_RAW" not in plugin(node, "web")
    assert "  Uncontained: it has NET_RAW on the host's network" in plugin(node, "host")
    assert "  link: " not in plugin(node, "other")
    assert STEERING in node.inside("default", "host", "ip", "rule")


@pytest.mark.parametrize(("pod", "number"), [("web", 101), ("host", 102)])
def test_a_name_is_learned_over_tcp(node, pod, number):
    """By the link of a pod that has one, by connect() from the host's network."""
    name, address = f"n{number}-1.fresh.test", f"198.18.{number}.1"
    before = counted(node, *TAUGHT)
    assert "not permitted" in fetch(node, pod, address)
    assert fetch(node, pod, name, *OVER_TCP) == address
    assert fetch(node, pod, address) == address
    assert counted(node, *TAUGHT) > before
    assert "not permitted" in fetch(node, pod, REFUSED, *OVER_TCP)


def forge(node, pod):
    """What frames.c says that it sent."""
    gateway = node.inside("default", "host", "cat", "/sys/class/net/cni0/address").strip()
    return node.inside("default", pod, "frames", "send", pod, gateway, OTHER_ADDRESS, ADDRESS)


@contextmanager
def watching(node, found):
    """Adds to `found` who sent which of the packets that come out of the pods' links, until an honest end."""
    process = node.start("default", "host", "frames", "watch", "cni0")
    assert process.stdout.readline() == "watching\n"
    yield
    said = process.communicate(timeout=300)[0]
    found.update(tuple(line.split()) for line in said.splitlines())


def test_ATTACK_forged_packets_leave_a_pod_that_is_not_selected_and_no_other(node):
    assert fetch(node, "web", ALLOWED) == ADDRESS, "the address is granted"
    before, arrived = refused(node), set()
    with watching(node, arrived):
        assert forge(node, "web").count(": sent") == 3, "AF_PACKET is not told"
        forge(node, "other")
    assert arrived == {("other", kind) for kind in (*KINDS, "end")}
    after = refused(node)
    assert all(after[reason] >= before[reason] + number for reason, number in FORGED.items()), (before, after)
    told = node.api.kubectl("logs", "-n", SYSTEM, "-l", AGENT, "--tail=-1")
    for line in REFUSALS:
        assert re.search(f"refused pod default/web: {line}", told), told


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


def test_and_from_the_host_s_network_where_kube_proxy_translates_first(node):
    """Whom a process there asked for counts; the pods behind it are not reached without it."""
    address = node.api.kubectl("get", "pod", "site", "-o", "jsonpath={.status.podIP}")
    assert "not permitted" in fetch(node, "host", SITE)
    allow(node, "host-site", "host", domains=[SITE])
    wait_for(lambda: fetch(node, "host", SITE) == "hello", "the policy", 600)
    assert "not permitted" in fetch(node, "host", f"{address}:8080")


def test_uninstalling_leaves_nothing_behind(node):
    helm(node, "uninstall", "skouter", "--timeout", "15m")
    assert fetch(node, "web", REFUSED) == "198.51.100.30"
    left = node.inside("default", "host", "ls", "/node/bpf", "/node/run")
    assert "kubelet.log" in left, "it is the node's own folder that is seen"
    assert "skouter" not in left
    assert STEERING not in node.inside("default", "host", "ip", "rule")
    arrived = set()
    with watching(node, arrived):
        forge(node, "web")
    assert arrived == {("web", kind) for kind in (*KINDS, "end")}
