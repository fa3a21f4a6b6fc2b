"""A relabelled pod goes from one policy to another: what both admit goes on, the rest ends."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from gateway import cgroups, moving, resolvers
from gateway.engine import Held
from gateway.numbers import OWNED, Options
from gateway.policies import allow, policy
from tests.kernel.bench import inside
from tests.network.test_homes import ALLOWED, ELSEWHERE, NAME, OPEN, RESOLVER, SITE, World

OPTIONS = Options(resolvers=(resolvers.parse(RESOLVER),))
BOTH, LOST, NEW = NAME, "lost.example.net", "new.example.net"
CHILD = """
import socket, sys
held = [socket.create_connection((address, 80), 5) for address in sys.argv[1:]]
print("ready", flush=True)
for line in sys.stdin:
    try:
        held[int(line)].send(b"x")
        held[int(line)].settimeout(5)
        print(held[int(line)].recv(1).decode(), flush=True)
    except OSError as error:
        print(type(error).__name__, flush=True)
"""


@pytest.fixture(scope="module")
def world(superuser: None) -> Iterator[World]:
    with ExitStack() as undo:
        yield World(undo)


Hold = Callable[..., Held]


@pytest.fixture
def hold(world: World) -> Iterator[Hold]:
    with ExitStack() as undo:

        def start(name: str, *texts: str) -> Held:
            union = policy.union([allow.egress(list(texts), audit=False)])
            assert union is not None
            held = world.engine.hold(name, union, OPTIONS, {"kind": "test"})
            undo.callback(world.engine.release, held)
            return held

        yield start


def place(world: World, held: Held, pod: str) -> list[str]:
    told = world.engine.place(held, world.cgroups[pod], world.home(pod))
    return [line for line in told if line.startswith("ended")]


def relabel(world: World, old: Held, new: Held, pod: str = "a") -> list[str]:
    """As the agent does it."""
    ended = place(world, new, pod)
    world.engine.hand_over(old, world.cgroups[pod])
    return ended


def test_what_was_learned_goes_along_where_both_have_the_name(world: World, hold: Hold) -> None:
    old, new = hold("old", BOTH, LOST), hold("new", BOTH, NEW)
    for pod in ("a", "b"):
        place(world, old, pod)
    world.asks("a", SITE, name=BOTH)
    world.asks("a", ELSEWHERE, name=LOST)
    assert world.reaches("a", SITE)
    assert world.reaches("a", ELSEWHERE)
    relabel(world, old, new)
    assert world.reaches("a", SITE), "the name had to be resolved again"
    assert not world.reaches("a", ELSEWHERE)
    assert world.reaches("b", ELSEWHERE), "who stayed lost something"
    world.asks("a", ELSEWHERE, name=NEW)
    assert world.reaches("a", ELSEWHERE)


def test_open_flows_of_both_go_on_and_the_others_end_told(world: World, hold: Hold) -> None:
    old, new = hold("old", BOTH, LOST), hold("new", BOTH)
    place(world, old, "a")
    world.asks("a", SITE, name=BOTH)
    world.asks("a", ELSEWHERE, name=LOST)
    with world.networks["outside"].entered(), ExitStack() as undo:
        accepting = [undo.enter_context(socket.create_server((to, 80))) for to in (SITE, ELSEWHERE)]
        with world.networks["a"].entered(), inside(world.cgroups["a"]):
            child = subprocess.Popen(
                [sys.executable, "-c", CHILD, SITE, ELSEWHERE],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        undo.callback(end, child)
        accepted = [undo.enter_context(server.accept()[0]) for server in accepting]
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        (ended,) = relabel(world, old, new)
        assert ended.startswith(f"ended TCP to {ELSEWHERE} port 80 of python")
        accepted[0].send(b"y")
        assert said(child, "0") == "y"
        assert said(child, "1") == "ConnectionAbortedError"


def end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.communicate()


def said(child: subprocess.Popen[str], which: str) -> str:
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{which}\n")
    child.stdin.flush()
    return child.stdout.readline().strip()


def test_a_question_that_is_open_is_answered_under_the_new_policy(world: World, hold: Hold) -> None:
    old, new = hold("old", BOTH), hold("new", BOTH, NEW)
    place(world, old, "a")
    with world.asking("a", NEW) as answer:
        relabel(world, old, new)
        answer(ELSEWHERE)
    assert world.reaches("a", ELSEWHERE)


def test_a_datagram_socket_with_many_peers_keeps_those_that_both_admit(world: World, hold: Hold) -> None:
    old, new = hold("old", BOTH, LOST, OPEN), hold("new", BOTH, OPEN)
    place(world, old, "a")
    world.asks("a", SITE, name=BOTH)
    world.asks("a", ELSEWHERE, name=LOST)
    with world.socket("a") as held:
        for to in (SITE, ELSEWHERE, ALLOWED):
            held.sendto(b"x", (to, 7))
        expire(world, old)
        relabel(world, old, new)
        for to in (SITE, ALLOWED):  # open flows outlive the end of what DNS taught
            held.sendto(b"x", (to, 7))
        with pytest.raises(PermissionError):
            held.sendto(b"x", (ELSEWHERE, 7))
    assert not world.reaches("a", SITE), "what had run out was copied"


def expire(world: World, held: Held) -> None:
    table = world.engine.datapath["grants"]
    for key, value in list(table.items()):
        if int(key.policy) == held.number:
            slots = [(int(slot.peer), 1 if slot.peer else 0) for slot in value.slots]
            table[bytes(key.address), held.number] = (slots,)


def test_a_copy_takes_a_place_and_no_more_than_there_are(world: World, hold: Hold) -> None:
    old, new = hold("old", BOTH), hold("new", BOTH)
    place(world, old, "a")
    loaded = world.engine.datapath
    quota = int(loaded["settings"][0].addresses)
    try:
        for number in range(8):
            world.asks("a", f"198.51.100.{number + 1}", name=BOTH)
        loaded.set(addresses=4)
        assert moving.copy_grants(loaded, old.number, new.number, new.peers) == 4
        assert moving.copy_grants(loaded, old.number, new.number, new.peers) == 0
        (peer,) = new.peers
        assert loaded["holdings"][new.number, 0].places == 4
        copied = {bytes(key.address) for key, _ in loaded["grants"].items() if key.policy == new.number}
        places = [loaded["grant_ring"][new.number, peer, place] for place in range(4)]
        assert {bytes(place.address) for place in places} == copied
    finally:
        loaded.set(addresses=quota)


def test_an_address_that_another_name_has_there_already_keeps_both(world: World, hold: Hold) -> None:
    old, new = hold("old", BOTH), hold("new", BOTH, NEW)
    place(world, old, "a")
    place(world, new, "b")
    world.asks("b", SITE, name=NEW)
    world.asks("a", SITE, name=BOTH)
    relabel(world, old, new)
    (slots,) = (
        {int(slot.peer) for slot in value.slots if slot.peer}
        for key, value in world.engine.datapath["grants"].items()
        if int(key.policy) == new.number
    )
    assert slots == new.peers


def test_of_a_slice_that_moves_what_is_placed_within_it_does_not(world: World, hold: Hold) -> None:
    old = hold("old", BOTH)
    unit = world.cgroups["a"] / "unit"
    (unit / "below").mkdir(parents=True)
    other = world.cgroups["a"] / "other"
    other.mkdir()
    place(world, old, "a")
    world.engine.place(old, unit)
    ids = {cgroups.cgroup_id(path) for path in (world.cgroups["a"], other)}
    assert moving.governed(world.engine.datapath, world.cgroups["a"]) == ids
    world.engine.unplace(old, unit)
    for path in (unit / "below", unit, other):
        path.rmdir()


# ---- Many pods, many numbers ------------------------------------------------------------------------------

MANY, FACTOR = 60, 4


def test_more_pods_take_no_longer_each(world: World) -> None:
    """Twice: few numbers and pods, then more beside them. The time for one must not grow with how many are
    there; a generous factor keeps the machine's mood out."""
    engine, held, folders = world.engine, [], []
    union = policy.union([allow.egress([NAME, OPEN], audit=False)])
    assert union is not None
    try:
        times = []
        for number in range(MANY):
            folder = engine.where.cgroup / f"many-{number}"
            folder.mkdir()
            folders.append(folder)
            start = time.thread_time()
            held.append(engine.hold(f"many-{number}", union, OPTIONS, {"kind": "test"}))
            engine.place(held[-1], folder, world.home("a"), adopting=False, title=f"pod many/{number}")
            times.append(time.thread_time() - start)
        first, last = sorted(times[: MANY // 3]), sorted(times[-MANY // 3 :])
        assert last[len(last) // 2] < FACTOR * first[len(first) // 2], json.dumps(times)
        assert {held_.number for held_ in held} == set(range(held[0].number, held[0].number + MANY))
    finally:
        numbers: set[Any] = {each.number for each in held}
        for each in held:
            engine.release(each)
        for folder in folders:
            folder.rmdir()
    assert numbers <= engine.numbers.saying()
    engine.sweep()
    assert not numbers & engine.numbers.saying()
    left = {name: list(engine.datapath[name].raw_keys()) for name in OWNED}
    assert not any(left.values()), left
