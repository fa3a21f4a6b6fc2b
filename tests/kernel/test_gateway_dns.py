"""DNS of machines behind a gateway: its own server's answers teach, on their way out; others' do not.

Questions that were meant for another server are captured: by nftables (UDP) or by the proxy (TCP).
"""

from __future__ import annotations

import errno
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator

import pytest

from bpf.ask import Asker, Door
from bpf.events import address
from tests.kernel import packets as p
from tests.kernel.bench import FAMILY, SECOND, TCP, UDP, now, wait_until
from tests.kernel.gateway_lab import (
    BAD,
    ELSEWHERE,
    HERE,
    HERE_MAC,
    MACHINE,
    OTHER,
    OTHERS,
    OUTSIDE,
    POLICY,
    SITE,
    VM,
    VM_MAC,
    Machines,
    datagram,
    name_server,
)
from tests.kernel.link_lab import frame, packet, signed, summed
from tests.kernel.messages import wire

families = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
servers = pytest.mark.parametrize("server", [HERE, ELSEWHERE], ids=["the gateway", "captured"])
ALLOWED, FORBIDDEN = "good.example", "tunnel.evil.example"
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
LISTENERS = {4: 0, 6: 1}
IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75  # linux/in.h, linux/in6.h
KIND = {4: 1, 6: 28}
NETWORK = {4: "10.20.0.0/24", 6: "fd20::/64"}


@pytest.fixture(autouse=True)
def _captured(m: Machines) -> None:
    for policy in (POLICY, OTHERS):
        m.b.policy(policy, "CAPTURED")
    m.b.name(POLICY, ALLOWED, SITE)


def question(name: str = ALLOWED, number: int = 77, kind: int = 1) -> bytes:
    return struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0) + wire(name) + struct.pack(">HH", kind, 1)


def saying(*found: str, ttl: int = 300) -> Callable[[bytes], bytes]:
    """An answer with these addresses for the name that was asked for."""

    def record(each: str) -> bytes:
        version = 6 if ":" in each else 4
        data = socket.inet_pton(FAMILY[version], each)
        return b"\xc0\x0c" + struct.pack(">HHIH", KIND[version], 1, ttl, len(data)) + data

    def answer(asked: bytes) -> bytes:
        head = asked[:2] + struct.pack(">HHHHH", 0x8180, 1, len(found), 0, 0)
        return head + asked[12:] + b"".join(map(record, found))

    return answer


def ask(
    m: Machines, version: int, server: str, name: str = ALLOWED, source: dict[int, str] = VM, number: int = 77
) -> bytes:
    s = m.mine(UDP, version, source)
    s.connect((server, 53))
    s.send(question(name, number, KIND[version]))
    return s.recv(9999)


def connects(m: Machines, version: int, to: str) -> bool:
    return m.mine(TCP, version).connect_ex((to, 80)) == 0


def granted(m: Machines, policy: int = POLICY) -> set[str]:
    return {str(address(bytes(key.address))) for key, _ in m.b.d["grants"].items() if key.policy == policy}


# ---- What teaches -----------------------------------------------------------------------------------------


@families
@servers
def test_the_first_connection_after_an_answer_passes(
    m: Machines, version: int, server: dict[int, str]
) -> None:
    m.theirs(TCP, BAD[version])
    assert not connects(m, version, BAD[version])
    with name_server(m, version, saying(BAD[version])) as seen, m.b.counting(POLICY) as told:
        assert ask(m, version, server[version])[:4] == b"\0\x4d\x81\x80"
        assert connects(m, version, BAD[version])
    assert len(seen) == 1
    assert (told["LEARNED"], told["ALLOWED"]) == (1, 1)
    assert BAD[version] not in granted(m, OTHERS)


@families
def test_what_is_not_captured_teaches_by_the_gateway_s_own_address_only(m: Machines, version: int) -> None:
    m.b.policy(POLICY)
    with name_server(m, version, saying(BAD[version])), m.b.counting(POLICY) as told:
        ask(m, version, HERE[version])
    assert BAD[version] in granted(m)
    assert told == {"LEARNED": 1}


@families
def test_a_name_that_nobody_allows_teaches_nothing(m: Machines, version: int) -> None:
    with name_server(m, version, saying(BAD[version])):
        ask(m, version, HERE[version], FORBIDDEN)
        ask(m, version, HERE[version], source=OTHER)
    assert BAD[version] not in granted(m) | granted(m, OTHERS)


@families
def test_an_answer_that_ran_out_is_told_so(m: Machines, version: int) -> None:
    with name_server(m, version, saying(BAD[version])):
        ask(m, version, HERE[version])
    m.b.grant(POLICY, BAD[version], (SITE, now() - SECOND))
    with m.b.counting(POLICY) as told:
        assert not connects(m, version, BAD[version])
    assert told == {"EXPIRED": 1}


@families
def test_what_is_new_is_told_to_peers_without_a_pace(m: Machines, version: int) -> None:
    """With each peer that it is for; and again when it holds for much longer."""
    m.b.policy(POLICY, "CAPTURED", "SHARED")
    m.b.name(POLICY, ALLOWED, SITE, SITE + 1)
    m.b.rule(POLICY, SITE + 1, 1)
    many = [f"198.51.100.{i}" for i in range(60)]
    with m.events() as told:
        for ttl, count in ((300, 120), (330, 0), (600, 120)):
            with name_server(m, version, saying(*many, ttl=ttl)):
                ask(m, version, HERE[version])
            events = told()
            assert {event.reason for event in events} <= {"LEARNED"}
            assert len(events) == count
            assert {event.peer for event in events} == ({SITE, SITE + 1} if count else set())


# ---- What does not ----------------------------------------------------------------------------------------


@families
def test_ATTACK_a_forwarded_answer_of_a_trusted_server(m: Machines, version: int) -> None:
    """Whoever sits between may have written it; only what the gateway itself says is believed."""
    m.b.policy(POLICY, "ONLY_ALLOWED_NAMES", "RESOLVER_PORTS")
    m.b.resolver(POLICY, ELSEWHERE[version], 5353)
    server, s = m.theirs(UDP, ELSEWHERE[version], 5353), m.mine(UDP, version)
    s.connect((ELSEWHERE[version], 5353))
    s.send(question(kind=KIND[version]))
    asked, client = server.recvfrom(999)
    assert any(m.b.d["questions"].raw_keys())
    server.sendto(saying(BAD[version])(asked), client)
    assert s.recv(999)[:2] == asked[:2]
    assert BAD[version] not in granted(m)


@families
def test_ATTACK_a_machine_answers_what_another_one_asked_it(m: Machines, version: int) -> None:
    """Both in one hand: the question is captured and open, the answer comes from where it was meant to go."""
    m.b.prefix(OTHERS, NETWORK[version], SITE)
    back = m.tap_of(m.site.machines)
    answer = p.udp(4000, 53, saying(BAD[version])(question()))
    with m.uncaught():  # else the answer would be translated to another port
        m.send(summed(packet(VM[version], OTHER[version], p.UDP, p.udp(53, 4000, question())), 6))
        wait_until(lambda: any(m.b.d["questions"].raw_keys()), "the question is open")
        m.send(summed(packet(OTHER[version], VM[version], p.UDP, answer), 6))
        while not ((seen := back.recv(9999))[6:12] == HERE_MAC and answer[:4] in seen and answer[8:] in seen):
            pass
    assert BAD[version] not in granted(m)


@families
def test_ATTACK_a_machine_speaks_with_the_gateway_s_address(m: Machines, version: int) -> None:
    m.b.put("sources", ({4: 120, 6: 64}[version], p.packed(NETWORK[version].partition("/")[0])), MACHINE + 1)
    m.here(UDP, {4: "0.0.0.0", 6: "::"}[version], 53)
    m.send(summed(packet(VM[version], HERE[version], p.UDP, p.udp(53, 4000, question())), 6))
    wait_until(lambda: any(m.b.d["questions"].raw_keys()), "the question is open")
    with m.b.counting(OTHERS) as told:
        answer = p.udp(4000, 53, saying(BAD[version])(question()))
        m.send(summed(packet(HERE[version], VM[version], p.UDP, answer), 6))
        m.came(b"")
    assert told == {"SPOOFED": 1}
    assert BAD[version] not in granted(m)


# ---- Only allowed names -----------------------------------------------------------------------------------


@families
@servers
def test_a_refused_question_is_answered_at_once(m: Machines, version: int, server: dict[int, str]) -> None:
    m.b.policy(POLICY, "CAPTURED", "ONLY_ALLOWED_NAMES")
    with name_server(m, version, saying(BAD[version])) as seen, m.b.counting(POLICY) as told:
        assert ask(m, version, server[version], FORBIDDEN)[:4] == b"\0\x4d\x81\x83"
        assert ask(m, version, server[version])[:4] == b"\0\x4d\x81\x80"
    assert seen == [question(kind=KIND[version])]
    assert (told["QUESTION_REFUSED"], told["LEARNED"]) == (1, 1)


def to_server(version: int, to: str, **more: int) -> bytes:
    return packet(VM[version], to, p.UDP, p.udp(53, 4000, question(FORBIDDEN)), **more)


def whole(version: int, to: str = "", mac: bytes = HERE_MAC, tags: bytes = b"") -> list[bytes]:
    return [frame(summed(to_server(version, to or HERE[version]), 6), VM_MAC, mac, tags)]


def with_option(_: int) -> list[bytes]:
    body = p.udp(53, 4000, question(FORBIDDEN))
    return [frame(signed(p.ipv4(VM[4], HERE[4], p.UDP, body, options=b"\1\1\1\0")), VM_MAC, HERE_MAC)]


def in_pieces(version: int) -> list[bytes]:
    raw = summed(to_server(version, HERE[version]), 6)
    if version == 4:
        head, body = raw[:20], raw[20:]
        first = p.ipv4(VM[4], HERE[4], p.UDP, body[:24], fragment=0x2000)
        last = p.ipv4(VM[4], HERE[4], p.UDP, body[24:], fragment=3)
        made = [signed(each[:4] + b"\x12\x34" + each[6:]) for each in (first, last)]
    else:
        head, body = raw[:40], raw[40:]
        parts = ((1, body[:24]), (24, body[24:]))
        made = [
            p.ipv6(VM[6], HERE[6], p.FRAGMENT, struct.pack(">BBHI", p.UDP, 0, field, 0x1234) + part)
            for field, part in parts
        ]
    assert head
    return [frame(each, VM_MAC, HERE_MAC) for each in made]


BROADCAST = b"\xff" * 6
ZERO_TAGS = b"\x81\0\0\0\x81\0\0\0"  # of no VLAN, twice
WAYS: dict[str, tuple[Callable[[int], list[bytes]], tuple[int, ...]]] = {
    "plain": (whole, (4, 6)),
    "another address of the gateway": (lambda v: whole(v, OUTSIDE[v]), (4, 6)),
    "a frame for everybody": (lambda v: whole(v, mac=BROADCAST), (4, 6)),
    "its network's broadcast address": (lambda v: whole(v, "10.20.0.255", BROADCAST), (4,)),
    "the broadcast address": (lambda v: whole(v, "255.255.255.255", BROADCAST), (4,)),
    "all nodes": (lambda v: whole(v, "ff02::1", bytes.fromhex("333300000001")), (6,)),
    "a tag within a tag, of no VLAN": (lambda v: whole(v, tags=ZERO_TAGS), (4, 6)),
    "an option": (with_option, (4,)),
    "pieces": (in_pieces, (4, 6)),
}


@pytest.mark.parametrize(
    ("way", "version"), [(way, version) for way, (_, versions) in WAYS.items() for version in versions]
)
def test_ATTACK_a_question_comes_to_the_server_unread(m: Machines, way: str, version: int) -> None:
    m.b.policy(POLICY, "CAPTURED", "ONLY_ALLOWED_NAMES")
    with name_server(m, version, saying(BAD[version])) as seen:
        for is_judged in (False, True):
            if is_judged:
                send(m, way, version)
            else:
                with m.without():
                    send(m, way, version)
                    wait_until(lambda: FORBIDDEN.encode()[:6] in b"".join(seen), f"{way} comes to the server")
                    seen.clear()
        m.b.policy(POLICY, "CAPTURED")
        ask(m, version, HERE[version])
    assert seen == [question(kind=KIND[version])]


def send(m: Machines, way: str, version: int) -> None:
    for each in WAYS[way][0](version):
        m.wire.send(each)


@families
def test_ATTACK_the_server_is_asked_where_it_really_is(m: Machines, version: int) -> None:
    """Behind port 53, where nobody would read what is asked."""
    server = m.here(UDP, {4: "0.0.0.0", 6: "::"}[version], 5353)
    asked = summed(packet(VM[version], HERE[version], p.UDP, p.udp(5353, 4000, question(FORBIDDEN))), 6)
    with m.without():
        m.send(asked)
        assert server.recv(999) == question(FORBIDDEN)
    m.b.d.set(dns_port=5353)
    m.here(TCP, HERE[version], 5353)
    with m.b.counting(POLICY) as told:
        m.send(asked)
        assert m.mine(TCP, version).connect_ex((HERE[version], 5353)) == errno.ECONNREFUSED
    assert told == {"QUESTION_UNREAD": 2}
    server.settimeout(0.05)
    with pytest.raises(TimeoutError):
        server.recv(999)


@families
def test_without_capture_the_gateway_is_asked_over_tcp_too(
    m: Machines, proxies: dict[int, socket.socket], version: int
) -> None:
    m.b.policy(POLICY)
    s = m.mine(TCP, version)
    s.connect((HERE[version], 53))
    door, connection = Door(m.b.d), m.kept(proxies[version].accept()[0])
    asker = door.steered(connection)
    assert asker
    assert door.stands(asker)
    assert door.teach(asker, saying(BAD[version])(question()))
    assert BAD[version] in granted(m)


def test_what_is_captured_is_not_forwarded_where_nothing_catches_it(m: Machines) -> None:
    """Its mark is the one thing that would let it pass, and it has none."""
    with m.uncaught():
        for version in (4, 6):
            assert not m.leaves(datagram(ELSEWHERE[version], question(), 53), marker=question())


# ---- DNS over TCP -----------------------------------------------------------------------------------------


@families
@servers
def test_without_a_proxy_dns_over_tcp_is_refused_at_once(
    m: Machines, version: int, server: dict[int, str]
) -> None:
    m.theirs(TCP, ELSEWHERE[version], 53)
    m.here(TCP, HERE[version], 53)
    with m.b.counting(POLICY) as told:
        assert m.mine(TCP, version).connect_ex((server[version], 53)) == errno.ECONNREFUSED
    assert told == {"PROXY_AWAY": 1}


@pytest.fixture
def proxies(m: Machines) -> Iterator[dict[int, socket.socket]]:
    """Listeners of the gateway's, and the way to them."""
    rules = [
        f"{family}{what}"
        for family in ("-4 ", "-6 ")
        for what in ("rule add fwmark 0x10/0x30 lookup 100", "route add local default dev lo table 100")
    ]
    for each in rules:
        with m.site.gateway.entered():
            subprocess.run(["ip", *each.split()], check=True)
    found = {}
    for version, loopback in LOOPBACK.items():
        with m.site.gateway.entered():
            s = m.kept(socket.socket(FAMILY[version], TCP))
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        level = socket.IPPROTO_IP if version == 4 else socket.IPPROTO_IPV6
        s.setsockopt(level, IP_TRANSPARENT if version == 4 else IPV6_TRANSPARENT, 1)
        s.bind((loopback, 0))
        m.b.d["sockets"][s.fileno()] = {"listener": 1}
        s.listen()
        m.b.d["listeners"][LISTENERS[version]] = s.fileno()
        found[version] = s
    yield found
    for each in rules:
        with m.site.gateway.entered():
            subprocess.run(["ip", *each.replace(" add ", " del ").split()], check=True)


@families
@servers
def test_dns_over_tcp_comes_to_the_proxy_which_learns_for_the_machine(
    m: Machines, proxies: dict[int, socket.socket], version: int, server: dict[int, str]
) -> None:
    m.theirs(TCP, BAD[version])
    s = m.mine(TCP, version)
    with m.b.counting(POLICY) as told:
        s.connect((server[version], 53))
        connection = m.kept(proxies[version].accept()[0])
        s.sendall(b"question")
        assert connection.recv(99) == b"question"
        door = Door(m.b.d)
        asker = door.steered(connection)
        assert isinstance(asker, Asker)
        assert (asker.workload, str(asker.client), str(asker.server), asker.server_port) == (
            *(MACHINE, VM[version], server[version], 53),
        )
        assert door.stands(asker)
        assert door.may_ask(asker, question())
        assert door.teach(asker, saying(BAD[version])(question()))
        connection.sendall(b"answer")
        assert s.recv(99) == b"answer"
        assert connects(m, version, BAD[version])
    assert (told["LEARNED"], told["ALLOWED"]) == (1, 1)


@families
def test_ATTACK_tcp_to_another_server_in_pieces(m: Machines, version: int) -> None:
    """Whatever is captured may not be forwarded, or port 53 leads to everybody."""
    whole_packet = p.tcp(53, flags=0x18, payload=b"loot;" + bytes(35))
    if version == 4:
        parts = [
            signed(p.ipv4(VM[4], ELSEWHERE[4], p.TCP, part, fragment=field)[:4] + b"\x12\x34" + rest)
            for field, part in ((0x2000, whole_packet[:40]), (5, whole_packet[40:]))
            for rest in [p.ipv4(VM[4], ELSEWHERE[4], p.TCP, part, fragment=field)[6:]]
        ]
    else:
        parts = [
            p.ipv6(VM[6], ELSEWHERE[6], p.FRAGMENT, struct.pack(">BBHI", p.TCP, 0, field, 0x1234) + part)
            for field, part in ((1, whole_packet[:40]), (40, whole_packet[40:]))
        ]
    with m.without():
        assert m.leaves(*parts, marker=b"loot;")
    with m.b.counting(POLICY) as told:
        assert not m.leaves(*parts, marker=b"loot;")
    assert told["FRAGMENT"] == 1


@families
def test_an_answer_that_is_too_long_sends_its_client_to_tcp(
    m: Machines, proxies: dict[int, socket.socket], version: int
) -> None:
    assert proxies
    many = [f"198.51.100.{i}" for i in range(200)]
    with name_server(m, version, saying(*many)), m.b.counting(POLICY) as told:
        assert ask(m, version, HERE[version])[2] & 2
    assert (told["ANSWER_DEFERRED"], told["LEARNED"]) == (1, 64)
