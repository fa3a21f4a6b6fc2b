"""Agent, kernel and API server are real, kubelet is small: what holds for the pods of a node."""

from __future__ import annotations

import errno
import json
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.apiserver import ApiServer
from tests.cluster.kubelet import DRIVERS, NETWORK, Kubelet
from tests.cluster.objects import OURS, create, define, delete, egress, is_served, patch
from tests.network.conftest import ZONE
from tests.network.workload import python
from tests.topology import PATIENCE, Lab

ALLOWED, REFUSED = "example.com", "example.org"
PAGE = "tell(outcome(lambda: connect('{}')))"
SOON = 0.5  # seconds: ten times what a pod is to wait for its classification; others use this machine too
KINDS = ("Egress", "ClusterEgress", "ExternalWorkload")


@pytest.fixture(scope="module")
def lab(lab_tools: None) -> Iterator[Lab]:
    with Lab() as built:
        built.world.ip(f"route add {NETWORK} via 192.0.2.1")
        built.dns.add((name, address, 60) for name, addresses in ZONE.items() for address in addresses)
        yield built


@pytest.fixture
def defined(api: ApiServer) -> ApiServer:
    for kind in KINDS:
        if not is_served(api, kind):
            define(api, kind)
    return api


@pytest.fixture
def node(lab: Lab, defined: ApiServer, tmp_path: Path) -> Iterator[Kubelet]:
    made = Kubelet(lab, defined, tmp_path)
    yield made
    made.close()


@pytest.fixture
def space(defined: ApiServer) -> Iterator[str]:
    """A namespace of the test's own. No controller empties it: what is in it is deleted first."""
    name = f"shop-{time.time_ns():x}"
    create(defined, "/api/v1/namespaces", {"metadata": {"name": name, "labels": {"team": "shop"}}})
    yield name
    delete(defined, f"{OURS}/namespaces/{name}/egresses")
    delete(defined, f"/api/v1/namespaces/{name}/pods", gracePeriodSeconds=0)


def until(call: Callable[[], Any], wanted: Any, seconds: float = 10) -> float:
    """Seconds that it took."""
    began = time.monotonic()
    while (found := call()) != wanted:
        assert time.monotonic() < began + seconds * PATIENCE, f"still {found}, not {wanted}"
        time.sleep(0.002)
    return time.monotonic() - began


def allow(api: ApiServer, space: str, name: str, *domains: str, **labels: str) -> None:
    rules = [{"domains": [*domains]}] if domains else []
    spec = {"podSelector": {"matchLabels": labels}, "rules": rules}
    create(api, f"{OURS}/namespaces/{space}/egresses", egress(name, spec=spec))


def relabel(api: ApiServer, data: Any, **labels: str) -> None:
    meta = data["metadata"]
    patch(
        api, f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}", {"metadata": {"labels": labels}}
    )


def system(node: Kubelet) -> Path:
    """A unit of the node's own."""
    folder = node.root / "system.slice" / "containerd.service"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_selected_pod_reaches_what_its_policy_allows(
    lab: Lab, defined: ApiServer, space: str, tmp_path: Path, driver: str
) -> None:
    node = Kubelet(lab, defined, tmp_path, driver)
    try:
        allow(defined, space, "web", ALLOWED, app="web")
        pods = {
            qos: node.run(node.create(qos, {"app": "web"}, space), qos)
            for qos in ("guaranteed", "burstable", "besteffort")
        }
        other = node.run(node.create("other", {"app": "other"}, space))
        with node.agent():
            for qos, pod in pods.items():
                until(lambda qos=qos: node.groups()[f"pod {space}/{qos}"], "pods-1")
                assert pod.do(PAGE.format(ALLOWED)) == "connected", node.said()
                assert pod.do(PAGE.format(REFUSED)) == "EPERM"
            assert other.do(PAGE.format(REFUSED)) == "connected"
            assert node.groups()[f"pod {space}/other"] == "not selected"
            assert f"refused pod {space}/burstable: {REFUSED}" in node.said()
    finally:
        node.close()


# ---- Classification ---------------------------------------------------------------------------------------


def place_of(node: Kubelet, cgroup: Path) -> int | None:
    return node.rows().get(cgroup.stat().st_ino)


@pytest.mark.quiet
def test_a_pod_is_classified_soon_after_the_later_of_its_cgroup_and_its_object(
    node: Kubelet, space: str, record_property: Callable[[str, object], None]
) -> None:
    allow(node.api, space, "web", ALLOWED, app="web")
    took: dict[str, list[float]] = {"object first": [], "cgroup first": [], "not selected": []}
    with node.agent():
        for number in range(5):
            pod = node.run(node.create(f"a{number}", {"app": "web"}, space))
            took["object first"].append(until(lambda pod=pod: bool(place_of(node, pod.cgroup)), True))
            data = node.create(f"b{number}", {"app": "web"}, space, bound=False)
            pod = node.run(data)
            assert place_of(node, pod.cgroup) is None
            node.bind(data)
            took["cgroup first"].append(until(lambda pod=pod: bool(place_of(node, pod.cgroup)), True))
            pod = node.run(node.create(f"c{number}", {"app": "none"}, space), pause=False)
            took["not selected"].append(until(lambda pod=pod: bool(place_of(node, pod.cgroup)), True))
    for what, seconds in took.items():
        record_property(what, [round(1000 * each, 1) for each in seconds])
        print(what, [round(1000 * each, 1) for each in seconds], "ms")
        assert sorted(seconds)[len(seconds) // 2] < SOON * PATIENCE, (what, seconds)


EAGER = """
    import select
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sent, first = [], None
    print("begun", flush=True)
    while not select.select([sys.stdin], [], [], 0)[0]:
        try:
            sock.sendto(b"x", (ZONE, 7))
            sent.append(time.time())
        except OSError as error:
            first = first or error.errno
        time.sleep(0.0005)
    tell([sent[:1], first])
"""


@pytest.mark.parametrize("unclassified", ["closed", "open"])
def test_attack_a_pod_races_its_classification(node: Kubelet, space: str, unclassified: str) -> None:
    """It sends from its first instant, to an address that it may reach later: nothing leaves before."""
    address = ZONE[ALLOWED][0]
    node.config.write_text(f"cluster: {{unclassified: {unclassified}}}\n")
    rules = [{"ips": [address]}]
    spec = {"podSelector": {}, "rules": rules}
    create(node.api, f"{OURS}/namespaces/{space}/egresses", egress("all", spec=spec))
    with node.agent():
        data = node.create("eager", {}, space, bound=False)
        pod = node.run(data, pause=False)
        process = pod.start(
            *python(EAGER.replace("ZONE", repr(address))), stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.3)
        bound = time.time()
        node.bind(data)
        until(lambda: node.groups().get(f"pod {space}/eager"), "pods-1")
        time.sleep(0.1)
        out, _ = process.communicate("end\n", timeout=60)
    (first,), refused = json.loads(out)
    assert (first > bound, refused) == ((True, errno.EPERM) if unclassified == "closed" else (False, None))


# ---- What is told -----------------------------------------------------------------------------------------


def test_a_refusal_is_an_event_of_the_pod_and_an_object_says_that_it_is_in_force(
    node: Kubelet, space: str
) -> None:
    allow(node.api, space, "web", ALLOWED, app="web")
    data = node.create("one", {"app": "web"}, space)
    pod = node.run(data)

    def notes() -> list[str]:
        found = node.api.request("GET", f"/apis/events.k8s.io/v1/namespaces/{space}/events")[1]["items"]
        return [e["note"] for e in found if e["regarding"]["uid"] == data["metadata"]["uid"]]

    def accepted() -> list[tuple[str, str]]:
        item = node.api.request("GET", f"{OURS}/namespaces/{space}/egresses/web")[1]
        return [(c["type"], c["status"]) for c in item.get("status", {}).get("conditions", ())]

    with node.agent():
        until(lambda: pod.do(PAGE.format(REFUSED)), "EPERM")
        told = f"refused {REFUSED} ({ZONE[REFUSED][0]}) TCP 80 by python: no rule allows this address"
        until(lambda: told in notes(), True, 30)
        until(accepted, [("Accepted", "True")], 60)


# ---- Changes ----------------------------------------------------------------------------------------------


def test_a_pods_policy_follows_its_labels(node: Kubelet, space: str) -> None:
    allow(node.api, space, "web", ALLOWED, app="web")
    allow(node.api, space, "other", REFUSED, app="other")
    data = node.create("one", {"app": "web"}, space)
    pod, still = node.run(data), node.run(node.create("still", {"app": "web"}, space))
    with node.agent(), pod.program() as one, still.program() as two:
        assert (one(f"connect('{ALLOWED}')"), one(f"connect('{REFUSED}')")) == ("connected", "EPERM")
        relabel(node.api, data, app="other")
        until(lambda: one(f"connect('{REFUSED}')"), "connected")
        assert one(f"connect('{ALLOWED}')") == "EPERM"
        assert (two(f"connect('{ALLOWED}')"), two(f"connect('{REFUSED}')")) == ("connected", "EPERM")
        relabel(node.api, data, app="none")
        until(lambda: one(f"connect('{ALLOWED}')"), "connected")
        assert node.groups()[f"pod {space}/one"] == "not selected"


def test_a_pods_policy_follows_its_namespaces_labels(node: Kubelet, space: str) -> None:
    name = f"team-{space}"
    spec = {
        "namespaceSelector": {"matchLabels": {"team": space}},
        "podSelector": {},
        "rules": [{"domains": [ALLOWED]}],
    }
    body = egress(name, spec=spec) | {"kind": "ClusterEgress"}
    create(node.api, f"{OURS}/clusteregresses", body)
    try:
        with node.agent(), node.run(node.create("one", {}, space)).program() as one:
            until(lambda: one(f"connect('{REFUSED}')"), "connected")
            patch(node.api, f"/api/v1/namespaces/{space}", {"metadata": {"labels": {"team": space}}})
            until(lambda: one(f"connect('{REFUSED}')"), "EPERM")
            assert one(f"connect('{ALLOWED}')") == "connected"
    finally:
        delete(node.api, f"{OURS}/clusteregresses/{name}")


def test_what_runs_on_after_its_object_was_deleted_stays_under_its_last_policy(
    node: Kubelet, space: str
) -> None:
    allow(node.api, space, "web", ALLOWED, app="web")
    data = node.create("one", {"app": "web"}, space)
    pod = node.run(data)
    with node.agent(), pod.program() as old:
        assert old(f"connect('{ALLOWED}')") == "connected"
        node.delete(data)
        again = node.run(node.create("one", {"app": "none"}, space))  # the same name, another pod
        with again.program() as new:
            until(lambda: new(f"connect('{REFUSED}')"), "connected")
            assert (old(f"connect('{ALLOWED}')"), old(f"connect('{REFUSED}')")) == ("connected", "EPERM")
            number = pod.cgroup.stat().st_ino
            patch(
                node.api,
                f"{OURS}/namespaces/{space}/egresses/web",
                {"spec": {"rules": [{"domains": [REFUSED]}]}},
            )
            third = node.run(node.create("two", {"app": "web"}, space))
            until(lambda: third.do(PAGE.format(REFUSED)), "connected")
            assert old(f"connect('{REFUSED}')") == "EPERM"
    with node.agent():
        assert node.rows()[number] not in (0, None)
        pod.stop()
        until(lambda: len({g for g in node.groups().values() if g.startswith("pods-")}), 1)


def test_a_host_network_pod_has_a_policy_of_its_own(node: Kubelet, space: str) -> None:
    allow(node.api, space, "web", ALLOWED, app="web")
    pod = node.run(node.create("one", {"app": "web"}, space, hostNetwork=True))
    raw = [{"name": "main", "image": "none"}]
    node.run(node.create("two", {"app": "web"}, space, hostNetwork=True, containers=raw))
    with node.agent():
        until(lambda: node.groups().get(f"pod {space}/one", "")[:5], "pods-")
        assert pod.do(PAGE.format(ZONE[REFUSED][0])) == "EPERM"
        beside = node.lab.node.run(*python(PAGE.format(ZONE[REFUSED][0])))
        assert json.loads(beside.stdout) == "connected"
        loose = {row["pod"]: row["uncontained"] for row in node.status()["agent"]["pods"]}
        assert loose[f"pod {space}/one"] == ""
        assert "it has NET_RAW on the host's network" in loose[f"pod {space}/two"]
        assert f"Uncontained: pod {space}/two; skouter status says why" in node.said()


def test_a_static_pod_is_open_until_the_api_tells_of_it(node: Kubelet, space: str) -> None:
    allow(node.api, space, "all")
    uid = secrets.token_hex(16)
    with node.agent():
        pod = node.run(uid)
        until(lambda: pod.do(PAGE.format(ZONE[REFUSED][0])), "connected")
        mirror = {"kubernetes.io/config.hash": uid, "kubernetes.io/config.mirror": uid}
        node.create("static", {}, space, annotations=mirror)
        until(lambda: pod.do(PAGE.format(ZONE[REFUSED][0])), "EPERM")


def test_a_policy_of_the_host_keeps_what_the_node_lives_on(node: Kubelet) -> None:
    (node.folder / "bootstrap").mkdir()
    (node.folder / "bootstrap" / "registries.yaml").write_text(
        "apiVersion: egress.skouter/v1alpha1\nkind: ClusterEgress\nmetadata: {name: registries}\n"
        f"spec: {{rules: [{{ips: [{ZONE['example.net'][0]}]}}]}}\n"
    )
    unit = system(node)
    page = f'echo $$ > {unit}/cgroup.procs && exec "$@"'

    def reach(name: str) -> Any:
        code = python(PAGE.format(ZONE[name][0]))
        return json.loads(node.lab.node.run("sh", "-c", page, "-", *code).stdout)

    spec = {
        "nodeSelector": {"matchLabels": {"node": node.node}},
        "rules": [{"ips": [ZONE[ALLOWED][0]]}],
    }
    path = f"{OURS}/clusteregresses"
    with node.agent():
        assert reach(REFUSED) == "connected"
        create(node.api, path, egress(node.node, spec=spec) | {"kind": "ClusterEgress"})
        try:
            until(lambda: reach(REFUSED), "EPERM")
            assert (reach(ALLOWED), reach("example.net")) == ("connected", "connected")
            assert "the host keeps the API server (127.0.0.1 port" in node.said()
            assert "the host keeps what ClusterEgress registries allows" in node.said()
        finally:
            delete(node.api, f"{path}/{node.node}")
        until(lambda: reach(REFUSED), "connected")


# ---- The agent itself -------------------------------------------------------------------------------------


def test_an_agent_that_is_killed_leaves_all_in_force_and_its_successor_takes_over(
    node: Kubelet, space: str
) -> None:
    allow(node.api, space, "web", ALLOWED, app="web")
    data = node.create("one", {"app": "web"}, space)
    pod = node.run(data)
    with node.agent() as agent, pod.program() as one:
        one(f"keep('flow', lambda: opened('{ALLOWED}'))")
        before = node.rows()
        agent.kill()
        agent.wait()
        assert (one(f"connect('{ALLOWED}')"), one(f"connect('{REFUSED}')")) == ("connected", "EPERM")
        newborn = node.run(node.create("two", {"app": "web"}, space))
        assert newborn.do(PAGE.format(ZONE[REFUSED][0])) == "EPERM"
        with node.agent():
            after = node.rows()
            assert {key: after[key] for key in before} == before
            assert one("page('flow')") is True
            until(lambda: newborn.do(PAGE.format(ALLOWED)), "connected")
            assert set(node.groups().values()) == {"pods-1"}


def test_without_the_api_server_everything_stays_and_a_static_pod_comes_back(
    lab: Lab, programs: Path, tmp_path: Path
) -> None:
    with ApiServer(programs) as api:
        for kind in KINDS:
            define(api, kind)
        node = Kubelet(lab, api, tmp_path)
        try:
            allow(api, "default", "web", ALLOWED, app="web")
            pod = node.run(node.create("one", {"app": "web"}))
            with node.agent():
                assert pod.do(PAGE.format(ALLOWED)) == "connected"
            api.kill()
            with node.agent(ready=False):
                until(lambda: node.said().count("stays as it is"), 2, 30)
                assert pod.do(PAGE.format(ALLOWED)) == "connected"
                assert pod.do(PAGE.format(REFUSED)) == "EPERM"
                static = node.run(secrets.token_hex(16))
                until(lambda: static.do(PAGE.format(ZONE[REFUSED][0])), "connected")
                api.start()
                until(lambda: "ready:" in node.said().rpartition("stays as it is")[2], True, 60)
                assert node.groups()["pod default/one"] == "pods-1"
        finally:
            if api.server.process is None:
                api.start()
            node.close()
