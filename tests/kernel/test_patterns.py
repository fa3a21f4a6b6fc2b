"""The walk of an automaton by the real programs, against Python's `re`."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from random import Random

import pytest

from bpf import kernel
from gateway.numbers import Numbers
from gateway.policies import dfa, patterns
from tests.kernel import packets as p
from tests.kernel.bench import Bench
from tests.kernel.test_dns_reader import POLICY, Reader, simple
from tests.random_patterns import is_name, is_pattern, near, node

TAUGHT = "203.0.113.7"
PAIRS = 20_000


class Walker(Reader):
    """Says which peers hold an address that a name was answered with, where there is only an automaton."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        bench.policy(POLICY, "PATTERNS")
        self.numbers = Numbers(bench.d)

    def lay(self, expressions: Iterable[str]) -> None:
        """The peer of an expression is its place among them, from 1 on."""
        wanted = {patterns.parse(text): number for number, text in enumerate(expressions, start=1)}
        self.numbers._set_automaton(POLICY, dfa.compile(wanted).automaton)

    def peers(self, name: str) -> list[int]:
        answer = simple(name, TAUGHT)
        self.ask(answer.number, answer.question)
        self.answer(answer.bytes())
        key = p.packed(TAUGHT), POLICY
        grant = self.b.d["grants"].get(key)
        self.b.d["grants"].discard(key)
        return sorted(int(slot.peer) for slot in grant.slots if slot.peer) if grant else []


@pytest.fixture
def walker(bench: Bench) -> Iterator[Walker]:
    made = Walker(bench)
    yield made
    made.numbers._set_automaton(POLICY, None)
    made.numbers.close()


def test_the_kernel_matches_what_re_of_python_matches(walker: Walker) -> None:
    chance, told = Random(20), Counter[int]()
    while told.total() < PAIRS:
        nodes = [node(chance, 3, posix=False) for _ in range(chance.randint(1, 4))]
        nodes = [one for one in nodes if is_pattern(one.text)]
        texts = {near(chance, chance.choice(nodes).sample(chance)) for _ in range(60 if nodes else 0)}
        names = sorted(text for text in texts if len(text) < 20 and is_name(text))
        if not names:
            continue
        wanted = sorted({one.text for one in nodes})
        walker.lay(wanted)
        for name in names:
            matching = [n for n, text in enumerate(wanted, 1) if re.fullmatch(text, name, re.A | re.I)]
            assert walker.peers(name) == matching, (wanted, name)
            told[len(matching)] += 1
    assert told[0] > PAIRS / 20, told
    assert told[1] > PAIRS / 20
    assert told[2] + told[3] + told[4] > PAIRS / 50


@pytest.mark.parametrize(
    ("expression", "yes", "no"),
    [
        (".*", ["a", "x." * 126 + "y"], []),
        (
            "[a-z0-9_.-]{253}",
            [".".join(["a" * 63] * 3 + ["b" * 61])],
            [".".join(["a" * 63] * 3 + ["b" * 60])],
        ),
        (
            r"example\.com",
            ["example.com", "EXAMPLE.com"],
            ["example-com", "www.example.com", "example.com.x"],
        ),
        (r".+\.example\.com", ["www.example.com", "a.b.example.com"], ["example.com", "wwwexample.com"]),
        ("a_b-c[0-9]z", ["a_b-c0z", "a_b-c9z"], ["a-b-c0z", "a_b-cz"]),
    ],
)
def test_every_character_and_length(walker: Walker, expression: str, yes: list[str], no: list[str]) -> None:
    walker.lay([expression])
    assert [name for name in yes if walker.peers(name) != [1]] == []
    assert [name for name in no if walker.peers(name)] == []


def test_a_name_with_another_character_teaches_nothing(walker: Walker) -> None:
    walker.lay([".*"])
    assert walker.peers("exam!ple.com") == []
    assert walker.peers("exam ple.com") == []


def test_names_and_patterns_grant_side_by_side(walker: Walker) -> None:
    walker.lay([".*[.]example[.]com", "www[.].*"])
    walker.b.name(POLICY, "www.example.com", 11, 12)
    assert walker.peers("www.example.com") == [1, 2, 11, 12]
    assert walker.peers("ftp.example.com") == [1]


def test_another_automaton_takes_over_in_one_write(walker: Walker) -> None:
    walker.lay(["a[.]test"])
    assert (walker.peers("a.test"), walker.peers("b.test")) == ([1], [])
    walker.lay(["b[.]test"])
    assert (walker.peers("a.test"), walker.peers("b.test")) == ([], [1])
    walker.numbers._set_automaton(POLICY, None)
    assert walker.peers("b.test") == []


def test_equal_automata_are_one_map(walker: Walker) -> None:
    walker.lay(["a[.]test"])
    first = walker.b.d["patterns"][POLICY]
    automaton = dfa.compile({patterns.parse("a[.]test"): 1}).automaton
    walker.numbers._set_automaton(POLICY + 1, automaton)
    try:
        assert walker.b.d["patterns"][POLICY + 1] == first
        assert walker.numbers._read_automaton(POLICY) == automaton
    finally:
        walker.numbers._set_automaton(POLICY + 1, None)


def test_a_state_that_is_not_there_is_dead(walker: Walker) -> None:
    fd = kernel.create_array(walker.b.d["patterns"].layout.inner_size, 1)
    walker.b.d["patterns"][POLICY] = fd
    os.close(fd)
    assert walker.peers("a.test") == []
