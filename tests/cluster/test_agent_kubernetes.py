"""Agent, kernel and API server are real, kubelet is small: what holds for the pods of a node."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.apiserver import ApiServer
from tests.cluster.kubelet import DRIVERS, NETWORK, Kubelet
from tests.cluster.objects import OURS, create, define, delete, egress, is_served, patch
from tests.network.conftest import ZONE
from tests.topology import TOOLS, Lab, wait_for

ALLOWED, REFUSED = "example.com", "example.org"
PAGE = "tell(outcome(lambda: connect('{}')))"
SOON = 0.5  # seconds: ten times what a pod is to wait for its classification; others use this machine too
KINDS = ("Egress", "ClusterEgress", "ExternalWorkload")


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    if os.geteuid():
        pytest.skip("needs root: namespaces, cgroups and BPF")
    if missing := [tool for tool in TOOLS if not shutil.which(tool)]:
        pytest.skip(f"needs {', '.join(missing)}: run 'make deps'")
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
        assert time.monotonic() < began + seconds, f"still {found}, not {wanted}"
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
