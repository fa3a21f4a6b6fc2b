"""The automaton against other readers of the same expressions, and what it promises."""

import re
from collections import Counter
from random import Random

import pytest
import re2
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.policies import dfa, patterns
from gateway.policies.dfa import PEERS, TooLargeError
from gateway.policies.patterns import ALPHABET
from tests.random_patterns import SIX, is_name, is_pattern, near, node, pairs


def compiled(*texts):
    """The automaton of expressions whose peers are 1, 2, 3 ... in the order given."""
    return dfa.compile({patterns.parse(text): number for number, text in enumerate(texts, start=1)})


# ---- What it matches --------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(st.integers(0, 2**32).map(Random))
def test_it_matches_what_re_of_python_matches(chance):
    made = node(chance, 3, posix=False)
    # Short ones: where repeats are nested, `re` tries every way to divide the text among them.
    texts = [text for _ in range(40) if len(text := near(chance, made.sample(chance))) < 16]
    matching = [text for text in texts if re.fullmatch(made.text, text, re.A | re.I)]
    if not is_pattern(made.text):  # the only thing wrong with it can be that no name matches
        assert not list(filter(is_name, matching))
        return
    automaton = compiled(made.text).automaton
    assert [text for text in texts if automaton.peers(text)] == matching
    assert leads_to_a_name(automaton)


def test_it_matches_what_re2_matches_and_says_for_whom():
    options = re2.Options()
    options.case_sensitive = options.log_errors = False
    told = Counter()
    for texts, names in pairs(150):
        automaton, crowded = compiled(*texts)
        assert not crowded
        for name in names:
            wanted = [n for n, text in enumerate(texts, start=1) if re2.fullmatch(text, name, options)]
            assert list(automaton.peers(name)) == wanted, (texts, name)
            told[len(wanted)] += 1
    assert told[0] > 200, "near matches must be among the names"
    assert told[1] > 200
    assert told[2] + told[3] + told[4] > 50


def test_six_typical_expressions():
    automaton = compiled(*SIX).automaton
    assert automaton.peers("a.b.example.org") == (1,)
    assert automaton.peers("example.org") == ()
    assert automaton.peers("api-007.eu-north-2.amazonaws.com") == (2,)
    assert automaton.peers("x.s3.amazonaws.com") == (3,)
    assert automaton.peers(21 * "x" + ".s3.amazonaws.com") == ()
    assert automaton.peers("registry-eu.quay.io") == (6,)
    assert len(automaton.states) < 500


def test_what_covers_one_name_together_is_told_together():
    automaton = compiled(".*", r".*\.example\.com", "a.*").automaton
    assert automaton.peers("a.example.com") == (1, 2, 3)
    assert automaton.peers("b.example.com") == (1, 2)
    assert automaton.peers("a.example.org") == (1, 3)
    assert automaton.peers("org") == (1,)


def leads_to_a_name(automaton):
    """Whether some text without an empty label is matched; tried by walking every state."""
    reached, queue = {(1, True)}, [(1, True)]
    for state, at_start in queue:
        for symbol, after in zip(ALPHABET, automaton.states[state].next, strict=True):
            if after and not (symbol == "." and at_start) and (after, symbol == ".") not in reached:
                reached.add((after, symbol == "."))
                queue.append((after, symbol == "."))
    return any(automaton.states[state].peers and not at_start for state, at_start in reached)


# ---- What it promises -------------------------------------------------------------------------------------


def test_its_form():
    automaton = compiled(*SIX).automaton
    assert automaton.states[0] == ((0,) * 39, ())
    for state in automaton.states:
        assert len(state.next) == len(ALPHABET) == 39
        assert all(0 <= after < len(automaton.states) for after in state.next)
        assert list(state.peers) == sorted(set(state.peers))
    assert automaton.ids() == {1, 2, 3, 4, 5, 6}


@settings(max_examples=20)
@given(st.permutations([r"a[0-9]*", r".*\.b", r"(x|y)\.b", "a1*", "[ax].*"]))
def test_equal_sets_of_expressions_give_equal_automata(texts):
    assert dfa.compile({patterns.parse(text): ord(text[-1]) + len(text) for text in texts}) == dfa.compile(
        {patterns.parse(text): ord(text[-1]) + len(text) for text in sorted(texts)}
    )


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("(a|b|c|[a-z]){1,250}", "[a-z]{1,250}"),
        ("ab|ac", "a[bc]"),
        ("(?:(a*)*)*b", "a*b"),
        (r"\.*a", r"\.{0,}a"),
        ("(foo|bar)foo|(foo|bar)bar", "(foo|bar){2}"),
    ],
)
def test_it_is_minimal_and_numbered_in_one_way(one, other):
    assert compiled(one) == compiled(other)


def test_different_peers_keep_states_apart():
    assert len(compiled("a", "b").automaton.states) == 4  # dead, start, one end for each
    assert len(compiled("a|b").automaton.states) == 3


def test_no_state_has_more_peers_than_fit_and_those_left_out_are_in_none():
    texts = [".*", ".*a.*", ".*b.*", ".*c.*", ".*d.*", "x.*", r"y\.y"]
    automaton, crowded = compiled(*texts)
    assert max(len(state.peers) for state in automaton.states) == PEERS
    assert crowded
    assert automaton.ids() == {n for n, t in enumerate(texts, start=1) if patterns.parse(t) not in crowded}
    kept = [text for text in texts if patterns.parse(text) not in crowded]
    chance = Random(1)
    for name in ("".join(chance.choices("abcdxy.", k=6)) for _ in range(500)):
        covering = {texts.index(text) + 1 for text in kept if re.fullmatch(text, name)}
        assert set(automaton.peers(name)) == covering


def test_what_grows_without_bound_is_stopped():
    assert len(compiled(".*a.{11}").automaton.states) == 2**12 + 1
    for text in (".*a.{12}", ".*a.{13}", ".*a.{14}", ".*a.{200}"):  # 8193 states, and many more
        with pytest.raises(TooLargeError):
            compiled(text)
