"""How much one workload, or one peer of a policy, may hold (bpf/quotas.h): each ring at its limit, by name.

The quotas are four of each here, so that a flood is five. What is held besides is looked for in the tables: a
row without a place would never go, and a place without a row would be room that nobody can use.
"""

from __future__ import annotations

import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bpf import events, kernel
from bpf.contract import contract
from bpf.datapath import Datapath
from gateway import place, room
from gateway.automata import Made
from gateway.engine import Engine
from gateway.homes import Homes
from gateway.numbers import Numbers, Options
from gateway.policies import allow, policy
from gateway.room import Room
from tests.kernel import packets as p
from tests.kernel import test_sockets
from tests.kernel.bench import SECOND, WRITTEN_BY_PROGRAMS, Bench, inside, now
from tests.kernel.test_dns_reader import CLIENT, FLOOR, GRACE, POLICY, SERVER, Reader, fold, simple
from tests.kernel.test_sockets import GOOD, SITE, UDP, World

NO_AUTOMATON = Made(None, ())

QUOTA = 4
OTHER = 8
MOST = contract().constant("GRANTS_PER_POLICY")  # times QUOTA: of all names of a policy together
OPEN = 64  # questions
ME, STRANGER = "10.1.0.2", "198.51.100.9"
FULL = FLOOR + GRACE  # seconds that a grant of a short TTL lasts

networks, w = test_sockets.networks, test_sockets.w


@pytest.fixture(autouse=True)
def small(datapath: Datapath) -> Iterator[None]:
    """Quotas of four, but for questions."""
    held = datapath["settings"][0]
    datapath.set(flows=QUOTA, inbounds=QUOTA, addresses=QUOTA, questions=OPEN)
    yield
    datapath["settings"][0] = held[0]


@pytest.fixture(scope="module")
def attached(datapath: Datapath, cgroup_root: Path) -> Iterator[Path]:
    """The folder of the workloads that have sockets, with the programs on it."""
    folder = cgroup_root / "quotas"
    folder.mkdir()
    datapath.attach(folder)
    yield folder
    datapath.detach(folder)


def keys(b: Bench, table: str) -> list[Any]:
    return [contract().plain(contract().unpack(b.d[table].layout.key, raw)) for raw in b.d[table].raw_keys()]


def placed(b: Bench, ring: str) -> list[Any]:
    """The keys that the places of a ring hold."""
    return [contract().plain(value) for _, value in b.d[ring].items()]


def age(
    b: Bench, table: str, field: str, seconds: int, wanted: Callable[[Any], bool] = lambda _: True
) -> None:
    """As if the rows had been written earlier."""
    for key, value in list(b.d[table].items()):
        if wanted(key):
            setattr(value, field, getattr(value, field) - seconds * SECOND)
            b.d[table][contract().plain(key)] = value[0]


def in_turn(s: socket.socket, ports: Iterable[int]) -> list[bool]:
    """To which ports of the allowed server a datagram was not refused."""

    def went(port: int) -> bool:
        try:
            s.sendto(b"?", (GOOD[4], port))
        except PermissionError:
            return False
        return True

    return [went(port) for port in ports]


# ---- Flows ------------------------------------------------------------------------------------------------

FIRST = range(1000, 1001 + QUOTA)  # ports of as many peers as fit: the last is at hand and needs no place


@pytest.fixture
def crowded(w: World) -> socket.socket:
    """A socket with as many peers as its workload may have."""
    s = w.mine(UDP)
    assert all(in_turn(s, FIRST))
    return s


def test_one_more_peer_than_may_be_is_refused_by_name(w: World, crowded: socket.socket) -> None:
    with w.b.counting(POLICY) as told:
        assert in_turn(crowded, [2000]) == [False]
    assert told == {"FLOWS_FULL": 1}
    assert len(keys(w.b, "flows")) == len(placed(w.b, "flow_ring")) == QUOTA


def test_flows_that_are_open_go_on_where_one_more_is_refused(w: World, crowded: socket.socket) -> None:
    """Their grant is over, so that nothing but the flow admits them."""
    assert in_turn(crowded, [2000]) == [False]
    w.b.grant(POLICY, GOOD[4], (SITE, now() - SECOND))
    with w.b.counting(POLICY) as told:
        assert all(in_turn(crowded, FIRST))
    assert set(told) == {"ESTABLISHED"}


def test_a_peer_that_was_silent_for_long_makes_room(w: World, crowded: socket.socket) -> None:
    def is_first(key: Any) -> bool:
        return int.from_bytes(bytes(key.tuple.remote_port), "big") == FIRST[0]

    assert in_turn(crowded, [2000]) == [False]
    age(w.b, "flows", "seen", contract().constant("FLOW_SECONDS") + 1, is_first)
    assert in_turn(crowded, [2000]) == [True]
    assert len(keys(w.b, "flows")) == len(placed(w.b, "flow_ring")) == QUOTA
    assert in_turn(crowded, [2001]) == [False]


def test_what_a_prefix_admits_needs_no_place(w: World, crowded: socket.socket) -> None:
    """The flow at hand has one too little; it needs none as soon as a prefix admits it."""
    w.b.prefix(POLICY, f"{GOOD[4]}/32", SITE)
    assert all(in_turn(crowded, range(2000, 2040)))
    assert len(keys(w.b, "flows")) == QUOTA


def test_a_crowded_workload_takes_no_other_s_place(w: World, crowded: socket.socket) -> None:
    neighbour = w.child()
    w.b.classify(neighbour, POLICY)
    s = w.mine(UDP, cgroup=neighbour)
    assert in_turn(crowded, [2000]) == [False]
    assert all(in_turn(s, FIRST))
    assert in_turn(s, [2000]) == [False]


# ---- What came in from outside ----------------------------------------------------------------------------


@pytest.fixture
def server(bench: Bench) -> Iterator[Bench]:
    """This process serves datagrams; nothing admits an answer but what came in."""
    bench.classify(bench.cgroup, POLICY)
    bench.policy(POLICY)
    with bench.seated():
        yield bench


def comes(b: Bench, port: int) -> None:
    b.run("ingress", p.ether(p.ipv4(STRANGER, ME, p.UDP, p.udp(5000, port))))


def is_answered(b: Bench, port: int) -> bool:
    return b.run("egress", p.ether(p.ipv4(ME, STRANGER, p.UDP, p.udp(port, 5000)))) == 1


def test_of_too_many_peers_outside_the_oldest_goes_and_it_is_told(server: Bench) -> None:
    with server.counting(POLICY) as told:
        for port in range(1, 2 + QUOTA):
            comes(server, port)
    assert told == {"INBOUND_FULL": 1}
    assert [is_answered(server, port) for port in range(1, 2 + QUOTA)] == [False] + [True] * QUOTA
    assert sorted(keys(server, "inbounds")) == sorted(placed(server, "inbound_ring"))


def test_a_peer_outside_that_is_over_makes_room_without_a_word(server: Bench) -> None:
    for port in range(1, 1 + QUOTA):
        comes(server, port)
    age(server, "inbounds", "seen", contract().constant("INBOUND_SECONDS") + 1)
    with server.counting(POLICY) as told:
        comes(server, 5)
    assert told == {}
    assert [is_answered(server, port) for port in (1, 2, 5)] == [False, False, True]


def test_a_peer_outside_that_comes_again_takes_no_second_place(server: Bench) -> None:
    with server.counting(POLICY) as told:
        for _ in range(3 * QUOTA):
            comes(server, 1)
    assert told == {}
    assert len(placed(server, "inbound_ring")) == 1


# ---- Addresses of a name ----------------------------------------------------------------------------------


class Names(Reader):
    """One peer for each of `a.test` (10), `b.test` (11) ..., and what they were taught."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        for index in range(8):
            bench.name(POLICY, f"*.{'abcdefgh'[index]}.test", 10 + index)
        self.numbers = iter(range(1, 1 << 20))

    def asks(self, name: str, *addresses: str, ttl: int = 1) -> None:
        """By the kernel's own row: what Reader.ask() tidies up is looked at here."""
        answer = simple(name, *addresses, ttl=ttl)
        answer.number = next(self.numbers) & 0xFFFF
        self.b.d["questions"][self.key_of(name, answer.number)] = (now(), self.workload, 1, POLICY, 0)
        self.answer(answer.bytes())

    def key_of(self, name: str, number: int) -> tuple[object, ...]:
        """Of an open question."""
        return (0, fold(simple(name).question), self._client, number, 0)

    def holders(self) -> Counter[tuple[int, str]]:
        """How often each peer holds a place for each address."""
        rows = self.b.d["grant_ring"].items()
        return Counter((int(key.peer), str(events.address(bytes(value.address)))) for key, value in rows)

    def granted(self) -> dict[str, set[int]]:
        """Every row: its address and the peers that have a live slot in it."""
        return {
            str(events.address(bytes(key.address))): {
                int(slot.peer) for slot in value.slots if slot.peer and slot.expires >= now()
            }
            for key, value in self.b.d["grants"].items()
        }

    def room(self) -> int:
        """How many addresses more the policy may have, told by learning them, each name as many as it may."""
        start = len(self.live())
        for index in range(MOST + 1):
            self.asks(f"www.{'abcdefgh'[index]}.test", *addresses(100 + QUOTA * index))
        return len(self.live()) - start

    def live(self) -> set[str]:
        return {address for address, peers in self.granted().items() if peers}


@pytest.fixture
def names(bench: Bench) -> Names:
    return Names(bench)


def addresses(first: int, count: int = QUOTA) -> list[str]:
    return [f"203.0.113.{first + index}" for index in range(count)]


def test_a_name_has_no_more_addresses_than_it_may_and_it_is_told_by_name(names: Names) -> None:
    told: list[events.Event] = []
    fd = kernel.create_ring(1 << 16)
    ring = kernel.Ring(fd, lambda data: told.append(events.decode(data)))
    names.b.d["events"][POLICY] = fd
    names.asks("one.a.test", *addresses(1))
    names.asks("two.a.test", "203.0.113.99")
    ring.consume()
    del names.b.d["events"][POLICY]
    ring.close()
    assert set(names.granted()) == set(addresses(1))
    assert [(event.reason, event.name, str(event.remote), event.peer) for event in told] == [
        ("NAME_FULL", "two.a.test", "203.0.113.99", 10)
    ]
    assert names.b.counted([POLICY])["NAME_FULL"] == 1


def test_of_an_answer_with_too_many_addresses_as_many_are_learned_as_there_is_room_for(names: Names) -> None:
    with names.b.counting(POLICY) as told:
        names.asks("www.a.test", *addresses(1, 10))
    assert told == {"LEARNED": QUOTA, "NAME_FULL": 10 - QUOTA}
    assert list(names.holders().values()) == [1] * QUOTA


def test_addresses_that_a_full_name_has_are_prolonged(names: Names) -> None:
    names.asks("www.a.test", *addresses(1))
    with names.b.counting(POLICY) as told:
        names.asks("www.a.test", *addresses(1), ttl=1000)
    assert told == {"LEARNED": QUOTA}
    assert all(value.slots[0].expires > now() + 1000 * SECOND for _, value in names.b.d["grants"].items())


def test_a_full_name_takes_nothing_from_another_name_or_policy(names: Names, cgroup_root: Path) -> None:
    names.asks("www.a.test", *addresses(1))
    names.asks("two.a.test", *addresses(20))
    with names.b.counting(POLICY) as told:
        names.asks("www.b.test", *addresses(1))  # the same addresses, for another peer
    assert told == {"LEARNED": QUOTA}
    assert names.granted() == {address: {10, 11} for address in addresses(1)}
    teach_another_policy(names, cgroup_root)


def teach_another_policy(names: Names, cgroup_root: Path) -> None:
    """Another workload's policy, in which the same peer is as full as it can be without trouble."""
    other = cgroup_root / "another"
    other.mkdir(exist_ok=True)
    names.workload = names.b.classify(other, OTHER)
    names.b.policy(OTHER)
    names.b.resolver(OTHER, SERVER)
    names.b.name(OTHER, "*.a.test", 10)
    with names.b.counting(OTHER) as told:
        names.asks("www.a.test", *addresses(1))
    assert told == {"LEARNED": QUOTA}


def test_an_address_whose_time_is_over_makes_room(names: Names) -> None:
    names.asks("www.a.test", *addresses(1))
    expire(names, FULL + 11)
    with names.b.counting(POLICY) as told:
        names.asks("www.a.test", *addresses(20))
    assert told == {"LEARNED": QUOTA}
    assert names.granted() == {address: {10} for address in addresses(20)}
    assert names.room() == (MOST - 1) * QUOTA


def expire(names: Names, seconds: int) -> None:
    """As if all grants had been learned so much earlier."""
    for key, value in list(names.b.d["grants"].items()):
        slots = [(slot.peer, slot.peer and slot.expires - seconds * SECOND) for slot in value.slots]
        names.b.d["grants"][contract().plain(key)] = (slots,)


def test_a_policy_has_no_more_addresses_than_all_its_names_together_may(names: Names) -> None:
    for index in range(MOST):
        names.asks(f"www.{'abcdefgh'[index]}.test", *addresses(1 + QUOTA * index))
    with names.b.counting(POLICY) as told:
        names.asks("www.h.test", "203.0.113.200")
    assert told == {"NAME_FULL": 1}
    assert len(names.granted()) == MOST * QUOTA


def test_addresses_that_change_all_the_time_leave_no_row_without_a_place(names: Names) -> None:
    """A place is given away as soon as its address is over; the row must go with it, then or later."""
    for turn in range(3 * MOST):
        names.asks("www.a.test", *addresses(1 + QUOTA * turn))
        expire(names, FULL + 1)
    assert {address for _, address in names.holders()} >= set(names.granted())
    expire(names, 3600)
    with names.b.counting(POLICY) as told:
        names.asks("www.a.test", *addresses(200))
    assert told == {"LEARNED": QUOTA}


def test_an_address_that_is_learned_again_after_its_end_keeps_its_place(names: Names) -> None:
    for _ in range(QUOTA):
        names.asks("www.a.test", *addresses(1, 1))
        expire(names, FULL + 11)
    names.asks("www.a.test", *addresses(1, 1))
    with names.b.counting(POLICY) as told:
        names.asks("www.a.test", *addresses(2, QUOTA - 1))
    assert told == {"LEARNED": QUOTA - 1}


def test_one_policy_with_many_names_for_the_same_addresses_has_no_more_places_than_it_may(
    names: Names,
) -> None:
    for name in "abcdefgh":
        names.asks(f"www.{name}.test", *addresses(1))
    assert sum(names.holders().values()) <= QUOTA * MOST


def test_a_name_that_is_withdrawn_leaves_no_place_behind_once_it_is_over(bench: Bench) -> None:
    """A policy lives for months: what its former names held would fill it in the end."""
    numbers, names = Numbers(bench.d), Names(bench)
    few, more = (
        policy.union([allow.egress(rules, audit=False)]) for rules in (["*.y.test"], ["*.y.test", "*.z.test"])
    )
    written = numbers.write(POLICY, more, NO_AUTOMATON, Options(resolvers=()), None)
    names.asks("www.y.test", *addresses(1, 2))
    names.asks("www.z.test", *addresses(2, 2))
    numbers.write(POLICY, few, NO_AUTOMATON, Options(resolvers=()), written)
    numbers.sweep()
    assert len(names.live()) == 3, "what is not over may be wanted again"
    (staying,) = (peer.id for peer, _ in few.grants)
    for address in addresses(2, 2):
        grant = bench.d["grants"][p.packed(address), POLICY]
        slots = [(int(slot.peer), int(slot.expires) if slot.peer == staying else 1) for slot in grant.slots]
        bench.d["grants"][p.packed(address), POLICY] = (slots,)
    numbers.sweep()
    left = set(names.live()), {address for _, address in names.holders()}
    numbers.purge([POLICY])
    numbers.close()
    assert left == (set(addresses(1, 2)), set(addresses(1, 2)))


# ---- Questions --------------------------------------------------------------------------------------------


def question(name: str, number: int) -> bytes:
    """To the resolver on this host: what is kept of it can be known beforehand."""
    message = struct.pack(">HHHHHH", number, 0x0100, 1, 0, 0, 0) + simple(name).question
    return p.ether(p.ipv4(CLIENT, SERVER, p.UDP, p.udp(53, 40000, message)))


def test_of_too_many_open_questions_the_oldest_goes(names: Names) -> None:
    with names.b.seated():
        for number in range(OPEN + 1):
            names.b.run("egress", question("www.a.test", number), loopback=True)
    left = {int(key.id) for key, _ in names.b.d["questions"].items()}
    assert left == set(range(1, OPEN + 1))
    assert len(placed(names.b, "question_ring")) == OPEN


def test_an_open_question_that_makes_room_is_told(names: Names) -> None:
    with names.b.seated(), names.b.counting(POLICY) as told:
        for number in range(OPEN + 3):
            names.b.run("egress", question("www.a.test", number), loopback=True)
    assert told == {"RESOLVER": OPEN + 3, "QUESTIONS_FULL": 3}


def test_a_question_that_is_asked_again_and_again_is_always_believed(names: Names) -> None:
    """The same name under the same id from the same port, answered each time."""
    answer = simple("www.a.test", "203.0.113.1")
    for _ in range(OPEN + 10):
        with names.b.seated():
            names.b.run("egress", question("www.a.test", answer.number), loopback=True)
        names.answer(answer.bytes())
    assert names.counted() == {"LEARNED": OPEN + 10}


# ---- On two CPUs at once ----------------------------------------------------------------------------------

TURNS = 200


def rounds(
    tasks: list[Callable[[random.Random], None]], between: Callable[[int], None], turns: int = 6
) -> None:
    """All tasks at once, each in a thread; then what happens between two rounds, when nothing else does."""
    raised: list[BaseException] = []

    def run(task: Callable[[random.Random], None], r: random.Random) -> None:
        try:
            task(r)
        except BaseException as error:
            raised.append(error)

    for turn in range(turns):
        threads = [
            threading.Thread(target=run, args=(task, random.Random(f"{turn} {number}")))
            for number, task in enumerate(tasks)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if raised:
            raise raised[0]
        between(turn)


def test_peers_outside_that_come_on_two_CPUs_have_one_place_each(bench: Bench) -> None:
    bench.classify(bench.cgroup, POLICY)
    bench.policy(POLICY)

    def come(r: random.Random) -> None:
        with bench.network.entered():
            for _ in range(TURNS):
                comes(bench, r.randrange(1, 12))

    def check(_turn: int) -> None:
        assert sorted(keys(bench, "inbounds")) == sorted(placed(bench, "inbound_ring"))
        assert len(keys(bench, "inbounds")) <= QUOTA

    with inside(bench.cgroup):
        rounds([come, come, come], check)


def test_flows_of_two_threads_have_one_place_each(w: World) -> None:
    """One socket that both use and one of each; between two rounds all are silent for long."""
    shared = w.mine(UDP)

    def talk(mine: socket.socket) -> Callable[[random.Random], None]:
        def send(r: random.Random) -> None:
            for _ in range(TURNS):
                in_turn(r.choice((shared, mine)), [r.randrange(1, 12)])

        return send

    def check(_turn: int) -> None:
        assert sorted(keys(w.b, "flows")) == sorted(placed(w.b, "flow_ring"))
        assert len(keys(w.b, "flows")) == QUOTA
        age(w.b, "flows", "seen", contract().constant("FLOW_SECONDS") + 1)

    rounds([talk(w.mine(UDP)), talk(w.mine(UDP))], check)


def test_questions_of_two_CPUs_have_a_place_each(names: Names) -> None:
    """Some are answered meanwhile: their rows go, and their places stay until their turn comes."""
    b = names.b

    def ask(r: random.Random) -> None:
        for _ in range(2 * TURNS):
            number = r.randrange(3 * OPEN)
            b.run("egress", question("www.a.test", number), loopback=True)
            if number % 3 == 0:
                b.d["questions"].discard(names.key_of("www.a.test", number))

    def check(_turn: int) -> None:
        assert set(keys(b, "questions")) <= set(placed(b, "question_ring"))
        assert len(placed(b, "question_ring")) <= OPEN

    with inside(b.cgroup):
        rounds([ask, ask], check)
    assert len(placed(b, "question_ring")) == OPEN


def test_addresses_learned_on_two_CPUs_are_counted_and_have_a_place_each(names: Names) -> None:
    def learn(r: random.Random) -> None:
        for _ in range(TURNS // 4):
            few = [f"203.0.113.{r.randrange(1, 40)}" for _ in range(r.randrange(1, 6))]
            names.asks(f"www.{r.choice('abc')}.test", *few)

    def check(turn: int) -> None:
        assert {address for _, address in names.holders()} >= set(names.granted())
        expire(names, FULL + (1 if turn % 2 else 20))

    rounds([learn, learn], check)
    expire(names, 3600)
    assert names.room() == MOST * QUOTA


# ---- Many workloads, and the end of one ------------------------------------------------------------------


@pytest.fixture
def engine(datapath: Datapath, tmp_path: Path) -> Engine:
    """One that has tables and records, and nothing attached."""
    made = Engine.__new__(Engine)
    made.datapath, made.where = datapath, place.Place("skouter-test", tmp_path, tmp_path, run=tmp_path)
    made.room, made.homes = Room(datapath), Homes(datapath)
    return made


def test_where_quotas_shrink_the_places_beyond_are_emptied(
    w: World, crowded: socket.socket, engine: Engine
) -> None:
    """Nobody would turn them any more, and who comes next would find the table full."""
    most, many = contract().constant("FLOWS"), 200
    ring = w.b.d["flow_ring"]
    w.b.d.set(flows=most)
    for number in (2, 3):
        ring[w.number, most - number] = ring[w.number, number][0]
        del ring[w.number, number]
    w.b.d["tallies"][w.number] = (0, most, 0)  # the ring was gone through up to there
    for number in range(1, many):
        w.b.put("workloads", number, (POLICY,))
    engine.room.share()
    assert w.b.d["settings"][0].flows == most // 2
    assert many * most // 2 <= contract().maps["flows"].entries < many * most
    assert {int(key.number) for key, _ in ring.items()} == {0, 1}
    assert sorted(keys(w.b, "flows")) == sorted(placed(w.b, "flow_ring"))


def test_a_machine_s_open_connections_outlive_a_quota_that_shrinks(
    bench: Bench, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine behind the gateway must not end them; what is over goes, and the rest when it is."""
    later = 10**6 * SECOND  # this machine may have started just now
    monkeypatch.setattr(room.time, "clock_gettime_ns", lambda _clock: later)
    machine = 1 << contract().constant("MACHINE_BIT") | 1
    owner = machine | 1 << contract().constant("LINK_BIT")
    most, ago = contract().constant("MACHINE_FLOWS"), {0: 0, 1: 3600, 2: 10**5}  # seconds
    bench.put("workloads", machine, (POLICY,))
    bench.d.set(flows=most)
    for number, seconds in ago.items():
        ports = (number.to_bytes(2, "big"), (443).to_bytes(2, "big"))
        key = (owner, (bytes(16), bytes(16), *ports, socket.IPPROTO_TCP))
        bench.d["flow_ring"][owner, most - 1 - number] = key
        bench.d["flows"][key] = {"tuple": key[1], "seen": later - seconds * SECOND}
    bench.d["tallies"][owner] = (0, most, 0)
    for number in range(1, 200):
        bench.put("workloads", number, (POLICY,))
    engine.room.share()
    assert bench.d["settings"][0].flows < most
    assert {int(key.number) for key, _ in bench.d["flow_ring"].items()} == {most - 1, most - 2}
    for key, flow in list(bench.d["flows"].items()):
        flow.phase = 2  # its client has ended it
        bench.d["flows"][bytes(contract().ffi.buffer(key))] = flow[0]
    engine.room.tidy()
    assert [int(key.number) for key, _ in bench.d["flow_ring"].items()] == [most - 1]


def test_of_a_workload_that_ended_no_table_keeps_a_row(
    w: World, crowded: socket.socket, engine: Engine
) -> None:
    with w.as_workload(), w.b.network.entered():
        for number in range(2 * OPEN):
            w.b.run("egress", question("www.a.test", number), loopback=True)
        for port in range(3 * QUOTA):
            comes(w.b, port)
    tables = [name for name in WRITTEN_BY_PROGRAMS if keys(w.b, name)]
    assert {"flows", "flow_ring", "inbounds", "inbound_ring", "tallies"} <= set(tables)
    engine.forget_workloads([w.number])
    numbers = Numbers(w.b.d)
    numbers.purge([POLICY])
    numbers.close()
    assert [name for name in WRITTEN_BY_PROGRAMS if keys(w.b, name)] == []
