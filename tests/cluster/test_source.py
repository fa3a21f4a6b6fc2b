"""The cluster as an agent follows it: a real API server, and everything that may happen on the way to it."""

import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import trio

from gateway.kubernetes.api_rights import RIGHTS
from gateway.kubernetes.crds import NAMES
from gateway.kubernetes.follow import Pace
from gateway.kubernetes.source import Asked, Kubernetes
from gateway.policies.records import Egress, ExternalWorkload
from tests.cluster.apiserver import ApiServer
from tests.cluster.gate import Answer, Gate
from tests.cluster.objects import (
    OURS,
    PATIENCE,
    RBAC,
    create,
    define,
    delete,
    egress,
    following,
    must,
    off,
    patch,
    pod,
    rules,
    undefine,
    until,
)

NODE = "node-a"
FAST = Pace(watch=(20, 30), silence=15, least=0.1, most=1, absent=1, spread=0.2)
ASKED = Asked(pace=FAST, spread=0.5)
SYSTEM = "/api/v1/namespaces/kube-system"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/kube-system/endpointslices"


def egresses(space: str, name: str = "") -> str:
    return f"{OURS}/namespaces/{space}/egresses" + (f"/{name}" if name else "")


def pods(space: str, name: str = "") -> str:
    return f"/api/v1/namespaces/{space}/pods" + (f"/{name}" if name else "")


def domains(source: Kubernetes, space: str) -> dict[str, list[str]]:
    """The names that each Egress of a namespace allows."""
    ours = (o for o in source.cluster.objects if isinstance(o, Egress) and o.namespace == space)
    return {each.name: [str(d) for rule in each.rules for d in rule.domains] for each in ours}


def named(source: Kubernetes, name: str) -> Any:
    return next((each for each in source.cluster.pods.values() if each.name == name), None)


# ---- What is followed -------------------------------------------------------------------------------------


def test_all_that_a_node_asks_for_is_listed_and_then_followed(server: ApiServer, space: str) -> None:
    create(server, egresses(space), egress("web", "example.com"))
    create(server, pods(space), pod("here", NODE, {"app": "web"}))
    create(server, pods(space), pod("elsewhere", "node-b"))

    async def main() -> None:
        async with following(NODE, server.kubeconfig, ASKED) as source:
            assert domains(source, space) == {"web": ["example.com"]}
            assert named(source, "here").labels == (("app", "web"),)
            assert named(source, "elsewhere") is None
            assert source.cluster.node.name == NODE
            assert source.server == ("127.0.0.1", int(server.url.rpartition(":")[2]))
            assert {*source.cluster.ranges} == {ip_network("10.1.0.0/24"), ip_network("10.96.0.0/16")}
            await until(lambda: source.health.connected, "the watches")
            before = source.cluster
            await off(lambda: create(server, egresses(space), egress("api", "example.org")))
            await until(lambda: "api" in domains(source, space), "the new Egress")
            assert before is not source.cluster
            assert "api" not in [o.name for o in before.objects], "a snapshot does not change"
            await off(lambda: patch(server, pods(space, "here"), {"metadata": {"labels": {"app": "db"}}}))
            await until(lambda: named(source, "here").labels == (("app", "db"),), "the new label")
            path = f"/api/v1/namespaces/{space}"
            await off(lambda: patch(server, path, {"metadata": {"labels": {"team": "a"}}}))
            await until(lambda: ("team", "a") in source.cluster.namespaces[space], "the namespace's label")
            await off(lambda: patch(server, f"/api/v1/nodes/{NODE}", {"metadata": {"labels": {"z": "1"}}}))
            await until(lambda: source.cluster.node.labels == (("z", "1"),), "the node's label")
            await off(lambda: delete(server, pods(space, "here"), gracePeriodSeconds=0))
            await until(lambda: named(source, "here") is None, "the end of the pod")
            await off(lambda: delete(server, egresses(space, "web")))
            await until(lambda: "web" not in domains(source, space), "the end of the Egress")

    trio.run(main)


def test_cluster_scoped_kinds_and_a_pod_of_the_same_name(server: ApiServer, space: str) -> None:
    head = {"apiVersion": OURS.removeprefix("/apis/"), "metadata": {"name": space}}

    async def main() -> None:
        async with following(NODE, server.kubeconfig, ASKED) as source:
            for kind, spec in (
                ("ClusterEgress", {"nodeSelector": {}}),
                ("ExternalWorkload", {"addresses": ["192.0.2.7"]}),
            ):
                body = {**head, "kind": kind, "spec": spec}
                await off(lambda kind=kind, body=body: create(server, f"{OURS}/{NAMES[kind].plural}", body))
            wanted = {type(o).__name__ for o in source.cluster.objects if o.name == space}
            await until(lambda: len([o for o in source.cluster.objects if o.name == space]) == 2, str(wanted))
            machine = next(o for o in source.cluster.objects if isinstance(o, ExternalWorkload))
            assert machine.addresses == (ip_network("192.0.2.7/32"),)
            await off(lambda: create(server, pods(space), pod("twice", NODE)))
            await until(lambda: named(source, "twice"), "the pod")
            first = named(source, "twice").uid
            await off(lambda: delete(server, pods(space, "twice"), gracePeriodSeconds=0))
            await off(lambda: create(server, pods(space), pod("twice", NODE, {"new": "yes"})))
            await until(lambda: (named(source, "twice") or {}) and named(source, "twice").uid != first, "it")
            assert named(source, "twice").labels == (("new", "yes"),)

    trio.run(main)


def test_a_change_that_the_records_do_not_show_is_none(server: ApiServer, space: str) -> None:
    create(server, pods(space), pod("busy", NODE))

    async def main() -> None:
        async with following(NODE, server.kubeconfig, ASKED) as source:
            before = source.cluster
            status = {"status": {"phase": "Running", "message": "a heartbeat"}}
            await off(lambda: patch(server, pods(space, "busy") + "/status", status))
            await off(lambda: patch(server, pods(space, "busy"), {"metadata": {"labels": {"seen": "1"}}}))
            with trio.fail_after(PATIENCE):
                await source.changed()
            assert named(source, "busy").labels == (("seen", "1"),)
            with trio.move_on_after(0.5) as quiet:
                await source.changed()
            assert quiet.cancelled_caught
            assert source.cluster is not before

    trio.run(main)


def test_the_servers_of_the_cluster_dns(server: ApiServer, space: str) -> None:
    ports = [
        {"name": "dns", "port": 53, "protocol": "UDP"},
        {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
        {"name": "metrics", "port": 9153, "protocol": "TCP"},
    ]
    label = {"k8s-app": "kube-dns"}
    service = {
        "metadata": {"name": "kube-dns", "labels": label},
        "spec": {"clusterIP": "10.96.0.10", "ports": ports},
    }
    slices = {
        "metadata": {"name": "kube-dns-1", "labels": {**label, "kubernetes.io/service-name": "kube-dns"}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.1.0.5"], "conditions": {"ready": False}}],
        "ports": [{**each, "port": each["port"] + 5300 - 53} for each in ports],
    }
    stranger = {
        **slices,
        "metadata": {"name": "other-1", "labels": {**label, "kubernetes.io/service-name": "x"}},
    }
    stranger["endpoints"] = [{"addresses": ["10.1.0.66"]}]

    def servers(source: Kubernetes) -> list[tuple[str, int]]:
        return [(str(address), port) for address, port in source.cluster.resolvers]

    async def main() -> None:
        async with following(NODE, server.kubeconfig, ASKED) as source:
            assert servers(source) == []
            await off(lambda: create(server, SLICES, stranger))
            await off(lambda: create(server, f"{SYSTEM}/services", service))
            await off(lambda: create(server, SLICES, slices))
            both = [("10.1.0.5", 5300), ("10.96.0.10", 53)]
            await until(lambda: servers(source) == both, "the Service and its endpoint")
            cache = pod("node-local-dns-x", NODE, {"k8s-app": "node-local-dns"}, hostNetwork=True)
            await off(lambda: create(server, f"{SYSTEM}/pods", cache))
            await until(lambda: (ip_address("169.254.20.10"), 53) in source.cluster.resolvers, "the cache")
            await off(lambda: delete(server, f"{SYSTEM}/pods/node-local-dns-x", gracePeriodSeconds=0))
            await off(lambda: delete(server, f"{SYSTEM}/services/kube-dns"))
            await until(lambda: servers(source) == [], "nothing without the Service")

    try:
        trio.run(main)
    finally:
        for name in ("kube-dns-1", "other-1"):
            delete(server, f"{SLICES}/{name}")


# ---- Nothing by halves ------------------------------------------------------------------------------------


def test_there_is_no_snapshot_until_every_list_was_read(gate: Gate, through: Path, space: str) -> None:
    gate.answer = lambda _method, path, _query: (
        (500, {}, {"message": "not now"}) if path.endswith("/pods") else None
    )

    async def main() -> None:
        source = Kubernetes(NODE, through, ASKED)
        async with trio.open_nursery() as nursery:
            started = trio.Event()

            async def run() -> None:
                await nursery.start(source.run)
                started.set()

            nursery.start_soon(run)
            await until(lambda: "not now" in source.health.error, "the reason")
            assert source.health.error == "pods can't be listed: not now"
            await until(lambda: gate.count("egresses", watch="1"), "all others")
            assert not started.is_set()
            with pytest.raises(Exception, match="not listed yet"):
                _ = source.cluster
            gate.answer = lambda *_: None
            with trio.fail_after(PATIENCE):
                await started.wait()
            await until(lambda: source.health.connected, "health")
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_node_that_is_not_there_is_told(server: ApiServer) -> None:
    async def main() -> None:
        source = Kubernetes("nowhere", server.kubeconfig, ASKED)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.run)
            await until(lambda: "NODE_NAME" in source.health.error, "the mend")
            assert source.health.error == "there is no node 'nowhere': set NODE_NAME to spec.nodeName"
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_the_server_dies_in_the_middle_of_the_lists(
    server: ApiServer, gate: Gate, through: Path, space: str
) -> None:
    for number in range(20):
        create(server, egresses(space), egress(f"e{number}", "example.com"))
    gate.stall()

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            source = Kubernetes(NODE, through, ASKED)
            nursery.start_soon(source.run)
            await until(lambda: gate.count("egresses") and gate.count("pods"), "the questions")
            await off(server.kill)
            gate.cut()
            gate.flow()
            await until(lambda: "can't be listed" in source.health.error, "told")
            assert not source.health.connected
            await off(server.start)
            await until(lambda: source.health.connected, "whole")
            assert len(domains(source, space)) == 20
            nursery.cancel_scope.cancel()

    trio.run(main)


# ---- Watches that end -------------------------------------------------------------------------------------


def test_a_cut_watch_goes_on_where_it_was(server: ApiServer, gate: Gate, through: Path, space: str) -> None:
    async def main() -> None:
        async with following(NODE, through, ASKED) as source:
            await until(lambda: gate.count("egresses", watch="1"), "the watch")
            gate.close()
            await off(lambda: create(server, egresses(space), egress("meanwhile", "example.com")))
            await until(lambda: not source.health.connected, "told")
            assert "can't be watched" in source.health.error
            gate.open()
            await until(lambda: "meanwhile" in domains(source, space), "what happened meanwhile")
            await until(lambda: source.health.connected, "health")
            assert gate.count("egresses") - gate.count("egresses", watch="1") == 1, "listed once"

    trio.run(main)


def test_a_server_that_is_away_for_long_leaves_the_snapshot(
    server: ApiServer, gate: Gate, through: Path, space: str
) -> None:
    create(server, egresses(space), egress("web", "example.com"))

    async def main() -> None:
        async with following(NODE, through, ASKED) as source:
            await until(lambda: source.health.connected, "health")
            gate.close()
            await until(lambda: not source.health.connected, "told")
            since, asked = source.health.since, len(gate.requests)
            await trio.sleep(4)
            assert source.health.since == since
            assert domains(source, space) == {"web": ["example.com"]}
            lists = 9
            assert len(gate.requests) - asked < lists * 4 / (0.75 * FAST.most) + 3 * lists

    trio.run(main)


def test_a_compacted_history_is_listed_anew(server: ApiServer, gate: Gate, through: Path, space: str) -> None:
    create(server, egresses(space), egress("old", "example.com"))

    async def main() -> None:
        async with following(NODE, through, ASKED) as source:
            await until(lambda: source.health.connected, "the watches")
            gate.close()
            await off(lambda: delete(server, egresses(space, "old")))
            await off(lambda: create(server, egresses(space), egress("new", "example.com")))
            await off(server.compact)
            gate.open()
            await until(lambda: domains(source, space) == {"new": ["example.com"]}, "the new list")
            again = [q for _, path, q in gate.requests if path.endswith("/egresses") and "watch" not in q]
            assert len(again) == 2
            assert "resourceVersion" not in again[1], "a list from a cache may be older than what was seen"
            await off(lambda: create(server, egresses(space), egress("newer", "example.com")))
            await until(lambda: "newer" in domains(source, space), "the watch after it")

    trio.run(main)


def test_a_half_open_watch_is_noticed(server: ApiServer, gate: Gate, through: Path, space: str) -> None:
    """A quiet one is not: it is asked for again, where it was, and nobody is troubled."""
    asked = replace(ASKED, pace=replace(FAST, silence=2.0))

    async def main() -> None:
        async with following(NODE, through, asked) as source:
            await until(lambda: source.health.connected, "the watches")
            since = source.health.since
            await until(lambda: gate.count("egresses", watch="1") >= 3, "watches that were too quiet")
            assert gate.count("egresses") - gate.count("egresses", watch="1") == 1
            assert (source.health.connected, source.health.since) == (True, since)
            gate.stall()
            began = trio.current_time()
            await off(lambda: create(server, egresses(space), egress("unseen", "example.com")))
            await until(lambda: not source.health.connected, "told")
            assert trio.current_time() - began < 15
            assert "can't be watched: the API server can't be reached: Read timed out" in source.health.error
            gate.cut()
            gate.flow()
            await until(lambda: "unseen" in domains(source, space), "what happened meanwhile")

    trio.run(main)


def test_pages_whose_rest_was_forgotten_are_read_at_once(
    server: ApiServer, gate: Gate, through: Path, space: str
) -> None:
    """A `continue` that is too old: the list begins again, in one piece."""
    for number in range(4):
        create(server, egresses(space), egress(f"e{number}", "example.com"))

    def forget(_method: str, path: str, query: dict[str, str]) -> Answer | None:
        if not path.endswith("/egresses") or "watch" in query or "limit" not in query:
            return None
        if "continue" in query:
            return 410, {}, {"message": "The provided continue parameter is too old"}
        first = egress("e0", "example.com")
        first["metadata"] |= {"uid": "u", "resourceVersion": "1", "namespace": space}
        return 200, {}, {"metadata": {"resourceVersion": "1", "continue": "more"}, "items": [first]}

    gate.answer = forget

    async def main() -> None:
        async with following(NODE, through, ASKED) as source:
            assert sorted(domains(source, space)) == ["e0", "e1", "e2", "e3"]
            assert gate.count("egresses", **{"continue": "more"}) == 1

    trio.run(main)


# ---- What the server refuses ------------------------------------------------------------------------------


def test_asked_to_wait_it_waits(gate: Gate, through: Path, space: str) -> None:
    times: list[float] = []

    def busy(_method: str, path: str, query: dict[str, str]) -> Answer | None:
        if not path.endswith("/egresses") or "watch" in query:
            return None
        times.append(time.monotonic())
        return (429, {"Retry-After": "2"}, {"message": "too many"}) if len(times) < 3 else None

    gate.answer = busy

    async def main() -> None:
        async with following(NODE, through, ASKED) as source:
            assert source.health.error == (
                "egresses can't be listed: too many; it asks to be left alone for a while"
            )
            first, second, third = times[:3]
            assert second - first >= 2
            assert third - second >= 2
            await until(lambda: source.health.connected, "health")

    trio.run(main)


@pytest.fixture
def account(
    server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], None]]:
    """A service account's folder as a pod has it; called, it is another account of the same name."""
    path = "/api/v1/namespaces/default/serviceaccounts"
    for key, value in zip(("HOST", "PORT"), server.url.removeprefix("https://").split(":"), strict=True):
        monkeypatch.setenv(f"KUBERNETES_SERVICE_{key}", value)
    (tmp_path / "ca.crt").write_bytes(server.ca.read_bytes())

    def renew() -> None:
        delete(server, f"{path}/skouter")
        create(server, path, {"metadata": {"name": "skouter"}})
        (tmp_path / "token.new").write_text(server.account_token("default", "skouter"))

    renew()
    (tmp_path / "token.new").rename(tmp_path / "token")
    subject = {"kind": "ServiceAccount", "name": "skouter", "namespace": "default"}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "skouter-test"}
    binding = {"metadata": {"name": "skouter-test"}, "roleRef": reference, "subjects": [subject]}
    create(server, f"{RBAC}/clusterrolebindings", binding)
    create(server, f"{RBAC}/clusterroles", {"metadata": {"name": "skouter-test"}, "rules": rules(RIGHTS)})
    yield renew
    delete(server, f"{RBAC}/clusterrolebindings/skouter-test")
    delete(server, f"{RBAC}/clusterroles/skouter-test")


def test_a_right_that_is_missing_is_told_by_name(
    server: ApiServer, account: Callable[[], None], tmp_path: Path
) -> None:
    name = f"{RBAC}/clusterroles/skouter-test"
    patch(server, name, {"rules": rules([right for right in RIGHTS if right.resource != "pods"])})

    async def main() -> None:
        source = Kubernetes(NODE, None, replace(ASKED, account=tmp_path))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.run)
            await until(lambda: "pods" in source.health.error, "told")
            user = "system:serviceaccount:default:skouter"
            assert source.health.error == (
                f'pods can\'t be listed: pods is forbidden: User "{user}" cannot list resource "pods" '
                'in API group "" at the cluster scope; add that to the ClusterRole skouter'
            )
            await off(lambda: patch(server, name, {"rules": rules(RIGHTS)}))
            await until(lambda: source.health.connected, "health")
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_a_token_that_was_renewed_counts_at_once(
    server: ApiServer, account: Callable[[], None], tmp_path: Path, space: str
) -> None:
    asked = replace(ASKED, account=tmp_path, pace=replace(FAST, watch=(2, 3)))

    async def main() -> None:
        async with following(NODE, None, asked) as source:
            await until(lambda: source.health.connected, "health")
            await off(account)
            await until(lambda: "check the token" in source.health.error, "told")
            assert "Unauthorized" in source.health.error
            (tmp_path / "token.new").rename(tmp_path / "token")
            await until(
                lambda: source.health.connected, "health", 20
            )  # the client itself rereads each minute
            await off(lambda: create(server, egresses(space), egress("after", "example.com")))
            await until(lambda: "after" in domains(source, space), "what happens after it")

    trio.run(main)


def test_a_certificate_that_was_renewed_counts_at_once(
    server: ApiServer, account: Callable[[], None], tmp_path: Path
) -> None:
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", tmp_path / "key", "-out", tmp_path / "ca.crt", "-subj", "/CN=another", "-days", "1"]
    subprocess.run([*words, *files], check=True, capture_output=True)

    async def main() -> None:
        source = Kubernetes(NODE, None, replace(ASKED, account=tmp_path))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.run)
            await until(lambda: "certificate" in source.health.error, "told")
            (tmp_path / "ca.crt").write_bytes(server.ca.read_bytes())
            await until(lambda: source.health.connected, "health")
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_without_an_account_the_mend_is_told(tmp_path: Path) -> None:
    async def main() -> None:
        source = Kubernetes(NODE, None, replace(ASKED, account=tmp_path))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.run)
            await until(lambda: "kubeconfig" in source.health.error, "the mend")
            nursery.cancel_scope.cancel()

    trio.run(main)


# ---- Definitions that come and go -------------------------------------------------------------------------


def test_definitions_may_come_after_the_agent(server: ApiServer, gate: Gate, through: Path) -> None:
    undefine(server, "ExternalWorkload")

    async def main() -> None:
        source = Kubernetes(NODE, through, ASKED)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.run)
            await until(lambda: "apply deploy/crds" in source.health.error, "the mend")
            assert source.health.error.startswith("externalworkloads can't be listed")
            await off(lambda: define(server, "ExternalWorkload"))
            await until(lambda: source.health.connected, "health")
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_deleting_the_definition_opens_nothing(
    server: ApiServer, gate: Gate, through: Path, space: str
) -> None:
    """The server deletes every object first, and tells so: that is not what it looks like."""
    for number in range(5):
        create(server, egresses(space), egress(f"e{number}", "example.com"))
    seen: list[int] = []
    brief = replace(ASKED, pace=replace(FAST, watch=(4, 5)))

    async def main() -> None:
        async with following(NODE, through, brief) as source, trio.open_nursery() as nursery:

            async def look() -> None:
                while True:
                    await source.changed()
                    seen.append(len(domains(source, space)))

            nursery.start_soon(look)
            await off(lambda: undefine(server, "Egress"))
            await until(lambda: "its objects are kept" in source.health.error, "told")
            assert "egresses.egress.skouter was deleted, its objects are kept; apply deploy/crds" in (
                source.health.error
            )
            asked = gate.count("egresses")
            await until(lambda: gate.count("egresses") > asked + 2, "it asks again")
            assert len(domains(source, space)) == 5
            assert set(seen) <= {5}
            await off(lambda: define(server, "Egress"))
            await until(lambda: "apply them again" in source.health.error, "kept")
            assert source.health.errors == (
                "5 egresses of a definition that was deleted stay for some minutes; apply them again",
            )
            assert len(domains(source, space)) == 5
            await off(lambda: create(server, egresses(space), egress("e1", "example.org")))
            await until(lambda: domains(source, space)["e1"] == ["example.org"], "the new one")
            assert len(domains(source, space)) == 5
            await until(lambda: domains(source, space) == {"e1": ["example.org"]}, "what is there now")
            await until(lambda: source.health.connected, "health")
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_an_object_that_nobody_can_read_keeps_what_it_closed(server: ApiServer, space: str) -> None:
    create(server, egresses(space), egress("web", "example.com"))

    async def main() -> None:
        async with following(NODE, server.kubeconfig, ASKED) as source:
            wrong = {"podSelector": {"matchLabels": {"app": 7}}, "rules": [{"domains": ["example.org"]}]}
            await off(lambda: patch(server, egresses(space, "web"), {"spec": wrong}))
            await until(lambda: source.cluster.problems, "the problem")
            (problem,) = source.cluster.problems
            assert (problem.file, problem.object, problem.field) == (
                "cluster",
                f"Egress {space}/web",
                "spec.podSelector.matchLabels.app",
            )
            assert domains(source, space) == {"web": ["example.com"]}, "as it was"
            path = egresses(space, "web")
            await until(
                lambda: "conditions" in must(server.request("GET", path)).get("status", {}), "it is told"
            )
            (condition,) = must(server.request("GET", path))["status"]["conditions"]
            assert (condition["status"], condition["reason"]) == ("False", "Invalid")
            assert "the last version that could be read stays in force" in condition["message"]
            right = {"podSelector": {"matchLabels": {"app": "7"}}}
            await off(lambda: patch(server, path, {"spec": right}))
            await until(lambda: domains(source, space) == {"web": ["example.org"]}, "the new rules")
            assert source.cluster.problems == ()

    trio.run(main)


def test_an_api_that_older_servers_lack_may_be_missing(gate: Gate, through: Path) -> None:
    gate.answer = lambda _method, path, _query: (
        (404, {}, {"message": "Not Found"}) if path.endswith("/servicecidrs") else None
    )

    async def main() -> None:
        async with following(NODE, through, ASKED) as source:
            assert source.cluster.ranges == (ip_network("10.1.0.0/24"),)
            await until(lambda: source.health.connected, "health, for all that")
            gate.answer = lambda *_: None
            both = (ip_network("10.1.0.0/24"), ip_network("10.96.0.0/16"))
            await until(lambda: source.cluster.ranges == both, "after an upgrade")

    trio.run(main)


# ---- How much it asks -------------------------------------------------------------------------------------


def test_a_quiet_cluster_is_asked_once(gate: Gate, through: Path, space: str) -> None:
    """One list and one watch each; a watch that the server ends is opened again, and nothing else."""

    async def main() -> None:
        calm = Asked(spread=0)
        async with following(NODE, through, calm) as source:
            await until(lambda: source.health.connected, "the watches")
            lists, definitions = 9, 3
            assert len(gate.requests) == 2 * lists + definitions
            assert source.counts()["requests"] == 2 * lists + definitions
            await trio.sleep(2)
            assert len(gate.requests) == 2 * lists + definitions

    trio.run(main)
    gate.requests.clear()

    async def short() -> None:
        async with following(NODE, through, replace(ASKED, pace=replace(FAST, watch=(2, 2)))) as source:
            await until(lambda: source.health.connected, "the watches")
            await until(lambda: gate.count("pods", watch="1") >= 3, "watches that ended")
            assert gate.count("pods") - gate.count("pods", watch="1") == 1
            assert source.health.connected

    trio.run(short)
