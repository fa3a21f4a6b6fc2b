"""The automaton of a policy's expressions, made in a child that may not take long, and kept.

The problem: dfa.py bounds the number of states, but what it permits can still take seconds and hundreds of
megabytes, and automata-lib makes whoever imports it slow to start. So a child does it, within limits of time
and memory, and what came out is kept on disk. (A thread would not do: Python cannot end one.)

Where a set of expressions cannot be compiled, those at fault are left out and told, so that the rest of the
policy stands: first those that cannot be compiled alone, then, while the rest is too large together, the
largest quarter of it. What a limit of this machine decided is not kept: the next time may do better.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import resource
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from bpf.load import OBJECTS
from gateway.policies import dfa
from gateway.policies.dfa import PEERS, STATES, Automaton, Compiled, State, TooLargeError
from gateway.policies.patterns import ALPHABET, Regex
from gateway.policies.policy import Policy

SECONDS = 10.0  # for one set of expressions; to find those at fault, PATIENCE times that
PATIENCE = 3
MEMORY = 1 << 30  # bytes of the child's address space
KEPT, RECENT = 256, 64  # automata on disk and in this process
FORMAT = 1  # of what is kept; another number for whatever changes the automaton of a set

Wanted = Mapping[Regex, int]  # with the ids of their peers


class PatternError(ValueError):
    """Expressions that have no automaton; the message says how many, why, and what to do."""


class Made(NamedTuple):
    """An automaton, None where no expression is left in it, and a problem for each that was left out."""

    automaton: Automaton | None
    problems: tuple[str, ...]


_recent: dict[str, Made] = {}


def automaton_of(policy: Policy, seconds: float = SECONDS, memory: int = MEMORY) -> Made:
    """The automaton of the policy's expressions, and why some of them grant nothing."""
    wanted = {peer.what: peer.id for peer, _ in policy.grants if isinstance(peer.what, Regex)}
    if not wanted:
        return Made(None, ())
    digest = _digest(wanted)
    made = _recent.get(digest) or _read(digest, wanted)
    if made is None:
        with _Child(memory) as child:
            made = _made(child, wanted, seconds)
        if child.limited:
            return made
        _write(digest, made)
    if len(_recent) >= RECENT:
        _recent.pop(next(iter(_recent)))
    _recent[digest] = made
    return made


def compile(wanted: Wanted, seconds: float = SECONDS, memory: int = MEMORY) -> Compiled:
    """The same as :func:`gateway.policies.dfa.compile`, within limits; raises :class:`PatternError`."""
    with _Child(memory) as child:
        return child.compile(wanted, seconds)


def _made(child: _Child, wanted: Wanted, seconds: float) -> Made:
    deadline = time.monotonic() + PATIENCE * seconds
    rest, problems = dict(wanted), []
    sizes: dict[Regex, int] = {}
    while rest:
        try:
            automaton, crowded = child.compile(rest, min(seconds, deadline - time.monotonic()))
        except PatternError as error:
            wrong = str(error)
        else:
            problems += [
                f"{regex} grants nothing: {PEERS} others match some of its names" for regex in crowded
            ]
            return Made(automaton, tuple(problems))
        if not sizes and len(rest) > 1:
            sizes, faults = _sizes(child, rest, seconds, deadline)
        else:
            faults = {}
        if not faults:
            largest = sorted(rest, key=lambda regex: (sizes.get(regex, 0), regex), reverse=True)
            faults = dict.fromkeys(largest[: (len(rest) + 3) // 4], wrong)
        problems += [f"{regex} grants nothing: {why}" for regex, why in faults.items()]
        rest = {regex: peer for regex, peer in rest.items() if regex not in faults}
    return Made(None, tuple(problems))


def _sizes(
    child: _Child, wanted: Wanted, seconds: float, deadline: float
) -> tuple[dict[Regex, int], dict[Regex, str]]:
    """How many states each expression has alone, and what is wrong with those that have too many."""
    sizes, faults = {}, {}
    for regex in sorted(wanted):
        try:
            alone = child.compile({regex: wanted[regex]}, min(seconds, deadline - time.monotonic()))
            sizes[regex] = len(alone.automaton.states)
        except PatternError as error:
            faults[regex] = str(error)
    return sizes, faults


# ---- The child --------------------------------------------------------------------------------------------


class _Child:
    """A process that compiles one set after another; where it takes too long, another takes its place."""

    def __init__(self, memory: int) -> None:
        self.memory = memory
        self.limited = False  # whether a limit of this machine ever decided
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> _Child:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def compile(self, wanted: Wanted, seconds: float) -> Compiled:
        """The automaton of `wanted`; raises PatternError."""
        answer = self._ask([[regex.text, regex.normal, peer] for regex, peer in wanted.items()], seconds)
        self.limited |= answer.get("limited", False)
        if "wrong" in answer:
            raise PatternError(_wrong(wanted, answer["wrong"]))
        crowded = set(answer["crowded"])
        return Compiled(
            _automaton(answer["states"], wanted),
            tuple(sorted(regex for regex, peer in wanted.items() if peer in crowded)),
        )

    def _ask(self, job: list[list[str | int]], seconds: float) -> Any:
        if seconds <= 0:
            return self._stopped("was not tried: others took all the time")
        deadline = time.monotonic() + seconds
        process = self._process or self._start(seconds)
        assert process.stdin
        assert process.stdout
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(json.dumps(job).encode() + b"\n")
            process.stdin.flush()
        said = bytearray()
        while not said.endswith(b"\n"):
            if not select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
                return self._stopped(f"did not compile in {seconds:.3g} s")
            part = os.read(process.stdout.fileno(), 1 << 20)
            if not part:
                return self._stopped("ended the process that compiled")
            said += part
        return json.loads(said)

    def _start(self, seconds: float) -> subprocess.Popen[bytes]:
        limits = [str(self.memory), str(int(seconds * (PATIENCE + 1)) + 1)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "gateway.automata", *limits],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd="/",
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
        )
        return self._process

    def _stopped(self, wrong: str) -> dict[str, Any]:
        self._stop()
        return {"wrong": wrong, "limited": True}

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process:
            process.kill()
            with contextlib.suppress(BrokenPipeError):
                process.communicate()


def _wrong(wanted: Wanted, wrong: str) -> str:
    if len(wanted) == 1:
        return f"it {wrong}; write a simpler one, or domains"
    return f"with the policy's other expressions, {len(wanted)} in all, it {wrong}; write fewer, or domains"


def main() -> None:
    """`python -m gateway.automata BYTES SECONDS`: a line of JSON for each set, and one in answer."""
    memory, seconds = map(int, sys.argv[1:])
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    for line in sys.stdin:
        print(json.dumps(_answer({Regex(text, normal): peer for text, normal, peer in json.loads(line)})))
        sys.stdout.flush()


def _answer(wanted: Wanted) -> dict[str, Any]:
    try:
        automaton, crowded = dfa.compile(wanted)
    except TooLargeError:
        return {"wrong": f"would take more than {STATES} states"}
    except MemoryError:
        return {"wrong": "would take too much memory", "limited": True}
    return {"states": automaton.states, "crowded": [wanted[regex] for regex in crowded]}


def _automaton(states: Any, wanted: Wanted) -> Automaton:
    """The automaton that JSON `states` say; raises ValueError where it can't be one of `wanted`."""
    found = Automaton(tuple(State(tuple(after), tuple(peers)) for after, peers in states))
    count = len(found.states)
    if not 2 <= count <= STATES or found.states[0] != State((0,) * len(ALPHABET), ()):
        raise ValueError("no dead state, no start, or too many states")
    for state in found.states:
        if len(state.next) != len(ALPHABET) or not all(0 <= after < count for after in state.next):
            raise ValueError("a state leads nowhere")
        if len(state.peers) > PEERS or list(state.peers) != sorted(set(state.peers)):
            raise ValueError("a state has peers that do not fit")
    if not found.ids() <= set(wanted.values()):
        raise ValueError("a state has a peer that nobody asked for")
    return found


# ---- On disk ----------------------------------------------------------------------------------------------


def _digest(wanted: Wanted) -> str:
    asked = [
        FORMAT,
        STATES,
        PEERS,
        sorted((regex.text, regex.normal, peer) for regex, peer in wanted.items()),
    ]
    return _hash(json.dumps(asked))


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _path(digest: str) -> Path:
    return OBJECTS / f"patterns-{digest}.json"


def _read(digest: str, wanted: Wanted) -> Made | None:
    """What is kept for `digest`, unless it is missing or not what was written."""
    try:
        checksum, _, text = _path(digest).read_text().partition("\n")
        if checksum != _hash(digest + text):
            return None
        states, problems = json.loads(text)
        return Made(states and _automaton(states, wanted), tuple(problems))
    except (OSError, ValueError, TypeError):
        return None


def _write(digest: str, made: Made) -> None:
    """Keeps `made`, whole or not at all; where nothing can be written, it is made again the next time."""
    text = json.dumps([made.automaton and made.automaton.states, made.problems])
    with contextlib.suppress(OSError):
        OBJECTS.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd, part = tempfile.mkstemp(dir=OBJECTS, prefix="patterns-")
        try:
            with os.fdopen(fd, "w") as file:
                file.write(f"{_hash(digest + text)}\n{text}")
            Path(part).rename(_path(digest))
        except BaseException:
            Path(part).unlink(missing_ok=True)
            raise
        kept = sorted(OBJECTS.glob("patterns-*"), key=lambda path: path.stat().st_mtime)
        for old in kept[:-KEPT]:
            old.unlink()


if __name__ == "__main__":
    main()
