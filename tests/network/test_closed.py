"""Closed until classified: a row on the cgroup of all pods, which each pod's own row takes precedence over.

The cgroups are named as kubelet names them, so that a pod lies as deep as on a node; the programs are
attached to the whole hierarchy, as the agent does it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from gateway import place
from gateway.cgroups import remove_cgroup
from gateway.engine import Engine
from gateway.numbers import Options
from gateway.policies import allow, policy
from tests.kernel.bench import Namespace, inside
from tests.topology import PREFIX, remove_instance, sweep

OUTSIDE, POD = "10.0.3.1", "10.0.3.2"
BURSTABLE = "kubepods-burstable.slice/kubepods-burstable-pod{}.slice"


class Node:
    """A namespace with a listener outside, cgroups as on a node, and an engine over the whole hierarchy."""

    def __init__(self, undo: ExitStack) -> None:
        sweep()
        self.network, outside = Namespace(), Namespace()
        undo.callback(self.network.close)
        undo.callback(outside.close)
        self.network.join(outside)
        self.network.ip(f"addr add {POD}/24 dev outside")
        outside.ip(f"addr add {OUTSIDE}/24 dev inside")
        with outside.entered():
            self.listener = undo.enter_context(socket.create_server((OUTSIDE, 80)))
            self.datagrams = undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            self.datagrams.bind((OUTSIDE, 7))
        instance = f"{PREFIX}-{os.getpid()}-closed"
        undo.callback(remove_instance, instance)
        self.engine = Engine(place.find(instance), host=True)
        undo.callback(self.engine.close)
        self.root = self.engine.where.hierarchy / f"{instance}-kubepods.slice"
        self.host = self.engine.where.hierarchy / f"{instance}-sshd.service"
        for path in (self.root, self.host):
            path.mkdir()
            undo.callback(remove_cgroup, path)

    def pod(self, uid: str) -> Path:
        """Born now, with a container in it."""
        path = self.root / BURSTABLE.format(uid)
        (path / f"cri-containerd-{uid}.scope").mkdir(parents=True)
        return path

    def connects(self, cgroup: Path) -> bool:
        """A process that is born in the cgroup, or in the container within it."""
        with self.network.entered(), inside(next(cgroup.glob("*.scope"), cgroup)):
            held = socket.socket()
            held.settimeout(5)
        with held:
            try:
                self.inside(cgroup, lambda: held.connect((OUTSIDE, 80)))
            except PermissionError:
                return False
            return True

    def sends(self, cgroup: Path, held: socket.socket) -> bool:
        try:
            self.inside(cgroup, lambda: held.sendto(b"x", (OUTSIDE, 7)))
        except PermissionError:
            return False
        return True

    def inside(self, cgroup: Path, call: Any) -> None:
        with self.network.entered(), inside(next(cgroup.glob("*.scope"), cgroup)):
            call()


@pytest.fixture(scope="module")
def node(superuser: None) -> Iterator[Node]:
    with ExitStack() as undo:
        yield Node(undo)


@pytest.fixture
def held(node: Node) -> Iterator[Any]:
    """A policy that reaches what is outside; afterwards nothing is placed or shut, and no pod is left."""
    union = policy.union([allow.egress([OUTSIDE], audit=False)])
    assert union is not None
    found = node.engine.hold("pods", union, Options(), {"kind": "test"})
    yield found
    node.engine.release(found)
    node.engine.open(node.root)
    for path in node.root.iterdir():
        if path.is_dir():
            remove_cgroup(path)


def test_a_pod_that_is_born_is_closed_from_its_first_packet_and_nobody_else_is(node: Node, held: Any) -> None:
    first = node.pod("one")
    assert node.connects(first), "nothing is closed yet"
    node.engine.shut(node.root)
    second = node.pod("two")
    assert not node.connects(second)
    assert not node.connects(first)
    assert node.connects(node.host)
    assert node.engine.counters(0)["UNCLASSIFIED"] >= 2


def test_a_pod_s_own_row_decides_and_its_neighbours_stay_closed(node: Node, held: Any) -> None:
    node.engine.shut(node.root)
    mine, other = node.pod("mine"), node.pod("other")
    node.engine.place(held, mine, title="pod shop/mine")
    assert node.connects(mine)
    assert not node.connects(other)
    node.engine.unplace(held, mine)
    assert not node.connects(mine), "released into the closed"


def test_exempt_pods_are_open_whatever_lies_around_them(node: Node, held: Any) -> None:
    node.engine.shut(node.root)
    static = node.pod("static")
    node.engine.exempt(static)
    assert node.connects(static)
    node.engine.unexempt(static.stat().st_ino)
    assert not node.connects(static)


def test_what_is_shut_while_its_flows_are_open_sends_nothing_more(node: Node, held: Any) -> None:
    pod = node.pod("busy")
    node.engine.place(held, pod)
    with node.network.entered(), inside(next(pod.glob("*.scope"))):
        flow = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with flow:
        assert node.sends(pod, flow)
        node.engine.shut(pod)
        assert not node.sends(pod, flow)
        node.engine.place(held, pod)
        assert node.sends(pod, flow)


def test_opened_again_it_is_nobody_s_business(node: Node, held: Any) -> None:
    node.engine.shut(node.root)
    pod = node.pod("late")
    assert not node.connects(pod)
    node.engine.open(node.root)
    assert node.connects(pod)


@pytest.mark.parametrize("around", [1, 2, 3, 4])
def test_a_node_within_a_node_lies_deeper(node: Node, held: Any, around: int) -> None:
    """As kind's: its kubelet's cgroups lie in a container's."""
    outer = node.root.joinpath(*(f"level-{n}" for n in range(around)))
    pod = outer / "kubelet.slice" / BURSTABLE.format("deep")
    (pod / "cri-containerd-1.scope").mkdir(parents=True)
    node.engine.shut(outer)
    assert not node.connects(pod)
    node.engine.place(held, pod)
    assert node.connects(pod)
    node.engine.unplace(held, pod)
    node.engine.open(outer)
