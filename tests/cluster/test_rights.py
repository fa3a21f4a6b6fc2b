"""The rights of an agent's service account: these suffice, and each of them is missed."""

import re
import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import trio

from gateway.kubernetes import api_questions
from gateway.kubernetes.api_objects import Condition
from gateway.kubernetes.api_rights import RIGHTS, Right
from gateway.kubernetes.api_server import ServerError
from gateway.kubernetes.cluster import Node
from gateway.kubernetes.pod_events import Told
from gateway.kubernetes.source import Asked, Kubernetes
from tests.cluster.apiserver import ApiServer
from tests.cluster.objects import NODE, OURS, RBAC, create, delete, egress, off, rules
from tests.cluster.test_source import FAST

HOME = "skouter-system"
ACCOUNT = "skouter-rights"
ASKED = Asked(pace=replace(FAST, most=0.5), spread=0.0, home=HOME)
REFUSED = re.compile(r'cannot (\w+) resource "([^"]+)"')
EACH = [(right.resource, verb) for right in RIGHTS for verb in right.verbs]

Refusals = set[tuple[str, str]]


@pytest.fixture(scope="module")
def objects(server: ApiServer) -> Iterator[ApiServer]:
    """One of each kind, in a home that has the agent's account."""
    create(server, "/api/v1/namespaces", {"metadata": {"name": HOME}})
    head = {"apiVersion": OURS.removeprefix("/apis/"), "metadata": {"name": "web"}}
    create(server, f"{OURS}/namespaces/{HOME}/egresses", egress("web", "example.com"))
    create(server, f"{OURS}/clusteregresses", {**head, "kind": "ClusterEgress", "spec": {"podSelector": {}}})
    machine = {**head, "kind": "ExternalWorkload", "spec": {"addresses": ["192.0.2.7"]}}
    create(server, f"{OURS}/externalworkloads", machine)
    create(server, f"/api/v1/namespaces/{HOME}/serviceaccounts", {"metadata": {"name": ACCOUNT}})
    yield server
    for path in (f"namespaces/{HOME}/egresses", "clusteregresses", "externalworkloads"):
        delete(server, f"{OURS}/{path}/web")


def grant(api: ApiServer, rights: list[Right]) -> list[str]:
    """A ClusterRole, a Role for each namespace that is named, and their bindings; returns their paths."""
    made = []
    subject = {"kind": "ServiceAccount", "name": ACCOUNT, "namespace": HOME}
    for namespace in sorted({right.namespace for right in rights}):
        kind = "ClusterRole" if namespace == "*" else "Role"
        base = RBAC if namespace == "*" else f"{RBAC}/namespaces/{namespace}"
        role = {"rules": rules(right for right in rights if right.namespace == namespace)}
        reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": ACCOUNT}
        for plural, body in (
            (f"{kind.lower()}s", role),
            (f"{kind.lower()}bindings", {"roleRef": reference, "subjects": [subject]}),
        ):
            create(api, f"{base}/{plural}", {"metadata": {"name": ACCOUNT}, **body})
            made.append(f"{base}/{plural}/{ACCOUNT}")
    return made


def refused(source: Kubernetes, token: str) -> Refusals:
    """What the server does not let this agent do at the moment, by trying all of it."""
    told = list(source.health.errors)
    event = Told(f"try.{secrets.token_hex(4)}", Node(NODE), "EgressDenied", "a try", 1e9, 1e9, 2)
    accepted = Condition(True, "Accepted", "a try")

    def written(kind: str, key: str) -> None:
        if (item := source._item(kind, key)) is not None:
            source._writer._apply((kind, key), item, accepted)

    for act in (
        lambda: source._writer._send(event),
        lambda: source._writer._send(replace(event, is_new=False)),
        lambda: written("Egress", f"{HOME}/web"),
        lambda: written("ClusterEgress", "web"),
        lambda: written("ExternalWorkload", "web"),
        lambda: api_questions.is_leaving(source.door, HOME),
        lambda: api_questions.may_get(source.door, token, "/metrics"),
    ):
        try:
            act()
        except ServerError as error:
            if error.status == 403:
                told.append(str(error))
    return {(match[2], match[1]) for text in told if (match := REFUSED.search(text))}


def follow(api: ApiServer, config: Path, rights: list[Right], missing: Refusals) -> None:
    """Follows with these rights until nothing but `missing` is refused: rights take a moment to count."""
    token = api.account_token(HOME, ACCOUNT)
    roles = grant(api, rights)

    async def main() -> None:
        source = Kubernetes(NODE, api.write_kubeconfig(config, token), ASKED)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(source.run)
            found: Refusals | None = None

            async def is_so() -> bool:
                nonlocal found
                found = await off(lambda: refused(source, token))
                return found == missing and source.health.connected == (not missing & READS)

            with trio.move_on_after(60):
                while not await is_so():
                    await trio.sleep(0.1)
            assert found == missing, source.health
            nursery.cancel_scope.cancel()

    try:
        trio.run(main)
    finally:
        for path in roles:
            delete(api, path)


READS = {each for each in EACH if each[1] in ("list", "watch", "get")}


def test_these_rights_suffice(objects: ApiServer, tmp_path: Path) -> None:
    follow(objects, tmp_path / "kubeconfig", [*RIGHTS], set())


@pytest.mark.parametrize(("resource", "verb"), EACH, ids=lambda each: each.replace("/", "-"))
def test_each_right_is_missed(objects: ApiServer, tmp_path: Path, resource: str, verb: str) -> None:
    rights = [
        replace(
            right, verbs=tuple(each for each in right.verbs if (right.resource, each) != (resource, verb))
        )
        for right in RIGHTS
    ]
    follow(objects, tmp_path / "kubeconfig", [right for right in rights if right.verbs], {(resource, verb)})
