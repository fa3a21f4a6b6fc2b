"""What a workload may do passes its link: real sockets in both families, link and cgroup attached.

The attacks are in test_link_attacks.py.
"""

from __future__ import annotations

import errno
import os
import socket
import subprocess
from pathlib import Path

import pytest

from bpf import kernel
from bpf.compile import INSTRUCTION
from bpf.load import LINK, LINKS
from gateway.room import Room
from tests.kernel import packets as p
from tests.kernel.bench import FAMILY, SECOND, TCP, UDP, Namespace, now, wait_until
from tests.kernel.link_lab import (
    ANY,
    GOOD,
    PING,
    POD,
    POLICY,
    SITE,
    World,
    datagram,
)

families = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])


@pytest.fixture
def w(w_link: World) -> World:
    return w_link


def read(s: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        found += s.recv(size - len(found))
    return found


@families
def test_a_connection_is_judged_once_and_talks_both_ways(w: World, version: int) -> None:
    with w.b.counting(POLICY) as told:
        s, server = w.connected(version)
        s.sendall(b"ping")
        assert server.recv(9) == b"ping"
        server.sendall(b"x" * 100_000)
        assert read(s, 100_000) == b"x" * 100_000
        s.sendall(b"y" * 100_000)
        assert read(server, 100_000) == b"y" * 100_000
    assert told.pop("ESTABLISHED") > 1
    told.pop("NEIGHBOUR", 0)
    assert told == {"ALLOWED": 1}


@families
def test_an_admitted_datagram_and_its_answer_pass_uncounted_by_the_link(w: World, version: int) -> None:
    server, s = w.theirs(UDP, GOOD[version], 81), w.mine(UDP, version)
    with w.b.counting(POLICY) as told:
        w.connect(s, GOOD[version], 81)
        for _ in range(3):
            s.send(b"ping")
            _, client = server.recvfrom(9)
            server.sendto(b"pong", client)
            assert s.recv(9) == b"pong"
    told.pop("NEIGHBOUR", 0)
    assert told == {"ALLOWED": 1, "ESTABLISHED": 2}


@families
def test_a_datagram_larger_than_the_link_arrives_in_pieces(w: World, version: int) -> None:
    server, s = w.theirs(UDP, GOOD[version], 81), w.mine(UDP, version)
    w.connect(s, GOOD[version], 81)
    for i in range(20):
        s.send(bytes([i]) * 9000)
        assert server.recv(65536) == bytes([i]) * 9000
    server.sendto(b"z" * 9000, s.getsockname()[:2])
    assert s.recv(65536) == b"z" * 9000


@families
def test_the_workload_pings_and_is_pinged(w: World, version: int) -> None:
    s = w.mine(UDP, version, PING[version])
    with w.as_workload():
        s.sendto(p.icmp({4: 8, 6: 128}[version], payload=b"from inside"), (GOOD[version], 0))
    assert b"from inside" in s.recv(999)
    with w.lab.world.entered():
        Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0")
        other = w.kept(socket.socket(FAMILY[version], UDP, PING[version]))
    other.sendto(p.icmp({4: 8, 6: 128}[version], payload=b"from outside"), (POD[version], 0))
    assert b"from outside" in other.recv(999)


@families
def test_a_connection_from_outside_is_answered_for_as_long_as_it_lasts(w: World, version: int) -> None:
    listener = w.mine(TCP, version)
    with w.as_workload():
        listener.bind((POD[version], 8080))
    listener.listen()
    with w.lab.world.entered():
        client = w.kept(socket.socket(FAMILY[version], TCP))
    client.connect((POD[version], 8080))
    inside = w.kept(listener.accept()[0])
    for key in list(w.b.d["inbounds"].raw_keys()):  # the link has long forgotten that it came
        w.b.d["inbounds"].remove_raw(key)
    inside.sendall(b"hello")
    assert client.recv(9) == b"hello"
    client.sendall(b"hello you")
    assert inside.recv(9) == b"hello you"


@families
def test_a_closed_port_is_told_by_a_reset(w: World, version: int) -> None:
    with w.lab.world.entered():
        client = w.kept(socket.socket(FAMILY[version], TCP))
    assert client.connect_ex((POD[version], 8081)) == errno.ECONNREFUSED


@families
def test_a_datagram_from_outside_is_answered(w: World, version: int) -> None:
    s, outside = w.mine(UDP, version), w.theirs(UDP, GOOD[version], 9)
    w.b.rule(POLICY, SITE, 0)
    with w.as_workload():
        s.bind((POD[version], 7000))
    outside.sendto(b"question", (POD[version], 7000))
    said, peer = s.recvfrom(99)
    s.sendto(said.upper(), peer)
    assert outside.recv(99) == b"QUESTION"


@families
def test_a_closed_udp_port_is_told_to_who_may_be_reached(w: World, version: int) -> None:
    outside = w.theirs(UDP, GOOD[version], 9)
    with w.lab.world.entered():
        outside.connect((POD[version], 7001))
        outside.send(b"anybody?")
    with pytest.raises(ConnectionRefusedError):
        outside.recv(9)


@families
def test_what_ends_a_connection_after_its_socket_passes(w: World, version: int) -> None:
    """Who closes first is in TIME-WAIT: the kernel answers without a socket, also when the grant is over."""
    s, server = w.connected(version)
    w.b.grant(POLICY, GOOD[version], (SITE, now() - SECOND))
    s.sendall(b"still open")
    assert server.recv(99) == b"still open"
    s.close()
    assert server.recv(99) == b""
    with w.b.counting(POLICY) as told:
        server.close()
        wait_until(lambda: not connections(w, version), "the last acknowledgment")
    assert "EXPIRED" not in told


def connections(w: World, version: int) -> str:
    """What of the world's connections is not acknowledged."""
    with w.lab.world.entered():
        said = subprocess.run(
            ["ss", "-Htan", "state", "last-ack"], capture_output=True, text=True, check=True
        )
    return said.stdout


@families
def test_a_flow_outlives_its_grant_and_ends_with_its_rule(w: World, version: int) -> None:
    server, s = w.theirs(UDP, GOOD[version], 81), w.mine(UDP, version)
    w.connect(s, GOOD[version], 81)
    s.send(b"one")
    w.b.grant(POLICY, GOOD[version], (SITE, now() - SECOND))
    s.send(b"two")
    assert (server.recv(9), server.recv(9)) == (b"one", b"two")
    w.b.rule(POLICY, SITE, 0)
    w.b.policy(POLICY)
    with pytest.raises(PermissionError):
        s.send(b"three")


@families
def test_a_frame_without_a_socket_outlives_its_grant_and_ends_with_its_rule(w: World, version: int) -> None:
    assert w.leaves(datagram(GOOD[version], b"first;"), marker=b"first;")
    w.b.grant(POLICY, GOOD[version], (SITE, now() - SECOND))
    w.wire.send(datagram(GOOD[version], b"second;"))
    w.b.grant(POLICY, GOOD[4], (SITE, now() + 10 * SECOND))
    assert w.came(b"second;")
    w.b.rule(POLICY, SITE, ANY << 3)
    w.b.policy(POLICY)
    with w.b.counting(POLICY) as told:
        w.wire.send(datagram(GOOD[version], b"third;"))
        wait_until(lambda: w.counts().get("WITHDRAWN", 0) > 0, "it is dropped")
    assert told["WITHDRAWN"] == 1


@families
def test_the_path_s_mtu_is_found(w: World, version: int) -> None:
    """What says that a packet was too big comes in, and the next ones are smaller."""
    s, server = w.connected(version)
    mtu = 1280
    w.lab.node.ip(f"link set up0 mtu {mtu}")
    try:
        s.sendall(b"x" * 100_000)
        assert read(server, 100_000) == b"x" * 100_000
    finally:
        w.lab.node.ip("link set up0 mtu 1500")


@families
def test_neighbours_find_each_other(w: World, version: int) -> None:
    for namespace, device in ((w.lab.pod, "inside"), (w.lab.node, "pod0")):
        namespace.ip(f"neigh flush dev {device}")
    s, server = w.connected(version)
    s.sendall(b"hello")
    assert server.recv(9) == b"hello"


def test_addresses_are_proved_to_be_nobody_elses_and_groups_are_told(w: World) -> None:
    """RFC 4862 5.4, RFC 3810: without a source, or with one that is not known yet."""
    with w.b.counting(POLICY) as told:
        with w.lab.pod.entered():
            Path("/proc/sys/net/ipv6/conf/inside/accept_dad").write_text("1")
        w.b.put("own", (p.packed("fd09::abcd"), w.lab.home), 1)
        w.lab.pod.ip("addr add fd09::abcd/64 dev inside")
        wait_until(lambda: "tentative" not in addresses(w), "the address is used")
        with w.lab.pod.entered():
            Path("/proc/sys/net/ipv6/conf/inside/accept_dad").write_text("0")
        w.lab.pod.ip("addr del fd09::abcd/64 dev inside")
    assert told.pop("NEIGHBOUR") > 0
    assert not told


def addresses(w: World) -> str:
    with w.lab.pod.entered():
        said = subprocess.run(["ip", "addr", "show", "inside"], capture_output=True, text=True, check=True)
    return said.stdout


def test_a_link_of_nobody_passes_nothing(w: World) -> None:
    del w.b.d["links"][w.lab.index]
    before = w.b.counted((0,)).get("UNCLASSIFIED", 0)
    w.wire.send(b"x" * 60)
    wait_until(lambda: w.b.counted((0,)).get("UNCLASSIFIED", 0) > before, "it is dropped")


def test_of_a_workload_that_ended_its_link_keeps_no_row(w: World) -> None:
    for version in (4, 6):
        assert w.leaves(datagram(GOOD[version], b"alone;"), marker=b"alone;")
        with w.lab.world.entered():
            client = w.kept(socket.socket(FAMILY[version], TCP))
        client.connect_ex((POD[version], 8081))
        server, s = w.theirs(UDP, GOOD[version], 81), w.mine(UDP, version)
        w.connect(s, GOOD[version], 81)
        s.send(b"p" * 9000)
        assert server.recv(65536)
    written = ("flows", "flow_ring", "inbounds", "inbound_ring", "tallies", "fragments")
    assert all(any(w.b.d[name].raw_keys()) for name in written)
    Room(w.b.d).forget(w.number)
    assert not any(any(w.b.d[name].raw_keys()) for name in written)


def test_the_link_s_programs_come_first_and_are_replaced_in_place(w: World) -> None:
    """Those of other tools stay, in their order."""
    pass_on = INSTRUCTION.pack(0xB7, 0, 0, -1) + INSTRUCTION.pack(0x95, 0, 0, 0)
    made = [kernel.load_program(f"test{i}", pass_on, LINK, 0) for i in range(3)]
    theirs, ours, new = (int(kernel.program_info(fd).id) for fd in made)
    other = Namespace()
    other.ip("link add one type veth peer name two")
    with other.entered():
        for hook in LINKS.hooks.values():
            index = socket.if_nametoindex("one")
            kernel.attach_to_link(made[0], index, hook)
            kernel.attach_to_link(made[1], index, hook)
            assert kernel.attached(index, hook) == [ours, theirs]
            kernel.attach_to_link(made[2], index, hook, replaced=made[1])
            assert kernel.attached(index, hook) == [new, theirs]
            kernel.detach(made[2], index, hook)
            assert kernel.attached(index, hook) == [theirs]
    other.close()
    for fd in made:
        os.close(fd)
