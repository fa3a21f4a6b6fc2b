"""What machines behind a gateway may do passes, what they may not is told at once; both families.

The attacks are in test_gateway_attacks.py.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import struct
import time
from pathlib import Path

import pytest

from bpf.datapath import Datapath
from gateway.room import Room
from tests.kernel import packets as p
from tests.kernel.bench import SECOND, TCP, UDP, now, wait_until
from tests.kernel.gateway_lab import (
    ANY,
    BAD,
    GOOD,
    HERE,
    HERE_MAC,
    MACHINE,
    ONLY_80,
    OTHER,
    OTHERS,
    OUTSIDE,
    POLICY,
    SILENT,
    SITE,
    STRANGER,
    VM,
    VM_MAC,
    Machines,
    datagram,
    segment,
)
from tests.kernel.link_lab import PING, checksum, packet, signed, summed

families = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
AT_ONCE = 0.9  # seconds: a lost SYN is sent again after one
UNREACHABLE = {4: errno.EHOSTUNREACH, 6: errno.EACCES}  # icmp(7), icmpv6: administratively prohibited


def read(s: socket.socket, size: int) -> bytes:
    found = b""
    while len(found) < size:
        found += s.recv(size - len(found))
    return found


def refusal(m: Machines, version: int, address: str, port: int = 80) -> float:
    """How many seconds it took to be refused."""
    begin = time.monotonic()
    assert m.mine(TCP, version).connect_ex((address, port)) == errno.ECONNREFUSED
    return time.monotonic() - begin


# ---- What passes


@families
def test_a_connection_is_judged_once_and_talks_both_ways(m: Machines, version: int) -> None:
    with m.b.counting(POLICY) as told:
        s, server = m.connected(version)
        assert server.getpeername()[0] == OUTSIDE[version]
        s.sendall(b"ping")
        assert server.recv(9) == b"ping"
        server.sendall(b"x" * 100_000)
        assert read(s, 100_000) == b"x" * 100_000
        s.sendall(b"y" * 100_000)
        assert read(server, 100_000) == b"y" * 100_000
    assert told.pop("ESTABLISHED") > 1
    assert told == {"ALLOWED": 1}


@families
def test_datagrams_pass_and_so_do_their_answers(m: Machines, version: int) -> None:
    server, s = m.theirs(UDP, GOOD[version], 81), m.mine(UDP, version)
    s.connect((GOOD[version], 81))
    for size in (4, 9000):
        s.send(b"q" * size)
        said, client = server.recvfrom(65536)
        server.sendto(said.upper(), client)
        assert s.recv(65536) == b"Q" * size


@families
def test_an_address_within_a_prefix_of_the_policy_passes(m: Machines, version: int) -> None:
    m.theirs(TCP, BAD[version])
    m.b.prefix(POLICY, {4: "203.0.113.0/30", 6: "2001:db8::/126"}[version], SITE)
    m.mine(TCP, version).connect((BAD[version], 80))


@families
def test_a_ping_passes(m: Machines, version: int) -> None:
    with m.site.machines.entered():
        Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0")
    s = m.mine(UDP, version, protocol=PING[version])
    s.sendto(p.icmp({4: 8, 6: 128}[version], payload=b"anybody?"), (GOOD[version], 0))
    assert b"anybody?" in s.recv(999)


@families
def test_the_path_s_mtu_is_found(m: Machines, version: int) -> None:
    s, server = m.connected(version)
    m.site.gateway.ip("link set up0 mtu 1280")
    try:
        s.sendall(b"x" * 100_000)
        assert read(server, 100_000) == b"x" * 100_000
    finally:
        m.site.gateway.ip("link set up0 mtu 1500")


@families
def test_the_gateway_itself_is_reached_and_judges_for_itself(m: Machines, version: int) -> None:
    """Without a mark, so that it goes nowhere else."""
    server = m.here(TCP, HERE[version], 8080)
    with m.b.counting(POLICY) as told:
        m.mine(TCP, version).connect((HERE[version], 8080))
        m.kept(server.accept()[0])
    assert not told


@families
def test_an_exempt_machine_passes_unread(m: Machines, version: int) -> None:
    m.b.put("workloads", MACHINE, (65535, 0, 0))
    m.theirs(TCP, BAD[version])
    m.mine(TCP, version).connect((BAD[version], 80))


@families
def test_audit_lets_pass_and_tells(m: Machines, version: int) -> None:
    m.b.policy(POLICY, "AUDIT")
    server, s = m.theirs(TCP, BAD[version]), m.mine(TCP, version)
    with m.b.counting(POLICY) as told:
        s.connect((BAD[version], 80))
        s.sendall(b"hello")
        assert m.kept(server.accept()[0]).recv(9) == b"hello"
    assert set(told) == {"NOT_ALLOWED"}


# ---- What does not


@families
def test_a_refused_connection_is_reset_at_once(m: Machines, version: int) -> None:
    with m.b.counting(POLICY) as told:
        assert refusal(m, version, BAD[version]) < AT_ONCE
    assert told == {"NOT_ALLOWED": 1}


@families
def test_a_refused_datagram_is_told_by_icmp(m: Machines, version: int) -> None:
    s = m.mine(UDP, version)
    s.connect((BAD[version], 81))
    s.send(b"hello")
    with pytest.raises(OSError, match=os.strerror(UNREACHABLE[version])):
        s.recv(9)


@families
def test_another_port_is_refused_by_its_name(m: Machines, version: int) -> None:
    m.b.rule(POLICY, SITE, ONLY_80)
    with m.b.counting(POLICY) as told:
        refusal(m, version, GOOD[version], 443)
    assert told == {"PORT_NOT_ALLOWED": 1}


@families
def test_who_is_no_client_is_not_touched_and_not_forwarded(m: Machines, version: int) -> None:
    with m.b.counting(0, POLICY) as told:
        assert not m.leaves(datagram(GOOD[version], b"loot;", source=STRANGER[version]), marker=b"loot;")
    assert "UNCLASSIFIED" not in told


@families
def test_a_machine_that_nobody_registered_has_its_network_s_policy(m: Machines, version: int) -> None:
    network, bits = {4: ("10.99.0.0", 120), 6: ("fd99::", 64)}[version]
    m.b.put("workloads", MACHINE + 7, (OTHERS, 0, m.site.home))
    m.b.put("sources", (bits, p.packed(network)), MACHINE + 7)
    assert m.leaves(datagram(GOOD[version], b"first;", source=STRANGER[version]), marker=b"first;")
    m.b.rule(OTHERS, SITE, ANY << 5)
    m.b.policy(OTHERS)
    with m.b.counting(OTHERS) as told:
        packet = datagram(GOOD[version], b"second;", port=82, source=STRANGER[version])
        assert not m.leaves(packet, marker=b"second;")
    assert told == {"PORT_NOT_ALLOWED": 1}


@families
def test_a_machine_without_a_policy_yet_passes_nothing(m: Machines, version: int) -> None:
    m.enter(MACHINE + 1, 0)
    packet = datagram(GOOD[version], b"loot;", source=OTHER[version])
    with m.b.counting(0) as told:
        assert not m.leaves(packet, marker=b"loot;")
        del m.b.d["workloads"][MACHINE + 1]
        assert not m.leaves(packet, marker=b"loot;")
    assert told == {"UNCLASSIFIED": 2}


# ---- How long


@families
def test_a_connection_outlives_its_grant_and_ends_with_its_rule(m: Machines, version: int) -> None:
    s, server = m.connected(version)
    m.b.grant(POLICY, GOOD[version], (SITE, now() - SECOND))
    s.sendall(b"still open")
    assert server.recv(99) == b"still open"
    with m.b.counting(POLICY) as told:
        refusal(m, version, GOOD[version])
    assert told == {"EXPIRED": 1}
    m.b.rule(POLICY, SITE, 0)
    m.b.policy(POLICY)
    s.sendall(b"no more")
    with pytest.raises(ConnectionResetError):
        s.recv(9)


@families
def test_a_tuple_that_is_used_again_does_not_outlive_its_grant(m: Machines, version: int) -> None:
    s, _server = m.connected(version)
    port = s.getsockname()[1]
    m.b.grant(POLICY, GOOD[version], (SITE, now() - SECOND))
    syn = segment(GOOD[version], p.SYN, b"loot;", ports=(port, 80))
    with m.b.counting(POLICY) as told:
        assert not m.leaves(syn, marker=b"loot;")
    assert told["EXPIRED"] >= 1


@families
def test_a_silent_connection_is_remembered_for_hours(m: Machines, version: int) -> None:
    s, server = m.connected(version)
    wait_until(lambda: phases(m) == [1], "it is established")
    silent(m, 7400)
    s.sendall(b"still there?")
    assert server.recv(99) == b"still there?"
    silent(m, 7500)
    s.sendall(b"still there?")
    with pytest.raises(ConnectionResetError):
        s.recv(9)


def silent(m: Machines, seconds: int) -> None:
    for key, flow in list(m.b.d["flows"].items()):
        flow.seen = now() - seconds * SECOND
        m.b.d["flows"][key[0]] = flow[0]


def phases(m: Machines) -> list[int]:
    return [int(flow.phase) for _, flow in m.b.d["flows"].items() if flow.tuple.protocol == p.TCP]


@families
def test_a_connection_that_ended_makes_room_at_once(m: Machines, version: int) -> None:
    """Also where it was the server that ended it."""
    m.b.d.set(flows=4)
    listener = m.theirs(TCP, GOOD[version])
    try:
        for _ in range(3):
            for _ in range(4):
                s = m.mine(TCP, version)
                s.connect((GOOD[version], 80))
                listener.accept()[0].close()
                assert s.recv(9) == b""
                s.close()
            wait_until(lambda: all(phase & 6 == 6 for phase in phases(m)), "all have ended")
    finally:
        m.b.d.set(flows=2048)


@families
def test_a_segment_of_no_known_connection_is_reset(m: Machines, version: int) -> None:
    """As after another gateway has failed: it would be translated to another port."""
    s, server = m.connected(version)
    for raw in list(m.b.d["flows"].raw_keys()):
        m.b.d["flows"].remove_raw(raw)
    with m.b.counting(POLICY) as told:
        s.sendall(b"hello")
        with pytest.raises(ConnectionResetError):
            s.recv(9)
    assert told["OUT_OF_STATE"] >= 1
    server.settimeout(0.05)
    with pytest.raises(TimeoutError):
        server.recv(9)


@families
def test_segments_that_are_one_for_a_while_are_reset_as_one(m: Machines, version: int) -> None:
    """Of a buffer that is cut later only the headers come back, with the sum that they begin with."""
    s, _server = m.connected(version)
    back = m.tap_of(m.site.machines)
    for raw in list(m.b.d["flows"].raw_keys()):
        m.b.d["flows"].remove_raw(raw)
    s.sendall(b"x" * 20_000)
    sent = next(raw for raw in iter(lambda: back.recv(65536), b"") if len(raw) > 1600)
    assert sent[6:12] == VM_MAC
    reset = next(raw for raw in iter(lambda: back.recv(65536), b"") if raw[6:12] == HERE_MAC)[14:]
    head = 20 if version == 4 else 40
    assert len(reset) == head + (reset[head + 12] >> 4) * 4
    assert reset[head + 13] == p.RST
    if version == 4:
        assert (signed(reset), int.from_bytes(reset[2:4], "big")) == (reset, len(reset))
    else:
        assert int.from_bytes(reset[4:6], "big") == len(reset) - 40
    addresses = reset[8:40] if version == 6 else reset[12:20]
    pseudo = ~checksum(addresses + struct.pack(">II", len(reset) - head, p.TCP)) & 0xFFFF
    assert int.from_bytes(reset[head + 16 : head + 18], "big") == pseudo
    with pytest.raises(ConnectionResetError):
        s.recv(9)


@families
def test_where_nothing_is_translated_it_goes_on(m: Machines, version: int) -> None:
    m.b.d.set(pick_up=1)
    s, server = m.connected(version)
    for raw in list(m.b.d["flows"].raw_keys()):
        m.b.d["flows"].remove_raw(raw)
    s.sendall(b"hello")
    assert server.recv(9) == b"hello"


@families
def test_withdrawn_datagrams_end_in_both_directions(m: Machines, version: int) -> None:
    server, s = m.theirs(UDP, GOOD[version], 81), m.mine(UDP, version)
    s.connect((GOOD[version], 81))
    s.send(b"hello")
    _, client = server.recvfrom(9)
    server.sendto(b"one", client)
    assert s.recv(9) == b"one"
    m.b.rule(POLICY, SITE, 0)
    m.b.policy(POLICY)
    with m.b.counting(POLICY) as told:
        server.sendto(b"two", client)
        wait_until(lambda: m.b.counted((POLICY,)).get("WITHDRAWN", 0) > 0, "it is dropped")
    assert told["WITHDRAWN"] == 1
    s.settimeout(0.05)
    with pytest.raises(TimeoutError):
        s.recv(9)


# ---- From machine to machine


def passed(m: Machines, *packets: bytes, marker: bytes) -> bool:
    """Whether one of them comes back to the machines' side, as the gateway forwards it."""
    back = m.tap_of(m.site.machines)
    for each in (*packets, datagram(OTHER[4], b"fence;", port=9999)):
        m.send(each)
    sources = {ipaddress.ip_address(each[8:24] if each[0] >> 4 == 6 else each[12:16]) for each in packets}
    found = False
    while True:
        seen = back.recv(65536)
        ip = seen[14:]
        if seen[6:12] == VM_MAC:
            continue
        source = ipaddress.ip_address(ip[8:24] if ip[0] >> 4 == 6 else ip[12:16])
        found |= source in sources and marker in seen
        if b"fence;" in seen:
            break
    return found


@families
def test_a_machine_answers_another_one_but_does_not_call_it(m: Machines, version: int) -> None:
    m.b.prefix(POLICY, {4: "10.20.0.3/32", 6: "fd20::3/128"}[version], SITE)
    m.b.prefix(POLICY, "10.20.0.3/32", SITE)
    syn = segment(OTHER[version], p.SYN, b"syn;", ports=(40000, 22))
    answer = segment(VM[version], p.SYN_ACK, b"synack;", OTHER[version], (22, 40000))
    more = segment(VM[version], p.ACK, b"more;", OTHER[version], (22, 40000))
    call = segment(VM[version], p.SYN, b"call;", OTHER[version], (22, 40000))
    assert not passed(m, answer, marker=b"synack;")
    assert passed(m, syn, marker=b"syn;")
    assert not passed(m, call, marker=b"call;")
    assert passed(m, answer, marker=b"synack;")
    for raw in list(m.b.d["inbounds"].raw_keys()):  # it has lasted for longer than that is remembered
        m.b.d["inbounds"].remove_raw(raw)
    assert passed(m, more, marker=b"more;")


@families
def test_a_machine_answers_another_one_s_datagram(m: Machines, version: int) -> None:
    m.b.prefix(POLICY, {4: "10.20.0.3/32", 6: "fd20::3/128"}[version], SITE)
    m.b.prefix(POLICY, "10.20.0.3/32", SITE)
    ask = summed_udp(VM[version], OTHER[version], 4000, 5000, b"ask;")
    answer = summed_udp(OTHER[version], VM[version], 5000, 4000, b"answer;")
    assert not passed(m, answer, marker=b"answer;")
    assert passed(m, ask, marker=b"ask;")
    assert passed(m, answer, marker=b"answer;")


def summed_udp(source: str, to: str, port: int, to_port: int, payload: bytes) -> bytes:
    return summed(packet(source, to, p.UDP, p.udp(to_port, port, payload)), 6)


# ---- What other gateways may know


@families
def test_what_is_missed_is_held_back_once_then_refused(m: Machines, version: int) -> None:
    m.b.policy(POLICY, "SHARED")
    m.b.d.set(hold_back=2000)
    syn = [segment(BAD[version], p.SYN, b"loot;", ports=(port, 80)) for port in range(5000, 5003)]
    with m.b.counting(POLICY) as counts, m.events() as told:
        assert not m.leaves(*syn, marker=b"loot;")
        assert {e.reason for e in told() if str(e.remote) == BAD[version]} == {"HELD_BACK"}
    assert counts["HELD_BACK"] == 3
    for key, miss in list(m.b.d["misses"].items()):
        m.b.d["misses"][key[0]] = (miss.time - 3 * SECOND,)
    with m.b.counting(POLICY) as counts:
        assert refusal(m, version, BAD[version]) < AT_ONCE
    assert counts["NOT_ALLOWED"] == 1
    assert "HELD_BACK" not in counts
    for key, miss in list(m.b.d["misses"].items()):
        m.b.d["misses"][key[0]] = (miss.time - 11 * SECOND,)
    with m.b.counting(POLICY) as counts:
        assert not m.leaves(syn[0], marker=b"loot;")
    assert counts["HELD_BACK"] == 1


@families
def test_what_peers_tell_in_time_is_let_through_when_it_is_sent_again(m: Machines, version: int) -> None:
    m.b.policy(POLICY, "SHARED")
    m.b.d.set(hold_back=300)
    m.theirs(TCP, BAD[version])
    s = m.mine(TCP, version)
    s.setblocking(False)
    s.connect_ex((BAD[version], 80))
    wait_until(lambda: m.b.counted((POLICY,)).get("HELD_BACK", 0) > 0, "it is held back")
    m.b.grant(POLICY, BAD[version], (SITE, now() + 60 * SECOND))
    s.settimeout(5)
    wait_until(lambda: s.connect_ex((BAD[version], 80)) in (0, errno.EISCONN), "it is connected")


@families
def test_nobody_is_waited_for_without_peers(m: Machines, version: int) -> None:
    m.b.d.set(hold_back=300)
    assert refusal(m, version, BAD[version]) < AT_ONCE


# ---- Quotas


@families
def test_one_machine_s_connections_take_no_room_of_another_s(m: Machines, version: int) -> None:
    m.b.d.set(flows=8)
    try:
        flood = [segment(SILENT[version], p.SYN, b"x;", ports=(port, 80)) for port in range(2000, 2020)]
        with m.b.counting(POLICY, OTHERS) as told:
            m.leaves(*flood, marker=b"x;")
            server, s = m.theirs(TCP, GOOD[version]), m.mine(TCP, version, OTHER)
            s.connect((GOOD[version], 80))
            s.sendall(b"hello")
            assert m.kept(server.accept()[0]).recv(9) == b"hello"
        assert told["FLOWS_FULL"] >= 12
        assert sum(1 for _ in m.b.d["flows"].raw_keys()) <= 16
    finally:
        m.b.d.set(flows=2048)


def test_a_gateway_s_programs_are_pinned_once(datapath: Datapath, m: Machines) -> None:
    assert m.programs == datapath.for_gateway()
    assert set(m.programs) >= {"gateway_ingress", "gateway_egress", "gateway_grant"}


def test_machines_have_room_for_their_connections_and_leave_none_behind(m: Machines) -> None:
    room = Room(m.b.d)
    try:
        room.share()
        assert int(m.b.d["settings"][0].flows) >= 4096
        assert m.leaves(
            *(segment(SILENT[4], p.SYN, b"x;", ports=(port, 80)) for port in range(2000, 2100)), marker=b"x;"
        )
        assert sum(1 for _ in m.b.d["flows"].raw_keys()) >= 100
        room.forget(MACHINE)
        assert not any(m.b.d["flows"].raw_keys())
    finally:
        m.b.d.set(flows=2048, questions=1024, inbounds=8192, addresses=16384)
