"""Attacks on what DNS teaches, named after what the attacker does: nobody is taught an address by anyone but
a resolver that was asked for it, and never one that leads back into the machine.

The attacker is the workload itself, another workload, or a host of the world.
"""

from __future__ import annotations

import ipaddress
import itertools
import json
from contextlib import contextmanager

import pytest

from bpf.contract import contract
from bpf.datapath import Datapath
from gateway import place
from tests.network.workload import python
from tests.topology import ATTACKER, DNS4, ODD

POD = "10.1.0.2"
ALLOW = ("--allow", "*.example.com", "--allow", "example.com")
NAMES = ("*.example.com", "example.com")
ANSWERS = "an answer fits its question"
FRESH = itertools.count(150)
EITHER = pytest.mark.parametrize("defended", [False, True], ids=["the defence switched off", "defended"])


@EITHER
@pytest.mark.parametrize(
    ("name", "kind", "address"),
    [
        ("metadata.example.com", "A", "169.254.169.254"),
        ("loopback.example.com", "A", "127.0.0.1"),
        ("loopback.example.com", "AAAA", "::1"),
        ("mapped.example.com", "AAAA", "::ffff:198.51.100.40"),
    ],
)
def test_ATTACK_rebinding_an_allowed_name_to(arena, name, kind, address, defended):
    """What it leads to is not reached, and nothing is learned; loopback is always open."""
    workload = arena.workload(*NAMES, resolvers=[DNS4], without="" if defended else ANSWERS)
    before = workload.counters()
    ((answer,), reached) = workload.attack(f"tell([ask({name!r}, kind={kind!r}), connect({address!r})])")[0]
    counted = workload.counters() - before
    assert ipaddress.ip_address(answer) == ipaddress.ip_address(address)
    assert (counted["NEVER_LEARNED"], counted["LEARNED"]) == ((1, 0) if defended else (0, 1))
    if "loopback" not in name:
        assert reached == ("EPERM" if defended else "connected")


def test_a_rebinding_is_told(run):
    got = run("-o", "human", *ALLOW, "--", *python("ask('metadata.example.com')"))
    assert "not learned  metadata.example.com has the address 169.254.169.254" in got.said


@EITHER
def test_ATTACK_asking_a_server_that_is_not_trusted(arena, defended):
    """The workload may talk to it, but what it says teaches nothing."""
    words = {"resolvers": [DNS4, *([] if defended else [ODD])]}
    workload = arena.workload(*NAMES, ODD, **words)
    told = workload.attack(f"tell([ask('www.example.com', {ODD!r}), connect('198.51.100.54')])")
    assert told == [[["198.51.100.54"], "EPERM" if defended else "connected"]]


@EITHER
@pytest.mark.parametrize("asked", [f"ask('www.example.com', {ODD!r})", f"ask('a.test', {DNS4!r}, port=7)"])
def test_ATTACK_asking_a_server_or_a_port_that_no_rule_allows(arena, asked, defended):
    workload = arena.workload(*NAMES, resolvers=[DNS4], audit=not defended)
    (told,) = workload.attack(f"tell(outcome(lambda: len({asked})))")
    assert (told == "EPERM") == defended


@EITHER
def test_ATTACK_asking_over_TCP_to_avoid_that_anybody_learns(arena, defended):
    """What is not learned is not allowed; the same question over UDP teaches."""
    code = """
        def over_tcp(name):
            data = bytes(DNSRecord.question(name).pack())
            with socket.create_connection((RESOLVER, 53), 2) as sock:
                sock.send(len(data).to_bytes(2, "big") + data)
                return answers(sock.recv(4096)[2:])
        (address,) = (over_tcp if sys.argv[1] == "TCP" else ask)("four.example.com")
        tell(connect(address))
    """
    workload = arena.workload("four.example.com", f"192.0.2.{77 + defended}", resolvers=[DNS4])
    (told,) = workload.attack(code, "TCP" if defended else "UDP")
    assert told == ("EPERM" if defended else "connected")


@EITHER
def test_ATTACK_random_names_below_a_name_that_is_allowed_itself(lab, arena, defended):
    """A wildcard is asked for by its star; a name stands for itself."""
    lab.dns.add([(f"x{i}.example.net", f"198.51.100.{100 + i}", 60) for i in range(8)])
    workload = arena.workload("example.net" if defended else "*.example.net", resolvers=[DNS4])
    (told,) = workload.attack("tell([connect(ask(f'x{i}.example.net')[0]) for i in range(8)])")
    assert told == ["EPERM" if defended else "connected"] * 8


VICTIM = f"""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.bind(("", 0))
    question = DNSRecord.question("silent.example.com")
    sock.sendto(question.pack(), ({ODD!r}, 53))
    tell([sock.getsockname()[1], question.header.id])
    while True:
        sock.recv(4096)
        tell(connect(sys.argv[1]))
"""


def next_target():
    """An address that no earlier attack has taught to anybody."""
    return f"198.51.100.{next(FRESH)}"


@contextmanager
def victim(workload, target, code=VICTIM):
    """A program with one open question, whose server never answers; then it takes what comes."""
    with workload.started(code, target) as process:
        port, number = json.loads(process.stdout.readline())
        yield process, port, number


def forge(lab, source, source_port, port, name, number, *targets):
    """The attacker's host says so."""
    code = "\n".join(
        f"forge({source!r}, {source_port}, {POD!r}, {port}, answer({name!r}, {number}, {target!r}))"
        for target in targets
    )
    lab.world.checked(*python(code))


@EITHER
@pytest.mark.parametrize(
    ("attack", "source", "source_port", "name", "plus"),
    [
        ("with_a_wrong_id", ODD, 53, "silent.example.com", 1),
        ("to_another_name", ODD, 53, "other.example.com", 0),
        ("from_another_host", ATTACKER, 53, "silent.example.com", 0),
        ("from_another_port", ODD, 5353, "silent.example.com", 0),
    ],
)
def test_ATTACK_off_path_answer(lab, arena, attack, source, source_port, name, plus, defended):
    target = next_target()
    workload = arena.workload(*NAMES, resolvers=[ODD], without="" if defended else ANSWERS)
    with victim(workload, target) as (process, port, number):
        forge(lab, source, source_port, port, name, (number + plus) & 0xFFFF, target)
        assert json.loads(process.stdout.readline()) == ("EPERM" if defended else "connected")


def test_ATTACK_an_answer_for_a_name_that_only_begins_like_an_allowed_one(lab, arena):
    target = next_target()
    with victim(arena.workload(*NAMES, resolvers=[ODD]), target) as (process, port, number):
        forge(lab, ODD, 53, port, "silent.example.com.evil.net", number, target)
        assert process.stdout.readline() == '"EPERM"\n'


def test_an_answer_that_fits_its_question_teaches_in_whatever_case_once(lab, arena):
    """The control of the attacks above: the same path, with all of it right."""
    target = next_target()
    with victim(arena.workload(*NAMES, resolvers=[ODD]), target) as (process, port, number):
        forge(lab, ODD, 53, port, "SILENT.example.COM", number, target)
        assert process.stdout.readline() == '"connected"\n'


@EITHER
def test_ATTACK_a_used_question_is_answered_again(lab, arena, defended):
    """The first answer teaches, the second does not: of two that a stranger sends, one counts."""
    target, other = next_target(), next_target()
    workload = arena.workload(*NAMES, resolvers=[ODD], without="" if defended else ANSWERS)
    with victim(workload, target) as (process, port, number):
        forge(lab, ODD, 53, port, "silent.example.com", number, other, target)
        told = [json.loads(process.stdout.readline()) for _ in range(2)]
    assert told[1] == ("EPERM" if defended else "connected")


@EITHER
def test_ATTACK_a_question_that_is_older_than_ten_seconds_is_answered(lab, arena, defended):
    target = next_target()
    workload = arena.workload(*NAMES, resolvers=[ODD])
    with victim(workload, target) as (process, port, number):
        if defended:
            age_questions(workload, 11)
        before = workload.counters()
        forge(lab, ODD, 53, port, "silent.example.com", number, target)
        assert json.loads(process.stdout.readline()) == ("EPERM" if defended else "connected")
        assert (workload.counters() - before)["ANSWER_LATE"] == defended


def age_questions(workload, seconds):
    """As if all that are open had been asked earlier."""
    loaded = Datapath(place.find(workload.version.instance).pins)
    for key, found in list(loaded["questions"].items()):
        aged = (found.time - seconds * 10**9, found.workload, found.socket, found.policy)
        loaded["questions"][contract().plain(key)] = aged
    loaded.close()


ANOTHER_SOCKET = VICTIM.replace(
    "\n    tell([sock",
    """
    asked, sock = sock, socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(5)
    sock.bind(("", 0))
    tell([sock""",
)


@EITHER
def test_ATTACK_one_socket_asks_and_another_one_is_answered(lab, arena, defended):
    """Questions are kept by socket: another socket of the same workload gets nothing out of them."""
    target = next_target()
    workload = arena.workload(*NAMES, resolvers=[ODD], without="" if defended else ANSWERS)
    with victim(workload, target, ANOTHER_SOCKET) as (process, port, number):
        forge(lab, ODD, 53, port, "silent.example.com", number, target)
        assert json.loads(process.stdout.readline()) == ("EPERM" if defended else "connected")


@EITHER
def test_ATTACK_an_answer_to_another_workloads_question(lab, arena, defended):
    """One workload has the question open; the answer, right in all else, is sent to the other.

    With the defence off whoever asked is taught by what another was sent.
    """
    target = next_target()
    without = "" if defended else ANSWERS
    asks = arena.workload(*NAMES, resolvers=[ODD], without=without)
    other = arena.workload(*NAMES, "192.0.2.88", resolvers=[ODD], without=without)
    bystander = """
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("", 0))
        tell(sock.getsockname()[1])
        sock.recv(4096)
        tell("got it")
        input()
    """
    with victim(asks, target) as (process, port, number), other.started(bystander) as receives:
        there = json.loads(receives.stdout.readline())
        forge(lab, ODD, 53, there, "silent.example.com", number, target)
        assert receives.stdout.readline() == '"got it"\n'
        lab.world.checked(*python(f"forge({ATTACKER!r}, 9, {POD!r}, {port}, b'try now')"))
        assert json.loads(process.stdout.readline()) == ("EPERM" if defended else "connected")


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
