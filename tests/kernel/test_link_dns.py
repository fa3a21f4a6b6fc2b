"""DNS on a link: refused questions are answered, TCP is led to the proxy, answers too long are cut short."""

from __future__ import annotations

import errno
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

import pytest

from bpf.contract import contract
from tests.kernel import packets as p
from tests.kernel.bench import FAMILY, TCP, UDP, wait_until
from tests.kernel.link_lab import (
    NODE,
    NODE_MAC,
    POD,
    POD_MAC,
    POLICY,
    RESOLVER,
    SITE,
    World,
    datagram,
    frame,
    packet,
)
from tests.kernel.messages import wire

families = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
ALLOWED, FORBIDDEN = "good.example", "tunnel.evil.example"
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
LISTENERS = {4: 0, 6: 1}
IP_TRANSPARENT, IPV6_TRANSPARENT = 19, 75  # linux/in.h, linux/in6.h
MUSL = """
#include <netdb.h>
#include <stdio.h>
int main(int count, char **words)
{
	struct addrinfo hints = {.ai_family = AF_INET, .ai_socktype = SOCK_STREAM}, *found;
	printf("%d\\n", getaddrinfo(words[1], "80", &hints, &found));
}
"""


@pytest.fixture
def w(w_link: World) -> World:
    w_link.b.name(POLICY, ALLOWED, SITE)
    return w_link


def question(name: str, number: int = 77, kind: int = 1) -> bytes:
    return struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0) + wire(name) + struct.pack(">HH", kind, 1)


def only_allowed(w: World, *more: str) -> None:
    w.b.policy(POLICY, "ONLY_ALLOWED_NAMES", *more)


@contextmanager
def server(w: World, version: int, answer: Callable[[bytes], bytes]) -> Iterator[list[bytes]]:
    """A resolver in the world; the questions that came to it."""
    s, seen = w.theirs(UDP, RESOLVER[version], 53), []

    def serve() -> None:
        while True:
            message, client = s.recvfrom(65536)
            if message == b"end":
                return
            seen.append(message)
            s.sendto(answer(message), client)

    thread = Thread(target=serve)
    thread.start()
    try:
        yield seen
    finally:
        with w.lab.world.entered():
            socket.socket(FAMILY[version], UDP).sendto(b"end", (RESOLVER[version], 53))
        thread.join()


def addresses(count: int) -> Callable[[bytes], bytes]:
    """An answer with so many addresses of the name that was asked for."""

    def answer(asked: bytes) -> bytes:
        body = asked[12:]
        head = asked[:2] + struct.pack(">HHHHH", 0x8180, 1, count, 0, 0)
        records = (
            b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 300, 4) + socket.inet_aton(f"198.51.{i >> 8}.{i & 255}")
            for i in range(count)
        )
        return head + body + b"".join(records)

    return answer


# ---- Refused questions


@families
def test_a_refused_question_is_answered_at_once(w: World, version: int) -> None:
    only_allowed(w)
    with server(w, version, addresses(1)) as seen, w.b.counting(POLICY) as told:
        s = w.mine(UDP, version)
        w.connect(s, RESOLVER[version], 53)
        s.send(question(FORBIDDEN))
        assert s.recv(999) == question(FORBIDDEN)[:2] + b"\x81\x83" + question(FORBIDDEN)[4:]
        s.send(question(ALLOWED, 78))
        assert s.recv(999)[:4] == b"\0\x4e\x81\x80"
    assert seen == [question(ALLOWED, 78)]
    assert (told["QUESTION_REFUSED"], told["LEARNED"]) == (1, 1)
    assert "ANSWER_UNASKED" not in told


@families
def test_only_audited_questions_pass_and_are_told(w: World, version: int) -> None:
    only_allowed(w, "AUDIT")
    with server(w, version, addresses(1)) as seen, w.b.counting(POLICY) as told:
        s = w.mine(UDP, version)
        w.connect(s, RESOLVER[version], 53)
        s.send(question(FORBIDDEN))
        assert s.recv(999)[:4] == b"\0\x4d\x81\x80"
    assert seen == [question(FORBIDDEN)]
    assert told["QUESTION_REFUSED"] == 1


@families
def test_dig_is_told_that_there_is_no_such_name(w: World, version: int) -> None:
    only_allowed(w)
    words = ["dig", "+time=3", "+tries=1", f"@{RESOLVER[version]}", FORBIDDEN]
    with w.as_workload():
        said = subprocess.run(words, capture_output=True, text=True, check=False).stdout
    assert "status: NXDOMAIN" in said
    assert FORBIDDEN in said


def test_musl_goes_on_with_its_search_list(w: World, tmp_path: Path) -> None:
    """It gives up the list where an answer says anything else, and waits where none comes."""
    only_allowed(w)
    source, program, settings = (tmp_path / name for name in ("ask.c", "ask", "resolv.conf"))
    source.write_text(MUSL)
    subprocess.run(["musl-gcc", "-static", "-o", program, source], check=True)
    settings.write_text(f"nameserver {RESOLVER[4]}\nsearch evil.example example\noptions ndots:3 timeout:5\n")
    script = 'mount --make-rprivate / && mount --bind "$0" /etc/resolv.conf && exec "$@"'
    with server(w, 4, addresses(1)), w.as_workload(), w.b.counting(POLICY) as told:
        words = ["unshare", "-m", "sh", "-c", script, settings, program, "good"]
        said = subprocess.run(words, capture_output=True, text=True, timeout=4, check=False)
    assert said.stdout == "0\n", said.stderr
    assert told["QUESTION_REFUSED"] == 1


@families
def test_a_dns_tunnel_by_af_packet(w: World, version: int) -> None:
    only_allowed(w)
    loot = question("x" * 60 + "." + FORBIDDEN)
    with w.without():
        assert w.leaves(datagram(RESOLVER[version], loot, 53), marker=loot)
    with w.b.counting(POLICY) as told:
        assert not w.leaves(datagram(RESOLVER[version], loot, 53), marker=loot)
        assert w.leaves(datagram(RESOLVER[version], question(ALLOWED), 53), marker=question(ALLOWED))
    assert told["QUESTION_REFUSED"] == 1


@families
@pytest.mark.parametrize("payload", [b"", b"\0" * 11, question(ALLOWED)[:20]], ids=["none", "short", "cut"])
def test_what_is_no_question_does_not_leave(w: World, version: int, payload: bytes) -> None:
    only_allowed(w)
    raw = frame(packet(POD[version], RESOLVER[version], p.UDP, p.udp(53, 4711, payload)))
    port = struct.pack(">HH", 4711, 53)
    with w.without():
        assert w.leaves(raw, marker=port)
    with w.b.counting(POLICY) as told:
        assert not w.leaves(raw, marker=port)
    assert told["QUESTION_UNREADABLE"] == 1


@families
def test_an_answer_without_a_checksum_has_none(w: World, version: int) -> None:
    """AF_PACKET: as it was sent, so it comes back; RFC 768 allows none in IPv4."""
    only_allowed(w)
    with w.as_workload():
        tap = w.kept(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
    tap.bind(("inside", 0))
    w.wire.send(datagram(RESOLVER[version], question(FORBIDDEN), 53))
    back = b""
    while b"\x81\x83" not in back:
        back = tap.recv(999)
    assert (back[:6], back[6:12]) == (POD_MAC, NODE_MAC)
    at = 14 + (20 if version == 4 else 40)
    assert back[at : at + 4] == struct.pack(">HH", 53, 40000)
    assert version == 6 or back[at + 6 : at + 8] == b"\0\0"


# ---- DNS over TCP


@families
@pytest.mark.parametrize("flags", [(), ("ONLY_ALLOWED_NAMES",)], ids=["any name", "only allowed names"])
def test_without_a_proxy_dns_over_tcp_is_refused_at_once(
    w: World, version: int, flags: tuple[str, ...]
) -> None:
    w.b.policy(POLICY, *flags)
    w.theirs(TCP, RESOLVER[version], 53)
    s = w.mine(TCP, version)
    with w.b.counting(POLICY) as told, w.as_workload():
        assert s.connect_ex((RESOLVER[version], 53)) == errno.ECONNREFUSED
    assert told["PROXY_AWAY"] == 1


@pytest.fixture
def proxies(w: World) -> Iterator[dict[int, socket.socket]]:
    """Listeners of the node's, and the way to them."""
    rules = [
        f"{family}{what}"
        for family in ("-4 ", "-6 ")
        for what in ("rule add fwmark 0x10/0x30 lookup 100", "route add local default dev lo table 100")
    ]
    for each in rules:
        with w.lab.node.entered():
            subprocess.run(["ip", *each.split()], check=True)
    found = {}
    for version, address in LOOPBACK.items():
        with w.lab.node.entered():
            s = w.kept(socket.socket(FAMILY[version], TCP))
        level = socket.IPPROTO_IP if version == 4 else socket.IPPROTO_IPV6
        s.setsockopt(level, IP_TRANSPARENT if version == 4 else IPV6_TRANSPARENT, 1)
        s.bind((address, 0))
        w.b.d["sockets"][s.fileno()] = {"listener": 1}
        s.listen()
        w.b.d["listeners"][LISTENERS[version]] = s.fileno()
        found[version] = s
    yield found
    for each in rules:
        with w.lab.node.entered():
            subprocess.run(["ip", *each.replace(" add ", " del ").split()], check=True)


@families
def test_dns_over_tcp_comes_to_the_proxy_as_if_it_were_the_server(
    w: World, proxies: dict[int, socket.socket], version: int
) -> None:
    only_allowed(w)
    s = w.mine(TCP, version)
    with w.b.counting(POLICY) as told:
        w.connect(s, RESOLVER[version], 53)
        proxy = w.kept(proxies[version].accept()[0])
        assert proxy.getsockname()[:2] == (RESOLVER[version], 53)
        assert proxy.getpeername()[:2] == s.getsockname()[:2]
        s.sendall(b"question")
        assert proxy.recv(99) == b"question"
        proxy.sendall(b"answer" * 1000)
        assert len(s.recv(6000, socket.MSG_PEEK)) > 0
        proxy.close()
        while s.recv(65536):
            pass
        s.close()
        again = w.mine(TCP, version)
        w.connect(again, RESOLVER[version], 53)
    assert told["PROXIED"] >= 5
    assert set(told) <= {"PROXIED", "NEIGHBOUR", "RESOLVER"}


@families
def test_when_the_proxy_goes_a_connection_ends_at_once(
    w: World, proxies: dict[int, socket.socket], version: int
) -> None:
    s = w.mine(TCP, version)
    w.connect(s, RESOLVER[version], 53)
    proxy = proxies[version].accept()[0]
    proxies[version].close()
    s.sendall(b"question")
    wait_until(lambda: proxy.recv(99) == b"question", "it is read")
    proxy.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    proxy.close()
    with pytest.raises(ConnectionResetError):
        s.recv(9)
    again = w.mine(TCP, version)
    with w.as_workload():
        assert again.connect_ex((RESOLVER[version], 53)) == errno.ECONNREFUSED


@families
def test_a_connection_from_before_the_link_was_judged_is_reset(w: World, version: int) -> None:
    """Nobody reads it. The reset has the number that its client expects."""
    with w.without():
        server = w.theirs(TCP, RESOLVER[version], 53)
        s = w.mine(TCP, version)
        w.connect(s, RESOLVER[version], 53)
        w.kept(server.accept()[0])
    with w.b.counting(POLICY) as told:
        s.sendall(b"question")
        wait_until(lambda: s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET, "reset")
    assert told["PROXY_AWAY"] >= 1


def test_ATTACK_a_connection_to_a_server_on_the_node_from_before_the_link_was_judged(
    w: World, proxies: dict[int, socket.socket]
) -> None:
    """It is found by its tuple, as the proxy's are: it is not the proxy's."""
    w.b.resolver(POLICY, NODE[4])
    with w.lab.node.entered():
        server = w.kept(socket.socket(socket.AF_INET, TCP))
        server.bind((NODE[4], 53))
        server.listen()
    with w.without():
        s = w.mine(TCP, 4)
        w.connect(s, NODE[4], 53)
        there = w.kept(server.accept()[0])
        s.sendall(b"loot;")
        assert there.recv(99) == b"loot;"
    only_allowed(w)
    with w.b.counting(POLICY) as told:
        s.sendall(b"loot;")
        wait_until(lambda: s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET, "reset")
    assert told["PROXY_AWAY"] >= 1
    there.settimeout(0.1)
    with pytest.raises(TimeoutError):
        there.recv(99)


# ---- Answers that the reader can't take


def deferred(message: bytes) -> bool:
    return bool(message[2] & 2)


@families
@pytest.mark.parametrize(
    ("count", "later"), [(64, False), (65, True), (200, True), (300, True)], ids=lambda value: str(value)
)
def test_an_answer_that_is_too_long_sends_its_client_to_tcp(
    w: World, proxies: dict[int, socket.socket], version: int, count: int, later: bool
) -> None:
    """300 addresses are more bytes than are read, 200 do not fit one frame: the first piece says it."""
    s = w.mine(UDP, version)
    w.connect(s, RESOLVER[version], 53)
    with server(w, version, addresses(count)), w.b.counting(POLICY) as told:
        s.send(question(ALLOWED))
        message = s.recv(65536)
    assert deferred(message) == later
    assert told.get("ANSWER_DEFERRED", 0) == later
    assert told["LEARNED"] == min(count, contract().constant("RECORDS"))
    assert len(message) == len(addresses(count)(question(ALLOWED)))


@families
def test_without_a_proxy_an_answer_that_is_too_long_comes_as_it_is(w: World, version: int) -> None:
    s = w.mine(UDP, version)
    w.connect(s, RESOLVER[version], 53)
    with server(w, version, addresses(200)), w.b.counting(POLICY) as told:
        s.send(question(ALLOWED))
        assert not deferred(s.recv(65536))
    assert "ANSWER_DEFERRED" not in told
