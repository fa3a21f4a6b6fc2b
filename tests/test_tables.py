"""The kernel's tables against the documents they came from, at rest and after every step of a change."""

import ipaddress
import re
from functools import cache
from unittest import mock

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gateway.policies import dfa, documents, names, policy, services, tables
from gateway.policies.patterns import Regex
from gateway.policies.policy import ALL, PortRange
from gateway.policies.tables import Tables

NUMBER = 0x1234

# ---- A naive reading of the documents, which knows none of the code under test ----------------------------

network = cache(ipaddress.ip_network)
NUMBERS = {"TCP": 6, "UDP": 17, "SCTP": 132, "ICMP": 1}


def naive(docs, destination, protocol, port):
    """Whether the documents allow it; `protocol` is the number in the packet."""
    enforcing = [doc for doc in docs if doc["spec"].get("mode") != "Audit"]
    if not enforcing:
        return True
    rules = [rule for doc in enforcing for rule in doc["spec"].get("rules", [])]
    return any(naive_peer(rule, destination) and naive_ports(rule, protocol, port) for rule in rules)


def naive_peer(rule, destination):
    if isinstance(destination, str):
        expressions = rule.get("regex", []) + rule.get("fqdn", [])
        return any(naive_name(pattern, destination) for pattern in rule.get("domains", [])) or any(
            re.fullmatch(expression, destination, re.I) for expression in expressions
        )
    plain = [(cidr, []) for cidr in rule.get("ips", []) + rule.get("cidrs", [])]
    blocks = [(block["cidr"], block.get("except", [])) for block in rule.get("ipBlocks", [])]
    return any(
        destination in network(cidr) and not any(destination in network(part) for part in excepts)
        for cidr, excepts in plain + blocks
    )


def naive_name(pattern, name):
    if pattern == "*":
        return True
    if pattern.startswith("*."):
        return name.split(".")[1:] != [] and ("." + name).endswith(pattern[1:]) and name != pattern[2:]
    return name == pattern


def naive_ports(rule, protocol, port):
    for entry in rule.get("ports", [{"protocol": "ANY"}]):
        wanted = entry.get("protocol", "TCP")
        if wanted == "ANY" or (wanted == "ICMP" and protocol == 1):
            return True
        if NUMBERS.get(wanted) == protocol:
            first = entry.get("port", 0)
            if first <= port <= entry.get("endPort", first if "port" in entry else 65535):
                return True
    return False


# ---- A kernel: rows in tables, the longest match wins -----------------------------------------------------


MAPS = ("names", "patterns", "prefixes", "rules", "services", "flags")


class Kernel:
    def __init__(self):
        self.maps = {name: {} for name in MAPS}

    def take(self, step):
        if step.value is None:
            del self.maps[step.map][step.key]
        else:
            self.maps[step.map][step.key] = step.value

    def flags(self):
        return tables.Flags(*self.maps["flags"].get((NUMBER,), ()))

    def lpm(self, name, *fields):
        wanted, width = number_of(fields)
        best, found = -1, None
        for (length, *row), value in self.maps[name].items():
            if length > best and number_of(tuple(row))[0] >> (width - length) == wanted >> (width - length):
                best, found = length, value
        return found

    def peers(self, destination):
        policy_bytes = NUMBER.to_bytes(2, "big")
        if isinstance(destination, str):
            text = (destination[::-1].encode() + b"\0").ljust(254, b"\0")
            found = self.lpm("names", policy_bytes, text)
            automaton = self.maps["patterns"].get((NUMBER,))
            matching = automaton.peers(destination) if automaton else ()
        else:
            mapped = destination.packed.rjust(16, b"\0")
            if destination.version == 4:
                mapped = bytes(10) + b"\xff\xff" + destination.packed
            found = self.lpm("prefixes", policy_bytes, mapped)
            matching = ()
        return [peer for peer in found[0] if peer] + list(matching) if found else list(matching)

    def allowed(self, destinations, services):
        """Every (destination, protocol, port) that passes."""
        if self.flags().audit:
            return {(d, *s) for d in destinations for s in services}
        masks = {}
        for protocol, port in services:
            found = self.lpm("services", NUMBER.to_bytes(2, "big"), protocol, port.to_bytes(2, "big"))
            masks[protocol, port] = found[0] if found else 0
        passing = set()
        for destination in destinations:
            rules = 0
            for peer in self.peers(destination):
                rules |= self.maps["rules"].get((NUMBER, peer), (0,))[0]
            passing |= {(destination, *service) for service, mask in masks.items() if mask & rules}
        return passing

    def answered(self, questions):
        """The questions that pass where only allowed names may be asked for."""
        if self.flags().audit or not self.flags().only_allowed_names:
            return set(questions)
        return {q for q in questions if any((NUMBER, peer) in self.maps["rules"] for peer in self.peers(q))}


@cache
def number_of(fields):
    """The fields of a key as one big-endian number, and its width in bits."""
    data = b"".join(f if isinstance(f, bytes) else bytes([f]) for f in fields)
    return int.from_bytes(data, "big"), 8 * len(data)


def loaded(wanted):
    kernel = Kernel()
    for step in tables.difference(None, wanted).steps:
        kernel.take(step)
    return kernel


# ---- A small world, dense enough for everything to overlap ------------------------------------------------

QUESTIONS = ["com", "example.com", "a.example.com", "b.a.example.com", "evilexample.com", "example.org"]
ADDRESSES = [
    ipaddress.ip_address(text)
    for text in (
        *("9.255.255.255", "10.0.0.0", "10.1.0.0", "10.1.2.3", "10.1.2.4", "10.1.255.255", "10.2.0.1"),
        *("2001:db8::", "2001:db8:1::1", "2001:db8:ffff::", "2002::1", "::1", "::fffe:ffff:ffff"),
    )
]
DESTINATIONS = QUESTIONS + ADDRESSES
SERVICES = [(6, 0), (6, 79), (6, 80), (6, 81), (6, 443), (6, 8080), (6, 65535), (17, 53), (17, 80), (132, 80)]
SERVICES += [(1, 0), (47, 0)]

EXPRESSIONS = st.sampled_from(
    [".*", r".*\.com", r"(.*\.)?EXAMPLE\.com", "[ab].*", r"example\.(com|org)", "b[^x]+"]
)
PATTERNS = st.sampled_from(["*", "*.com", "*.example.com", "*.a.example.com", *QUESTIONS])
V4 = ["0.0.0.0/0", "8.0.0.0/6", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32"]
V6 = ["::/0", "2001::/16", "2001:db8::/32", "2001:db8:1::/48"]
PORTS = st.sampled_from(
    [
        *({"port": 80}, {"port": 443}, {"port": 79, "endPort": 81}, {"port": 1, "endPort": 65535}, {}),
        *({"port": 80, "endPort": 8080}, {"protocol": "UDP"}, {"protocol": "UDP", "port": 53}),
        *({"protocol": "ICMP"}, {"protocol": "ANY"}, {"protocol": "SCTP", "port": 80}),
    ]
)


@st.composite
def ip_blocks(draw):
    family = draw(st.sampled_from([V4, V6]))
    at = draw(st.integers(0, len(family) - 2))
    excepts = draw(st.lists(st.sampled_from(family[at + 1 :]), max_size=2, unique=True))
    return {"cidr": family[at], **({"except": excepts} if excepts else {})}


RULES = st.fixed_dictionaries(
    {},
    optional={
        "domains": st.lists(PATTERNS, min_size=1, max_size=3),
        "regex": st.lists(EXPRESSIONS, min_size=1, max_size=2),
        "fqdn": st.lists(EXPRESSIONS, min_size=1, max_size=1),
        "cidrs": st.lists(st.sampled_from(V4 + V6), min_size=1, max_size=2),
        "ipBlocks": st.lists(ip_blocks(), min_size=1, max_size=2),
        "ips": st.lists(st.sampled_from(["10.1.2.3", "2001:db8:1::1"]), min_size=1, max_size=2),
        "ports": st.lists(PORTS, min_size=1, max_size=3),
    },
).filter(lambda rule: set(rule) - {"ports"})


def document(name, rules, mode="Enforce", only=False):
    spec = {"podSelector": {}, "mode": mode, "dns": {"onlyAllowedNames": only}, "rules": rules}
    head = {"apiVersion": "egress.skouter/v1alpha1", "kind": "Egress", "metadata": {"name": name}}
    return {**head, "spec": spec}


DOCUMENTS = st.builds(
    document,
    st.sampled_from(["a", "b", "c"]),
    st.lists(RULES, max_size=3),
    st.sampled_from(["Enforce", "Enforce", "Enforce", "Audit"]),
    st.booleans(),
)


def policy_of(docs):
    objects, problems = zip(*map(documents.read_object, docs), strict=True)
    assert not any(problems)
    return policy.union(objects)


@cache
def compiled(wanted):
    return dfa.compile(dict(wanted))


def tables_of(wanted, previous=None):
    """The tables of a policy with the automaton of its expressions, and whether none was left out of that."""
    expressions = frozenset((p.what, p.id) for p, _ in wanted.grants if isinstance(p.what, Regex))
    automaton, crowded = compiled(expressions) if expressions else (None, ())
    return tables.compile(wanted, NUMBER, previous, automaton), not crowded


# ---- At rest ----------------------------------------------------------------------------------------------


@settings(max_examples=200)
@given(st.lists(DOCUMENTS, min_size=1, max_size=3, unique_by=lambda doc: doc["metadata"]["name"]))
def test_tables_allow_exactly_what_the_documents_say(docs):
    wanted, whole = tables_of(policy_of(docs))
    said = {(d, *s) for d in DESTINATIONS for s in SERVICES if naive(docs, d, *s)}
    done = loaded(wanted).allowed(DESTINATIONS, SERVICES)
    assert done <= said, "fail closed, whatever the limits"
    assert done == said or wanted.problems or not whole


@given(
    st.lists(
        st.tuples(st.sampled_from(["TCP", "UDP"]), st.integers(0, 65535), st.integers(0, 65535)).map(
            lambda r: PortRange(r[0], min(r[1:]), max(r[1:]))
        ),
        min_size=1,
        max_size=4,
    )
)
def test_ranges_of_ports_hold_at_all_of_their_edges(ranges):
    granted = frozenset((policy.Peer(names.parse(f"n{i}.org")), frozenset({r})) for i, r in enumerate(ranges))
    kernel = loaded(tables.compile(policy.Policy(granted), NUMBER))
    edges = {p for r in ranges for p in (r.first - 1, r.first, r.last, r.last + 1, (r.first + r.last) // 2)}
    services = [(number, p) for number in (6, 17) for p in edges if 0 <= p <= 65535]
    destinations = [f"n{i}.org" for i in range(len(ranges))]
    assert kernel.allowed(destinations, services) == {
        (f"n{i}.org", number, p)
        for i, r in enumerate(ranges)
        for number, p in services
        if number == NUMBERS[r.protocol] and r.first <= p <= r.last
    }


def prefix_rows(*rules):
    return loaded(tables.compile(policy_of([document("a", list(rules))]), NUMBER))


def passes(kernel, text):
    return bool(kernel.allowed([ipaddress.ip_address(text)], [(6, 80)]))


def test_all_of_ipv6_is_no_ipv4():
    kernel = prefix_rows({"cidrs": ["::/0"]})
    assert passes(kernel, "2001:db8::1")
    assert not passes(kernel, "10.0.0.1")


def test_all_of_ipv4_is_no_ipv6():
    kernel = prefix_rows({"cidrs": ["0.0.0.0/0"]})
    assert passes(kernel, "10.0.0.1")
    assert not passes(kernel, "2001:db8::1")


def test_an_exception_is_one_peers_own():
    kernel = prefix_rows(
        {"ipBlocks": [{"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}]}, {"cidrs": ["10.1.2.0/24"]}
    )
    assert passes(kernel, "10.2.0.1")
    assert not passes(kernel, "10.1.3.1")
    assert passes(kernel, "10.1.2.1")


def test_keys_have_the_contracts_fields():
    wanted = tables.compile(
        policy_of([document("a", [{"domains": ["*.a.b"], "cidrs": ["10.0.0.0/8"]}])]), 258
    )
    name, block = policy.Peer(names.parse("*.a.b")), "10.0.0.0/8"
    ids = {key[1] for key in wanted.rules}
    assert name.id in ids
    assert wanted.names == {(16 + 32, b"\1\2", b"b.a.".ljust(254, b"\0")): ((name.id, 0, 0, 0),)}
    address = bytes(10) + b"\xff\xff\x0a\0\0\0"
    assert wanted.prefixes == {(16 + 96 + 8, b"\1\2", address): (((ids - {name.id}).pop(), 0, 0, 0),)}, block
    assert set(wanted.rules) == {(258, peer) for peer in ids}
    assert set(wanted.rules.values()) == {(1,)}
    assert wanted.services == {(16, b"\1\2", 0, b"\0\0"): (1,)}


def test_a_policy_without_rules_still_has_the_row_that_answers_every_service():
    wanted = tables.compile(policy.Policy(), NUMBER)
    assert list(wanted.services.values()) == [(0,)]
    assert not loaded(wanted).allowed(DESTINATIONS, SERVICES)


# ---- Limits: what does not fit grants nothing, is told, and leaves the rest as it is ----------------------


def test_the_narrowest_of_five_nested_names_grants_nothing():
    nested = ["*", "*.com", "*.example.com", "*.a.example.com", "b.a.example.com"]
    docs = [document("a", [{"domains": [p], "ports": [{"port": 80 + i}]} for i, p in enumerate(nested)])]
    wanted = tables.compile(policy_of(docs), NUMBER)
    (problem,) = wanted.problems
    assert problem.startswith("b.a.example.com grants nothing")
    passing = loaded(wanted).allowed(["b.a.example.com"], [(6, port) for port in range(80, 85)])
    assert {port for _, _, port in passing} == {80, 81, 82, 83}


def test_the_narrowest_of_five_nested_networks_grants_nothing():
    nested = ["0.0.0.0/0", "10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "10.1.2.3/32"]
    docs = [document("a", [{"cidrs": [c], "ports": [{"port": 80 + i}]} for i, c in enumerate(nested)])]
    wanted = tables.compile(policy_of(docs), NUMBER)
    (problem,) = wanted.problems
    assert problem.startswith("10.1.2.3/32 grants nothing")
    passing = loaded(wanted).allowed([ADDRESSES[3]], [(6, port) for port in range(80, 85)])
    assert {port for _, _, port in passing} == {80, 81, 82, 83}


def test_of_more_port_sets_than_bits_the_last_grant_nothing():
    rules = [{"domains": [f"n{port}.org"], "ports": [{"port": port}]} for port in range(1, 67)]
    docs = [document("a", rules[:33]), document("b", rules[33:])]
    wanted = tables.compile(policy_of(docs), NUMBER)
    assert [problem.split(" grant")[0] for problem in wanted.problems] == ["ports TCP 65", "ports TCP 66"]
    kernel = loaded(wanted)
    for port in range(1, 67):
        assert bool(kernel.allowed([f"n{port}.org"], [(6, port)])) == (port <= 64)


# ---- Change -----------------------------------------------------------------------------------------------


def check_change(kernel, old, new, lossless=True):
    """Takes the steps from `old`, which is loaded, to `new`; looks at everything after each of them."""
    before, asked = kernel.allowed(DESTINATIONS, SERVICES), kernel.answered(QUESTIONS)
    target = loaded(new or Tables(NUMBER))
    after, to_ask = target.allowed(DESTINATIONS, SERVICES), target.answered(QUESTIONS)
    for step in tables.difference(old, new).steps:
        kernel.take(step)
        now, answered = kernel.allowed(DESTINATIONS, SERVICES), kernel.answered(QUESTIONS)
        assert now <= before | after, f"{step} allows what neither policy does"
        assert answered <= asked | to_ask, f"{step} answers what neither policy does"
        if lossless:
            assert now >= before & after, f"{step} refuses what both policies allow"
            assert answered >= asked & to_ask, f"{step} leaves unanswered what both policies answer"
    assert kernel.maps["patterns"].get((NUMBER,)) == (new and new.patterns)
    for name in ("names", "prefixes", "rules", "services"):
        assert kernel.maps[name] == (getattr(new, name) if new else {}), "the last step ends where it should"
    assert kernel.maps["flags"] == target.maps["flags"] or new is None


def crowded(*both):
    """Whether more peers could nest around one name than a row of both policies has room for."""
    rows = [row for some in both if some for row in some.names.values()]
    return len({peer for (peers,) in rows for peer in peers if peer}) > dfa.PEERS


def test_an_expression_takes_over_what_a_name_allowed_and_the_other_way_round():
    def policy_with(peer):
        return tables_of(policy_of([document("a", [peer | {"ports": [{"port": 443}]}])]))[0]

    name, expression = policy_with({"domains": ["*.com"]}), policy_with({"regex": [".*[.]com"]})
    for one, other in ((name, expression), (expression, name)):
        kernel = loaded(one)
        both = {(d, 6, 443) for d in DESTINATIONS if str(d).endswith(".com")}
        assert both
        assert both <= kernel.allowed(DESTINATIONS, SERVICES)
        check_change(kernel, one, other)


class History(RuleBasedStateMachine):
    """Objects come, change and go; one workload's tables follow in place."""

    def __init__(self):
        super().__init__()
        self.docs, self.tables, self.kernel = {}, None, Kernel()

    @rule(doc=DOCUMENTS)
    def put(self, doc):
        self.docs[doc["metadata"]["name"]] = doc

    @precondition(lambda self: self.docs)
    @rule(data=st.data())
    def delete(self, data):
        del self.docs[data.draw(st.sampled_from(sorted(self.docs)))]

    @precondition(lambda self: self.tables)
    @rule()
    def restart(self):
        maps = {name: dict(rows) for name, rows in self.kernel.maps.items()}
        flags = maps.pop("flags")[(NUMBER,)]
        automaton = maps.pop("patterns").get((NUMBER,))
        recovered = tables.recover(NUMBER, flags, **maps, patterns=automaton)
        assert dict(recovered.bits) == dict(self.tables.bits)
        assert recovered.rules == self.tables.rules
        self.tables = recovered

    @invariant()
    def follow(self):
        wanted = policy_of(list(self.docs.values())) if self.docs else None
        new, whole = tables_of(wanted, self.tables) if wanted else (None, True)
        if self.tables and new:
            for ports in set(self.tables.bits) & set(new.bits):
                assert self.tables.bits[ports] == new.bits[ports], "a port set keeps its bit"
            came, gone = set(new.bits) - set(self.tables.bits), set(self.tables.bits) - set(new.bits)
            assert not {new.bits[p] for p in came} & {self.tables.bits[p] for p in gone}
        check_change(self.kernel, self.tables, new, lossless=not crowded(self.tables, new))
        if new and whole and not new.problems:
            docs = list(self.docs.values())
            said = {(d, *s) for d in DESTINATIONS for s in SERVICES if naive(docs, d, *s)}
            assert self.kernel.allowed(DESTINATIONS, SERVICES) == said
        self.tables = new


TestHistory = History.TestCase
TestHistory.settings = settings(max_examples=60, stateful_step_count=8)


@settings(max_examples=100)
@given(
    st.lists(st.builds(document, st.just("a"), st.lists(RULES, max_size=3)), min_size=2), st.integers(1, 3)
)
def test_with_too_few_bits_a_change_still_never_allows_too_much(docs, bits):
    with mock.patch.object(services, "BITS", bits):
        kernel, old = Kernel(), None
        for doc in docs:
            new, _ = tables_of(policy_of([doc]), old)
            check_change(kernel, old, new, lossless=False)
            old = new


def test_a_reused_bit_lends_none_of_its_old_ports_to_its_new_peers():
    with mock.patch.object(services, "BITS", 1):
        old = tables.compile(
            policy_of([document("a", [{"domains": ["com"], "ports": [{"port": 80}]}])]), NUMBER
        )
        peers = {"domains": ["com", "example.com"], "cidrs": ["10.0.0.0/8"]}
        new = tables.compile(policy_of([document("a", [{**peers, "ports": [{"port": 443}]}])]), NUMBER, old)
        assert set(old.bits.values()) == set(new.bits.values()) == {0}
        check_change(loaded(old), old, new, lossless=False)
        check_change(loaded(new), new, old, lossless=False)


def test_a_bit_is_reused_only_where_no_other_is_left():
    def of(*ports):
        return policy_of([document("a", [{"domains": [f"n{p}.org"], "ports": [{"port": p}]} for p in ports])])

    first = tables.compile(of(*range(1, 64)), NUMBER)
    second = tables.compile(of(*range(2, 65)), NUMBER, first)
    new = {PortRange("TCP", 64, 64)}
    assert second.bits[frozenset(new)] == 63
    third = tables.compile(of(*range(2, 64), 65, 66), NUMBER, second)
    assert (
        third.bits[frozenset({PortRange("TCP", 65, 65)})] == first.bits[frozenset({PortRange("TCP", 1, 1)})]
    )
    assert third.bits[frozenset({PortRange("TCP", 66, 66)})] == 63


def test_an_automaton_is_swapped_in_one_step_and_an_equal_one_is_left():
    def of(*rules):
        return tables_of(policy_of([document("a", [*rules])]))[0]

    one, same = of({"regex": ["a.*", "b"]}), of({"fqdn": ["b"]}, {"regex": ["a.*"]})
    other, none = of({"regex": ["a.*"]}), of({"domains": ["b"]})
    assert tables.difference(one, same).steps == ()
    swapped = [step for step in tables.difference(one, other).steps if step.map == "patterns"]
    assert swapped == [("patterns", (NUMBER,), other.patterns)]
    gone = [step for step in tables.difference(one, none).steps if step.map == "patterns"]
    assert gone == [("patterns", (NUMBER,), None)]


@pytest.mark.parametrize("ports", [[{"port": 80}], [{"port": 80}, {"port": 443}]])
def test_a_name_passes_while_another_expression_takes_over_from_its_own(ports):
    old, _ = tables_of(policy_of([document("a", [{"regex": ["com"], "ports": [{"port": 80}]}])]))
    new, _ = tables_of(policy_of([document("a", [{"regex": ["c[o]m"], "ports": ports}])]), old)
    check_change(loaded(old), old, new)
    check_change(loaded(new), new, old)


def test_an_expression_without_an_automaton_grants_nothing():
    wanted = policy_of([document("a", [{"regex": ["example.*"], "domains": ["com"]}])])
    kernel = loaded(tables.compile(wanted, NUMBER))
    assert len(kernel.maps["rules"]) == 1
    assert {at[0] for at in kernel.allowed(QUESTIONS, [(6, 80)])} == {"com"}


def test_nothing_to_change_is_no_step():
    wanted = tables.compile(policy_of([document("a", [{"domains": ["*"]}])]), NUMBER)
    assert tables.difference(wanted, wanted).steps == ()
    assert tables.difference(None, None).steps == ()


def test_a_removed_policy_leaves_no_row_and_an_enforcing_flag():
    wanted = tables.compile(policy_of([document("a", [{"domains": ["*"]}], mode="Audit")]), NUMBER)
    kernel = loaded(wanted)
    for step in tables.difference(wanted, None).steps:
        kernel.take(step)
    assert kernel.maps.pop("flags") == {(NUMBER,): (False, False)}
    assert not any(kernel.maps.values())


@pytest.mark.parametrize("count", [5000])
def test_a_large_policy_compiles(count):
    names = [f"n{i}.example.com" for i in range(count)]
    rules = [{"domains": names[at : at + 1000]} for at in range(0, count, 1000)]
    rules += [{"cidrs": [f"10.{i >> 8}.{i & 255}.0/24" for i in range(1000)]}]
    wanted = tables.compile(policy_of([document("a", rules)]), NUMBER)
    assert len(wanted.names) == count
    assert len(wanted.prefixes) == 1000
    assert wanted.bits == {ALL: 0}
