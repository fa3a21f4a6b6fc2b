"""Attacks on what DNS teaches, named after what the attacker does: nobody is taught an address by anyone but
a resolver that was asked for it, and never one that leads back into the machine.

The attacker is the workload itself, another workload, or a host of the world.
"""

from __future__ import annotations

import ipaddress
import json
from contextlib import contextmanager

import pytest

from tests.network.conftest import ZONE
from tests.network.workload import python
from tests.topology import ATTACKER, DNS4, ODD

SITE4, SITE6 = ZONE["example.com"]
POD = "10.1.0.2"
TARGET = "198.51.100.66"  # where the attacker wants to get
ALLOW = ("--allow", "*.example.com", "--allow", "example.com")
DNS = ("--resolver", ODD)


@pytest.mark.parametrize(
    ("name", "kind", "address"),
    [
        ("metadata.example.com", "A", "169.254.169.254"),
        ("loopback.example.com", "A", "127.0.0.1"),
        ("loopback.example.com", "AAAA", "::1"),
        ("mapped.example.com", "AAAA", "::ffff:198.51.100.40"),
    ],
)
def test_ATTACK_rebinding_an_allowed_name_to(run, name, kind, address):
    got = run(*ALLOW, "--", *python(f"tell([ask({name!r}, kind={kind!r}), connect({address!r})])"))
    (answer,), reached = got.told
    assert ipaddress.ip_address(answer) == ipaddress.ip_address(address)
    if "loopback" not in name:  # which is always open
        assert reached == "EPERM"
    human = run("-o", "human", *ALLOW, "--", *python(f"ask({name!r}, kind={kind!r})"))
    written = address.removeprefix("::ffff:")
    assert f"not learned  {name} has the address {written}, which DNS may not teach\n" in human.said


def test_ATTACK_asking_a_server_that_is_not_trusted(lab, run):
    """The workload may talk to it, but what it says teaches nothing."""
    code = f"tell([ask('www.example.com', {ODD!r}), connect('198.51.100.54')])"
    got = run(*ALLOW, "--allow", ODD, "--", *python(code))
    assert got.told == [["198.51.100.54"], "EPERM"]
    refused = run(*ALLOW, "--", *python(f"tell(outcome(lambda: ask('www.example.com', {ODD!r})))"))
    assert refused.told == "EPERM"


def test_ATTACK_asking_a_trusted_server_at_another_port(run):
    got = run(*ALLOW, "--", *python(f"tell(outcome(lambda: ask('www.example.com', {DNS4!r}, port=7)))"))
    assert got.told == "EPERM"


VICTIM = f"""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.bind(("", 0))
    question = DNSRecord.question("silent.example.com")
    sock.sendto(question.pack(), ({ODD!r}, 53))
    tell([sock.getsockname()[1], question.header.id])
    while True:
        sock.recv(4096)
        tell(connect({TARGET!r}))
"""


@contextmanager
def victim(running, *words):
    """A workload with one open question, whose server never answers; then it takes what comes."""
    with running(*words, *ALLOW, "--", *python(VICTIM)) as process:
        port, number = json.loads(process.stdout.readline())
        yield process, port, number


def forge(lab, source, source_port, port, name, number):
    """The attacker's host says so; the caller waits until the victim has it."""
    code = f"forge({source!r}, {source_port}, {POD!r}, {port}, answer({name!r}, {number}, {TARGET!r}))"
    lab.world.checked(*python(code))


@pytest.mark.parametrize(
    ("attack", "source", "source_port", "name", "plus"),
    [
        ("with_a_wrong_id", ODD, 53, "silent.example.com", 1),
        ("to_another_name", ODD, 53, "other.example.com", 0),
        ("from_another_host", ATTACKER, 53, "silent.example.com", 0),
        ("from_another_port", ODD, 5353, "silent.example.com", 0),
        ("from_another_trusted_looking_name", ODD, 53, "silent.example.com.evil.net", 0),
    ],
)
def test_ATTACK_off_path_answer(lab, running, attack, source, source_port, name, plus):
    with victim(running, *DNS) as (process, port, number):
        forge(lab, source, source_port, port, name, (number + plus) & 0xFFFF)
        assert process.stdout.readline() == '"EPERM"\n'


def test_an_answer_that_fits_its_question_teaches_in_whatever_case_once(lab, running):
    """The control of the attacks above: the same path, with all of it right."""
    with victim(running, *DNS) as (process, port, number):
        forge(lab, ODD, 53, port, "SILENT.example.COM", number)
        assert process.stdout.readline() == '"connected"\n'


def test_ATTACK_a_used_question_is_answered_again(lab, running):
    with victim(running, *DNS, "--floor", "1", "--grace", "0") as (process, port, number):
        code = f"""
            forge({ODD!r}, 53, {POD!r}, {port}, answer("silent.example.com", {number}, "198.51.100.67"))
            forge({ODD!r}, 53, {POD!r}, {port}, answer("silent.example.com", {number}, {TARGET!r}))
        """
        lab.world.checked(*python(code))
        assert [process.stdout.readline() for _ in range(2)] == ['"EPERM"\n'] * 2


def test_ATTACK_an_answer_to_another_workloads_question(lab, running):
    """One workload has the question open; the answer, right in all else, is sent to the other."""
    bystander = f"""
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.settimeout(5)
        sock.bind(("", 0))
        sock.sendto(b"x", ("198.51.100.12", 7))
        tell(sock.getsockname()[1])
        while True:
            sock.recv(4096)
            tell(connect({TARGET!r}))
    """
    with victim(running, *DNS) as (_, _, number):
        allowed = ("--allow", "198.51.100.12", *ALLOW, "--")
        with running(*DNS, *allowed, *python(bystander)) as process:
            port = json.loads(process.stdout.readline())
            assert process.stdout.readline() == '"EPERM"\n'  # after the echo
            forge(lab, ODD, 53, port, "silent.example.com", number)
            assert process.stdout.readline() == '"EPERM"\n'


def test_ATTACK_one_socket_asks_and_another_one_is_answered(lab, running):
    """Questions are kept by socket: another socket of the same workload gets nothing out of them."""
    another = """
    asked, sock = sock, socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.bind(("", 0))
    tell([sock"""
    code = VICTIM.replace("\n    tell([sock", another)
    with running(*DNS, *ALLOW, "--", *python(code)) as process:
        port, number = json.loads(process.stdout.readline())
        forge(lab, ODD, 53, port, "silent.example.com", number)
        assert process.stdout.readline() == '"EPERM"\n'


def test_ATTACK_a_flood_of_questions_by_one_workload(lab, run, running):
    """65,536 open questions fill the table; another workload's names must go on working."""
    nobody = "192.0.2.99"
    flood = f"""
        pack = bytearray(DNSRecord.question("silent.example.com").pack())
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        for number in range(65536):
            pack[0:2] = number.to_bytes(2, "big")
            outcome(lambda: sock.sendto(pack, ({nobody!r}, 53)))
        tell("full")
        input()
    """
    instance = lab.another_instance()  # the lab's own must stay usable
    with running("--resolver", nobody, *ALLOW, "--", *python(flood), instance=instance) as process:
        assert process.stdout.readline() == '"full"\n'
        got = run(*ALLOW, "--", *python("tell(connect(resolve('example.com')))"), instance=instance)
    assert got.told == "connected"
