"""What agents write at a real API server: each condition once, however many they are, and Events of pods."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from gateway.kubernetes import api_writer, pod_events
from gateway.kubernetes.source import Asked, Kubernetes
from gateway.policies.records import Problem
from tests.cluster.apiserver import ApiServer
from tests.cluster.gate import Gate
from tests.cluster.objects import (
    NODE,
    OURS,
    create,
    delete,
    egress,
    following,
    machine,
    must,
    off,
    patch,
    pod,
    until,
)
from tests.cluster.test_source import FAST, egresses, pods

ASKED = Asked(pace=FAST, spread=0.5)
EVENTS = "/apis/events.k8s.io/v1/namespaces/{}/events"


def accepted(api: ApiServer, path: str) -> dict[str, Any]:
    """The condition Accepted; empty where there is none."""
    status = must(api.request("GET", path)).get("status") or {}
    return next((each for each in status.get("conditions") or () if each["type"] == "Accepted"), {})


def writes(gate: Gate) -> int:
    return sum(method == "PATCH" and path.endswith("/status") for method, path, _ in list(gate.requests))


def accept_all(source: Kubernetes) -> None:
    for each in source.cluster.objects:
        source.accept(each)


# ---- Conditions -------------------------------------------------------------------------------------------


def test_a_condition_follows_the_spec(server: ApiServer, space: str) -> None:
    path = egresses(space, "web")
    create(server, egresses(space), egress("web", "example.com"))

    async def main() -> None:
        async with following(NODE, server.kubeconfig, ASKED) as source:
            accept_all(source)
            await until(lambda: accepted(server, path), "the first condition")
            first = accepted(server, path)
            assert (first["status"], first["reason"], first["observedGeneration"]) == ("True", "Accepted", 1)
            rules = [{"domains": ["example.com"]}, {"domains": ["a..b"]}]
            await off(lambda: patch(server, path, {"spec": {"rules": rules}}))
            await until(lambda: source.cluster.problems, "the problem")
            accept_all(source)
            await until(lambda: accepted(server, path)["observedGeneration"] == 2, "the second condition")
            second = accepted(server, path)
            assert (second["status"], second["reason"]) == ("False", "RulesIgnored")
            assert second["message"] == (
                "these grant nothing, the others are in force; "
                "spec.rules[1].domains[0]: 'a..b' has an empty label (write a.b)"
            )
            await off(lambda: patch(server, path, {"spec": {"rules": rules[:1]}}))
            await until(lambda: not source.cluster.problems, "the mend")
            compiler = Problem("", None, "", "spec.rules[0]", "is too large", "write less")
            source.accept(source.cluster.objects[0], [compiler], "TooManyPatterns")
            await until(lambda: accepted(server, path)["observedGeneration"] == 3, "the third condition")
            assert accepted(server, path)["reason"] == "TooManyPatterns"
            await until(lambda: source.counts()["conditions"] == 3, "the answer to the third")

    trio.run(main)


def test_what_others_say_of_an_object_stays(server: ApiServer, space: str) -> None:
    path = egresses(space, "web")
    create(server, egresses(space), egress("web", "example.com"))
    other = {"type": "Reviewed", "status": "True"}
    patch(server, path + "/status", {"status": {"conditions": [other]}})

    async def main() -> None:
        async with following(NODE, server.kubeconfig, ASKED) as source:
            accept_all(source)
            await until(lambda: accepted(server, path), "the condition")
            assert other in must(server.request("GET", path))["status"]["conditions"]

    trio.run(main)


def test_twenty_agents_write_each_condition_once(
    server: ApiServer, gate: Gate, through: Path, space: str
) -> None:
    objects, agents = 10, 20
    for number in range(objects):
        create(server, egresses(space), egress(f"e{number}", "example.com"))

    async def main() -> None:
        sources = [Kubernetes(NODE, through, replace(ASKED, spread=5.0)) for _ in range(agents)]
        async with trio.open_nursery() as nursery:
            for source in sources:
                nursery.start_soon(source.run)
            await until(lambda: all(source.health.connected for source in sources), "all watches")
            for source in sources:
                accept_all(source)
            await until(lambda: not any(source._writer._waiting for source in sources), "all of them done")
            assert sum(source.counts()["conditions"] for source in sources) == objects
            tried = writes(gate)
            assert tried <= 2 * objects, "few tried and were refused"
            for number in range(objects):
                assert accepted(server, egresses(space, f"e{number}"))["status"] == "True"
            for source in sources:
                accept_all(source)
            assert not any(source._writer._waiting for source in sources), "what stands is not written again"
            nursery.cancel_scope.cancel()

    trio.run(main)


def test_agents_of_two_versions_do_not_quarrel(
    server: ApiServer, gate: Gate, through: Path, space: str
) -> None:
    """Each writes what it thinks once; who has seen its own there leaves the other's."""
    path = egresses(space, "web")
    create(server, egresses(space), egress("web", "example.com"))
    finding = [Problem("", None, "", "spec.rules[0]", "is too large", "write less")]

    async def main() -> None:
        async with following(NODE, through, ASKED) as old, following(NODE, through, ASKED) as new:
            (seen,) = old.cluster.objects
            old.accept(seen)
            await until(lambda: accepted(server, path), "that of the old one")
            new.accept(seen, finding)
            await until(lambda: accepted(server, path)["status"] == "False", "that of the new one")
            for _ in range(20):
                old.accept(seen)
                new.accept(seen, finding)
                await trio.sleep(0.1)
            assert accepted(server, path)["status"] == "False"
            assert writes(gate) == 2

    trio.run(main)


def test_a_condition_of_an_older_spec_is_refused_by_the_server(
    server: ApiServer, gate: Gate, through: Path, space: str
) -> None:
    """The agent's watch is behind: what it writes carries the version that it has read."""
    path = egresses(space, "web")
    create(server, egresses(space), egress("web", "example.com"))

    async def main() -> None:
        async with following(NODE, through, replace(ASKED, spread=0.0)) as source:
            await until(lambda: source.health.connected, "the watches")
            (seen,) = source.cluster.objects
            gate.stall()
            await off(lambda: patch(server, path, {"spec": {"rules": []}}))
            source.accept(seen)
            await until(lambda: writes(gate), "the attempt")
            gate.flow()
            await until(lambda: source.cluster.objects != (seen,), "the newer object")
            assert source.counts()["conditions"] == 0
            assert accepted(server, path) == {}
            accept_all(source)
            await until(lambda: accepted(server, path), "the condition")
            assert accepted(server, path)["observedGeneration"] == 2

    trio.run(main)


def test_what_can_not_be_written_is_written_later(
    gate: Gate, server: ApiServer, through: Path, space: str
) -> None:
    path = egresses(space, "web")
    create(server, egresses(space), egress("web", "example.com"))
    gate.answer = lambda method, *_: (403, {}, {"message": "not you"}) if method == "PATCH" else None

    async def main() -> None:
        async with following(NODE, through, ASKED) as source:
            accept_all(source)
            await until(lambda: source.trouble, "told")
            assert source.trouble == f"the condition of Egress {space}/web can't be written: not you"
            gate.answer = lambda *_: None
            await until(lambda: accepted(server, path), "the condition")
            await until(lambda: not source.trouble, "it is well again")

    trio.run(main)


def test_the_definitions_of_this_checkout_show_what_is_written(crds_applied: ApiServer) -> None:
    """Beside the definitions of these tests, which let everything through: those that people apply."""
    api, node = crds_applied, "node-with-definitions"
    create(api, "/api/v1/nodes", {"metadata": {"name": node}})
    create(api, egresses("default"), egress("shown", "example.com"))
    create(api, f"{OURS}/externalworkloads", machine("shown"))

    async def main() -> None:
        async with following(node, api.kubeconfig, ASKED) as source:
            accept_all(source)
            await until(lambda: accepted(api, egresses("default", "shown")), "the condition")
            await until(lambda: accepted(api, f"{OURS}/externalworkloads/shown"), "the machine's, too")
            line = api.kubectl("get", "egress", "shown", "--no-headers", "-o", "wide")
            assert line.split()[0] == "shown"
            assert "True" in line.split()
            assert "every rule is in force" in line

    try:
        trio.run(main)
    finally:
        delete(api, egresses("default", "shown"))
        delete(api, f"{OURS}/externalworkloads/shown")
        delete(api, f"/api/v1/nodes/{node}")


# ---- Events -----------------------------------------------------------------------------------------------


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pod_events, "AGAIN", 0.5)
    monkeypatch.setattr(api_writer, "PAUSE", 0.1)


def events(api: ApiServer, namespace: str, name: str) -> list[dict[str, Any]]:
    found = must(api.request("GET", EVENTS.format(namespace)))["items"]
    return [each for each in found if each["regarding"]["name"] == name]


def test_a_refusal_is_an_event_of_its_pod(server: ApiServer, space: str, soon: None) -> None:
    uid = create(server, pods(space), pod("web", NODE))["metadata"]["uid"]
    note = "refused pod web: example.com (192.0.2.1) TCP 443: no rule allows it"

    async def main() -> None:
        async with following(NODE, server.kubeconfig, ASKED) as source:
            (about,) = [each for each in source.cluster.pods.values() if each.name == "web"]
            source.tell(about, "EgressDenied", note)
            await until(lambda: events(server, space, "web"), "the event")
            (event,) = events(server, space, "web")
            assert (event["reason"], event["note"], event["type"]) == ("EgressDenied", note, "Warning")
            assert event["regarding"]["uid"] == uid
            assert event["reportingInstance"] == f"skouter-{NODE}"
            for _ in range(6):
                source.tell(about, "EgressDenied", note, 2)
            await until(lambda: "series" in events(server, space, "web")[0], "its series")
            (event,) = events(server, space, "web")
            assert event["series"]["count"] == 13
            assert "web" in server.kubectl("get", "events", "-n", space)

    trio.run(main)


def test_events_of_the_node_lie_in_default(server: ApiServer, soon: None) -> None:
    async def main() -> None:
        async with following(NODE, server.kubeconfig, ASKED) as source:
            source.tell(source.cluster.node, "EgressDenied", "refused host: 192.0.2.1")
            await until(lambda: events(server, "default", NODE), "the event")

    trio.run(main)


def test_an_event_that_the_server_refuses_is_lost_and_counted(
    server: ApiServer, gate: Gate, through: Path, space: str, soon: None
) -> None:
    create(server, pods(space), pod("web", NODE))
    gate.answer = lambda method, *_: (403, {}, {"message": "not you"}) if method == "POST" else None

    async def main() -> None:
        async with following(NODE, through, ASKED) as source:
            (about,) = [each for each in source.cluster.pods.values() if each.name == "web"]
            source.tell(about, "EgressDenied", "a")
            await until(lambda: source.counts()["events_lost"], "counted")
            assert source.trouble == f"the event of pod {space}/web can't be written: not you"

    trio.run(main)
