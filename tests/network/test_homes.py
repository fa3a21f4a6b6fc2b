"""Pods of one policy, each in a network namespace of its own: what is whose.

One process plays all parts: it enters a namespace and a pod's cgroup to make a socket there.

    a  10.0.1.2 ──┐
                  ├── outside: 198.51.100.0/24 echoes, 192.0.2.53 answers every question
    b  10.0.2.2 ──┘
    evil  10.0.9.2 ── anywhere: the same addresses, in a namespace that the attacker made
"""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
from dnslib import QTYPE, RR, A, DNSRecord

from bpf.events import address
from gateway import cgroups, place, resolvers, status
from gateway.engine import Engine
from gateway.numbers import Options
from gateway.policies import allow, policy
from routing import own
from routing.own import UNKNOWN, Home
from tests.kernel.bench import Namespace, inside
from tests.network.workload import send_raw, udp_packet
from tests.topology import PREFIX, remove_instance, sweep

RESOLVER, SITE, ELSEWHERE = "192.0.2.53", "198.51.100.10", "198.51.100.30"
NAME, OPEN = "example.com", "198.51.100.128/25"  # the name and the network that the policy allows
ALLOWED = "198.51.100.200"
ADDRESS = {"a": "10.0.1.2", "b": "10.0.2.2", "evil": "10.0.9.2"}


class World:
    """Two pods, what is outside, and the namespaces of an attacker; an engine between them."""

    def __init__(self, undo: ExitStack) -> None:
        sweep()
        self.undo = undo
        self.networks = {name: self.namespace() for name in ("a", "b", "evil", "outside", "anywhere")}
        for name, other in (("a", "outside"), ("b", "outside"), ("evil", "anywhere")):
            self.wire(name, other)
        self.servers = {where: self.serve(where) for where in ("outside", "anywhere")}
        instance = f"{PREFIX}-{os.getpid()}-homes"
        undo.callback(remove_instance, instance)
        self.engine = Engine(place.find(instance))
        undo.callback(self.engine.close)
        self.cgroups = {name: self.engine.where.cgroup / name for name in ("a", "b")}
        for path in self.cgroups.values():
            path.mkdir()

    def namespace(self) -> Namespace:
        made = Namespace()
        self.undo.callback(made.close)
        return made

    def wire(self, name: str, other: str) -> None:
        gateway = ADDRESS[name].rpartition(".")[0] + ".1"
        inner, outer = self.networks[name], self.networks[other]
        inner.ip(f"link add eth0 type veth peer name to-{name} netns {outer.path}", "link set eth0 up")
        inner.ip(f"addr add {ADDRESS[name]}/24 dev eth0", f"route add default via {gateway}")
        outer.ip(f"link set to-{name} up", f"addr add {gateway}/24 dev to-{name}")

    def serve(self, where: str) -> dict[str, socket.socket]:
        network = self.networks[where]
        network.ip("route add local 198.51.100.0/24 dev lo", "route add local 192.0.2.0/24 dev lo")
        with network.entered():
            return {
                server: self.bound(server, port)
                for server, port in ((RESOLVER, 53), (SITE, 7), (ELSEWHERE, 7), (ALLOWED, 7))
            }

    def bound(self, server: str, port: int) -> socket.socket:
        made = self.undo.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        made.bind((server, port))
        made.settimeout(5)
        return made

    def home(self, name: str) -> Home:
        with self.networks[name].entered():
            return own.home()

    @contextmanager
    def socket(self, pod: str, network: str = "", source: str = "") -> Iterator[socket.socket]:
        """Of a process of the pod, in its network or another."""
        with (
            self.networks[network or pod].entered(),
            inside(self.cgroups[pod]),
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made,
        ):
            made.bind((source or ADDRESS[network or pod], 0))
            made.settimeout(5)
            yield made

    def reaches(self, pod: str, to: str, **how: str) -> bool:
        server = self.servers["outside"][to]
        with self.socket(pod, **how) as held:
            try:
                held.sendto(b"x", (to, 7))
            except PermissionError:
                return False
            assert server.recvfrom(9)[0] == b"x"
            return True

    def asks(self, pod: str, address: str, network: str = "", name: str = NAME) -> None:
        """For a name, which has this address, as whoever plays the resolver there likes it."""
        with self.asking(pod, name, network) as answer:
            answer(address)

    @contextmanager
    def asking(self, pod: str, name: str, network: str = "") -> Iterator[Callable[[str], None]]:
        """A question is open within the block; the call answers it."""
        server = self.servers["anywhere" if network == "evil" else "outside"][RESOLVER]
        with self.socket(pod, network) as held:
            held.connect((RESOLVER, 53))
            held.send(DNSRecord.question(name).pack())
            data, client = server.recvfrom(512)

            def answer(address: str) -> None:
                reply = DNSRecord.parse(data).reply()
                reply.add_answer(RR(name, QTYPE.A, rdata=A(address), ttl=60))
                server.sendto(reply.pack(), client)
                held.recv(512)

            yield answer


@pytest.fixture(scope="module")
def world(superuser: None) -> Iterator[World]:
    with ExitStack() as undo:
        yield World(undo)


Pods = Callable[..., Any]
OPTIONS = Options(resolvers=(resolvers.parse(RESOLVER),))


def wanted() -> policy.Policy:
    union = policy.union([allow.egress([NAME, OPEN], audit=False)])
    assert union is not None
    return union


@pytest.fixture
def pods(world: World) -> Iterator[Pods]:
    """Both held to one policy, at the homes that are given or at their own."""
    with ExitStack() as undo:

        def start(**homes: Home) -> Any:
            held = world.engine.hold("pods", wanted(), OPTIONS, {"kind": "test"})
            undo.callback(world.engine.release, held)
            for name, path in world.cgroups.items():
                world.engine.place(held, path, homes.get(name, world.home(name)), title=f"pod test/{name}")
            return held

        yield start


def rows(world: World) -> set[int]:
    """The homes of which some address is known."""
    return {int(key.home) for key, _ in world.engine.datapath["own"].items()}


def test_each_pod_uses_its_own_addresses_and_no_other_s(world: World, pods: Pods) -> None:
    pods()
    assert world.reaches("a", ALLOWED)
    assert world.reaches("b", ALLOWED)
    try:
        world.networks["a"].ip(f"addr add {ADDRESS['b']}/32 dev lo")  # as NET_ADMIN in a pod allows
        assert not world.reaches("a", ALLOWED, source=ADDRESS["b"])
        assert world.reaches("b", ALLOWED)
    finally:
        world.networks["a"].ip(f"addr del {ADDRESS['b']}/32 dev lo")


def test_where_a_kernel_tells_no_cookies_forged_sources_are_still_each_pod_s_own(
    world: World, pods: Pods
) -> None:
    """Linux before 5.14: an inode's number stands for the namespace, which no hook knows. Of raw sockets none
    says where they live, so that their sources are asked for there too."""
    a, b = (Home(0xF0000000 + number, world.home(name).own) for number, name in enumerate(("a", "b")))
    pods(a=a, b=b)
    assert forges(world, "a", ADDRESS["a"])
    assert not forges(world, "a", ADDRESS["b"])
    assert forges(world, "b", ADDRESS["b"])
    world.asks("a", SITE)
    assert world.reaches("b", SITE)


def forges(world: World, pod: str, source: str) -> bool:
    """Whether a datagram with this source leaves a pod by a raw socket."""
    with world.networks[pod].entered(), inside(world.cgroups[pod]):
        try:
            send_raw(ALLOWED, udp_packet(source, 4000, ALLOWED, 7, b"x"))
        except PermissionError:
            return False
    assert world.servers["outside"][ALLOWED].recvfrom(9)[0] == b"x"
    return True


def test_an_address_that_comes_is_used_when_it_is_told_and_not_when_it_has_gone(
    world: World, pods: Pods
) -> None:
    held, new = pods(), "10.0.1.77"
    try:
        world.networks["a"].ip(f"addr add {new}/32 dev eth0")
        assert not world.reaches("a", ALLOWED, source=new)
        world.engine.rehome(held, world.cgroups["a"], world.home("a"))
        assert world.reaches("a", ALLOWED, source=new)
        assert world.reaches("a", ALLOWED)
    finally:
        world.networks["a"].ip(f"addr del {new}/32 dev eth0")
    world.engine.rehome(held, world.cgroups["a"], world.home("a"))
    known = {str(address(bytes(key.address))) for key, _ in world.engine.datapath["own"].items()}
    assert {ADDRESS["a"], ADDRESS["b"]} <= known
    assert new not in known


def test_what_one_pod_learns_holds_for_the_policy(world: World, pods: Pods) -> None:
    pods()
    assert not world.reaches("b", SITE)
    world.asks("a", SITE)
    assert world.reaches("a", SITE)
    assert world.reaches("b", SITE)


@pytest.mark.parametrize("defended", [False, True], ids=["the defence switched off", "defended"])
def test_ATTACK_a_pod_learns_in_a_namespace_of_its_own_for_all_pods_of_its_policy(
    world: World, pods: Pods, defended: bool
) -> None:
    if not own.home().is_cookie:
        pytest.skip("this kernel tells no namespace's cookie (Linux 5.14 does)")
    pods(**{} if defended else {"a": UNKNOWN})
    world.asks("a", ELSEWHERE, network="evil")
    assert world.reaches("b", ELSEWHERE) is not defended


def test_the_same_question_at_home_is_believed_while_another_pod_s_is_not(world: World, pods: Pods) -> None:
    """b lives where a does not: what a's process says there is not what b learns there."""
    pods()
    world.asks("a", ELSEWHERE, network="b")
    if own.home().is_cookie:
        assert not world.reaches("b", ELSEWHERE)
    world.asks("b", ELSEWHERE)
    assert world.reaches("b", ELSEWHERE)


def test_addresses_of_a_namespace_go_with_the_last_workload_in_it(world: World, pods: Pods) -> None:
    held = pods(b=world.home("a"))
    home = world.home("a").id
    assert rows(world) == {home}
    world.engine.unplace(held, world.cgroups["a"])
    assert rows(world) == {home}
    assert int(world.engine.datapath["workloads"][cgroups.cgroup_id(world.cgroups["b"])].home) == home
    world.engine.unplace(held, world.cgroups["b"])
    assert rows(world) == set()


def test_who_adopts_takes_pods_over_with_their_titles_and_homes(world: World, pods: Pods) -> None:
    held = pods()
    for descriptor in (held.ring, held.state):  # as the end of a process does it
        os.close(descriptor)
    before = {bytes(key.address): int(key.home) for key, _ in world.engine.datapath["own"].items()}
    again = world.engine.hold("pods", wanted(), OPTIONS, {"kind": "test"})
    assert again.titles == {path: f"pod test/{name}" for name, path in world.cgroups.items()}
    after = {bytes(key.address): int(key.home) for key, _ in world.engine.datapath["own"].items()}
    assert after == before
    held.ring, held.state = again.ring, again.state  # for the fixture to release


def test_status_tells_them_by_their_titles(world: World, pods: Pods) -> None:
    pods()
    found = status.collect(world.engine.where)
    (workload,) = (each for each in found["workloads"] if each["name"] == "pods")
    assert workload["enforced"]
    assert sorted(workload["titles"].values()) == ["pod test/a", "pod test/b"]
    assert any("pod test/a, pod test/b" in line for line in status.lines(found))


def test_the_home_of_a_process_is_what_it_says_itself(world: World) -> None:
    with world.networks["b"].entered():
        child = subprocess.Popen(["sleep", "60"])
    try:
        assert own.home_of(child.pid) == world.home("b")
    finally:
        child.kill()
        child.wait()
    assert own.home_of(child.pid) is None
    assert own.home_of(os.getpid()) == own.home()
