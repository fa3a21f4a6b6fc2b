"""A large node in a large cluster: 2,000 objects with 50,000 names, 250 pods. Nothing grows out of hand."""

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import urllib3

from tests.cluster.apiserver import ApiServer
from tests.cluster.objects import NODE, OURS, delete, egress, pod
from tests.topology import PATIENCE

OBJECTS, NAMES, PODS = 2000, 25, 250

# A process of its own: what it needs is seen from outside, and nothing of the tests is in it.
AGENT = f"""
import json, resource, sys, time
from pathlib import Path
import trio
from gateway.kubernetes.source import Kubernetes

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() >> 20

async def main():
    began, before = time.perf_counter(), resident()
    source = Kubernetes({NODE!r}, Path(sys.argv[1]))
    async with trio.open_nursery() as nursery:
        await nursery.start(source.run)
        whole = time.perf_counter() - began
        began = time.perf_counter()
        cluster = source.cluster
        snapshot = time.perf_counter() - began
        while not source.health.connected:
            await trio.sleep(0.05)
        cpu = time.process_time()
        await trio.sleep(3)
        print(json.dumps(dict(
            whole=whole, snapshot=snapshot, before=before, resident=resident(),
            peak=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
            idle=(time.process_time() - cpu) / 3, requests=source.counts()["requests"],
            objects=len(cluster.objects), pods=len(cluster.pods), problems=len(cluster.problems),
        )), flush=True)
        await trio.to_thread.run_sync(sys.stdin.readline)
        while len(source.cluster.objects) == len(cluster.objects):
            await source.changed()
        print(json.dumps(dict(at=time.time())), flush=True)
        nursery.cancel_scope.cancel()

trio.run(main)
"""


def fill(api: ApiServer, space: str) -> None:
    pool = urllib3.PoolManager(maxsize=4, ca_certs=str(api.ca))
    headers = {"Authorization": f"Bearer {api.token}", "Content-Type": "application/json"}

    def post(path: str, body: object) -> None:
        answer = pool.request("POST", api.url + path, headers=headers, body=json.dumps(body))
        assert answer.status == 201, answer.data

    with ThreadPoolExecutor(4) as workers:
        for number in range(OBJECTS):
            names = [f"n{name}.s{number}.example.com" for name in range(NAMES)]
            body = egress(f"e{number}", *names)
            body["spec"]["podSelector"] = {"matchLabels": {"app": f"a{number % PODS}"}}
            workers.submit(post, f"{OURS}/namespaces/{space}/egresses", body)
        for number in range(PODS):
            body = pod(f"p{number}", NODE, {"app": f"a{number}"})
            workers.submit(post, f"/api/v1/namespaces/{space}/pods", body)


def test_what_a_large_node_costs(server: ApiServer, space: str, tmp_path: Path) -> None:
    fill(server, space)
    words = [sys.executable, "-c", AGENT, str(server.kubeconfig)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as agent:
        assert agent.stdin
        assert agent.stdout
        try:
            seen = json.loads(agent.stdout.readline())
            print(seen)
            agent.stdin.write("\n")
            agent.stdin.flush()
            delete(server, f"{OURS}/namespaces/{space}/egresses/e7")
            assert agent.stdout.readline()
        finally:
            agent.kill()
    assert (seen["objects"], seen["pods"], seen["problems"]) == (OBJECTS, PODS, 0)
    assert seen["requests"] <= 2 * 9 + 3 + 2 * (OBJECTS // 500), "lists, watches, definitions, pages"
    assert seen["resident"] < 250, "MB"
    assert seen["peak"] < 350, "MB"
    assert seen["snapshot"] < PATIENCE
    assert seen["idle"] < 0.2, "of a CPU"
    assert seen["whole"] < 120, "seconds, with others on this machine"
