"""The child that compiles: its limits, who is left out where a set is too large, and what is kept."""

import json
import time
from pathlib import Path

import pytest

from gateway import automata
from gateway.automata import Made, PatternError
from gateway.policies import dfa, patterns
from gateway.policies.policy import ALL, Peer, Policy
from tests.topology import PATIENCE

SECONDS = 100.0  # for a child: what else takes its share of the processors here must decide nothing


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(automata, "OBJECTS", tmp_path / "cache")
    monkeypatch.setattr(automata, "_recent", {})
    return tmp_path / "cache"


def wanted(*texts: str) -> dict[patterns.Regex, int]:
    return {regex: Peer(regex).id for regex in map(patterns.parse, texts)}


def policy_of(*texts: str) -> Policy:
    return Policy(frozenset((Peer(regex), ALL) for regex in wanted(*texts)))


def automaton_of(policy: Policy, seconds: float = SECONDS, **limits: int) -> Made:
    return automata.automaton_of(policy, seconds, **limits)


def test_a_policy_without_expressions_has_no_automaton() -> None:
    assert automaton_of(Policy()) == (None, ())


def test_the_child_makes_what_the_pure_code_makes() -> None:
    texts = [r".*\.example\.com", r"api-[0-9]+\.example\.(com|org)"]
    made = automaton_of(policy_of(*texts))
    assert made == (dfa.compile(wanted(*texts)).automaton, ())
    assert automata.compile(wanted(*texts), SECONDS).automaton == made.automaton
    assert made.automaton
    assert made.automaton.peers("api-1.example.com") == tuple(sorted(wanted(*texts).values()))


# ---- Too large, too slow ----------------------------------------------------------------------------------


def test_only_the_expression_at_fault_is_left_out() -> None:
    automaton, problems = automaton_of(policy_of(r"good\.example", ".*a.{14}", r"fine[0-9]\.example"))
    assert automaton == dfa.compile(wanted(r"good\.example", r"fine[0-9]\.example")).automaton
    assert problems == (
        "/.*a.{14}/ grants nothing: it would take more than 8192 states; write a simpler one, or domains",
    )


def test_where_all_are_small_but_not_together_the_largest_goes() -> None:
    automaton, problems = automaton_of(policy_of(".*a.{8}", ".*b.{9}", r"c\.example"))
    assert automaton == dfa.compile(wanted(".*a.{8}", r"c\.example")).automaton
    assert problems == (
        "/.*b.{9}/ grants nothing: with the policy's other expressions, 3 in all, it would take more than "
        "8192 states; write fewer, or domains",
    )


def test_expressions_that_meet_too_many_others_are_told() -> None:
    automaton, problems = automaton_of(policy_of(*(f"{letter}*" for letter in "abcdef")))
    assert automaton
    assert len(automaton.ids()) == 4
    assert problems == tuple(
        f"/{letter}*/ grants nothing: 4 others match some of its names" for letter in "ef"
    )


def test_the_clock_ends_a_child_and_what_it_decided_is_not_kept(folder: Path) -> None:
    begun = time.monotonic()
    automaton, problems = automaton_of(policy_of(".*a.{11}", ".*b.{11}"), seconds=0.05)
    assert time.monotonic() - begun < 5 * PATIENCE
    assert automaton is None
    assert len(problems) == 2
    assert "did not compile in 0.05 s" in problems[0] or "others took all the time" in problems[0]
    assert not list(folder.glob("*"))
    assert automaton_of(policy_of(r"a\.example")).automaton, "another set is not held up by it"


def test_the_memory_of_a_child_is_bounded(folder: Path) -> None:
    with pytest.raises(PatternError, match="it would take too much memory; write a simpler one, or domains"):
        automata.compile(wanted(".*a.{11}"), SECONDS, memory=60 << 20)
    automaton, problems = automaton_of(policy_of(".*a.{11}"), memory=60 << 20)
    assert automaton is None
    assert len(problems) == 1
    assert not list(folder.glob("*"))


# ---- What is kept -----------------------------------------------------------------------------------------


def no_child(*_: object) -> None:
    raise AssertionError("nothing needs to be compiled")


def test_what_was_made_is_read_again_by_another_process(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = automaton_of(policy_of(r"a\.example", ".*a.{14}"))
    monkeypatch.setattr(automata, "_recent", {})
    monkeypatch.setattr(automata, "_Child", no_child)
    assert automaton_of(policy_of(".*a.{14}", r"a\.example")) == made
    (path,) = folder.glob("*")
    path.unlink()
    assert automaton_of(policy_of(r"a\.example", ".*a.{14}")) == made, "and kept in this one"


@pytest.mark.parametrize("harm", ["", "cut", "turned", "foreign", "nonsense"])
def test_what_was_kept_is_verified(folder: Path, monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    made = automaton_of(policy_of(r"a\.example"))
    (path,) = folder.glob("*")
    text = path.read_text()
    foreign = json.dumps([dfa.compile({patterns.parse("a"): 7}).automaton.states, []])
    digest = path.stem.removeprefix("patterns-")
    harmed = {
        "cut": text[:-9],
        "turned": text.replace("[0, ", "[1, ", 1),
        "foreign": f"{automata._hash(digest + foreign)}\n{foreign}",
        "nonsense": "\0",
    }
    path.write_text(harmed.get(harm, ""))
    monkeypatch.setattr(automata, "_recent", {})
    assert automaton_of(policy_of(r"a\.example")) == made
    assert path.read_text() == text, "and mended"


def test_a_folder_that_cannot_be_written_hinders_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(automata, "OBJECTS", tmp_path / "file")
    assert automaton_of(policy_of(r"a\.example")).automaton


def test_no_more_is_kept_than_its_share(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(automata, "KEPT", 2)
    monkeypatch.setattr(automata, "RECENT", 2)
    (folder).mkdir()
    (folder / "the-kernel-half.json").write_text("")
    for text in "abcd":
        automaton_of(policy_of(text))
    assert len(list(folder.glob("patterns-*"))) == 2
    assert (folder / "the-kernel-half.json").exists()
    assert len(automata._recent) == 2
