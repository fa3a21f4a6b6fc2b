"""From expressions to one deterministic automaton whose states tell which of them match: the kernel's form.

The rules this file must obey:

* Equal sets of expressions give equal automata, and which of them are refused depends on the set alone, on
  no clock: every node comes to the same tables.
* An expression's peer is in every state that it covers or in none, as for the rows of tables.py.
* The size is bounded while the automaton grows: `.*a.{14}` has 32,768 states. Still, what STATES permit can
  take seconds: whoever has something else to do asks automata.py.

automata-lib makes the non-deterministic automata and minimises the deterministic one. What lies between, the
subset construction (Rabin and Scott, 1959), is here, because it must stop at a number of states. A minimal
automaton only tells that a word matches. So that it tells for whom, each set of expressions gets an end word
of symbols that no name has: a state's peers are those whose end word leads from there to the end.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from gateway.policies.patterns import ALPHABET, IMPOSSIBLE, Regex

if TYPE_CHECKING:
    from automata.fa.dfa import DFA
    from automata.fa.nfa import NFA

STATES = 8192  # of one automaton
PEERS = 4  # that a state has room for, and a row of names or prefixes


class TooLargeError(ValueError):
    """An automaton of more than STATES states."""


class State(NamedTuple):
    """`next`: the state after each symbol, in the order of ALPHABET; `peers`: ids whose expressions match."""

    next: tuple[int, ...]
    peers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Automaton:
    """State 0 is dead, state 1 the start. Minimal, and numbered by the order in which symbols reach them."""

    states: tuple[State, ...]

    def peers(self, name: str) -> tuple[int, ...]:
        """The ids of the peers that cover `name`, which is in normal form."""
        at = 1
        for symbol in name:
            at = self.states[at].next[ALPHABET.index(symbol)]
        return self.states[at].peers

    def ids(self) -> frozenset[int]:
        """The ids of all peers."""
        return frozenset(peer for state in self.states for peer in state.peers)


class Compiled(NamedTuple):
    """The automaton, and the expressions left out of it: more than PEERS would match one name."""

    automaton: Automaton
    crowded: tuple[Regex, ...]


def compile(wanted: Mapping[Regex, int]) -> Compiled:
    """The automaton of expressions with the ids of their peers; raises TooLargeError."""
    regexes = sorted(wanted)
    joined = _join([_automaton_of(regex) for regex in regexes])
    raw = _subsets(joined)
    fitting = _fitting({state.matching for state in raw})
    if len(fitting) < len(regexes):
        kept = {regexes[index]: wanted[regexes[index]] for index in fitting}
        return compile(kept)._replace(crowded=tuple(regex for regex in regexes if regex not in kept))
    return Compiled(_minimal(raw, joined.classes, [wanted[regex] for regex in regexes]), ())


# ---- Automata ---------------------------------------------------------------------------------------------

_ROUGH = 2 * STATES  # before the automaton is minimal
_ENDS = "ABCDEFGHIJKLMNOP"  # digits of end words; no name has them


class _Joined(NamedTuple):
    """The automata of all expressions side by side, their places numbered through.

    `moves`: from a place, by symbol; `matching`: the expression that matches at a place, by its index;
    `classes`: for each symbol one that moves like it, so that only these need be tried.
    """

    starts: frozenset[int]
    moves: list[dict[str, frozenset[int]]]
    matching: dict[int, int]
    classes: dict[str, str]


class _Subset(NamedTuple):
    """A state of the deterministic automaton: where symbols lead, and which expressions match there."""

    next: dict[str, int]
    matching: frozenset[int]


def _automaton_of(regex: Regex) -> NFA:
    # Imported here: what only reads and explains policies does not need it.
    from automata.fa.nfa import NFA

    return NFA.from_regex(regex.normal, input_symbols={*ALPHABET, IMPOSSIBLE}).eliminate_lambda()


def _join(automata: list[NFA]) -> _Joined:
    places = [(index, place) for index, automaton in enumerate(automata) for place in automaton.states]
    numbers = {place: number for number, place in enumerate(places)}
    moves = [
        {
            symbol: frozenset(numbers[index, end] for end in ends)
            for symbol, ends in automata[index].transitions.get(place, {}).items()
            if symbol != IMPOSSIBLE
        }
        for index, place in places
    ]
    return _Joined(
        starts=frozenset(numbers[index, automaton.initial_state] for index, automaton in enumerate(automata)),
        moves=moves,
        matching={
            numbers[index, place]: index
            for index, automaton in enumerate(automata)
            for place in automaton.final_states
        },
        classes=_classes(moves),
    )


def _classes(moves: list[dict[str, frozenset[int]]]) -> dict[str, str]:
    everywhere: dict[str, list[tuple[int, frozenset[int]]]] = {symbol: [] for symbol in ALPHABET}
    for place, move in enumerate(moves):
        for symbol, ends in move.items():
            everywhere[symbol].append((place, ends))
    first: dict[tuple[tuple[int, frozenset[int]], ...], str] = {}
    return {symbol: first.setdefault(tuple(found), symbol) for symbol, found in everywhere.items()}


def _subsets(joined: _Joined) -> list[_Subset]:
    """The deterministic automaton, its start first; raises TooLargeError."""
    symbols = frozenset(joined.classes.values())
    moves = [[(s, ends) for s, ends in move.items() if s in symbols] for move in joined.moves]
    queue = [joined.starts]
    numbers = {joined.starts: 0}
    found = []
    for places in queue:
        after: dict[str, set[int]] = {}
        for place in places:
            for symbol, ends in moves[place]:
                after.setdefault(symbol, set()).update(ends)
        leads = {}
        for symbol, reached in after.items():
            target = frozenset(reached)
            leads[symbol] = numbers.setdefault(target, len(queue))
            if leads[symbol] == len(queue):
                queue.append(target)
        if len(queue) > _ROUGH:
            raise TooLargeError
        matching = frozenset(joined.matching[place] for place in places if place in joined.matching)
        found.append(_Subset(leads, matching))
    return found


def _fitting(together: set[frozenset[int]]) -> set[int]:
    """The expressions of which no more than PEERS match one name: those that meet the most others first."""
    meets = Counter(index for matching in together for index in matching)
    fitting: set[int] = set()
    for index in sorted(meets, key=lambda index: (-meets[index], index)):
        if all(len(matching & fitting) < PEERS for matching in together if index in matching):
            fitting.add(index)
    return fitting


def _minimal(raw: list[_Subset], classes: dict[str, str], ids: list[int]) -> Automaton:
    from automata.fa.dfa import DFA

    sets = sorted({state.matching for state in raw if state.matching}, key=sorted)
    ends = {matching: _end_word(number) for number, matching in enumerate(sets)}
    moves: dict[Any, dict[str, Any]] = {"": {}}
    for word in ends.values():
        for rest in range(1, len(word)):
            moves.setdefault(word[rest:], {})[word[rest]] = word[rest + 1 :]
    for number, (move, matching) in enumerate(raw):
        word = ends.get(matching, "")
        moves[number] = {**move, **({word[0]: word[1:]} if word else {})}
    minimal = DFA(
        states=set(moves),
        input_symbols={*classes.values(), *_ENDS},
        transitions=moves,
        initial_state=0,
        final_states={""},
        allow_partial=True,
    ).minify()
    peers = {ends[matching]: tuple(sorted(ids[index] for index in matching)) for matching in sets}
    return _numbered(minimal, classes, peers)


def _end_word(number: int) -> str:
    return "".join(_ENDS[int(digit, 16)] for digit in f"{number:04x}")


def _read_end_word(minimal: DFA, place: Any) -> str:
    word = ""
    while end := next((symbol for symbol in minimal.transitions[place] if symbol in _ENDS), ""):
        word, place = word + end, minimal.transitions[place][end]
    return word


def _numbered(minimal: DFA, classes: dict[str, str], peers: dict[str, tuple[int, ...]]) -> Automaton:
    """The automaton in the one order that does not depend on how it was made."""
    queue: list[Any] = [minimal.initial_state]
    numbers = {minimal.initial_state: 1}
    states = [State((0,) * len(ALPHABET), ())]
    for place in queue:
        move = minimal.transitions[place]
        row = []
        for symbol in ALPHABET:
            after = move.get(classes[symbol])
            if after is not None and after not in numbers:
                numbers[after] = len(queue) + 1
                queue.append(after)
            row.append(0 if after is None else numbers[after])
        states.append(State(tuple(row), peers.get(_read_end_word(minimal, place), ())))
    if len(states) > STATES:
        raise TooLargeError
    return Automaton(tuple(states))
