"""A policy is a value: what is allowed, not how it was written down."""

import hashlib
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policies import names, patterns, policy
from gateway.policies.policy import ALL, Peer, Policy, PortRange, describe, merge, union
from gateway.policies.records import Block, Egress, Ports, Rule, Selector

A, B = names.parse("a.com"), names.parse("*.b.com")
NET, PART = ip_network("10.0.0.0/8"), ip_network("10.1.0.0/16")
HTTP, HTTPS = Ports("TCP", 80, 80), Ports("TCP", 443, 443)


def egress(*rules, **fields):
    return Egress("default", "x", pods=Selector(), rules=rules, **fields)


def tcp(first, last=None):
    return PortRange("TCP", first, first if last is None else last)


# ---- Who counts -------------------------------------------------------------------------------------------


def test_selected_by_nothing_is_no_policy():
    assert union([]) is None


def test_an_object_without_rules_denies_everything():
    assert union([egress()]) == Policy()


def test_enforcing_objects_leave_audit_ones_out():
    enforcing, audit = egress(Rule((A,))), egress(Rule((B,)), audit=True, only_allowed_names=True)
    assert union([audit, enforcing]) == union([enforcing]) == Policy(frozenset({(Peer(A), ALL)}))


def test_audit_objects_alone_are_one_audit_policy():
    found = union([egress(Rule((A,)), audit=True), egress(Rule((B,)), audit=True)])
    assert found == Policy(frozenset({(Peer(A), ALL), (Peer(B), ALL)}), audit=True)


def test_one_object_is_enough_to_refuse_questions():
    assert union([egress(), egress(only_allowed_names=True)]).only_allowed_names


def test_a_rule_without_peers_grants_nothing():
    assert union([egress(Rule(ports=(HTTP,)))]) == Policy()


# ---- Equal unions are equal -------------------------------------------------------------------------------


def test_however_it_is_split_it_is_the_same_policy():
    whole = union([egress(Rule((A, B), ports=(HTTP, HTTPS)))])
    by_peer = union([egress(Rule((A,), ports=(HTTPS, HTTP))), egress(Rule((B,), ports=(HTTP, HTTPS)))])
    by_port = union([egress(Rule((B, A), ports=(HTTPS,)), Rule((A, B), ports=(HTTP,)))])
    assert whole == by_peer == by_port
    assert hash(whole) == hash(by_peer) == hash(by_port)


def test_every_port_swallows_single_ones():
    both = union([egress(Rule((A,)), Rule((A,), ports=(HTTP,)))])
    assert both == union([egress(Rule((A,), ports=(Ports("ANY"),)))])


def test_an_address_and_its_network_are_the_same_peer():
    host = ip_network("192.0.2.1/32")
    twice = union([egress(Rule(blocks=(Block(host),)), Rule(blocks=(Block(host, ()),)))])
    assert [peer.text for peer, _ in twice.grants] == ["192.0.2.1/32"]


def test_excepts_are_canonical():
    halves = (ip_network("10.1.128.0/17"), ip_network("10.1.0.0/17"), ip_network("10.1.2.0/24"))
    one, other = (policy.peers(Rule(blocks=(Block(NET, excepts),)))[0] for excepts in (halves, (PART,)))
    assert one == other
    assert one.text == "10.0.0.0/8 except 10.1.0.0/16"


PORTS = st.builds(
    lambda protocol, first, length: Ports(protocol, first, min(first + length, 65535)),
    st.sampled_from(["TCP", "UDP"]),
    st.integers(1, 20),
    st.integers(0, 5),
)
RULES = st.builds(
    Rule,
    domains=st.lists(st.sampled_from([A, B]), max_size=2).map(tuple),
    blocks=st.lists(st.sampled_from([Block(NET), Block(NET, (PART,))]), max_size=2).map(tuple),
    ports=st.lists(PORTS, max_size=3).map(tuple),
)


@given(st.lists(RULES, max_size=5), st.randoms(), st.integers(0, 5))
def test_neither_order_nor_split_changes_the_value(rules, random, at):
    shuffled = random.sample(rules, len(rules))
    assert union([egress(*rules)]) == union([egress(*shuffled[:at]), egress(*shuffled[at:])])


@given(st.lists(PORTS, max_size=6))
def test_merged_ranges_hold_the_same_ports_and_lie_apart(ports):
    merged = merge(PortRange(p.protocol, p.first, p.last) for p in ports)
    said = {(p.protocol, n) for p in ports for n in range(p.first, p.last + 1)}
    assert {(r.protocol, n) for r in merged for n in range(r.first, r.last + 1)} == said
    for one in merged:
        assert not any(o.protocol == one.protocol and o.first == one.last + 1 for o in merged)
    assert sum(r.last - r.first + 1 for r in merged) == len(said)


# ---- Peers and ports --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "kind", "text"),
    [
        (patterns.parse(r"API-[0-9]+\.b\.com"), "pattern", r"/API-[0-9]+\.b\.com/"),
        (A, "name", "a.com"),
        (B, "name", "*.b.com"),
        (Block(NET), "prefix", "10.0.0.0/8"),
        (Block(ip_network("2001:DB8::/32")), "prefix", "2001:db8::/32"),
        (
            Block(NET, (PART, ip_network("10.9.0.0/16"))),
            "prefix",
            "10.0.0.0/8 except 10.1.0.0/16, 10.9.0.0/16",
        ),
    ],
)
def test_a_peer_is_its_text(what, kind, text):
    peer = Peer(what)
    assert (peer.kind, peer.text) == (kind, text)
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    assert peer.id == int.from_bytes(digest, "little")
    assert 0 < peer.id < 1 << 64


def test_no_protocols_together_are_every_protocol():
    known = [Ports(protocol) for protocol in ("TCP", "UDP", "SCTP", "ICMP")]
    assert policy.port_set(known) != ALL == policy.port_set([]) == policy.port_set([HTTP, Ports("ANY")])


@pytest.mark.parametrize(
    ("ranges", "text"),
    [
        (ALL, "every port and protocol"),
        ({tcp(443), tcp(80), tcp(8000, 8080)}, "TCP 80, TCP 443, TCP 8000-8080"),
        ({PortRange("ICMP", 0, 65535), PortRange("UDP", 0, 65535)}, "ICMP, every UDP port"),
    ],
)
def test_ports_in_words(ranges, text):
    assert describe(frozenset(ranges)) == text


@pytest.mark.parametrize(
    ("protocol", "port", "held"),
    [("TCP", 80, True), ("TCP", 81, False), ("UDP", 80, False), ("TCP", None, True), ("ICMP", None, False)],
)
def test_whether_a_port_is_held(protocol, port, held):
    assert policy.contains(frozenset({tcp(80)}), protocol, port) is held
    assert policy.contains(ALL, protocol, port)
