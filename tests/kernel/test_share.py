"""What other gateways have learned, taken into the real tables (bpf/share.h) and read from them."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import pytest

from bpf import kernel, share
from bpf.contract import contract
from bpf.datapath import Datapath
from gateway.peers.facts import Fact
from gateway.peers.ledger import Ledger
from tests.kernel import packets as p
from tests.kernel.bench import SECOND, Bench, now
from tests.network.circle import Circle, in_a_circle, until

POLICY, OTHER, PEER, SECOND_PEER = 7, 8, 0x1111, 0x2222
LONGEST, MOST = contract().constant("LONGEST_GRANT"), contract().constant("GRANTS_PER_POLICY")
A, B, C = (p.packed(text) for text in ("203.0.113.1", "203.0.113.2", "2001:db8::1"))
EARLIER = 100 * SECOND


@pytest.fixture
def b(bench: Bench) -> Bench:
    """With a policy that has two peers, and one that has none of them."""
    bench.d.for_gateway()
    bench.policy(POLICY)
    bench.policy(OTHER)
    bench.rule(POLICY, PEER, 1)
    bench.rule(POLICY, SECOND_PEER, 1)
    bench.rule(OTHER, 0x3333, 1)
    return bench


@pytest.fixture
def small(datapath: Datapath) -> Iterator[int]:
    """Four addresses of one peer."""
    held = datapath["settings"][0]
    datapath.set(addresses=4)
    yield 4
    datapath["settings"][0] = held[0]


def there(b: Bench, number: int = POLICY) -> dict[tuple[bytes, int], int]:
    """(address, peer) to the seconds left, rounded."""
    return {(address, peer): round((end - now()) / SECOND) for address, peer, end in share.held(b.d, number)}


def numbered(count: int) -> list[bytes]:
    return [p.packed(f"198.{18 + (i >> 16)}.{i >> 8 & 255}.{i & 255}") for i in range(count)]


def test_facts_become_grants_for_as_long_as_they_are_good(b: Bench) -> None:
    assert share.adopt(b.d, POLICY, [(PEER, A, 100), (SECOND_PEER, A, 200), (PEER, C, 300)]) == 3
    assert there(b) == {(A, PEER): 100, (A, SECOND_PEER): 200, (C, PEER): 300}
    assert there(b, OTHER) == {}


def test_no_facts_are_no_grants(b: Bench) -> None:
    assert share.adopt(b.d, POLICY, []) == 0
    assert there(b) == {}


@pytest.mark.parametrize("count", [1, 15, 16, 17, 40])
def test_more_facts_than_one_run_takes(b: Bench, count: int) -> None:
    facts = [(PEER, address, 100) for address in numbered(count)]
    assert share.adopt(b.d, POLICY, iter(facts)) == count
    assert there(b) == {(address, PEER): 100 for address in numbered(count)}


def test_of_two_ends_the_later_one_counts(b: Bench) -> None:
    for seconds in (100, 500, 200):
        assert share.adopt(b.d, POLICY, [(PEER, A, seconds)]) == 1
    assert there(b) == {(A, PEER): 500}
    assert len(list(b.d["grant_ring"].raw_keys())) == 1


def test_no_fact_is_good_for_longer_than_any_answer(b: Bench) -> None:
    assert share.adopt(b.d, POLICY, [(PEER, A, 2**63)]) == 1
    assert there(b) == {(A, PEER): LONGEST}


@pytest.mark.parametrize(
    ("number", "peer"),
    [(POLICY, 0x3333), (POLICY, 0), (OTHER, PEER), (9, PEER), (0, PEER), (65535, PEER), (2**63, PEER)],
    ids=["no such peer", "peer 0", "another's", "no policy", "closed", "exempt", "no number"],
)
def test_a_peer_that_the_policy_has_not_is_refused(b: Bench, number: int, peer: int) -> None:
    assert share.adopt(b.d, number, [(peer, A, 100), (peer, B, 100)]) == 0
    assert not list(share.walk(b.d))
    assert not list(b.d["holdings"].raw_keys())


@pytest.mark.parametrize(
    "address",
    [
        *("0.0.0.1", "127.0.0.1", "169.254.169.254", "224.0.0.1", "255.255.255.255", "168.63.129.16"),
        *("::", "::1", "fe80::1", "ff02::1", "fd00:ec2::254", "64:ff9b::a00:1", "64:ff9b:1::1", "::10.0.0.1"),
    ],
)
def test_an_address_that_is_never_learned_is_refused(b: Bench, address: str) -> None:
    assert share.adopt(b.d, POLICY, [(PEER, p.packed(address), 100), (PEER, A, 100)]) == 1
    assert there(b) == {(A, PEER): 100}


@pytest.mark.parametrize(("what", "taken"), [("ANYBODY", 1), ("NEVER", 0), ("CLUSTER", 0)])
def test_the_operators_ranges_and_the_clusters_are_refused(b: Bench, what: str, taken: int) -> None:
    b.put("never", (16 + 96 + 24, b"\0\0", p.packed("203.0.113.0")), contract().constant(what))
    assert share.adopt(b.d, POLICY, [(PEER, A, 100), (PEER, p.packed("198.51.100.1"), 100)]) == 1 + taken


def test_one_peer_takes_no_more_room_than_by_its_own_answers(b: Bench, small: int) -> None:
    facts = [(PEER, address, 100) for address in numbered(small + 3)]
    assert share.adopt(b.d, POLICY, facts) == small
    assert share.adopt(b.d, POLICY, [(PEER, numbered(1)[0], 200)]) == 1  # what is there needs no place
    assert share.adopt(b.d, POLICY, [(SECOND_PEER, address, 100) for address in numbered(small)]) == small
    assert len(there(b)) == 2 * small


def test_what_is_over_makes_room(b: Bench, small: int) -> None:
    share.adopt(b.d, POLICY, [(PEER, address, 100) for address in numbered(small)])
    for key, grant in list(b.d["grants"].items()):
        grant.slots[0].expires -= 2 * EARLIER
        b.d["grants"][contract().plain(key)] = grant[0]
    assert share.adopt(b.d, POLICY, [(PEER, A, 100)]) == 1
    assert there(b)[A, PEER] == 100


def test_a_broken_frame_gives_nothing(b: Bench) -> None:
    whole = share.FRAME + share.FACT.pack(POLICY, PEER, A, 100)
    for length in range(len(share.FRAME), len(whole)):
        kernel.test_run(b.d.programs["gateway_share"], whole[:length])
    assert there(b) == {}
    kernel.test_run(b.d.programs["gateway_share"], whole + whole[14:-1])
    assert there(b) == {(A, PEER): 100}


def test_no_more_than_a_frame_holds_are_read(b: Bench) -> None:
    facts = [share.FACT.pack(POLICY, PEER, address, 100) for address in numbered(20)]
    kernel.test_run(b.d.programs["gateway_share"], share.FRAME + b"".join(facts))
    assert len(there(b)) == contract().constant("FACTS_AT_ONCE")


def test_one_address_is_found(b: Bench) -> None:
    share.adopt(b.d, POLICY, [(PEER, A, 100), (SECOND_PEER, A, 200), (PEER, B, 300)])
    found = {peer: round((end - now()) / SECOND) for peer, end in share.find(b.d, POLICY, A)}
    assert found == {PEER: 100, SECOND_PEER: 200}
    assert share.find(b.d, POLICY, C) == share.find(b.d, OTHER, A) == []


def test_random_facts_are_what_a_dictionary_of_latest_ends_says(b: Bench) -> None:
    r, addresses, latest = random.Random(5), numbered(300), dict[tuple[bytes, int], int]()
    for _ in range(60):
        facts = [
            (r.choice((PEER, SECOND_PEER)), r.choice(addresses), r.randrange(60, 1000))
            for _ in range(r.randrange(40))
        ]
        before = now()
        assert share.adopt(b.d, POLICY, facts) == len(facts)
        for peer, address, seconds in facts:
            end = before + seconds * SECOND
            latest[address, peer] = max(end, latest.get((address, peer), 0))
    found = {(address, peer): end for address, peer, end in share.held(b.d, POLICY)}
    assert found.keys() == latest.keys()
    assert all(0 <= found[key] - end < 2 * SECOND for key, end in latest.items())


# ---- As facts: gateway/peers/ledger.py

DIGEST, SHARED, NOWHERE = b"d" * 16, b"s" * 16, b"n" * 16


@pytest.fixture
def ledger(b: Bench) -> Ledger:
    """POLICY has a digest of its own; two numbers are of one policy."""
    for number in (20, 21):
        b.policy(number)
        b.rule(number, PEER, 1)
    return Ledger(b.d, lambda: {DIGEST: [POLICY], SHARED: (20, 21)})


def test_facts_come_out_of_the_ledger_as_they_went_in(ledger: Ledger) -> None:
    facts = [Fact(PEER, A, 100), Fact(SECOND_PEER, A, 200), Fact(PEER, C, 300)]
    assert ledger.adopt(DIGEST, facts) == 3
    found = list(ledger.held())
    assert {digest for digest, _ in found} == {DIGEST}
    assert {fact[:2] for _, fact in found} == {fact[:2] for fact in facts}
    ends = {fact[:2]: fact.seconds for fact in facts}
    for _, fact in found:  # rounded down: never longer than it was said to be
        assert ends[fact[:2]] - 2 <= fact.seconds < ends[fact[:2]]
    assert {fact.peer for fact in ledger.find(DIGEST, A)} == {PEER, SECOND_PEER}


def test_what_is_said_of_a_digest_holds_for_all_numbers_that_have_it(b: Bench, ledger: Ledger) -> None:
    assert ledger.adopt(SHARED, [Fact(PEER, A, 100)]) == 1
    assert there(b, 20) == there(b, 21) == {(A, PEER): 100}
    share.adopt(b.d, 21, [(PEER, A, 500)])
    (found,) = ledger.find(SHARED, A)
    assert 498 <= found.seconds <= 499
    assert [digest for digest, _ in ledger.held()] == [SHARED, SHARED]


def test_a_digest_that_is_not_here_is_nothing(ledger: Ledger) -> None:
    assert not ledger.knows(NOWHERE)
    assert ledger.adopt(NOWHERE, [Fact(PEER, A, 100)]) == 0
    assert ledger.find(NOWHERE, A) == list(ledger.held()) == []


def test_what_is_over_or_of_other_policies_is_not_told(b: Bench, ledger: Ledger) -> None:
    b.grant(POLICY, "203.0.113.1", (PEER, now() - 1), (SECOND_PEER, now() + SECOND // 2))
    b.grant(OTHER, "203.0.113.1", (PEER, now() + 100 * SECOND))
    assert list(ledger.held()) == ledger.find(DIGEST, A) == []


@in_a_circle
async def test_two_gateways_whose_numbers_differ_tell_each_other(circle: Circle, b: Bench) -> None:
    """Both in one kernel half here, each with a number of its own for the one policy."""
    many = numbered(10_000)
    for number in (20, 21):
        b.policy(number)
        b.rule(number, PEER, 1)
    b.rule(20, SECOND_PEER, 1)
    share.adopt(b.d, 20, [(PEER, address, 1000) for address in many])
    share.adopt(b.d, 20, [(SECOND_PEER, C, 1000)])
    b.grant(20, "169.254.169.254", (PEER, now() + 1000 * SECOND))  # which nothing but a fault could write
    one = circle.gateway(1, circle.members(2), Ledger(b.d, lambda: {SHARED: [20]}))
    other = circle.gateway(2, circle.members(2), Ledger(b.d, lambda: {SHARED: [21]}))
    await other.ready.wait()
    assert {address for address, _ in there(b, 21)} == set(many)
    assert all(990 < seconds < 1000 for seconds in there(b, 21).values())
    assert other.numbers()["facts refused"] >= 2  # what comes late is asked for again
    for gateway, number, hears in ((one, 20, 21), (other, 21, 20)):
        address = p.packed(f"192.0.2.{number}")
        share.adopt(b.d, number, [(PEER, address, 1000)])
        gateway.learned(SHARED, address)
        await until(lambda: share.find(b.d, hears, address))  # noqa: B023


def test_a_hundred_thousand_are_taken_and_walked_in_about_a_second(b: Bench) -> None:
    """Ten policies with their share of them each; other work on this machine gets its time, too."""
    addresses = numbered(10_000)
    for number in range(100, 110):
        b.policy(number)
        b.rule(number, PEER, 1)
    started = time.perf_counter()
    for number in range(100, 110):
        assert share.adopt(b.d, number, [(PEER, address, 100) for address in addresses]) == 10_000
    taken = time.perf_counter()
    assert sum(1 for _ in share.walk(b.d)) == 100_000
    walked = time.perf_counter()
    print(f"taken in {taken - started:.2f} s, walked in {walked - taken:.2f} s")
    assert {address for address, _, _ in share.held(b.d, 105)} == set(addresses)
    assert taken - started < 5
    assert walked - taken < 3
