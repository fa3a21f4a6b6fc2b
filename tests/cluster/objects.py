"""Objects that tests put into the API server, and an agent's source that follows it.

Definitions here let everything through, as one that is older than the agent would: what the agent makes of
an object that nobody checked is a question of its own.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from gateway.kubernetes.api_rights import Right
from gateway.kubernetes.crds import NAMES
from gateway.kubernetes.source import Asked, Kubernetes
from gateway.policies.schema import API_VERSION, GROUP
from tests.cluster.apiserver import ApiServer

DEFINITIONS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
OURS = f"/apis/{API_VERSION}"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
NODE = "node-a"
PATIENCE = 60.0  # seconds: others may need this machine, too

Data = dict[str, Any]

_FREE = {"x-kubernetes-preserve-unknown-fields": True}
_CONDITIONS = {
    "type": "array",
    "x-kubernetes-list-type": "map",
    "x-kubernetes-list-map-keys": ["type"],
    "items": {"type": "object", "properties": {"type": {"type": "string"}}, "required": ["type"]} | _FREE,
}


def definition(kind: str) -> Data:
    status = {"type": "object", "properties": {"conditions": _CONDITIONS}}
    schema = {"type": "object", "properties": {"spec": {"type": "object"} | _FREE, "status": status}}
    version = {
        "name": API_VERSION.partition("/")[2],
        "served": True,
        "storage": True,
        "subresources": {"status": {}},
        "schema": {"openAPIV3Schema": schema},
    }
    names = {"kind": kind, "plural": NAMES[kind].plural, "singular": kind.lower(), "listKind": f"{kind}List"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{NAMES[kind].plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced" if kind == "Egress" else "Cluster",
            "names": names,
            "versions": [version],
        },
    }


def define(api: ApiServer, kind: str) -> None:
    """Served when this returns."""
    create(api, DEFINITIONS, definition(kind))
    wait_until_served(api, kind, True)


def undefine(api: ApiServer, kind: str) -> None:
    """Gone, with all that it defined, when this returns."""
    delete(api, f"{DEFINITIONS}/{NAMES[kind].plural}.egress.skouter")
    wait_until_served(api, kind, False)


def wait_until_served(api: ApiServer, kind: str, wanted: bool) -> None:
    deadline = time.monotonic() + PATIENCE
    while is_served(api, kind) != wanted:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_served(api: ApiServer, kind: str) -> bool:
    try:
        return api.request("GET", f"{OURS}/{NAMES[kind].plural}")[0] == 200
    except ValueError:
        return False  # of a group without a kind the server says so in plain text


def egress(name: str, *domains: str, spec: Mapping[str, object] | None = None) -> Data:
    rules = [{"domains": [*domains]}] if domains else []
    made = {"podSelector": {}, "rules": rules} if spec is None else spec
    return {"apiVersion": API_VERSION, "kind": "Egress", "metadata": {"name": name}, "spec": made}


def machine(name: str) -> Data:
    spec = {"addresses": ["192.0.2.7"]}
    return {"apiVersion": API_VERSION, "kind": "ExternalWorkload", "metadata": {"name": name}, "spec": spec}


def pod(name: str, node: str, labels: Mapping[str, str] | None = None, **spec: object) -> Data:
    containers = [{"name": "main", "image": "none"}]
    metadata = {"name": name, "labels": dict(labels or {})}
    return {"metadata": metadata, "spec": {"nodeName": node, "containers": containers, **spec}}


def rules(rights: Iterable[Right]) -> list[Data]:
    """Those of a ClusterRole or Role."""
    return [
        {"apiGroups": [right.group], "resources": [right.resource], "verbs": [*right.verbs]}
        | ({"resourceNames": [*right.names]} if right.names else {})
        for right in rights
    ]


def must(answer: tuple[int, Any]) -> Data:
    """The object of an answer that is no refusal."""
    status, data = answer
    assert 200 <= status < 300, data
    return dict(data)


def create(api: ApiServer, path: str, body: Data) -> Data:
    return must(api.request("POST", path, body))


def patch(api: ApiServer, path: str, body: Data) -> Data:
    return must(api.request("PATCH", path, body, kind="application/merge-patch+json"))


def delete(api: ApiServer, path: str, **how: object) -> None:
    assert api.request("DELETE", path, how or None)[0] in (200, 202, 404)


async def off(step: Callable[[], Any]) -> Any:
    """What blocks, beside the loop."""
    return await trio.to_thread.run_sync(step)


async def until(holds: Callable[[], object], what: str, seconds: float = PATIENCE) -> None:
    with trio.move_on_after(seconds):
        while not holds():
            await trio.sleep(0.02)
        return
    raise AssertionError(f"not within {seconds} s: {what}")


@asynccontextmanager
async def following(node: str, kubeconfig: Path | None, asked: Asked) -> AsyncIterator[Kubernetes]:
    """A source that has listed everything; it ends with the block."""
    source = Kubernetes(node, kubeconfig, asked)
    async with trio.open_nursery() as nursery:
        with trio.fail_after(PATIENCE):
            await nursery.start(source.run)
        yield source
        nursery.cancel_scope.cancel()
