"""The programs attached, and real sockets: what a packet alone cannot show.

    workload's cgroup                       nobody's cgroup
    +-----------------------+   veth    +-----------------------------------+
    | 10.1.0.2  fd01::2     |-----------| 10.1.0.1  fd01::1                 |
    | lo                    |           | lo: 203.0.113.1-3  2001:db8::1-3  |
    +-----------------------+           +-----------------------------------+

One process plays all parts: it enters a namespace to make a socket there, and the workload's cgroup to make
one or to connect it, as a socket belongs to its creator's cgroup and the connect hooks look at the caller.
Nothing leaves the two namespaces. What must not happen is awaited by its counter, never by the clock.
"""

from __future__ import annotations

import ctypes
import errno
import os
import random
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import pytest

from bpf import kernel
from bpf.contract import contract
from bpf.datapath import Datapath
from tests.kernel import packets as p
from tests.kernel.bench import FAMILY, LATER, SECOND, TCP, UDP, Bench, Namespace, inside, now, wait_until
from tests.kernel.messages import Answer, wire

POLICY, OTHER, HOME = 7, 8, 77
SITE, SHOP = 100, 101
ANY, ONLY_80, ONLY_81, PINGS = 1, 2, 4, 8
GOOD = {4: "203.0.113.1", 6: "2001:db8::1"}
ALSO_GOOD = {4: "203.0.113.2", 6: "2001:db8::2"}
BAD = {4: "203.0.113.3", 6: "2001:db8::3"}
ME = {4: "10.1.0.2", 6: "fd01::2"}
RESOLVER = {4: "10.1.0.1", 6: "fd01::1"}

families = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
_numbers = count(1)


def disconnect(s: socket.socket) -> None:
    """connect(AF_UNSPEC), which Python's socket has no name for."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(s.fileno(), bytes(16), 16):
        raise OSError(ctypes.get_errno(), "connect(AF_UNSPEC)")


class World:
    """One workload in its cgroup, and the world outside."""

    def __init__(self, bench: Bench, cgroup: Path, near: Namespace, far: Namespace) -> None:
        self.b, self.cgroup, self.near, self.far = bench, cgroup, near, far
        self.open = ExitStack()
        self.number = bench.classify(cgroup, POLICY, HOME)
        bench.policy(POLICY)
        bench.policy(OTHER)
        bench.service(POLICY, ANY)
        bench.service(OTHER, ANY)
        bench.service(POLICY, ANY | ONLY_80, p.TCP, 80)
        bench.service(POLICY, ANY | ONLY_81, p.TCP, 81)
        bench.service(POLICY, ANY | PINGS, p.ICMP)
        bench.rule(POLICY, SITE, ANY)
        for good in (GOOD, ALSO_GOOD):
            for address in good.values():
                bench.grant(POLICY, address, (SITE, now() + LATER))
        for address in RESOLVER.values():
            bench.resolver(POLICY, address)
            bench.resolver(OTHER, address)

    @contextmanager
    def as_workload(self, cgroup: Path | None = None) -> Iterator[None]:
        with self.near.entered(), inside(cgroup or self.cgroup):
            yield

    def child(self, name: str = "child") -> Path:
        path = self.cgroup / name
        path.mkdir()
        return path

    def mine(
        self, kind: int, version: int = 4, protocol: int = 0, cgroup: Path | None = None
    ) -> socket.socket:
        """A socket of the workload's."""
        with self.as_workload(cgroup):
            return self.kept(socket.socket(FAMILY[version], kind, protocol))

    def theirs(self, kind: int, address: str, port: int = 80) -> socket.socket:
        """A socket outside, bound; a stream listens."""
        with self.far.entered():
            s = self.kept(socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind))
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind((address, port))
        if kind == TCP:
            s.listen()
        return s

    def kept(self, s: socket.socket) -> socket.socket:
        s.settimeout(5)
        return self.open.enter_context(s)

    def connect(self, s: socket.socket, address: str, port: int = 80, cgroup: Path | None = None) -> None:
        with self.as_workload(cgroup):
            s.connect((address, port))

    def connected(self, version: int, port: int = 80) -> tuple[socket.socket, socket.socket]:
        """A connection to the allowed server, both ends."""
        server, s = self.theirs(TCP, GOOD[version], port), self.mine(TCP, version)
        self.connect(s, GOOD[version], port)
        return s, self.kept(server.accept()[0])

    def accepted(self, version: int, peer: str) -> tuple[socket.socket, socket.socket]:
        """A connection from outside to the workload's own listener, both ends."""
        listener = self.mine(TCP, version)
        listener.bind((ME[version], 0))
        listener.listen()
        with self.far.entered():
            client = self.kept(socket.socket(FAMILY[version], TCP))
        client.bind((peer, 0))
        client.connect(listener.getsockname()[:2])
        with self.as_workload():
            return self.kept(listener.accept()[0]), client

    def withdraw(self, peer: int = SITE) -> None:
        """As the agent does it: the rule first, then the generation."""
        del self.b.d["rules"][POLICY, peer]
        self.b.policy(POLICY)

    def counts(self) -> dict[str, int]:
        return self.b.counted((POLICY,))

    def awaits(self, reason: str, since: dict[str, int]) -> None:
        wait_until(lambda: self.counts().get(reason, 0) > since.get(reason, 0), reason)


@pytest.fixture(scope="module")
def networks() -> Iterator[tuple[Namespace, Namespace]]:
    near, far = Namespace(), Namespace()
    far.join(near)
    far.ip(
        *("addr add 10.1.0.1/24 dev outside", "addr add fd01::1/64 dev outside nodad"),
        *(f"addr add 203.0.113.{i}/32 dev lo" for i in (1, 2, 3)),
        *(f"addr add 2001:db8::{i}/128 dev lo" for i in (1, 2, 3)),
    )
    near.ip(
        *("addr add 10.1.0.2/24 dev inside", "addr add fd01::2/64 dev inside nodad"),
        *("route add default via 10.1.0.1", "route add ::/0 via fd01::1"),
    )
    with near.entered():
        Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0")
    yield near, far
    near.close()
    far.close()


@pytest.fixture(scope="module")
def attached(datapath: Datapath, cgroup_root: Path) -> Iterator[Path]:
    """The folder of the workloads, with the programs on it; the bench's own workload is elsewhere."""
    folder = cgroup_root / "attached"
    folder.mkdir()
    datapath.attach(folder)
    yield folder
    datapath.detach(folder)


@pytest.fixture
def w(bench: Bench, attached: Path, networks: tuple[Namespace, Namespace]) -> Iterator[World]:
    cgroup = attached / f"w{next(_numbers)}"
    cgroup.mkdir()
    world = World(bench, cgroup, *networks)
    with world.open:
        yield world
    for child in cgroup.glob("*/"):
        child.rmdir()
    cgroup.rmdir()


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(PermissionError):
        call()


def nothing_arrives(s: socket.socket) -> None:
    s.setblocking(False)
    with pytest.raises(BlockingIOError):
        s.recv(1)
    s.settimeout(5)


# ---- TCP --------------------------------------------------------------------------------------------------


@families
def test_an_allowed_server_is_reached_and_talks_back(w: World, version: int) -> None:
    with w.b.counting(POLICY) as told:
        s, server = w.connected(version)
        s.sendall(b"ping")
        assert server.recv(9) == b"ping"
        server.sendall(b"pong")
        assert s.recv(9) == b"pong"
    assert told.pop("ESTABLISHED") > 1
    assert told == {"ALLOWED": 1}


@families
def test_a_refused_connect_gets_eperm_at_once(w: World, version: int) -> None:
    server, s = w.theirs(TCP, BAD[version]), w.mine(TCP, version)
    with w.b.counting(POLICY) as told:
        refused(lambda: w.connect(s, BAD[version]))
    assert told == {"NOT_ALLOWED": 1}
    nothing_accepted(server)


def nothing_accepted(server: socket.socket) -> None:
    server.setblocking(False)
    with pytest.raises(BlockingIOError):
        server.accept()


def test_a_v4_mapped_connect_is_judged_as_ipv4(w: World) -> None:
    w.theirs(TCP, GOOD[4])
    w.connect(w.mine(TCP, 6), "::ffff:" + GOOD[4])
    refused(lambda: w.connect(w.mine(TCP, 6), "::ffff:" + BAD[4]))


@families
def test_a_refused_connect_that_does_not_wait_gets_eperm_too(w: World, version: int) -> None:
    s = w.mine(TCP, version)
    s.setblocking(False)
    with w.as_workload():
        assert s.connect_ex((BAD[version], 80)) == errno.EPERM


@families
def test_another_port_and_an_ended_grant_are_refused_by_name(w: World, version: int) -> None:
    w.b.rule(POLICY, SITE, ONLY_80)
    with w.b.counting(POLICY) as told:
        refused(lambda: w.connect(w.mine(TCP, version), GOOD[version], 81))
        w.b.grant(POLICY, GOOD[version], (SITE, now() - SECOND))
        refused(lambda: w.connect(w.mine(TCP, version), GOOD[version], 80))
    assert told == {"PORT_NOT_ALLOWED": 1, "EXPIRED": 1}


@families
def test_a_refused_socket_may_go_where_it_is_allowed(w: World, version: int) -> None:
    w.theirs(TCP, GOOD[version])
    s = w.mine(TCP, version)
    refused(lambda: w.connect(s, BAD[version]))
    w.connect(s, GOOD[version])


@families
def test_a_socket_that_is_connected_elsewhere_is_judged_anew(w: World, version: int) -> None:
    s, _server = w.connected(version)
    disconnect(s)
    refused(lambda: w.connect(s, BAD[version]))


@families
def test_what_the_connect_hook_does_not_see_egress_drops(w: World, version: int) -> None:
    """The caller is nobody's, the socket is the workload's."""
    server = w.theirs(TCP, BAD[version])
    s, before = w.mine(TCP, version), w.counts()
    s.setblocking(False)
    with pytest.raises(BlockingIOError):
        s.connect((BAD[version], 80))
    w.awaits("NOT_ALLOWED", before)
    nothing_accepted(server)


@families
def test_an_accepted_socket_that_is_connected_elsewhere_is_judged_anew(w: World, version: int) -> None:
    server = w.theirs(TCP, BAD[version], 8080)
    s, _client = w.accepted(version, BAD[version])
    disconnect(s)
    refused(lambda: w.connect(s, BAD[version], 8080))
    before = w.counts()
    s.setblocking(False)
    with pytest.raises(BlockingIOError):
        s.connect((BAD[version], 8080))  # past the hook
    w.awaits("NOT_ALLOWED", before)
    nothing_accepted(server)


@families
def test_a_listener_that_was_reached_and_is_then_connected_is_judged(w: World, version: int) -> None:
    server = w.theirs(TCP, BAD[version], 8080)
    listener = w.mine(TCP, version)
    listener.bind((ME[version], 0))
    listener.listen()
    with w.far.entered():
        client = w.kept(socket.socket(FAMILY[version], TCP))
    client.connect(listener.getsockname()[:2])
    listener.shutdown(socket.SHUT_RD)  # no listener any more (tcp(7))
    before = w.counts()
    listener.setblocking(False)
    with pytest.raises(BlockingIOError):
        listener.connect((BAD[version], 8080))
    w.awaits("NOT_ALLOWED", before)
    nothing_accepted(server)


# ---- Connections from outside -----------------------------------------------------------------------------


@families
@pytest.mark.parametrize("who", [GOOD, BAD], ids=["an allowed peer", "a peer that is not allowed"])
def test_a_listener_accepts_from_outside_and_answers(w: World, version: int, who: dict[int, str]) -> None:
    with w.b.counting(POLICY) as told:
        s, client = w.accepted(version, who[version])
        client.sendall(b"ping")
        assert s.recv(9) == b"ping"
        s.sendall(b"pong")
        assert client.recv(9) == b"pong"
    assert set(told) <= {"INBOUND", "ESTABLISHED"}


@families
def test_a_server_may_speak_first_and_late(w: World, version: int) -> None:
    s, client = w.accepted(version, BAD[version])
    for _ in range(3):
        w.b.policy(POLICY)
        s.sendall(b"hello")
        assert client.recv(9) == b"hello"


@families
def test_a_connection_from_outside_outlives_every_rule(w: World, version: int) -> None:
    s, client = w.accepted(version, GOOD[version])
    s.sendall(b"one")
    assert client.recv(9) == b"one"
    w.withdraw()
    s.sendall(b"two")
    assert client.recv(9) == b"two"
    client.sendall(b"three")
    assert s.recv(9) == b"three"


@families
def test_a_listener_answers_on_many_connections_at_once(w: World, version: int) -> None:
    pairs = [w.accepted(version, BAD[version]) for _ in range(5)]
    for s, client in reversed(pairs):
        s.sendall(b"hello")
        assert client.recv(9) == b"hello"


# ---- UDP --------------------------------------------------------------------------------------------------


@families
def test_a_refused_datagram_gets_eperm(w: World, version: int) -> None:
    s = w.mine(UDP, version)
    with w.b.counting(POLICY) as told, w.as_workload():
        refused(lambda: s.sendto(b"?", (BAD[version], 9)))
    assert told == {"NOT_ALLOWED": 1}


@families
def test_connecting_a_datagram_socket_passes_and_sending_does_not(w: World, version: int) -> None:
    s = w.mine(UDP, version)
    with w.b.counting(POLICY) as told:
        w.connect(s, BAD[version], 9)
    assert told == {}
    refused(lambda: s.send(b"?"))


def test_a_v4_mapped_datagram_is_judged_as_ipv4(w: World) -> None:
    server, s = w.theirs(UDP, GOOD[4], 9), w.mine(UDP, 6)
    s.sendto(b"?", ("::ffff:" + GOOD[4], 9))
    assert server.recv(9) == b"?"
    refused(lambda: s.sendto(b"?", ("::ffff:" + BAD[4], 9)))


@families
def test_one_socket_may_talk_to_several_peers_and_each_is_judged(w: World, version: int) -> None:
    one, two = w.theirs(UDP, GOOD[version], 9), w.theirs(UDP, ALSO_GOOD[version], 9)
    s = w.mine(UDP, version)
    for _ in range(3):
        for server, address in ((one, GOOD[version]), (two, ALSO_GOOD[version])):
            s.sendto(b"ping", (address, 9))
            _, back = server.recvfrom(9)
            server.sendto(b"pong", back)
            assert s.recvfrom(9)[1][:2] == (address, 9)
            refused(lambda: s.sendto(b"?", (BAD[version], 9)))
    assert not list(w.b.d["inbounds"].raw_keys())  # answers are no news from outside


@families
def test_a_datagram_socket_that_is_connected_elsewhere_is_judged_anew(w: World, version: int) -> None:
    w.theirs(UDP, GOOD[version], 9)
    s = w.mine(UDP, version)
    w.connect(s, GOOD[version], 9)
    s.send(b"?")
    disconnect(s)
    w.connect(s, BAD[version], 9)
    refused(lambda: s.send(b"?"))


@families
def test_a_datagram_server_answers_who_asked_from_outside_and_nobody_else(w: World, version: int) -> None:
    s, client, other = w.mine(UDP, version), w.theirs(UDP, BAD[version], 9), w.theirs(UDP, BAD[version], 10)
    s.bind((ME[version], 0))
    client.sendto(b"ping", s.getsockname()[:2])
    _, back = s.recvfrom(9)
    s.sendto(b"pong", back)
    assert client.recv(9) == b"pong"
    refused(lambda: s.sendto(b"?", other.getsockname()[:2]))


@families
def test_a_large_datagram_is_judged_before_the_kernel_fragments_it(w: World, version: int) -> None:
    server, s = w.theirs(UDP, GOOD[version], 9), w.mine(UDP, version)
    with w.b.counting(POLICY) as told:
        s.sendto(b"x" * 9000, (GOOD[version], 9))
        assert len(server.recv(65535)) == 9000
        refused(lambda: s.sendto(b"x" * 9000, (BAD[version], 9)))
    assert told == {"ALLOWED": 1, "NOT_ALLOWED": 1}


def test_a_fragment_made_by_hand_is_dropped(w: World) -> None:
    raw = w.mine(socket.SOCK_RAW, 4, socket.IPPROTO_RAW)
    with w.b.counting(POLICY) as told:
        for fragment in (0x2000, 0x0001, 0x2001):
            packet = p.ipv4(ME[4], GOOD[4], p.UDP, p.udp(9), fragment=fragment)
            refused(lambda packet=packet: raw.sendto(packet, (GOOD[4], 0)))
    assert told == {"FRAGMENT": 3}


# ---- As long as the rule ----------------------------------------------------------------------------------


@families
def test_an_open_connection_outlives_its_grant(w: World, version: int) -> None:
    s, server = w.connected(version)
    w.b.grant(POLICY, GOOD[version], (SITE, now() - SECOND))
    for _ in range(2):
        s.sendall(b"still")
        assert server.recv(9) == b"still"
        w.b.policy(POLICY)  # judged again, by its peer
    refused(lambda: w.connect(w.mine(TCP, version), GOOD[version]))


@families
def test_an_open_datagram_flow_outlives_its_grant(w: World, version: int) -> None:
    servers = [w.theirs(UDP, good[version], 9) for good in (GOOD, ALSO_GOOD)]
    s = w.mine(UDP, version)
    for _ in range(2):
        for server in servers:
            s.sendto(b"still", server.getsockname()[:2])
            assert server.recv(9) == b"still"
            w.b.grant(POLICY, server.getsockname()[0], (SITE, now() - SECOND))
    refused(lambda: w.mine(UDP, version).sendto(b"new", servers[0].getsockname()[:2]))


@families
def test_a_withdrawn_connection_is_cut_both_ways(w: World, version: int) -> None:
    s, server = w.connected(version)
    w.withdraw()
    before = w.counts()
    s.sendall(b"out")
    w.awaits("WITHDRAWN", before)
    nothing_arrives(server)
    before = w.counts()
    server.sendall(b"in")
    w.awaits("WITHDRAWN", before)
    nothing_arrives(s)


@families
def test_a_withdrawn_connection_is_cut_on_the_way_in_before_it_sends(w: World, version: int) -> None:
    s, server = w.connected(version)
    w.withdraw()
    before = w.counts()
    server.sendall(b"in")
    w.awaits("WITHDRAWN", before)
    nothing_arrives(s)


@families
def test_a_withdrawn_datagram_flow_is_cut_both_ways(w: World, version: int) -> None:
    server, s = w.theirs(UDP, GOOD[version], 9), w.mine(UDP, version)
    s.sendto(b"ping", (GOOD[version], 9))
    _, back = server.recvfrom(9)
    w.withdraw()
    refused(lambda: s.sendto(b"again", (GOOD[version], 9)))
    before = w.counts()
    server.sendto(b"pong", back)
    w.awaits("WITHDRAWN", before)
    nothing_arrives(s)


@families
def test_a_withdrawn_flow_put_aside_is_cut_too(w: World, version: int) -> None:
    """Of a socket with two peers, the one that is not at hand."""
    w.b.rule(POLICY, SHOP, ANY)
    w.b.grant(POLICY, ALSO_GOOD[version], (SHOP, now() + LATER))
    one, two = w.theirs(UDP, GOOD[version], 9), w.theirs(UDP, ALSO_GOOD[version], 9)
    s = w.mine(UDP, version)
    s.sendto(b"ping", (GOOD[version], 9))
    _, back = one.recvfrom(9)
    s.sendto(b"ping", (ALSO_GOOD[version], 9))
    w.withdraw(SITE)
    before = w.counts()
    one.sendto(b"pong", back)
    w.awaits("WITHDRAWN", before)
    nothing_arrives(s)
    two.sendto(b"pong", back)
    assert s.recv(9) == b"pong"
    refused(lambda: s.sendto(b"again", (GOOD[version], 9)))


@families
def test_a_rule_that_comes_back_heals_its_connection(w: World, version: int) -> None:
    s, server = w.connected(version)
    w.withdraw()
    before = w.counts()
    s.sendall(b"late")
    w.awaits("WITHDRAWN", before)
    w.b.rule(POLICY, SITE, ANY)
    w.b.policy(POLICY)
    assert server.recv(9) == b"late"


@families
def test_of_two_names_on_one_address_one_may_go(w: World, version: int) -> None:
    live = now() + LATER
    w.b.rule(POLICY, SITE, ONLY_80)
    w.b.rule(POLICY, SHOP, ONLY_81)
    w.b.grant(POLICY, GOOD[version], (SITE, live), (SHOP, live))
    one, server = w.connected(version, 80)
    two, shop = w.connected(version, 81)
    w.withdraw(SHOP)
    one.sendall(b"on")
    assert server.recv(9) == b"on"
    before = w.counts()
    two.sendall(b"off")
    w.awaits("WITHDRAWN", before)
    nothing_arrives(shop)
    refused(lambda: w.connect(w.mine(TCP, version), GOOD[version], 81))
    w.connect(w.mine(TCP, version), GOOD[version], 80)


@families
def test_another_peer_may_take_a_connection_over(w: World, version: int) -> None:
    s, server = w.connected(version)
    w.b.rule(POLICY, SHOP, ANY)
    w.b.grant(POLICY, GOOD[version], (SHOP, now() + LATER))
    w.withdraw(SITE)
    s.sendall(b"on")
    assert server.recv(9) == b"on"


@families
def test_a_workload_that_gets_another_policy_is_judged_by_it(w: World, version: int) -> None:
    """The agent writes the new number, then bumps the generation of the old one."""
    s, server = w.connected(version)
    w.b.classify(w.cgroup, OTHER)
    w.b.policy(POLICY)
    before = w.b.counted((OTHER,))
    s.sendall(b"?")
    wait_until(lambda: w.b.counted((OTHER,)).get("WITHDRAWN", 0) > before.get("WITHDRAWN", 0), "withdrawn")
    nothing_arrives(server)


# ---- Whose socket -----------------------------------------------------------------------------------------


@families
def test_an_unclassified_workload_reaches_nothing(w: World, version: int) -> None:
    w.b.classify(w.cgroup, 0)
    refused(lambda: w.connect(w.mine(TCP, version), GOOD[version]))
    refused(lambda: w.mine(UDP, version).sendto(b"?", (RESOLVER[version], 53)))
    refused(lambda: w.mine(UDP, version).sendto(b"?", ("127.0.0.1" if version == 4 else "::1", 9)))


@families
def test_children_inherit_and_the_nearest_wins(w: World, version: int) -> None:
    w.theirs(TCP, GOOD[version])
    child = w.child()
    w.connect(w.mine(TCP, version, cgroup=child), GOOD[version], cgroup=child)
    refused(lambda: w.connect(w.mine(TCP, version, cgroup=child), BAD[version], cgroup=child))
    w.b.classify(child, OTHER)
    refused(lambda: w.connect(w.mine(TCP, version, cgroup=child), GOOD[version], cgroup=child))
    w.connect(w.mine(TCP, version), GOOD[version])


@families
def test_what_nobody_selected_passes(w: World, version: int) -> None:
    w.theirs(TCP, BAD[version])
    del w.b.d["workloads"][w.number]
    w.connect(w.mine(TCP, version), BAD[version])


@families
def test_audit_mode_refuses_nothing(w: World, version: int) -> None:
    w.b.policy(POLICY, "AUDIT")
    w.theirs(TCP, BAD[version])
    with w.b.counting(POLICY) as told:
        w.connect(w.mine(TCP, version), BAD[version])
        w.mine(UDP, version).sendto(b"?", (BAD[version], 9))
    assert told["NOT_ALLOWED"] >= 3  # at the hook and of every packet


@families
def test_a_refusal_tells_whose_process_it_was(w: World, version: int) -> None:
    events: list[object] = []
    fd = kernel.create_ring(1 << 16)
    ring = kernel.Ring(fd, lambda data: events.append(contract().unpack("struct event", data)))
    w.b.d["events"][POLICY] = fd
    refused(lambda: w.connect(w.mine(TCP, version), BAD[version]))
    refused(lambda: w.mine(UDP, version).sendto(b"?", (BAD[version], 9)))
    ring.consume()
    del w.b.d["events"][POLICY]
    ring.close()
    hooks = contract().enumerators("hook")
    assert [(hooks[event.hook], event.workload) for event in events] == [
        ("HOOK_CONNECT", w.number),
        ("HOOK_EGRESS", w.number),
    ]
    assert events[0].pid in (os.getpid(), 0)  # 0 where the kernel has no such helper


# ---- Loopback and others ----------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", ME[4], ME[6]])
def test_loopback_passes(w: World, address: str) -> None:
    version = 6 if ":" in address else 4
    server, s = w.mine(TCP, version), w.mine(TCP, version)
    server.bind((address, 0))
    server.listen()
    with w.b.counting(POLICY) as told:
        s.connect(server.getsockname()[:2])
        peer = w.kept(server.accept()[0])
        s.sendall(b"ping")
        assert peer.recv(9) == b"ping"
    assert set(told) == {"LOOPBACK"}


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", ME[4], ME[6]])
def test_loopback_datagrams_pass(w: World, address: str) -> None:
    version = 6 if ":" in address else 4
    server, s = w.mine(UDP, version), w.mine(UDP, version)
    server.bind((address, 0))
    s.sendto(b"ping", server.getsockname()[:2])
    assert server.recv(9) == b"ping"
    assert not list(w.b.d["inbounds"].raw_keys())


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", ME[4], ME[6]])
def test_a_workload_connects_to_itself(w: World, address: str) -> None:
    """Its own addresses are told to the hook, which knows no routes yet."""
    version = 6 if ":" in address else 4
    w.b.put("own", (p.packed(address), HOME), 1)
    server, s = w.mine(TCP, version), w.mine(TCP, version)
    server.bind((address, 0))
    server.listen()
    w.connect(s, address, server.getsockname()[1])


@families
def test_what_is_wrongly_told_to_be_its_own_egress_drops(w: World, version: int) -> None:
    w.b.put("own", (p.packed(BAD[version]), HOME), 1)
    server, s, before = w.theirs(TCP, BAD[version]), w.mine(TCP, version), w.counts()
    s.setblocking(False)
    with w.as_workload(), pytest.raises(BlockingIOError):
        s.connect((BAD[version], 80))
    w.awaits("NOT_ALLOWED", before)
    nothing_accepted(server)


@families
def test_another_policy_s_own_address_is_not_ours(w: World, version: int) -> None:
    w.b.put("own", (p.packed(BAD[version]), HOME + 1), 1)
    refused(lambda: w.connect(w.mine(TCP, version), BAD[version]))


def test_loopback_s_address_by_a_real_device_is_dropped(w: World) -> None:
    raw = w.mine(socket.SOCK_RAW, 4, socket.IPPROTO_RAW)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"inside\0")
    packet = p.ipv4("127.0.0.1", "127.0.0.9", p.UDP, p.udp(9, payload=b"secret"))
    with w.b.counting(POLICY) as told:
        refused(lambda: raw.sendto(packet, ("127.0.0.9", 0)))
    assert told == {"NOT_ALLOWED": 1}


def test_a_syn_forged_over_loopback_is_dropped_and_marks_no_listener(w: World) -> None:
    listener = w.mine(TCP)
    listener.bind((ME[4], 0))
    listener.listen()
    raw = w.mine(socket.SOCK_RAW, 4, socket.IPPROTO_RAW)
    packet = p.ipv4(BAD[4], ME[4], p.TCP, p.tcp(listener.getsockname()[1]))
    with w.b.counting(POLICY) as told:
        refused(lambda: raw.sendto(packet, (ME[4], 0)))
    assert told == {"SPOOFED": 1}


def test_a_forged_source_is_dropped_like_its_own(w: World) -> None:
    raw = w.mine(socket.SOCK_RAW, 4, socket.IPPROTO_RAW)
    for source in (GOOD[4], "127.0.0.1", ME[4]):
        refused(lambda source=source: raw.sendto(p.ipv4(source, BAD[4], p.UDP, p.udp(9)), (BAD[4], 0)))


PING, PROTOCOL = {4: 8, 6: 128}, {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}


@families
@pytest.mark.parametrize("kind", [UDP, socket.SOCK_RAW], ids=["a ping socket", "a raw socket"])
def test_a_ping_is_answered_where_it_is_allowed(w: World, version: int, kind: int) -> None:
    w.b.rule(POLICY, SITE, PINGS)
    s = w.mine(kind, version, PROTOCOL[version])
    s.sendto(p.icmp(PING[version]), (GOOD[version], 0))
    assert s.recv(99)
    with w.b.counting(POLICY) as told:
        try:
            s.sendto(p.icmp(PING[version]), (BAD[version], 0))
        except PermissionError:
            pass
        else:  # the kernel does not hand on what became of it (net/ipv6/ping.c)
            assert (version, kind) == (6, UDP)
    assert told == {"NOT_ALLOWED": 1}
    assert not list(w.b.d["inbounds"].raw_keys())


@families
def test_a_ping_flow_opens_nothing_for_icmp_errors(w: World, version: int) -> None:
    """An identifier of 0 makes an echo look like any other message of its socket."""
    w.b.rule(POLICY, SITE, PINGS)
    s = w.mine(socket.SOCK_RAW, version, PROTOCOL[version])
    s.sendto(p.icmp(PING[version], identifier=0), (GOOD[version], 0))
    refused(lambda: s.sendto(p.icmp(3, identifier=0), (GOOD[version], 0)))


# ---- DNS --------------------------------------------------------------------------------------------------


def a_question(name: str = "www.example.com", number: int = 4711) -> bytes:
    return struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0) + wire(name) + b"\0\1\0\1"


def an_answer(question: bytes, *addresses: str, size: int = 0) -> bytes:
    """With the addresses, and opaque data up to `size`."""
    answer = Answer(random.Random(0), name=question[12:-4])
    answer.number = int.from_bytes(question[:2], "big")
    for address in addresses:
        answer.add(1, p.packed(address)[12:], owner=b"\xc0\x0c", ttl=60)
    if size:
        answer.add(16, bytes(size - len(answer.bytes()) - 12), owner=b"\xc0\x0c", section=3)
    return answer.bytes()


@pytest.fixture
def names(w: World) -> World:
    w.b.name(POLICY, "*.example.com", SITE)
    return w


@families
def test_the_first_packet_after_an_answer_is_never_lost(names: World, version: int) -> None:
    w = names
    server, s = w.theirs(UDP, RESOLVER[version], 53), w.mine(UDP, version)
    w.theirs(TCP, BAD[4])
    refused(lambda: w.connect(w.mine(TCP), BAD[4]))
    s.sendto(a_question(), (RESOLVER[version], 53))
    question, back = server.recvfrom(512)
    server.sendto(an_answer(question, BAD[4]), back)
    s.recv(512)
    w.connect(w.mine(TCP), BAD[4])


@families
def test_an_answer_to_a_connected_socket_counts(names: World, version: int) -> None:
    w = names
    server, s = w.theirs(UDP, RESOLVER[version], 53), w.mine(UDP, version)
    w.connect(s, RESOLVER[version], 53)
    for number in range(3):
        s.send(a_question(f"n{number}.example.com", number))
        question, back = server.recvfrom(512)
        server.sendto(an_answer(question, f"198.51.100.{number}"), back)
        s.recv(512)
        assert w.b.d["grants"].get((p.packed(f"198.51.100.{number}"), POLICY))


def test_an_answer_to_another_socket_of_the_workload_teaches_nothing(names: World) -> None:
    w = names
    server, s, other = w.theirs(UDP, RESOLVER[4], 53), w.mine(UDP), w.mine(UDP)
    other.bind((ME[4], 0))
    s.sendto(a_question(), (RESOLVER[4], 53))
    question, back = server.recvfrom(512)
    with w.b.counting(POLICY) as told:
        server.sendto(an_answer(question, BAD[4]), other.getsockname())
        other.recv(512)
        server.sendto(an_answer(question, BAD[4]), back)
        s.recv(512)
    assert told == {"ANSWER_UNASKED": 1, "LEARNED": 1}


def test_an_answer_from_elsewhere_teaches_nothing(names: World) -> None:
    w = names
    server, liar, s = w.theirs(UDP, RESOLVER[4], 53), w.theirs(UDP, BAD[4], 53), w.mine(UDP)
    s.sendto(a_question(), (RESOLVER[4], 53))
    question, back = server.recvfrom(512)
    liar.sendto(an_answer(question, BAD[4]), back)
    s.recv(512)
    assert w.b.d["grants"].get((p.packed(BAD[4]), POLICY)) is None


def test_a_second_answer_teaches_nothing(names: World) -> None:
    w = names
    server, s = w.theirs(UDP, RESOLVER[4], 53), w.mine(UDP)
    s.sendto(a_question(), (RESOLVER[4], 53))
    question, back = server.recvfrom(512)
    with w.b.counting(POLICY) as told:
        for address in ("198.51.100.1", BAD[4]):
            server.sendto(an_answer(question, address), back)
            s.recv(512)
    assert told == {"LEARNED": 1, "ANSWER_UNASKED": 1}
    assert w.b.d["grants"].get((p.packed(BAD[4]), POLICY)) is None


@families
@pytest.mark.parametrize("size", [1400, 4095, 4096, 4097, 9000, 60000])
def test_an_answer_of_any_size_teaches_what_its_first_4096_bytes_hold(
    names: World, version: int, size: int
) -> None:
    """Most come in fragments here; the hook sees one whole datagram."""
    w = names
    server, s = w.theirs(UDP, RESOLVER[version], 53), w.mine(UDP, version)
    s.sendto(a_question(), (RESOLVER[version], 53))
    question, back = server.recvfrom(512)
    message = an_answer(question, "198.51.100.1", "198.51.100.2", size=size)
    assert len(message) == size
    with w.b.counting(POLICY) as told:
        server.sendto(message, back)
        assert len(s.recv(65535)) == size
    assert told == {"LEARNED": 2} | ({"ANSWER_LONG": 1} if size > 4096 else {})


@pytest.fixture
def local_resolver(w: World, attached: Path) -> Iterator[socket.socket]:
    """A resolver on this host, in a cgroup of its own that nobody filters."""
    cgroup = attached / "resolver"
    cgroup.mkdir(exist_ok=True)
    w.b.d.attach(cgroup, ("resolver",))
    for policy in (0, POLICY):
        w.b.resolver(policy, "127.0.0.53")
    server = w.mine(UDP, cgroup=cgroup)
    server.bind(("127.0.0.53", 53))
    yield server
    w.b.d.detach(cgroup)


@pytest.mark.parametrize("size", [0, 4096, 9000])
def test_a_resolver_on_this_host_teaches_at_its_own_socket(
    names: World, local_resolver: socket.socket, size: int
) -> None:
    s = names.mine(UDP)
    s.sendto(a_question(), ("127.0.0.53", 53))
    question, back = local_resolver.recvfrom(512)
    local_resolver.sendto(an_answer(question, BAD[4], size=size), back)
    assert names.b.d["grants"].get((p.packed(BAD[4]), POLICY))  # before it is read


def test_an_answer_forged_over_loopback_teaches_nothing(names: World, local_resolver: socket.socket) -> None:
    w = names
    s, raw = w.mine(UDP), w.mine(socket.SOCK_RAW, 4, socket.IPPROTO_RAW)
    s.sendto(a_question(), ("127.0.0.53", 53))
    question, back = local_resolver.recvfrom(512)
    forged = p.udp(back[1], 53, an_answer(question, BAD[4]))
    raw.sendto(p.ipv4("127.0.0.53", back[0], p.UDP, forged), (back[0], 0))
    s.recv(512)
    assert w.b.d["grants"].get((p.packed(BAD[4]), POLICY)) is None
