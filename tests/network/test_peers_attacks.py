"""Attacks on gateways that tell each other what they learn, by whoever sees or sends datagrams, by name."""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from time import time

import pytest
import trio

from gateway.peers import facts
from gateway.peers.facts import Answer, Done, Dump, DumpRequest, Fact, Hello, Push, Query, pack
from gateway.peers.talk import Peers
from tests.network.circle import (
    DIGEST,
    PEER,
    QUICK,
    Circle,
    Memory,
    Stranger,
    address,
    in_a_circle,
    proven,
    until,
    where,
)

FEW = [address(number) for number in range(5)]
QUIET = 0.3  # seconds in which something would have come


def memory(gateway: Peers) -> Memory:
    assert isinstance(gateway.store, Memory)
    return gateway.store


def push(*addresses: bytes) -> Push:
    (body,) = pack((DIGEST, Fact(PEER, each, 100)) for each in addresses)
    return Push(body)


def refusals(gateway: Peers) -> dict[str, int]:
    found = {
        name.partition(": ")[2]: n for name, n in gateway.numbers().items() if name.startswith("refused: ")
    }
    return {name: count for name, count in found.items() if count}


@in_a_circle
async def test_a_push_that_was_caught_counts_once(circle: Circle) -> None:
    gateway = circle.gateway(1, circle.members(2))
    with circle.stranger(2) as stranger:
        await stranger.meet(gateway)
        caught = stranger.seal(push(FEW[0]))
        await stranger.say(gateway, caught)
        await until(lambda: memory(gateway).has(FEW[0]))
        memory(gateway).rows.clear()
        await stranger.say(gateway, *[caught] * 5)
        await until(lambda: refusals(gateway).get("replayed") == 5)
        assert not memory(gateway).rows


@in_a_circle
async def test_a_push_to_one_gateway_says_nothing_to_another(circle: Circle) -> None:
    one, other = (circle.gateway(number, circle.members(3)) for number in (1, 2))
    with circle.stranger(3) as stranger:
        await stranger.meet(one)
        caught = stranger.seal(push(FEW[0]))
        await stranger.say(other, caught)
        await until(lambda: refusals(other).get("another session") == 1)
        assert not memory(other).rows
        await stranger.say(one, caught)
        await until(lambda: memory(one).has(FEW[0]))


@in_a_circle
async def test_what_was_caught_before_a_gateway_began_anew_says_nothing_to_it(circle: Circle) -> None:
    with circle.stranger(2) as stranger:
        async with trio.open_nursery() as nursery:
            inner = Circle(nursery, circle.keys, circle.port, circle.network)
            before = inner.gateway(1, circle.members(2))
            await stranger.meet(before)
            greeting = stranger.seal(Hello(True), facts.NOBODY)
            caught = [
                stranger.seal(push(FEW[0])),
                stranger.seal(DumpRequest(0, (0,))),
                stranger.seal(Hello(True)),
            ]
            nursery.cancel_scope.cancel()
        await greetings(stranger)  # and what else was under way
        full = Memory()
        full.learn(FEW[1])
        gateway = circle.gateway(1, circle.members(2), full)
        await until(gateway.heard)
        await stranger.say(gateway, *caught, greeting, greeting)
        await until(lambda: refusals(gateway).get("replayed") == 1)
        assert refusals(gateway) == {"another session": 2, "replayed": 1}
        assert await stranger.heard(Push, Dump, Answer, Query, DumpRequest, seconds=QUIET) == []
        assert proven(gateway) == 0
        assert not memory(gateway).has(FEW[0])


@in_a_circle
async def test_a_greeting_is_answered_by_one_that_is_no_larger(circle: Circle) -> None:
    gateway = circle.gateway(1, circle.members(2), pace=replace(QUICK, greeting=60))
    with circle.stranger(2) as stranger:
        await until(gateway.heard)
        await greetings(stranger)
        greeting = stranger.seal(Hello(True), facts.NOBODY)
        await stranger.say(gateway, *[greeting] * 20)
        answered = await greetings(stranger)
        assert [len(each) for each in answered] == [len(greeting)]
        assert refusals(gateway)["replayed"] == 19


async def greetings(stranger: Stranger) -> list[bytes]:
    found = []
    with trio.move_on_after(QUIET):
        while True:
            found.append((await stranger.socket.recvfrom(2000))[0])
    return found


@in_a_circle
async def test_everything_is_told_to_members_alone_and_once_for_each_request(circle: Circle) -> None:
    full = Memory()
    full.learn(*FEW)
    gateway = circle.gateway(1, circle.members(2), full)
    with circle.stranger(2) as stranger, circle.stranger(3) as outsider:
        await stranger.meet(gateway)
        outsider.theirs = stranger.theirs
        await outsider.say(
            gateway, DumpRequest(0, tuple(range(32))), Hello(True), Query(1, ((DIGEST, FEW[0]),))
        )
        await until(lambda: refusals(gateway) == {"unheard": 3})
        caught = stranger.seal(DumpRequest(0, tuple(range(32))))
        await stranger.say(gateway, caught)
        told = await stranger.hear(Dump)
        assert isinstance(told, Dump)
        assert (told.at, told.chunks) == (0, 1)
        await stranger.say(gateway, *[caught] * 3)
        assert await stranger.heard(Dump, seconds=QUIET) == []
        with trio.move_on_after(QUIET):
            await outsider.socket.recvfrom(2000)
            raise AssertionError("the outsider was answered")


@in_a_circle
async def test_a_request_that_comes_from_another_port_of_a_member_is_refused(circle: Circle) -> None:
    gateway = circle.gateway(1, circle.members(2))
    with circle.stranger(2) as stranger, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as another:
        await stranger.meet(gateway)
        another.bind((str(circle.address(2)), 0))
        another.sendto(stranger.seal(push(FEW[0])), where(gateway))
        await until(lambda: refusals(gateway) == {"unheard": 1})


@in_a_circle
async def test_a_request_is_answered_by_what_it_asked_for_and_no_more(circle: Circle) -> None:
    full = Memory()
    full.learn(*map(address, range(4000)))
    gateway = circle.gateway(1, circle.members(2), full)
    with circle.stranger(2) as stranger:
        await stranger.meet(gateway)
        await stranger.say(gateway, DumpRequest(0, (3, 1)))
        found = [await stranger.hear(Dump), await stranger.hear(Dump)]
        assert [each.at for each in found if isinstance(each, Dump)] == [3, 1]
        snapshot = found[0].snapshot  # type: ignore[union-attr]
        far = (2**32 - 1, 5000)
        await stranger.say(
            gateway, DumpRequest(snapshot, far), DumpRequest(snapshot + 1, (0,)), Done(snapshot)
        )
        assert await stranger.heard(Dump, seconds=QUIET) == []


@in_a_circle
async def test_everything_told_by_somebody_who_was_not_asked_is_left_out(circle: Circle) -> None:
    gateway = circle.gateway(1, circle.members(2))
    with circle.stranger(2) as stranger:
        await stranger.meet(gateway)
        request = await stranger.hear(DumpRequest)
        assert isinstance(request, DumpRequest)
        await stranger.say(gateway, Dump(9, 0, 1, 0, push(FEW[0]).facts))
        done = await stranger.hear(Done)
        assert done == Done(9)
        await stranger.say(gateway, Dump(9, 0, 1, 0, push(FEW[1]).facts), push(FEW[2]))
        await until(lambda: memory(gateway).has(FEW[2]))
        assert memory(gateway).has(FEW[0])
        assert not memory(gateway).has(FEW[1])


@in_a_circle
async def test_a_dump_without_end_is_given_up(circle: Circle) -> None:
    gateway = circle.gateway(1, circle.members(2), dump_seconds=60)
    with circle.stranger(2) as stranger:
        await stranger.meet(gateway)
        await stranger.hear(DumpRequest)
        await stranger.say(gateway, Dump(9, 0, 2**32 - 1, 0, b""))
        await until(lambda: gateway.numbers().get("dumps broken off") == 1)
        assert not gateway.ready.is_set()
        await stranger.hear(DumpRequest)  # later it is tried again


@in_a_circle
async def test_a_gateway_does_not_hear_what_it_said_itself(circle: Circle) -> None:
    gateway = circle.gateway(1, circle.members(2))
    with circle.stranger(2) as stranger:
        for number in range(1, 6):
            data, source = await stranger.socket.recvfrom(2000)
            await stranger.socket.sendto(data, source)
            await until(lambda: refusals(gateway) == {"reflected": number})  # noqa: B023
        assert proven(gateway) == 0


@in_a_circle
async def test_what_is_broken_long_or_of_no_sense_is_refused_and_nothing_else_happens(circle: Circle) -> None:
    gateway = circle.gateway(1, circle.members(2))
    with circle.stranger(2) as stranger:
        await stranger.meet(gateway)
        whole = stranger.seal(push(*FEW))
        await stranger.say(gateway, *(whole[:length] for length in range(4, len(whole))))
        await until(lambda: sum(refusals(gateway).values()) == len(whole) - 4)
        assert refusals(gateway).keys() == {"short", "forged"}
        assert not memory(gateway).rows

        await stranger.say(
            gateway, stranger.sealer.seal(bytes(1300), 0), stranger.seal(push(*FEW)) + bytes(1000)
        )
        await until(lambda: refusals(gateway).get("long") == 2)
        texts = [b"", stranger.theirs, stranger.theirs + b"\x63", stranger.theirs + b"\0"]
        texts += [
            facts.encode(Push(b"x" * 30), stranger.theirs),
            facts.encode(Dump(1, 3, 2, 0, b""), stranger.theirs),
        ]
        texts += [facts.encode(Push(DIGEST + b"\xff"), stranger.theirs)]
        await stranger.say(gateway, *(stranger.sealer.seal(text, time()) for text in texts))
        await until(lambda: refusals(gateway).get("malformed") == len(texts))
        assert not memory(gateway).rows
        await stranger.say(gateway, push(*FEW))
        await until(lambda: memory(gateway).has(*FEW))


@in_a_circle
async def test_random_text_of_somebody_with_the_key_ends_no_gateway(circle: Circle) -> None:
    gateway = circle.gateway(1, circle.members(2))
    with circle.stranger(2) as stranger:
        await stranger.meet(gateway)
        for number in range(300):
            text = stranger.theirs + bytes([number % 7]) + secrets.token_bytes(number)
            await stranger.say(gateway, stranger.sealer.seal(text, time()))
        await stranger.say(gateway, push(*FEW))
        await until(lambda: memory(gateway).has(*FEW))


@in_a_circle
async def test_who_is_no_member_any_more_is_not_heard(circle: Circle) -> None:
    gateway = circle.gateway(1, [])
    with circle.stranger(2) as stranger:
        gateway.members([circle.address(2)])
        await stranger.meet(gateway)
        gateway.members([])
        await stranger.say(gateway, push(FEW[0]))
        await until(lambda: refusals(gateway) == {"unheard": 1})
        assert not memory(gateway).rows


# ---- Floods ---------------------------------------------------------------------------------------------

FLOOD = """
import os, socket, sys
from time import monotonic
host, port, start, seconds = sys.argv[1], int(sys.argv[2]), bytes.fromhex(sys.argv[3]), float(sys.argv[4])
own = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
if sys.argv[5]:
    own.bind((sys.argv[5], port))
sent, end = 0, monotonic() + seconds
print("begun", flush=True)
while monotonic() < end:
    for _ in range(50):
        own.sendto(start + os.urandom(600), (host, port))
        sent += 1
print(sent)
"""


@contextmanager
def flooded(gateway: Peers, start: bytes, source: str = "") -> Iterator[subprocess.Popen[str]]:
    """By a process of its own, which ends by itself."""
    host, port = where(gateway)
    words = [sys.executable, "-c", FLOOD, host, str(port), start.hex(), "2", source]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as flood:
        assert flood.stdout
        assert flood.stdout.readline() == "begun\n"
        yield flood


@pytest.mark.parametrize("kind", ["garbage", "no member", "made-up sessions of a member"])
@in_a_circle
async def test_a_flood_does_not_displace_what_gateways_say(circle: Circle, kind: str) -> None:
    """Of what nobody with the key wrote; of what begins like that; and from a member's very address."""
    one, other = await circle.gateways_that_know_each_other(2, more=1)
    start = b"" if kind == "garbage" else circle.keys.current.id
    source = str(circle.address(3)) if kind.startswith("made-up") else ""
    before = refusals(other).get("unheard", 0)
    with flooded(other, start, source) as flood:
        number = 0
        while flood.poll() is None:
            number += 1
            memory(one).learn(address(number))
            one.learned(DIGEST, address(number))
            await trio.sleep(0.02)
        assert flood.stdout
        sent = int(flood.stdout.readline())
    await trio.sleep(0.1)
    arrived = sum(memory(other).has(address(each)) for each in range(1, number + 1))
    print(f"{sent} datagrams of {kind}, {arrived} of {number} pushes: {refusals(other)}")
    assert sent > 1000
    assert number > 10
    if kind == "made-up sessions of a member":
        assert refusals(other)["too many sessions"] > 100
        number += 1
        memory(one).learn(address(number))
        one.learned(DIGEST, address(number))
        await until(lambda: memory(other).has(address(number)), 2)
    else:
        assert refusals(other) == {"unheard": before + sent}
        assert arrived == number
    assert proven(other) == 1
