"""From a policy to the kernel's verdict, against what the policy says when it is simply read.

Random policies are compiled to rows (gateway/policies/tables.py), the rows are laid into the real tables,
packets are run through the real programs. The other judge walks over the policy's peers one by one. Policies
follow one another in one place, by the steps that the agent would take.
"""

from __future__ import annotations

import ipaddress
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bpf.datapath import write
from gateway.policies import names, tables
from gateway.policies.documents import Block
from gateway.policies.policy import Peer, Policy, PortRange, contains, merge
from tests.kernel import packets as p
from tests.kernel.bench import Bench
from tests.kernel.test_dns_reader import Reader, simple

NUMBER = 7
ME = {4: "10.9.9.9", 6: "fd09::9"}
NETWORKS = [
    ipaddress.ip_network(text)
    for text in (
        *("0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.128/25", "10.1.2.3/32"),
        *("::/0", "2001:db8::/32", "2001:db8:1::/48", "2001:db8:1:2::/64", "2001:db8:1:2::3/128"),
    )
]
ADDRESSES = (
    *("10.1.2.3", "10.1.2.200", "10.1.7.7", "10.7.7.7", "8.8.8.8"),
    *("2001:db8:1:2::3", "2001:db8:1:2::4", "2001:db8:1::4", "2001:db8::4", "2001:4860::1"),
)
RANGES = [
    *(
        PortRange("TCP", 80, 80),
        PortRange("TCP", 443, 443),
        PortRange("TCP", 1, 1023),
        PortRange("TCP", 0, 65535),
    ),
    *(PortRange("TCP", 8000, 9001), PortRange("UDP", 53, 53), PortRange("UDP", 0, 65535)),
    *(PortRange("SCTP", 80, 443), PortRange("ICMP", 0, 65535), PortRange("ANY", 0, 65535)),
]
PATTERNS = ("example.com", "*.example.com", "www.example.com", "*.www.example.com", "*", "example.org")
NAMES = ("example.com", "www.example.com", "a.www.example.com", "evilexample.com", "example.org", "com")
SERVICES = [
    *(("TCP", port) for port in (0, 1, 80, 443, 1023, 1024, 8000, 9001, 9002, 65535)),
    *(("UDP", 53), ("UDP", 54), ("SCTP", 79), ("SCTP", 80), ("SCTP", 443), ("ICMP", None)),
]
PROTOCOLS = {"TCP": p.TCP, "UDP": p.UDP, "SCTP": p.SCTP}


@st.composite
def blocks(draw: st.DrawFn) -> Block:
    network = draw(st.sampled_from(NETWORKS))
    inner = [n for n in NETWORKS if n != network and n.version == network.version and n.subnet_of(network)]
    excepts = draw(st.lists(st.sampled_from(inner), max_size=2, unique=True)) if inner else []
    return Block(network, tuple(ipaddress.collapse_addresses(excepts)))  # type: ignore[type-var]


peers = st.one_of(blocks(), st.sampled_from(PATTERNS).map(names.parse)).map(Peer)
port_sets = st.lists(st.sampled_from(RANGES), min_size=1, max_size=3).map(merge)
policies = st.dictionaries(peers, port_sets, max_size=6).map(lambda grants: Policy(frozenset(grants.items())))


def covers(peer: Peer, place: Any) -> bool:
    if isinstance(peer.what, names.Pattern):
        return isinstance(place, str) and names.matches(peer.what, place)
    if isinstance(place, str) or place.version != peer.what.network.version:
        return False
    return place in peer.what.network and not any(place in part for part in peer.what.excepts)


def says(policy: Policy, places: list[Any], protocol: str, port: int | None) -> bool:
    """Read aloud: some peer covers where it goes (its address, or a name that taught it), for this port."""
    return any(
        contains(ports, protocol, port) and any(covers(peer, place) for place in places)
        for peer, ports in policy.grants
    )


def passes(b: Bench, address: str, protocol: str, port: int | None) -> bool:
    six = ":" in address
    number = PROTOCOLS.get(protocol, p.ICMPV6 if six else p.ICMP)
    body = (
        p.tcp(port or 0)
        if number == p.TCP
        else p.udp(port or 0)
        if port is not None
        else p.icmp(128 if six else 8)
    )
    make = p.ipv6 if six else p.ipv4
    return bool(b.run("egress", p.ether(make(ME[6 if six else 4], address, number, body))))


def lay(b: Bench, old: tables.Tables | None, new: tables.Tables) -> None:
    for step in tables.difference(old, new).steps:
        if step.map == "flags":
            continue
        if step.value is None:
            write(b.d.tables, step.map, step.key, None)
        else:
            b.put(step.map, step.key, step.value)
    b.policy(NUMBER)


@pytest.fixture
def fresh(bench: Bench) -> Bench:
    bench.classify(bench.cgroup, NUMBER)
    return bench


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(history=st.lists(policies, min_size=1, max_size=3))
def test_the_kernel_decides_as_the_policy_reads(fresh: Bench, history: list[Policy]) -> None:
    b, laid = fresh, None
    for policy in history:
        wanted = tables.compile(policy, NUMBER, laid)
        if wanted.problems:  # told and granting nothing: not what this test is about
            continue
        lay(b, laid, wanted)
        laid = wanted
        with b.seated():
            for address, (protocol, port) in product(ADDRESSES, SERVICES):
                expected = says(policy, [ipaddress.ip_address(address)], protocol, port)
                assert passes(b, address, protocol, port) == expected, (policy, address, protocol, port)
    if laid:
        lay(b, laid, tables.compile(Policy(), NUMBER, laid))


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(policy=policies, asked=st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True))
def test_what_a_name_teaches_passes_as_the_policy_reads(
    bench: Bench, policy: Policy, asked: list[str]
) -> None:
    bench.clear()
    reader = Reader(bench)
    wanted = tables.compile(policy, NUMBER)
    if wanted.problems:
        return
    lay(bench, None, wanted)
    bench.policy(NUMBER, floor=60, grace=60)
    for name in asked:
        answer = simple(name, "10.1.2.3", "2001:db8:1:2::3")
        reader.ask(answer.number, answer.question)
        reader.answer(answer.bytes())
    if "GRANT_CROWDED" in reader.counted():  # more peers on one address than it has slots
        return
    with bench.seated():
        for address, (protocol, port) in product(("10.1.2.3", "2001:db8:1:2::3"), SERVICES):
            places = [ipaddress.ip_address(address), *asked]
            expected = says(policy, places, protocol, port)
            assert passes(bench, address, protocol, port) == expected, (
                policy,
                asked,
                address,
                protocol,
                port,
            )
    bench.clear()
