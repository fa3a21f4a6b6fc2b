"""Gateways that tell each other what they learn: real datagrams, on the loopback and between namespaces."""

from __future__ import annotations

import ipaddress
import resource
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter, time
from typing import Any

import pytest
import trio

from gateway.peers import members
from gateway.peers.facts import Answer, Done, Dump, DumpRequest, Fact, Query, pack, unpack
from gateway.peers.sealing import Keys
from gateway.peers.talk import Peers
from routing.own import own_addresses
from tests.kernel.bench import Namespace
from tests.network.circle import (
    DIGEST,
    OTHER_DIGEST,
    PEER,
    QUICK,
    Circle,
    Memory,
    address,
    in_a_circle,
    new_key,
    proven,
    until,
)
from tests.topology import PATIENCE

FEW = [address(number) for number in range(5)]


def memory(gateway: Peers) -> Memory:
    assert isinstance(gateway.store, Memory)
    return gateway.store


# ---- Push, query, dump ----------------------------------------------------------------------------------


@in_a_circle
async def test_what_one_learns_all_others_have_at_once(circle: Circle) -> None:
    one, *others = await circle.gateways_that_know_each_other(
        3,
    )
    memory(one).learn(*FEW)
    for each in FEW:
        one.learned(DIGEST, each)
    await until(lambda: all(memory(other).has(*FEW) for other in others), 2)
    for other in others:
        assert {row[PEER] for row in memory(other).rows.values()} <= {98, 99, 100}
        assert other.numbers()["facts adopted"] == len(FEW)


@in_a_circle
async def test_a_thousand_names_at_a_time_are_told_to_all(circle: Circle) -> None:
    one, other = await circle.gateways_that_know_each_other(2)
    many = [address(number) for number in range(1000)]
    memory(one).learn(*many)
    before = one.numbers()["sent"]
    for each in many:
        one.learned(DIGEST, each)
    await until(lambda: memory(other).has(*many), 5)
    assert one.numbers()["sent"] - before < 100  # many facts in a datagram


@in_a_circle
async def test_what_a_client_misses_is_asked_of_all(circle: Circle) -> None:
    one, other, third = await circle.gateways_that_know_each_other(3)
    memory(third).learn(FEW[0])
    one.missed(DIGEST, FEW[0])
    await until(lambda: memory(one).has(FEW[0]), 2)
    assert not memory(other).rows


@in_a_circle
async def test_a_query_is_repeated_once_where_it_got_no_answer(circle: Circle) -> None:
    """Asked of somebody who is silent the first time."""
    with circle.stranger(2) as stranger:
        one = circle.gateway(1, circle.members(2))
        await stranger.meet(one)
        one.missed(DIGEST, FEW[0])
        first, second = await stranger.hear(Query), await stranger.hear(Query)
        assert first == second
        assert isinstance(second, Query)
        assert second.asked == ((DIGEST, FEW[0]),)
        (body,) = pack([(DIGEST, Fact(PEER, FEW[0], 50))])
        await stranger.say(one, Answer(second.number, body))
        await until(lambda: memory(one).has(FEW[0]))
        one.missed(DIGEST, FEW[1])
        third = await stranger.hear(Query)
        assert isinstance(third, Query)
        await stranger.say(one, Answer(third.number, b""))
        assert await stranger.heard(Query, seconds=4 * QUICK.answer) == []  # nobody is left to be asked


@in_a_circle
async def test_who_begins_is_told_everything_before_it_is_ready(circle: Circle) -> None:
    many = [address(number) for number in range(3000)]
    full = Memory()
    full.learn(*many)
    circle.gateway(1, circle.members(2), full)
    await trio.sleep(0)
    began = perf_counter()
    second = circle.gateway(2, circle.members(2))
    await second.ready.wait()
    assert memory(second).has(*many)
    assert perf_counter() - began < 2  # seconds, after which it would be ready all the same


@in_a_circle
async def test_all_that_begin_at_once_tell_each_other_what_is_left(circle: Circle) -> None:
    stores = [Memory(), Memory(), Memory()]
    for number, store in enumerate(stores):
        store.learn(address(number))
    made = [
        circle.gateway(n + 1, circle.members(3), store, dump_seconds=60) for n, store in enumerate(stores)
    ]
    await until(lambda: all(each.ready.is_set() for each in made))
    await until(lambda: all(store.has(*map(address, range(3))) for store in stores))


@in_a_circle
async def test_who_is_alone_is_ready_at_once(circle: Circle) -> None:
    with trio.fail_after(1):
        await circle.gateway(1, [], dump_seconds=60).ready.wait()
        await circle.gateway(2, [str(circle.address(2))], dump_seconds=60).ready.wait()


@in_a_circle
async def test_who_has_no_answer_is_ready_when_its_time_is_over(circle: Circle) -> None:
    began = perf_counter()
    made = circle.gateway(1, circle.members(2), dump_seconds=0.5)
    await made.ready.wait()
    assert 0.5 <= perf_counter() - began < 2


@in_a_circle
async def test_a_dead_member_holds_up_nobody_where_another_is_ready(circle: Circle) -> None:
    await circle.gateways_that_know_each_other(2, more=2)
    with trio.fail_after(2):
        await circle.gateway(3, circle.members(4), dump_seconds=60).ready.wait()


@in_a_circle
async def test_what_is_told_by_one_that_has_just_begun_itself_is_not_enough(circle: Circle) -> None:
    """As long as there is another that may know more."""
    both = [circle.gateway(n, circle.members(3), dump_seconds=1.5) for n in (1, 2)]
    await until(lambda: all(each.numbers().get("dumps") == 1 for each in both))
    assert not any(each.ready.is_set() for each in both)
    await until(lambda: all(each.ready.is_set() for each in both))


@in_a_circle
async def test_a_hundred_thousand_facts_in_one_dump(circle: Circle) -> None:
    """In seconds, in bounded memory, and others are heard and served meanwhile."""
    full, many = Memory(), [address(number) for number in range(100_000)]
    full.learn(*many)
    circle.gateway(1, circle.members(2), full)
    began, before, longest = perf_counter(), resident(), 0.0
    second = circle.gateway(2, circle.members(2), dump_seconds=60)
    while not second.ready.is_set():
        turn = perf_counter()
        await trio.sleep(0.001)
        longest = max(longest, perf_counter() - turn)
    took, grown = perf_counter() - began, resident() - before
    print(f"{took:.2f} s, the loop was held up for {longest * 1000:.0f} ms at most, {grown >> 20} MB more")
    assert memory(second).has(*many)
    assert took < 20 * PATIENCE
    assert longest < PATIENCE  # on a machine that does much else
    assert grown < 120 << 20


def resident() -> int:
    """The most that there ever was, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10


# ---- What they have not in common -----------------------------------------------------------------------


@in_a_circle
async def test_facts_of_a_policy_that_is_not_here_are_left_out(circle: Circle) -> None:
    one, other = await circle.gateways_that_know_each_other(2)
    memory(one).learn(FEW[0], digest=OTHER_DIGEST)
    memory(one).learn(FEW[1])
    one.learned(OTHER_DIGEST, FEW[0])
    one.learned(DIGEST, FEW[1])
    await until(lambda: memory(other).has(FEW[1]))
    assert not memory(other).has(FEW[0], digest=OTHER_DIGEST)
    assert other.numbers()["facts of other policies"] == 1
    one.missed(OTHER_DIGEST, FEW[2])  # of which the other knows nothing either
    await until(lambda: not one._queries)


@in_a_circle
async def test_what_was_told_of_a_policy_that_comes_later_is_asked_for_again(circle: Circle) -> None:
    full, late = Memory((DIGEST, OTHER_DIGEST)), Memory((DIGEST,))
    full.learn(*FEW, digest=OTHER_DIGEST)
    one, other = (circle.gateway(n + 1, circle.members(2), store) for n, store in enumerate((full, late)))
    await until(lambda: other.numbers().get("facts of other policies") == len(FEW))
    assert not late.rows
    late.digests = full.digests
    await until(lambda: late.has(*FEW, digest=OTHER_DIGEST))
    await until(lambda: not other._strange)
    dumps = other.numbers()["dumps"]
    await trio.sleep(2 * QUICK.again + 2 * QUICK.greeting)
    assert other.numbers()["dumps"] == dumps
    assert one.ready.is_set()


@in_a_circle
async def test_who_asks_for_everything_again_is_not_told_the_same_once_more(circle: Circle) -> None:
    gateway = circle.gateway(1, circle.members(2))
    with circle.stranger(2) as stranger:
        await stranger.meet(gateway)
        for number in range(3):
            memory(gateway).learn(FEW[number])
            await stranger.say(gateway, DumpRequest(0, (0,)))
            told = await stranger.hear(Dump)
            assert isinstance(told, Dump)
            ((_, found),) = unpack(told.facts)
            assert {fact.address for fact in found} == set(FEW[: number + 1])
            await stranger.say(gateway, Done(told.snapshot))


@in_a_circle
async def test_facts_that_the_store_does_not_take_are_counted(circle: Circle) -> None:
    one, other = await circle.gateways_that_know_each_other(2)
    memory(one).learn(FEW[0], peer=0x9999)
    memory(one).learn(FEW[0])
    one.learned(DIGEST, FEW[0])
    await until(lambda: other.numbers().get("facts refused") == 1)
    assert memory(other).rows == {(DIGEST, FEW[0]): {PEER: memory(other).rows[DIGEST, FEW[0]][PEER]}}


# ---- Keys and clocks ------------------------------------------------------------------------------------


@in_a_circle
async def test_with_another_key_nobody_is_heard(circle: Circle) -> None:
    full = Memory()
    full.learn(*FEW)
    one = circle.gateway(1, circle.members(2), full, dump_seconds=0.5)
    other = circle.gateway(2, circle.members(2), keys=Keys(new_key()), dump_seconds=0.5)
    await until(lambda: one.ready.is_set() and other.ready.is_set())
    assert not memory(other).rows
    for each in (one, other):
        assert each.numbers()["refused: unheard"] > 3
        assert (each.numbers()["members"], each.numbers()["heard"]) == (1, 0)


@in_a_circle
async def test_keys_change_on_both_sides_without_a_gap(circle: Circle) -> None:
    new, old = new_key(), circle.keys.current
    one, other = await circle.gateways_that_know_each_other(2)
    before = [each.numbers()["refused: unheard"] for each in (one, other)]
    sessions = [each.session for each in (*one._members, *other._members)]
    number = 0
    for keys in (Keys(old, new), Keys(new, old), Keys(new)):
        for gateway in (one, other):
            gateway.use(keys)
            for said, hears in ((one, other), (other, one)):
                number += 1
                memory(said).learn(address(number))
                said.learned(DIGEST, address(number))
                await until(lambda: memory(hears).has(address(number)), 2)  # noqa: B023
    assert [each.session for each in (*one._members, *other._members)] == sessions
    assert not {name for name in one.numbers() if name.startswith("refused")} - {"refused: unheard"}
    assert [each.numbers()["refused: unheard"] for each in (one, other)] == before


@pytest.mark.parametrize(("apart", "heard"), [(20, True), (-20, True), (40, False), (-40, False)])
@in_a_circle
async def test_clocks_may_differ_by_half_a_minute(circle: Circle, apart: int, heard: bool) -> None:
    full = Memory()
    full.learn(*FEW)
    circle.gateway(1, circle.members(2), full, dump_seconds=0.5)
    other = circle.gateway(2, circle.members(2), dump_seconds=0.5, wall=lambda: time() + apart)
    await other.ready.wait()
    assert memory(other).has(*FEW) == heard
    assert ("refused: clock" in other.numbers()) != heard
    if heard:
        left = memory(other).rows[DIGEST, FEW[0]][PEER]
        assert 100 - max(0, apart) - 4 <= left <= 100 - max(0, apart)


# ---- Who comes and goes ---------------------------------------------------------------------------------


@in_a_circle
async def test_one_that_begins_anew_is_known_at_once(circle: Circle) -> None:
    one, _ = await circle.gateways_that_know_each_other(2)
    async with trio.open_nursery() as nursery:
        inner = Circle(nursery, circle.keys, circle.port, circle.network)
        third = inner.gateway(3, circle.members(3))
        one.members([circle.address(3)])
        await third.ready.wait()
        await until(lambda: proven(one) == 2)
        nursery.cancel_scope.cancel()
    memory(one).learn(*FEW)
    again = circle.gateway(3, circle.members(3))
    await again.ready.wait()
    assert memory(again).has(*FEW)
    memory(one).learn(address(77))
    one.learned(DIGEST, address(77))
    await until(lambda: memory(again).has(address(77)), 2)


class Names(trio.abc.HostnameResolver):
    """In the place of DNS."""

    def __init__(self) -> None:
        self.of: dict[str, list[str]] = {}

    async def getaddrinfo(self, host: bytes, *_: object, **__: object) -> list[Any]:  # type: ignore[override]
        if host.decode() not in self.of:
            raise OSError("no such name")
        return [(0, 0, 0, "", (each, 0)) for each in self.of[host.decode()]]

    async def getnameinfo(self, *_: object) -> tuple[str, str]:
        raise NotImplementedError


@in_a_circle
async def test_members_come_from_a_name_that_is_resolved_again_and_again(circle: Circle) -> None:
    names = Names()
    trio.socket.set_custom_hostname_resolver(names)
    gateway = circle.gateway(1, ["gateways.internal"], dump_seconds=60)
    await until(lambda: gateway.numbers().get("unresolved", 0) > 1)
    assert not gateway.ready.is_set()  # there may be others
    names.of["gateways.internal"] = circle.members(2)
    await until(lambda: list(gateway.heard()) == [circle.address(2)])  # not itself
    names.of["gateways.internal"] = [str(circle.address(3)), str(circle.address(1))]
    await until(lambda: list(gateway.heard()) == [circle.address(3)])
    names.of.clear()
    failed = gateway.numbers()["unresolved"]
    await until(lambda: gateway.numbers()["unresolved"] > failed + 1)
    assert list(gateway.heard()) == [circle.address(3)]
    gateway.members([circle.address(2)])
    assert set(gateway.heard()) == {circle.address(2), circle.address(3)}
    gateway.members([])
    assert set(gateway.heard()) == {circle.address(3)}


@in_a_circle
async def test_there_are_so_many_members(circle: Circle) -> None:
    gateway = circle.gateway(1, [])
    gateway.members(circle.address(number) for number in range(2, 200))
    assert gateway.numbers()["members"] == members.MEMBERS
    assert gateway.numbers()["members left out"] == 198 - members.MEMBERS


@in_a_circle
async def test_what_is_learned_faster_than_it_can_be_told_is_counted(circle: Circle) -> None:
    gateway = circle.gateway(1, [])
    for number in range(10_000):
        gateway.learned(DIGEST, address(number))
        gateway.missed(DIGEST, address(number))
    assert gateway.numbers()["not told"] == gateway.numbers()["not asked"] == 10_000 - 8192
    await until(lambda: not gateway._learned and not gateway._missed)


# ---- Between hosts --------------------------------------------------------------------------------------

HOSTS = [[ipaddress.ip_address(f"10.77.0.{n}"), ipaddress.ip_address(f"fd77::{n}")] for n in (1, 2, 3)]


class Hosts:
    """Three hosts on one switch:  host 1 ─┐
    host 2 ─┼─ bridge
    host 3 ─┘
    """

    def __init__(self, undo: ExitStack) -> None:
        self.switch, self.hosts = Namespace(), [Namespace() for _ in HOSTS]
        for each in (self.switch, *self.hosts):
            undo.callback(each.close)
        self.switch.ip("link add name bridge type bridge", "link set bridge up")
        for number, (host, own) in enumerate(zip(self.hosts, HOSTS, strict=True)):
            self.switch.join(host, f"port{number}")
            self.switch.ip(f"link set port{number} master bridge")
            host.ip(f"addr add {own[0]}/24 dev inside", f"addr add {own[1]}/64 dev inside nodad")

    def cut(self, number: int) -> None:
        self.switch.ip(f"link set port{number} down")

    def mend(self, number: int) -> None:
        self.switch.ip(f"link set port{number} up")


@pytest.fixture
def hosts(superuser: None) -> Iterator[Hosts]:
    with ExitStack() as undo:
        yield Hosts(undo)


@pytest.mark.parametrize("family", [0, 1], ids=["IPv4", "IPv6"])
@in_a_circle
async def test_three_hosts_of_which_one_is_cut_off_for_a_while(
    circle: Circle, hosts: Hosts, family: int
) -> None:
    names, made = [str(own[family]) for own in HOSTS], []
    for host, own in zip(hosts.hosts, HOSTS, strict=True):
        with host.entered():
            made.append(Peers(Memory(), circle.keys, names, pace=QUICK, own=lambda own=own: own))
        circle.nursery.start_soon(made[-1].run)
    one, two, three = made
    await until(lambda: all(proven(each) == 2 and each.ready.is_set() for each in made))
    memory(one).learn(FEW[0])
    one.learned(DIGEST, FEW[0])
    await until(lambda: memory(two).has(FEW[0]) and memory(three).has(FEW[0]))

    hosts.cut(2)
    await until(lambda: three.numbers()["heard"] == 0 and one.numbers()["heard"] == 1)
    for number, gateway in enumerate((one, three)):
        memory(gateway).learn(FEW[1 + number])
        gateway.learned(DIGEST, FEW[1 + number])
    await until(lambda: memory(two).has(FEW[1]))
    one.missed(DIGEST, FEW[2])
    await until(lambda: not one._queries and not one._missed)
    assert not memory(one).has(FEW[2])
    assert not memory(three).has(FEW[1])

    hosts.mend(2)
    await until(lambda: all(memory(each).has(*FEW[:3]) for each in made))  # nobody had to ask for it
    assert all(each.numbers()["heard"] == 2 for each in made)


@in_a_circle
async def test_own_addresses_are_no_members(circle: Circle, hosts: Hosts) -> None:
    with hosts.hosts[0].entered():
        found = set(own_addresses())
    assert set(HOSTS[0]) <= found
    everybody = [str(own[0]) for own in HOSTS]
    with hosts.hosts[0].entered():
        made = Peers(Memory(), circle.keys, everybody, pace=QUICK, own=lambda: found)
    circle.nursery.start_soon(made.run)
    await until(lambda: made.numbers()["members"] == 2)


@in_a_circle
async def test_a_host_without_ipv6_listens_on_ipv4(circle: Circle, hosts: Hosts) -> None:
    with hosts.hosts[0].entered():
        for name in ("all", "default", "lo"):
            Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").write_text("1")
        made = Peers(Memory(), circle.keys, [], pace=QUICK)
        with pytest.raises(OSError, match="in use"):
            Peers(Memory(), circle.keys, [], pace=QUICK)
        made.close()
