"""The DaemonSet's pod: the agent does its work with the capabilities, calls and folders of the manifest."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import confined
from tests.cluster.kubelet import Kubelet
from tests.cluster.rendered import DEPLOY, daemonset
from tests.cluster.test_agent_kubernetes import (
    ALLOWED,
    PAGE,
    REFUSED,
    allow,
    defined,
    lab,
    node,
    space,
    until,
)
from tests.network.conftest import REFUSED4, ZONE
from tests.network.daemon import WEB, Host, document
from tests.network.test_agent import host
from tests.network.test_agent_lifelines import DNS

__all__ = ["defined", "host", "lab", "node", "space"]  # the fixtures

MANIFEST = DEPLOY / "kustomize" / "base" / "skouter.yaml"
NET4 = ZONE["example.net"][0]

# What the agent says where one of its capabilities is missing.
WITHOUT = {
    "SYS_ADMIN": "nsenter: reassociate to namespace 'ns/cgroup' failed: Operation not permitted",
    "NET_ADMIN": "sock_diag: Operation not permitted",
    "SYS_PTRACE": "/ns/cgroup: Permission denied",
    "DAC_OVERRIDE": "Permission denied: '/sys/fs/cgroup",
}
# libbpf lifts RLIMIT_MEMLOCK with it before Linux 5.11, where maps count against that.
FOR_OLD_KERNELS = {"SYS_RESOURCE"}


def pod() -> dict[str, Any]:
    spec = daemonset(MANIFEST.read_text())["spec"]["template"]["spec"]
    assert isinstance(spec, dict)
    return spec


def within(host: Host | Kubelet, spec: dict[str, Any]) -> tuple[object, ...]:
    """A command line for what runs as a container of this pod."""
    path = host.folder / "pod.json"
    path.write_text(json.dumps(spec))
    folders = {f"{parent}/skouter": f"{parent}/{host.instance}" for parent in ("/run", "/var/lib")}
    folders["/run/agent"] = str(host.folder / "agent")
    return ("unshare", "--mount", "--cgroup", sys.executable, confined.__file__, path, json.dumps(folders))


@pytest.fixture
def ready(host: Host) -> Host:
    if not confined.PROFILE.exists():
        pytest.fail(f"needs {confined.PROFILE}: run 'make test'")
    host.write("web.yaml", document("web", "example.com", "example.net"))
    host.unit(DNS)
    return host


def test_the_agent_does_all_of_its_work_with_what_the_manifest_leaves_it(ready: Host) -> None:
    """Hold, end a withdrawn connection, find who listens, keep the last good set, adopt."""
    host = ready
    with host.agent(within=within(host, pod())) as agent, host.program(WEB) as program:
        status = (Path("/proc") / str(agent.pid) / "status").read_text()
        assert "NoNewPrivs:\t1" in status
        assert "Seccomp:\t2" in status
        assert program("keep('net', lambda: opened(resolve('example.net')))") == "kept"
        assert program(f"connect({REFUSED4!r})") == "EPERM"
        host.reload("web.yaml", document("web", "example.com"))
        host.wait_until_said(f"ended TCP to {NET4} port 80")
        assert program("page('net')") == "ECONNABORTED"
    host.write("web.yaml", "nonsense: [")
    with host.agent(within=within(host, pod())):
        assert "the last good set of files stays in force" in host.said()
        assert host.held() == {"web": [WEB]}
        said = host.said().splitlines()
        assert not [line for line in said if "not permitted" in line or "Traceback" in line]


def test_the_agent_of_a_node_does_all_of_its_work_there_too(node: Kubelet, space: str) -> None:
    """Pods have networks of their own, which it enters to see their addresses."""
    api = node.api
    allow(api, space, "web", ALLOWED, app="web")
    web = node.run(node.create("web", {"app": "web"}, space))
    free = node.run(node.create("free", {"app": "free"}, space))
    with node.agent(within=within(node, pod())):
        until(lambda: web.do(PAGE.format(ALLOWED)), "connected")
        assert web.do(PAGE.format(REFUSED)) == "EPERM"
        assert free.do(PAGE.format(REFUSED)) == "connected"
        late = node.run(node.create("late", {"app": "web"}, space))
        until(lambda: late.do(PAGE.format(ALLOWED)), "connected")
        assert late.do(PAGE.format(REFUSED)) == "EPERM"
        assert not [
            line for line in node.said().splitlines() if "not permitted" in line or "Traceback" in line
        ]


def test_no_capability_is_without_its_reason_here() -> None:
    asked = set(pod()["containers"][0]["securityContext"]["capabilities"]["add"])
    assert asked == WITHOUT.keys() | FOR_OLD_KERNELS


@pytest.mark.parametrize("missing", WITHOUT)
def test_each_capability_is_needed(ready: Host, missing: str) -> None:
    spec = pod()
    spec["containers"][0]["securityContext"]["capabilities"]["add"].remove(missing)
    begins = missing == "NET_ADMIN"  # which only a withdrawn connection asks for
    with ready.agent(within=within(ready, spec), ready=begins):
        if begins:
            with ready.program(WEB) as program:
                assert program("keep('net', lambda: opened(resolve('example.net')))") == "kept"
                ready.write("web.yaml", document("web", "example.com"))
                ready.wait_until_said(WITHOUT[missing])
        ready.wait_until_said(WITHOUT[missing])
