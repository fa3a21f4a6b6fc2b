"""Attacks by sockets, named after what the attacker does: no packet reaches an address that no rule allows.

Where the attacker needs NET_RAW, which `skouter run` takes away, its workload is made by hand (raw_workload).
"""

from __future__ import annotations

import json
import subprocess
from contextlib import contextmanager

import pytest

from gateway import allow, policy, resolvers
from gateway import place as places
from gateway.commands import admit, dismiss
from gateway.engine import Engine
from gateway.numbers import Options
from tests.network.conftest import REFUSED4, REFUSED6, ZONE
from tests.network.workload import python
from tests.topology import ODD, end

SITE4, SITE6 = ZONE["example.com"]
POD = "10.1.0.2"
TARGET = "198.51.100.66"  # where the attacker wants to get
ALLOW = ("--allow", "*.example.com", "--allow", "example.com")
DNS = ("--resolver", ODD)


@pytest.mark.parametrize("kind", ["SOCK_STREAM", "SOCK_DGRAM"])
def test_ATTACK_an_allowed_socket_is_connected_elsewhere(run, kind):
    """connect(AF_UNSPEC), then connect() again: what was allowed for one peer holds for no other."""
    code = f"""
        sock = socket.socket(socket.AF_INET, socket.{kind})
        sock.settimeout(2)
        port = 80 if sock.type == socket.SOCK_STREAM else 7
        sock.connect((resolve("example.com"), port))
        sock.send(b"GET / HTTP/1.0\\r\\n\\r\\n")
        sock.recv(1)
        disconnect(sock)
        tell(outcome(lambda: (sock.connect(({REFUSED4!r}, port)), sock.send(b"x"))))
    """
    assert run(*ALLOW, "--", *python(code)).told == "EPERM"


@pytest.mark.parametrize("which", ["accepted", "listening"])
def test_ATTACK_a_socket_that_was_called_from_outside_calls_elsewhere(lab, running, which):
    code = f"""
        listening = socket.create_server(("", 8001))
        tell("ready")
        accepted, _ = listening.accept()
        accepted.recv(1)
        listening.shutdown(socket.SHUT_RDWR)
        disconnect(accepted)
        {which}.settimeout(2)
        tell(outcome(lambda: {which}.connect(({REFUSED4!r}, 80))))
    """
    with running("--", *python(code)) as process:
        assert process.stdout.readline() == '"ready"\n'
        lab.world.checked(*python(f"socket.create_connection(({POD!r}, 8001), 5).send(b'x')"))
        assert process.stdout.readline() == '"EPERM"\n'


def test_ATTACK_one_datagram_socket_with_many_peers(run):
    code = f"""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(2)
        allowed = resolve("example.com")
        for to in (allowed, {REFUSED4!r}) * 3:
            tell(outcome(lambda: (sock.sendto(b"x", (to, 7)), sock.recv(10).decode())[1]))
    """
    got = run(*ALLOW, "--", *python(code))
    assert got.out.split() == ['"x"', '"EPERM"'] * 3


def test_ATTACK_a_datagram_socket_that_a_stranger_wrote_to_writes_to_others(lab, running):
    """What came in may be answered: that host at that port, and no other."""
    code = f"""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(5)
        sock.bind(("", 8002))
        tell("ready")
        _, stranger = sock.recvfrom(10)
        peers = stranger, (stranger[0], 7), ({REFUSED4!r}, stranger[1])
        tell([outcome(lambda: sock.sendto(b"x", to)) for to in peers])
    """
    with running("--", *python(code)) as process:
        assert process.stdout.readline() == '"ready"\n'
        lab.world.checked(
            *python(f"socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ({POD!r}, 8002))")
        )
        assert json.loads(process.stdout.readline()) == [1, "EPERM", "EPERM"]


@pytest.mark.parametrize(
    ("family", "address"), [("AF_INET", REFUSED4), ("AF_INET6", REFUSED6), ("AF_INET6", f"::ffff:{REFUSED4}")]
)
def test_ATTACK_data_on_the_first_packet(run, family, address):
    """TCP fast open by sendto(2) goes past the connect hooks, but not past the packet's."""
    code = f"""
        sock = socket.socket(socket.{family}, socket.SOCK_STREAM)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_SYNCNT, 1)
        sock.settimeout(1)
        tell(outcome(lambda: sock.sendto(b"GET /", socket.MSG_FASTOPEN, ({address!r}, 80)) and sock.recv(1)))
    """
    got = run(*ALLOW, "--", *python(code))
    assert got.told in ("EPERM", "timeout")
    assert set(got.refusals().values()) == {"NOT_ALLOWED"}


def test_ATTACK_multipath_TCP(run):
    code = f"""
        IPPROTO_MPTCP = 262
        def mptcp(address):
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM, IPPROTO_MPTCP) as sock:
                sock.settimeout(1)
                sock.connect((address, 80))
                return "connected"
        tell([outcome(lambda: mptcp(resolve("example.com"))), timed(lambda: mptcp({REFUSED4!r}))])
    """
    got = run(*ALLOW, "--", *python(code))
    if got.told[0] == "EPROTONOSUPPORT":
        pytest.skip("no MPTCP in this kernel")
    assert got.told[0] == "connected"
    assert got.told[1][0] == "EPERM"
    assert got.told[1][1] < 0.1


def test_ATTACK_UDP_lite(run):
    code = f"""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM, 136)
        tell(outcome(lambda: sock.sendto(b"x", ({REFUSED4!r}, 7))))
    """
    assert run(*ALLOW, "--", *python(code)).told in ("EPERM", "EPROTONOSUPPORT")


# ---- With NET_RAW ---------------------------------------------------------------------------------------


@contextmanager
def raw_workload(lab, code, *allowed, resolver=ODD):
    """A program with all capabilities in a workload's cgroup, in the pod, which allows `allowed`."""
    engine = Engine(places.find(lab.instance))
    wanted = policy.union([allow.egress(list(allowed), audit=False)])
    options = Options(resolvers=(resolvers.parse(resolver),), trace=True)
    about = {"kind": "command", "command": ["a test"], "pid": 0}
    admitted = admit(engine, f"run-raw-{id(code):x}", wanted, options, about)
    (cgroup,) = admitted.cgroups
    process = lab.pod.start(
        "sh",
        "-c",
        'echo $$ >$0/cgroup.procs; exec "$@"',
        cgroup,
        *python(code),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        yield process, lambda: engine.counters(admitted.number)
    finally:
        end(process)
        dismiss(engine, admitted)
        engine.close()


def test_ATTACK_forged_answers_over_loopback_from_a_raw_socket(lab):
    """IP_HDRINCL writes any source, 127.0.0.53 too: answers are learned at the resolver's own socket only."""
    code = f"""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
        sock.settimeout(5)
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("127.0.0.53", 53))  # or the question is answered by an ICMP error
        question = DNSRecord.question("own.example.com")
        sock.sendto(question.pack(), ("127.0.0.53", 53))
        forged = answer("own.example.com", question.header.id, {TARGET!r})
        forge("127.0.0.53", 53, *sock.getsockname(), forged)
        tell([answers(sock.recv(4096)), connect({TARGET!r})])
    """
    with raw_workload(lab, code, "*.example.com", resolver="127.0.0.53") as (process, _):
        assert json.loads(process.stdout.readline()) == [[TARGET], "EPERM"]


def test_ATTACK_forged_answers_over_loopback_of_a_resolver_elsewhere(lab):
    code = f"""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(({POD!r}, 0))
        sock.settimeout(2)
        question = DNSRecord.question("silent.example.com")
        sock.sendto(question.pack(), ({ODD!r}, 53))
        forged = answer("silent.example.com", question.header.id, {TARGET!r})
        tell([outcome(lambda: forge({ODD!r}, 53, *sock.getsockname(), forged)), connect({TARGET!r})])
    """
    with raw_workload(lab, code, "*.example.com") as (process, counters):
        told = json.loads(process.stdout.readline())
        assert told == ["EPERM", "EPERM"]
        assert counters()["SPOOFED"] == 1


def test_ATTACK_a_datagram_from_outside_is_forged_over_loopback(lab):
    """It would make its source a stranger who wrote first and may be answered."""
    code = f"""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(({POD!r}, 0))
        outcome(lambda: forge({REFUSED4!r}, 7, {POD!r}, sock.getsockname()[1], b"x"))
        tell(outcome(lambda: sock.sendto(b"x", ({REFUSED4!r}, 7))))
    """
    with raw_workload(lab, code) as (process, counters):
        assert process.stdout.readline() == '"EPERM"\n'
        assert counters()["SPOOFED"] == 1


def test_ATTACK_a_raw_datagram_with_a_foreign_source(lab):
    code = f"""
        sources = {POD!r}, {SITE4!r}, "127.0.0.1"
        tell([outcome(lambda: forge(source, 9999, {REFUSED4!r}, 7, b"x")) for source in sources])
    """
    with raw_workload(lab, code, "example.com") as (process, _):
        assert json.loads(process.stdout.readline()) == ["EPERM"] * 3


def test_ATTACK_data_in_an_ICMP_error_and_in_a_ping(lab):
    code = f"""
        def icmp(kind, to):
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
                sock.sendto(bytes([kind, 0, 0, 0]) + bytes(4) + b"secret" * 6, (to, 0))
        tell([outcome(lambda: icmp(kind, to)) for kind in (3, 8, 0, 13) for to in ({SITE4!r}, {REFUSED4!r})])
    """
    with raw_workload(lab, code, f"{SITE4}:80") as (process, counters):
        assert json.loads(process.stdout.readline()) == ["EPERM"] * 8
        assert counters()["ICMP_ERROR"] == 2


def test_ATTACK_a_marked_socket(lab):
    """SO_MARK needs NET_RAW or NET_ADMIN, and frees nobody."""
    code = f"""
        def marked(mark):
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, mark)
                return sock.sendto(b"x", ({REFUSED4!r}, 7))
        tell([outcome(lambda: marked(1 << bit)) for bit in range(31)])
    """
    with raw_workload(lab, code) as (process, _):
        assert json.loads(process.stdout.readline()) == ["EPERM"] * 31
