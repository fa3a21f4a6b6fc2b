"""A large node: 250 pods, each with a policy of its own, 2,000 Egress objects with 50,000 names together.

What it takes is printed and kept as properties of the test (`pytest -s`, `--junitxml`); what is asserted is
generous, so that what grows with the square of anything fails.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster.apiserver import ApiServer
from tests.cluster.kubelet import Kubelet, Pod
from tests.cluster.objects import OURS, create, define, egress, is_served, patch
from tests.topology import Lab, wait_for

SPACES, APPS, OBJECTS, NAMES = 50, 5, 8, 25  # namespaces, pods in each, objects for each pod, names in each
PODS = SPACES * APPS
READY, SOON = 300, 10  # seconds, on two cores that others use too
RSS = 400 << 20  # bytes
IDLE = 5  # percent of a processor


@pytest.fixture(scope="module")
def node(lab_tools: None, programs: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kubelet]:
    with Lab() as lab, ApiServer(programs) as api:
        for kind in ("Egress", "ClusterEgress", "ExternalWorkload"):
            if not is_served(api, kind):
                define(api, kind)
        made = Kubelet(lab, api, tmp_path_factory.mktemp("node"))
        yield made
        made.close()


def small(node: Kubelet, uid: str) -> Pod:
    """A pod of one process in an empty network: what it could reach is not asked here."""
    cgroup = node.cgroup(uid)
    cgroup.mkdir()
    pod = node.pods[uid] = Pod(node, uid, cgroup, None)
    move = f"echo $$ > {pod.container()}/cgroup.procs && exec unshare --net sleep infinity"
    words = ["setpriv", "--pdeathsig", "KILL", "sh", "-c", move]
    pod.processes.append(subprocess.Popen(words, text=True))
    return pod


def fill(node: Kubelet, space: int) -> list[str]:
    """Objects and pods of a namespace; the UIDs of these."""
    name = f"space-{space}"
    create(node.api, "/api/v1/namespaces", {"metadata": {"name": name}})
    for app in range(APPS):
        for number in range(OBJECTS):
            domains = [f"n{index}.o{number}.a{app}.s{space}.example" for index in range(NAMES)]
            spec = {"podSelector": {"matchLabels": {"app": f"a{app}"}}, "rules": [{"domains": domains}]}
            body = egress(f"a{app}-{number}", spec=spec)
            create(node.api, f"{OURS}/namespaces/{name}/egresses", body)
    return [node.create(f"pod-{app}", {"app": f"a{app}"}, name)["metadata"]["uid"] for app in range(APPS)]


def rss(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmRSS"))


def seconds_of_cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def percent(pid: int, seconds: float = 10) -> float:
    """Of a processor, over so many seconds."""
    before = seconds_of_cpu(pid)
    time.sleep(seconds)
    return 100 * (seconds_of_cpu(pid) - before) / seconds


def agent_of(launcher: subprocess.Popen[str]) -> int:
    """nsenter, setpriv and env replace themselves: the process is the agent."""
    assert "agent" in Path(f"/proc/{launcher.pid}/cmdline").read_text()
    return launcher.pid


def test_a_large_node(node: Kubelet, record_property: Callable[[str, object], None]) -> None:
    def told(what: str, value: object) -> None:
        record_property(what, value)
        print(f"{what}: {value}", flush=True)

    with ThreadPoolExecutor(4) as threads:
        made = list(threads.map(lambda space: fill(node, space), range(SPACES)))
    pods = [
        small(node, uid) for uids in made for uid in uids
    ]  # here: they end with the thread that starts them

    def held() -> int:
        rows = node.rows()
        return sum(bool(rows.get(pod.cgroup.stat().st_ino)) for pod in pods)

    began = time.monotonic()
    with node.agent(seconds=READY) as launcher:
        pid = agent_of(launcher)
        told("first agent, seconds until ready", round(time.monotonic() - began, 1))
        told("its processor time, seconds", seconds_of_cpu(pid))
        told("its RSS, MiB", rss(pid) >> 20)
        wait_for(lambda: held() == PODS, "all pods under their policies", READY)
        assert len(set(node.groups().values())) == PODS
        before = seconds_of_cpu(pid)
        began = time.monotonic()
        pods.append(small(node, node.create("one-more", {"app": "a0"}, "space-0")["metadata"]["uid"]))
        wait_for(lambda: held() == PODS + 1, "one more pod", SOON)
        told("one more pod, seconds", round(time.monotonic() - began, 3))
        began = time.monotonic()
        path = f"{OURS}/namespaces/space-1/egresses/a1-1"
        patch(node.api, path, {"spec": {"rules": []}})
        name = next(group for pod, group in node.groups().items() if pod == "pod space-1/pod-1")
        wait_for(lambda: len(node.rules(name)) == (OBJECTS - 1) * NAMES, "a changed object", SOON)
        told("a changed object, seconds", round(time.monotonic() - began, 3))
        told("processor time of both, seconds", round(seconds_of_cpu(pid) - before, 2))
        wait_for(lambda: percent(pid) < IDLE, "a calm agent", READY)  # when it told of each object
        told("idle, percent of a processor", round(percent(pid), 1))
        told("its RSS then, MiB", rss(pid) >> 20)
        assert rss(pid) < RSS
    began = time.monotonic()
    with node.agent(seconds=READY) as launcher:
        told("second agent, seconds until ready", round(time.monotonic() - began, 1))
        assert held() == PODS + 1
