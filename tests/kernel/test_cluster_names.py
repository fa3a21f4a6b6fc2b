"""Names of a cluster: whose addresses they teach, and what a stripped search suffix counts for.

Held against the slow reader (reference_dns.py), message by message, with well-formed aliases, nearly right
ones and mutated ones.
"""

from __future__ import annotations

import ipaddress
import random
import sys
from collections import Counter

import pytest

from bpf.contract import contract
from gateway import ranges
from gateway.numbers import Numbers, Options, _option_rows
from gateway.policies import dfa, names, patterns
from tests.kernel import fuzz
from tests.kernel import packets as p
from tests.kernel.bench import Bench
from tests.kernel.messages import Answer, odd_case, wire
from tests.kernel.reference_dns import SURE_STEPS, BrokenError, Cluster, plain, question_end, read, stripped
from tests.kernel.test_dns_reader import PEER, POLICY, SECOND_PEER, Reader, simple, these

SEARCHES = ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.test")
NETWORKS = (ipaddress.ip_network("10.96.0.0/12"), ipaddress.ip_network("fd00:96::/32"))
CLUSTER = Cluster(("cluster.local",), NETWORKS)
SITE, SERVICE, SERVICE6 = "203.0.113.1", "10.96.0.1", "fd00:96::1"
WANTED = {PEER: "*.example.com", SECOND_PEER: "web.shop.svc.cluster.local"}
MESSAGES = 3000


@pytest.fixture
def reader(bench: Bench) -> Reader:
    made = Reader(bench)
    for peer, pattern in WANTED.items():
        bench.name(POLICY, pattern, peer)
    for (table, key), value in _option_rows(POLICY, Options(searches=SEARCHES)).items():
        bench.put(table, key, value)
    for key, value in ranges.range_rows(NETWORKS, ()).items():
        bench.put("never", key, value)
    for key, value in ranges.domain_rows(CLUSTER.domains).items():
        bench.put("domains", key, value)
    return made


def alias(name: str, target: str, *addresses: str, owner: bytes = b"\xc0\x0c") -> Answer:
    """`name` is an alias of `target`, which has these addresses."""
    answer = simple(name)
    answer.add(5, wire(target), owner=owner, ttl=60)
    for text in addresses:
        data = p.packed(text)
        answer.add(28 if ":" in text else 1, data if ":" in text else data[12:], owner=wire(target), ttl=60)
    return answer


def taught(reader: Reader, answer: Answer) -> set[bytes]:
    return set(reader.teach(answer.bytes(), answer.number, answer.question))


# ---- The cluster's own addresses --------------------------------------------------------------------------


def test_a_name_of_the_cluster_teaches_its_addresses(reader: Reader) -> None:
    answer = simple("web.shop.svc.cluster.local", SERVICE, SERVICE6, SITE)
    assert taught(reader, answer) == these(SERVICE, SERVICE6, SITE)


def test_ATTACK_rebinding_into_the_cluster(reader: Reader) -> None:
    """A name of the attacker's, which the policy allows, leads to a Service."""
    assert taught(reader, simple("www.example.com", SERVICE, SERVICE6, SITE)) == these(SITE)
    assert reader.counted() == {"LEARNED": 1, "NEVER_LEARNED": 2}


@pytest.mark.parametrize("name", ["cluster.local.example.com", "evilcluster.local", "cluster.local"])
def test_a_name_that_only_looks_like_the_cluster_s_teaches_none(reader: Reader, name: str) -> None:
    reader.b.name(POLICY, "*", PEER)
    assert taught(reader, simple(name, SERVICE, SITE)) == these(SITE)


def test_ATTACK_an_alias_leads_out_of_the_cluster_and_back(reader: Reader) -> None:
    """A Service of type ExternalName: whoever has the name outside would say which Service is reached."""
    assert taught(reader, alias("web.shop.svc.cluster.local", "evil.test", SERVICE, SITE)) == these(SITE)


def test_ATTACK_a_stripped_name_leads_into_the_cluster(reader: Reader) -> None:
    answer = alias("www.example.com.shop.svc.cluster.local", "www.example.com", SERVICE, SITE)
    assert taught(reader, answer) == these(SITE)


def test_what_is_never_learned_stays_so_within_the_cluster_and_around_it(reader: Reader) -> None:
    inner, outer = ipaddress.ip_network("10.96.7.0/24"), ipaddress.ip_network("fd00::/16")
    for key, value in ranges.range_rows(NETWORKS, (inner, outer)).items():
        reader.b.put("never", key, value)
    answer = simple("web.shop.svc.cluster.local", SERVICE, "10.96.7.1", SERVICE6)
    assert taught(reader, answer) == these(SERVICE)


def test_every_ipv6_address_is_no_ipv4_address(reader: Reader) -> None:
    for key, value in ranges.range_rows((), (ipaddress.ip_network("::/0"),)).items():
        reader.b.put("never", key, value)
    assert taught(reader, simple("www.example.com", SITE, "2001:db8::1")) == these(SITE)


def test_ranges_change_by_difference(reader: Reader) -> None:
    other = ipaddress.ip_network("172.30.0.0/16")
    try:
        ranges.write(reader.b.d, ["cluster.test"], [other], [])
        assert taught(reader, simple("www.example.com", SERVICE, "172.30.0.1")) == these(SERVICE)
        reader.b.name(POLICY, "*.cluster.test", PEER)
        assert taught(reader, simple("a.cluster.test", "172.30.0.1")) == these("172.30.0.1")
    finally:
        ranges.write(reader.b.d, [], [], [])
    assert [list(reader.b.d[name].items()) for name in ("never", "domains")] == [[], []]


# ---- Stripped suffixes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", SEARCHES)
@pytest.mark.parametrize("written_out", [False, True])
def test_an_alias_that_strips_a_suffix_counts_for_what_is_left(
    reader: Reader, suffix: str, written_out: bool
) -> None:
    name = f"WWW.example.com.{suffix}"
    owner = wire(name.lower()) if written_out else b"\xc0\x0c"
    assert taught(reader, alias(name, "www.Example.com", SITE, owner=owner)) == these(SITE)


NOT_STRIPPED = {
    "no suffix of the workload's": ("www.example.com.other.test", "www.example.com"),
    "another name": ("www.example.org.corp.test", "www.example.com"),
    "a label less": ("a.www.example.com.corp.test", "www.example.com"),
    "a label more": ("example.com.corp.test", "www.example.com"),
    "half a label": ("www.example.comcorp.test", "www.example.com"),
    "another suffix is left": ("www.example.com.shop.svc.cluster.local", "www.example.com.svc.cluster.local"),
    "nothing is stripped": ("www.example.com.corp.test", "www.example.com.corp.test"),
}


@pytest.mark.parametrize("case", NOT_STRIPPED)
def test_nothing_is_stripped_by(reader: Reader, case: str) -> None:
    name, target = NOT_STRIPPED[case]
    assert taught(reader, alias(name, target, SITE)) == set()


def test_nothing_is_stripped_without_the_alias(reader: Reader) -> None:
    assert taught(reader, simple("www.example.com.corp.test", SITE)) == set()


def test_nothing_is_stripped_by_a_second_alias_or_of_another_s_name(reader: Reader) -> None:
    answer = alias("www.example.com.corp.test", "else.where.test")
    answer.add(5, wire("www.example.com"), owner=b"\xc0\x0c", ttl=60)
    answer.add(1, p.packed(SITE)[12:], owner=b"\xc0\x0c", ttl=60)
    assert taught(reader, answer) == set()
    foreign = alias("www.example.com.corp.test", "www.example.com", SITE, owner=wire("else.where.test"))
    assert taught(reader, foreign) == set()


def test_an_expression_wants_what_is_left(reader: Reader) -> None:
    made = dfa.compile({patterns.parse(r"a[0-9]+\.example\.org"): SECOND_PEER}).automaton
    numbers = Numbers(reader.b.d)
    reader.b.policy(POLICY, "PATTERNS")
    numbers._set_automaton(POLICY, made)
    try:
        assert taught(reader, alias("a17.example.org.corp.test", "a17.example.org", SITE)) == these(SITE)
        assert taught(reader, alias("b17.example.org.corp.test", "b17.example.org", SITE)) == set()
    finally:
        numbers._set_automaton(POLICY, None)
        numbers.close()


def test_both_names_count_each_for_its_own_peer(reader: Reader) -> None:
    reader.b.name(POLICY, "*.corp.test", SECOND_PEER)
    answer = alias("www.example.com.corp.test", "www.example.com", SITE)
    reader.ask(answer.number, answer.question)
    reader.answer(answer.bytes())
    (grant,) = (value for _, value in reader.b.d["grants"].items())
    assert {int(slot.peer) for slot in grant.slots if slot.peer} == {PEER, SECOND_PEER}


# ---- Against the slow reader ------------------------------------------------------------------------------


def generated(r: random.Random) -> Answer:
    """An answer that strips a suffix, or nearly."""
    base = r.choice(("www.example.com", "a.example.com", "example.com", "evil.test", "web", "x" * 63))
    name = f"{base}.{r.choice((*SEARCHES, 'other.test'))}"
    target = r.choice((base, base, base, base + "x", name, f"{base}.svc.cluster.local", "evil.test"))
    owner = r.choice((b"\xc0\x0c", wire(name), odd_case(r, wire(name)), wire(base)))
    answer = Answer(r, odd_case(r, wire(name)) if r.random() < 0.3 else name)
    if r.random() < 0.1:
        answer.add(16, b"\1x", owner=b"\xc0\x0c")
    answer.add(5, odd_case(r, wire(target)), owner=owner, group=r.choice((1, 1, 1, 3)), ttl=60)
    for text in r.choices((SITE, SERVICE, SERVICE6, "203.0.113.2", "127.0.0.1"), k=r.randint(0, 4)):
        data = p.packed(text)
        answer.add(28 if ":" in text else 1, data if ":" in text else data[12:], owner=wire(target), ttl=60)
    return answer


def wanting(name: str) -> set[int]:
    return {peer for peer, text in WANTED.items() if names.matches(names.parse(text), name)}


@pytest.mark.parametrize("mutated", [False, True])
def test_the_kernel_strips_what_the_slow_reader_strips(reader: Reader, mutated: bool) -> None:
    r, outcomes = random.Random(contract().layout + str(mutated)), Counter[str]()
    for _ in range(MESSAGES):
        answer = generated(r)
        message = answer.bytes()
        message = fuzz.mutate(r, [message], fixed=30) if mutated else message
        want = read(message, answer.number, answer.question, CLUSTER)
        try:
            name = plain(message[12 : question_end(message)])
            left = stripped(message, SEARCHES)
        except BrokenError:
            name = left = ""
        peers = wanting(name) | (wanting(left) if left else set())
        expected = {address for address, _ in want.addresses} if peers else set()
        reader.ask(answer.number, answer.question)
        reader.answer(message)
        found = {
            bytes(key.address): {int(slot.peer) for slot in value.slots if slot.peer}
            for key, value in reader.b.d["grants"].items()
        }
        if want.steps <= SURE_STEPS:
            assert found == dict.fromkeys(expected, peers), message.hex()
        for raw in (address + POLICY.to_bytes(8, sys.byteorder) for address in found):
            reader.forget(raw)
        outcomes["stripped" if left and found else "learned" if found else "nothing"] += 1
    for name in ("grant_ring", "holdings", "questions"):
        for raw in list(reader.b.d[name].raw_keys()):
            reader.b.d[name].remove_raw(raw)
    assert outcomes["stripped"] > MESSAGES // (300 if mutated else 60), outcomes
    assert outcomes["nothing"] > MESSAGES // 10, outcomes
