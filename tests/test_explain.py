"""Explanations: the verdict of the documents, its cause, and the mend that would change it."""

import json
from ipaddress import IPv4Network, ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policies import documents, names, patterns, policy
from gateway.policies.explain import explain
from gateway.policies.records import Block, Egress, Ports, Rule, Selector
from gateway.policies.selection import Workload, machine_at, machines, selecting

EXAMPLES = Path(__file__).parent.parent / "deploy" / "examples"
WEB = Workload("pod", "web-1", labels={"app": "web"})
BUILD = Workload("pod", "compile", "builds", labels={"stage": "compile"})
FETCH = Workload("pod", "fetch", "builds", labels={"stage": "fetch"})
BACKUP = Workload("pod", "backup", labels={"app": "backup"})
UPLOADER = Workload("pod", "up", labels={"app": "uploader"})
WORKER = Workload("host", "node-1")
MASTER = Workload("host", "node-0", node_labels={"node-role.kubernetes.io/control-plane": ""})
COREDNS = Workload("pod", "coredns", "kube-system")
CHECKOUT = Workload("pod", "checkout-1", "shop", labels={"app": "checkout"})
SHOP_WEB = Workload("pod", "web-1", "shop", labels={"app": "web"})
MAIL = {"egress.example.com/mail": "allowed"}
MAILER = Workload("pod", "m", "crm", labels=MAIL, namespace_labels={"mail": "allowed"})
SPAMMER = Workload("pod", "s", "crm", labels=MAIL)
PAYER = Workload("pod", "p", "crm", labels={"egress.example.com/payments": "allowed"})


def example(name):
    return documents.read((EXAMPLES / name).read_text(), name)[0]


@pytest.mark.parametrize(
    ("file", "workload", "destination", "protocol", "port", "allowed", "why"),
    [
        ("egress.yaml", WEB, "example.com", "TCP", 443, True, "rule"),
        ("egress.yaml", WEB, "httpbin.org", "TCP", 80, True, "rule"),
        ("egress.yaml", WEB, "HTTPBIN.org.", "TCP", 80, True, "rule"),
        ("egress.yaml", WEB, "example.com", "TCP", 22, False, "ports"),
        ("egress.yaml", WEB, "example.com", "UDP", 443, False, "ports"),
        ("egress.yaml", WEB, "example.org", "TCP", 443, False, "no-peer"),
        ("egress.yaml", WEB, "192.0.2.1", "TCP", 443, False, "no-peer"),
        ("egress.yaml", WEB, "no such name", "TCP", 443, False, "unreadable"),
        ("egress.yaml", BACKUP, "example.org", "TCP", 443, True, "untouched"),
        ("closed.yaml", BUILD, "example.com", "TCP", 443, False, "no-rules"),
        ("closed.yaml", FETCH, "files.example.com", "TCP", 443, True, "rule"),
        ("closed.yaml", FETCH, "files.example.com", "TCP", 80, False, "ports"),
        ("networks.yaml", BACKUP, "10.0.0.1", "TCP", 8050, True, "rule"),
        ("networks.yaml", BACKUP, "::ffff:10.0.0.1", "TCP", 8050, True, "rule"),
        ("networks.yaml", BACKUP, "10.0.0.1", "ICMP", None, True, "rule"),
        ("networks.yaml", BACKUP, "10.96.0.10", "TCP", 8050, False, "no-peer"),
        ("networks.yaml", BACKUP, "2001:db8::1", "TCP", 8100, False, "ports"),
        ("networks.yaml", BACKUP, "192.0.2.10", "UDP", 53, True, "rule"),
        ("networks.yaml", BACKUP, "example.com", "TCP", 8050, False, "no-peer"),
        ("audit.yaml", WEB, "db.shop.svc.cluster.local", "TCP", 5432, True, "rule"),
        ("audit.yaml", WEB, "example.com", "TCP", 443, True, "audit"),
        ("audit.yaml", COREDNS, "example.com", "TCP", 443, True, "untouched"),
        ("patterns.yaml", UPLOADER, "example-logs.s3.eu-north-1.amazonaws.com", "TCP", 443, True, "rule"),
        ("patterns.yaml", UPLOADER, "API-12.example.com.", "TCP", 443, True, "rule"),
        ("patterns.yaml", UPLOADER, "api-12.example.com", "TCP", 80, False, "ports"),
        ("patterns.yaml", UPLOADER, "evil.api-12.example.com", "TCP", 443, False, "no-peer"),
        (
            "patterns.yaml",
            UPLOADER,
            "example-logs.s3.eu-north-1.amazonaws.com.evil.org",
            "TCP",
            443,
            False,
            "no-peer",
        ),
        ("default-deny.yaml", WEB, "example.com", "TCP", 443, False, "no-peer"),
        ("default-deny.yaml", WEB, "kubernetes.default.svc.cluster.local", "TCP", 443, True, "rule"),
        ("default-deny.yaml", COREDNS, "example.com", "UDP", 53, True, "untouched"),
        ("default-deny.yaml", WORKER, "example.com", "TCP", 443, True, "untouched"),
        ("node-bootstrap.yaml", WORKER, "example.com", "TCP", 443, True, "untouched"),
        ("node-bootstrap.yaml", WEB, "example.com", "TCP", 443, True, "untouched"),
        ("team-api.yaml", CHECKOUT, "api.payments.example.com", "TCP", 443, True, "rule"),
        ("team-api.yaml", CHECKOUT, "logs.s3.eu-west-1.amazonaws.com", "TCP", 443, True, "rule"),
        ("team-api.yaml", CHECKOUT, "logs.s3.eu-west-2.amazonaws.com", "TCP", 443, False, "no-peer"),
        ("opt-in.yaml", PAYER, "api.payments.example.com", "TCP", 443, True, "rule"),
        ("opt-in.yaml", PAYER, "smtp.example.com", "TCP", 587, False, "no-peer"),
        ("opt-in.yaml", MAILER, "smtp.example.com", "TCP", 587, True, "rule"),
        ("opt-in.yaml", SPAMMER, "smtp.example.com", "TCP", 587, True, "untouched"),
        ("in-cluster.yaml", SHOP_WEB, "postgres.databases.svc.cluster.local", "TCP", 5432, True, "rule"),
        ("in-cluster.yaml", SHOP_WEB, "cart.shop.svc.cluster.local", "TCP", 8080, True, "rule"),
        ("in-cluster.yaml", SHOP_WEB, "mysql.databases.svc.cluster.local", "TCP", 3306, False, "no-peer"),
        ("nodes.yaml", WORKER, "registry.example.com", "TCP", 443, True, "rule"),
        ("nodes.yaml", WORKER, "example.com", "TCP", 443, False, "no-peer"),
        ("nodes.yaml", MASTER, "example.com", "TCP", 443, True, "untouched"),
    ],
)
def test_the_examples_mean_what_they_say(file, workload, destination, protocol, port, allowed, why):
    found = explain(example(file), workload, destination, port, protocol)
    assert (found.allowed, found.why) == (allowed, why), str(found)


def test_the_machines_example_tells_machines_apart():
    objects = example("machines.yaml")
    network, billing, billing6 = machines(objects)
    assert explain(objects, billing, "payments.example.com", 443).allowed
    assert explain(objects, billing, "a.updates.example.com", 80).allowed
    assert explain(objects, billing6, "payments.example.com", 443).allowed
    assert not explain(objects, billing6, "a.updates.example.com", 80).allowed
    assert not explain(objects, network, "payments.example.com", 443).allowed
    assert explain(objects, network, "a.updates.example.com", 80).allowed


def egress(name, *rules, **fields):
    return Egress("default", name, pods=Selector(), rules=rules, **fields)


def rule(*domains, ports=(), blocks=()):
    return Rule(tuple(map(names.parse, domains)), blocks=tuple(blocks), ports=tuple(ports))


HTTP = Ports("TCP", 80, 80)
BLOCK = Block(ip_network("10.0.0.0/8"), (ip_network("10.1.0.0/16"),))


@pytest.mark.parametrize(
    ("objects", "destination", "why", "text"),
    [
        (
            [egress("a", rule("b.com"), rule("*.a.com", ports=[HTTP]))],
            "x.a.com",
            "rule",
            "Egress default/a allows x.a.com on TCP 80: spec.rules[1] names *.a.com.",
        ),
        (
            [
                egress(
                    "a", rule("a.com", ports=[Ports("TCP", 443, 443)]), rule("a.com", ports=[Ports("ICMP")])
                )
            ],
            "a.com",
            "ports",
            "Egress default/a names a.com, but only for ICMP, TCP 443. Add TCP 80 to spec.rules[0].ports.",
        ),
        (
            [egress("a", Rule(regex=(patterns.parse(r"b\.com"), patterns.parse("A.*"))))],
            "a.com",
            "rule",
            "Egress default/a allows a.com on TCP 80: spec.rules[0] names /A.*/.",
        ),
        (
            [egress("a", rule("*.a.com"))],
            "a.com",
            "apex",
            "*.a.com is every name below a.com, but not a.com itself. Add a.com to spec.rules[0].domains.",
        ),
        (
            [egress("a", rule("example.com"))],
            "exmaple.com",
            "no-peer",
            "No rule of Egress default/a allows exmaple.com on TCP 80. Did you mean example.com, as in"
            " spec.rules[0] of Egress default/a? If not, add exmaple.com to a rule.",
        ),
        (
            [egress("a", rule(blocks=[BLOCK]))],
            "a.com",
            "no-peer",
            "No rule of Egress default/a allows a.com on TCP 80, unless its address lies in"
            " 10.0.0.0/8 except 10.1.0.0/16. Add a.com to the domains of a rule.",
        ),
        (
            [egress("a", rule(blocks=[BLOCK]))],
            "10.1.2.3",
            "no-peer",
            "No rule of Egress default/a names 10.1.2.3/32;"
            " it passes only while an allowed name resolves to it."
            " spec.rules[0] of Egress default/a excepts it: narrow 10.1.0.0/16, or add 10.1.2.3/32 to cidrs.",
        ),
        (
            [egress("a"), egress("b")],
            "a.com",
            "no-rules",
            "Egress default/a, Egress default/b allows nothing. Add a rule for a.com.",
        ),
        (
            [egress("a", rule("a.com")), egress("b", rule("b.com"), audit=True)],
            "b.com",
            "audit-only",
            "Only Egress default/b would allow b.com on TCP 80, and its mode is Audit."
            " Set its spec.mode to Enforce.",
        ),
        (
            [egress("b", audit=True)],
            "a.com",
            "audit",
            "Passes and is reported, since only Audit objects select pod default/web-1:"
            " Egress default/b allows nothing. Add a rule for a.com.",
        ),
        (
            [],
            "a.com",
            "untouched",
            "No object selects pod default/web-1: everything passes."
            " To filter it, give an object a selector that matches pod default/web-1.",
        ),
        (
            [],
            "http://a.com/",
            "unreadable",
            "Cannot tell: 'http://a.com/' has ':' in it, which no name has. Write a.com.",
        ),
    ],
)
def test_the_cause_and_the_mend_in_words(objects, destination, why, text):
    found = explain(objects, WEB, destination, 80)
    assert (found.why, str(found)) == (why, text)


def test_an_exempt_namespace_says_so():
    found = explain([Egress(None, "x", pods=Selector())], COREDNS, "a.com")
    assert "exempt" in found.mend
    agent = Workload("pod", "skouter", is_agent=True)
    assert explain([egress("a")], agent, "a.com").mend == "The agent itself is never filtered."


def test_a_machine_behind_a_gateway_is_the_nearest_prefix_around_its_address():
    """And a gateway forwards nobody whom no object selects."""
    objects = example("machines.yaml")
    known = next(each for each in machines(objects) if each.addresses[0].prefixlen == 32)
    at = known.addresses[0]
    assert machine_at(objects, at) == known
    nobody = machine_at(objects, ip_network("203.0.113.77/32"))
    found = explain(objects, nobody, "a.com")
    assert (found.allowed, found.why) == (False, "untouched")
    assert "a gateway refuses it everything" in str(found)


def test_the_fields_are_plain_json():
    found = explain(example("egress.yaml"), WEB, "example.com", 443)
    assert json.loads(json.dumps(found.as_json())) == {
        "allowed": True,
        "why": "rule",
        "sentence": "Egress default/web allows example.com on TCP 443: spec.rules[0] names example.com.",
        "mend": "",
        "object": "Egress default/web",
        "field": "spec.rules[0]",
        "peer": "example.com",
        "ports": "TCP 80, TCP 443",
    }


# ---- The same verdict as the policy that is enforced ------------------------------------------------------

RULES = st.builds(
    rule,
    st.sampled_from(["a.com", "*.a.com", "*", "b.com"]),
    ports=st.lists(st.sampled_from([HTTP, Ports("TCP", 79, 90), Ports("UDP"), Ports("ANY")]), max_size=2),
    blocks=st.lists(st.sampled_from([BLOCK, Block(ip_network("10.1.2.0/24"))]), max_size=2),
)
OBJECTS = st.builds(
    lambda audit, rules: egress("x", *rules, audit=audit), st.booleans(), st.lists(RULES, max_size=2)
)
DESTINATIONS = st.sampled_from(["a.com", "x.a.com", "b.com", "c.org", "10.2.0.1", "10.1.0.1", "10.1.2.1"])


@given(
    st.lists(OBJECTS, max_size=3),
    DESTINATIONS,
    st.sampled_from(["TCP", "UDP"]),
    st.sampled_from([80, 85, 22]),
)
def test_an_explanation_agrees_with_the_policy(objects, destination, protocol, port):
    wanted = policy.union(selecting(objects, WEB))
    passes = wanted is None or wanted.audit
    for peer, ports in wanted.grants if wanted else ():
        held = any(r.protocol in ("ANY", protocol) and r.first <= port <= r.last for r in ports)
        passes |= held and reaches(peer.text, destination)
    found = explain(objects, WEB, destination, port, protocol)
    assert found.allowed == passes
    assert found.mend or found.why == "rule"


def reaches(text, destination):
    if "/" not in text:
        return not destination[0].isdigit() and names.matches(names.parse(text), destination)
    cidr, _, excepts = text.partition(" except ")
    if not destination[0].isdigit():
        return False
    address = ip_address(destination)
    return address in IPv4Network(cidr) and not (excepts and address in IPv4Network(excepts))
