"""A resolver on the machine itself: 127.0.0.53, as systemd-resolved, dnsmasq and others are found.

What arrives over loopback may come from anyone, so that answers are learned at the resolver's own socket.
"""

from __future__ import annotations

import subprocess

import pytest

from tests.network.conftest import REFUSED4, ZONE
from tests.network.workload import python
from tests.topology import DNS4, Unbound, end

SITE4, SITE6 = ZONE["example.com"]
ALLOW = ("--allow", "*.example.com", "--allow", "example.com", "--")


@pytest.fixture
def forwarder(lab, tmp_path):
    """A real one in the pod, outside of every workload; the pod's resolv.conf names it and it alone."""
    lab.trust("127.0.0.53")
    running = Unbound(lab.pod, tmp_path / "forwarder", ["127.0.0.53"], forward=DNS4)
    yield running
    running.close()
    lab.trust(DNS4)


@pytest.fixture
def no_forwarder(lab):
    """It is trusted, but not there."""
    lab.trust("127.0.0.53")
    yield
    lab.trust(DNS4)


@pytest.mark.parametrize("compiler", ["gcc", "musl-gcc"])
def test_a_c_program_behind_a_resolver_of_this_host_works(run, programs, forwarder, compiler):
    got = run(*ALLOW, programs("resolve", compiler), "example.com", "80")
    assert got.status == 0, got
    assert {line.split()[0] for line in got.out.splitlines() if "connected" in line} == {SITE4, SITE6}


def test_curl_behind_a_resolver_of_this_host_is_refused_what_no_rule_allows(run, forwarder):
    got = run(*ALLOW, "curl", "-sS", "-m5", "http://example.org/")
    assert got.status == 7
    assert set(got.refusals().values()) == {"NOT_ALLOWED"}


def test_names_behind_a_resolver_of_this_host_are_told(run, forwarder):
    got = run(*ALLOW, "curl", "-4sSf", "-m5", "http://example.com/")
    assert [(row["name"], row["address"]) for row in got.summary["reached"]] == [("example.com", SITE4)]


def test_the_upstream_of_a_resolver_of_this_host_is_not_trusted_itself(run, forwarder):
    got = run(*ALLOW, *python("tell(outcome(lambda: ask('example.com', '192.0.2.53')))"))
    assert got.told == "EPERM"


def test_ATTACK_the_workload_answers_itself_from_another_address_of_loopback(run, forwarder):
    code = f"""
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("127.0.0.99", 53))
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.sendto(DNSRecord.question("own.example.com").pack(), ("127.0.0.99", 53))
        question, peer = server.recvfrom(512)
        server.sendto(answer("own.example.com", DNSRecord.parse(question).header.id, {REFUSED4!r}), peer)
        tell([answers(client.recv(512)), connect({REFUSED4!r})])
    """
    assert run(*ALLOW, *python(code)).told == [[REFUSED4], "EPERM"]


def test_ATTACK_the_workload_takes_the_trusted_address_while_nobody_has_it(run, no_forwarder):
    code = f"""
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("127.0.0.53", 53))
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        client.sendto(DNSRecord.question("own.example.com").pack(), ("127.0.0.53", 53))
        question, peer = server.recvfrom(512)
        server.sendto(answer("own.example.com", DNSRecord.parse(question).header.id, {REFUSED4!r}), peer)
        tell([answers(client.recv(512)), connect({REFUSED4!r})])
    """
    assert run(*ALLOW, *python(code)).told == [[REFUSED4], "EPERM"]


def test_ATTACK_the_workload_shares_the_port_of_the_resolver(run, lab, no_forwarder):
    """SO_REUSEPORT lets every process of the same user bind there."""
    open_to_share = """
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind(("127.0.0.53", 53))
    """
    code = f"""{open_to_share}
        server.settimeout(0.2)
        for _ in range(64):  # the kernel spreads questions by their port: some come here
            client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            client.sendto(DNSRecord.question("own.example.com").pack(), ("127.0.0.53", 53))
            try:
                question, peer = server.recvfrom(512)
            except TimeoutError:
                continue
            server.sendto(answer("own.example.com", DNSRecord.parse(question).header.id, {REFUSED4!r}), peer)
            break
        tell([answers(client.recv(512)), connect({REFUSED4!r})])
    """
    mute = lab.pod.start(
        *python(f"{open_to_share}\n        tell('ready'); input()"),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert mute.stdout.readline() == '"ready"\n'
    try:
        assert run(*ALLOW, *python(code)).told == [[REFUSED4], "EPERM"]
    finally:
        end(mute)


def test_ATTACK_one_workload_answers_the_other_from_the_trusted_address(lab, run, running, no_forwarder):
    """The server is a workload of its own: what it says teaches nobody."""
    code = f"""
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("127.0.0.53", 53))
        tell("ready")
        question, peer = server.recvfrom(512)
        server.sendto(answer("own.example.com", DNSRecord.parse(question).header.id, {REFUSED4!r}), peer)
        input()
    """
    with running("--", *python(code)) as server:
        assert server.stdout.readline() == '"ready"\n'
        asked = run(*ALLOW, *python(f"tell([ask('own.example.com', '127.0.0.53'), connect({REFUSED4!r})])"))
    assert asked.told == [[REFUSED4], "EPERM"]


def test_ATTACK_a_raw_socket_is_not_to_be_had(run, forwarder):
    code = """
        kinds = [(socket.AF_INET, 255), (socket.AF_INET6, 255), (socket.AF_PACKET, 3)]
        tell([outcome(lambda: socket.socket(family, socket.SOCK_RAW, kind)) for family, kind in kinds])
    """
    assert run(*ALLOW, *python(code)).told == ["EPERM"] * 3
