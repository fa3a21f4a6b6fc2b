"""`make bench-node`: an agent on a node of 250 pods, with a real API server: how long, how much, how often.

What a change takes is seen from inside a pod: a process sends a datagram each millisecond, and tells when it
is first let through, or refused. The clock runs from the request that `kubectl apply` makes.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.bench.__main__ import say, write
from tests.cluster.apiserver import ApiServer
from tests.cluster.kubelet import Kubelet, Pod
from tests.cluster.objects import OURS, create, define, egress, patch
from tests.cluster.test_large_node import agent_of, percent, rss, small
from tests.network.workload import python
from tests.tools import build
from tests.topology import Lab, wait_for

PODS, CHANGES, STARTS, IDLE = 250, 100, 20, 600  # the last in seconds
CALM = 5  # percent of a processor
SINK = "192.0.2.80"
OUT = Path("build") / "bench-node.md"
SENDING = f"""
    s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    before = None
    while True:
        try:
            s.sendto(b"x", ({SINK!r}, 9))
            now = True
        except OSError:
            now = False
        if now != before:
            before = now
            tell([now, time.monotonic()])
        time.sleep(0.001)
"""


class Sender:
    """A process of a pod that tells when it is let through and when it is refused."""

    def __init__(self, pod: Pod) -> None:
        self.process = pod.start(*python(SENDING), stdout=subprocess.PIPE)

    def turned(self, wanted: bool) -> float:
        """When it was so, by the monotonic clock."""
        assert self.process.stdout
        while True:
            now, at = json.loads(self.process.stdout.readline())
            if now == wanted:
                return float(at)


@contextmanager
def node() -> Iterator[Kubelet]:
    folder = Path(tempfile.mkdtemp(prefix="skouter-bench-"))
    with Lab() as lab, ApiServer(build.folder("envtest")) as api:
        for kind in ("Egress", "ClusterEgress", "ExternalWorkload"):
            define(api, kind)
        made = Kubelet(lab, api, folder)
        try:
            yield made
        finally:
            made.close()


def change(made: Kubelet, allowed: bool) -> float:
    """When the request was sent."""
    began = time.monotonic()
    rules = [{"ips": [SINK]}] if allowed else []
    patch(made.api, f"{OURS}/namespaces/default/egresses/sender", {"spec": {"rules": rules}})
    return began


def changes(made: Kubelet, sender: Sender) -> list[float]:
    """Seconds from each request to what it meant."""
    took, allowed = [], False
    change(made, allowed)
    sender.turned(allowed)
    for _ in range(CHANGES):
        allowed = not allowed
        began = change(made, allowed)
        took.append(sender.turned(allowed) - began)
    return took


def starts(made: Kubelet) -> list[float]:
    """Seconds from a pod's cgroup, whose object is there, until what its first process sends passes."""
    change(made, True)
    took = []
    for number in range(STARTS):
        data = made.create(f"start-{number}", {"app": "sender"})
        began = time.monotonic()
        pod = made.run(data, pause=False)
        took.append(Sender(pod).turned(True) - began)
        pod.stop()
        made.delete(data)
    return took


def requests(made: Kubelet) -> int:
    """That the agent has sent so far."""
    words = ["curl", "-s", "--unix-socket", str(made.folder / "health"), "http://agent/metrics"]
    text = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    line = next(line for line in text.splitlines() if line.startswith('skouter_api_total{what="requests"}'))
    return int(float(line.split()[-1]))


def quantiles(seconds: list[float]) -> str:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return f"{1000 * cuts[49]:.0f} / {1000 * cuts[98]:.0f} ms"


def main(idle: float) -> None:
    rows: list[tuple[str, str, str, str]] = []

    def row(what: str, figure: str, note: str = "", aim: str = "reported") -> None:
        say(f"{what}: {figure}")
        rows.append((what, figure, note, aim))

    with node() as made:
        create(
            made.api,
            f"{OURS}/namespaces/default/egresses",
            egress("sender", spec={"podSelector": {"matchLabels": {"app": "sender"}}}),
        )
        pod = made.run(made.create("sender", {"app": "sender"}))
        with made.agent("--health", made.folder / "health", seconds=300) as launcher:
            pid = agent_of(launcher)
            wait_for(lambda: percent(pid, 2) < CALM, "a calm agent", 120)
            row("RSS of an agent, one pod", f"{rss(pid) >> 20} MiB")
            sender = Sender(pod)
            row(
                "a change, from its request to its enforcement, p50 / p99",
                quantiles(changes(made, sender)),
                f"{CHANGES} changes",
            )
            row(
                "a pod, from its cgroup to its first packet, p50 / p99",
                quantiles(starts(made)),
                f"{STARTS} pods",
                "at most 50 ms behind its network",
            )
            pods = [
                small(made, made.create(f"p{n}", {"app": f"a{n % 10}"})["metadata"]["uid"])
                for n in range(PODS)
            ]
            wait_for(lambda: percent(pid, 2) < CALM, "a calm agent", 300)
            row(f"the same change among {PODS} pods, p50 / p99", quantiles(changes(made, Sender(pod))))
            before, began = requests(made), time.monotonic()
            row(f"processor, idle, {PODS} pods", f"{percent(pid, idle):.2f} %", f"over {idle:.0f} s")
            per_hour = (requests(made) - before) * 3600 / (time.monotonic() - began)
            row("requests to the API server, idle", f"{per_hour:.0f} an hour", f"over {idle:.0f} s")
            row(f"RSS of an agent, {len(pods)} pods", f"{rss(pid) >> 20} MiB")
    write(rows, OUT, "Bench of a node's agent")


if __name__ == "__main__":
    main(float(sys.argv[1]) if sys.argv[1:] else IDLE)
