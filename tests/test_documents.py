"""Documents: what is read, and that everything wrong is told at once, in its place, with a mend."""

import json
import textwrap
from ipaddress import ip_network
from pathlib import Path
from unittest import mock

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import documents, patterns, schema, yaml_nodes
from gateway.names import Pattern
from gateway.records import Block, Egress, Expression, ExternalWorkload, Object, Ports, Rule, Selector

EXAMPLES = sorted((Path(__file__).parent.parent / "deploy" / "examples").glob("*.yaml"))


def egress(spec: str, kind: str = "Egress", metadata: str = "{name: web}") -> str:
    head = f"apiVersion: egress.skouter/v1alpha1\nkind: {kind}\nmetadata: {metadata}\nspec:\n"
    return head + textwrap.indent(textwrap.dedent(spec).strip("\n"), "  ") + "\n"


def rule(body: str) -> str:
    return egress("podSelector: {}\nrules:\n" + textwrap.indent("- " + body, "  "))


def only(text: str) -> Object:
    (found,), problems = documents.read(text, "f.yaml")
    assert problems == []
    return found


def told(text: str) -> list[tuple[str, str]]:
    return [(problem.field, problem.mend) for problem in documents.read(text, "f.yaml")[1]]


# ---- What is read -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_read_without_a_problem(path: Path) -> None:
    objects, problems = documents.read(path.read_text(), path.name)
    assert objects
    assert problems == []


def test_every_field_of_a_cluster_egress() -> None:
    read = only(
        egress(
            """
            mode: Audit
            podSelector: {matchLabels: {b: x, a: ""}}
            namespaceSelector: {matchExpressions: [{key: env, operator: In, values: [prod, test]}]}
            nodeSelector: {matchExpressions: [{key: example.com/role, operator: Exists}]}
            workloadSelector: {}
            sourceCIDRs: [10.1.0.0/16]
            dns: {onlyAllowedNames: true}
            rules:
            - domains: [Example.com., "*.bücher.example"]
              ips: [192.0.2.1, "2001:DB8:0::1"]
              cidrs: ["2001:db8::/32"]
              ipBlocks: [{cidr: 10.0.0.0/8, except: [10.1.0.0/16]}]
              ports: [{port: 80}, {port: 1, endPort: 9, protocol: UDP}, {protocol: ICMP}, {}, {protocol: ANY}]
            """,
            kind="ClusterEgress",
        )
    )
    assert read == Egress(
        namespace=None,
        name="web",
        pods=Selector((("a", ""), ("b", "x"))),
        namespaces=Selector(expressions=(Expression("env", "In", ("prod", "test")),)),
        nodes=Selector(expressions=(Expression("example.com/role", "Exists"),)),
        machines=Selector(),
        sources=(ip_network("10.1.0.0/16"),),
        audit=True,
        only_allowed_names=True,
        rules=(
            Rule(
                domains=(Pattern("example.com", True), Pattern("*.xn--bcher-kva.example", False)),
                blocks=(
                    Block(ip_network("192.0.2.1/32")),
                    Block(ip_network("2001:db8::1/128")),
                    Block(ip_network("2001:db8::/32")),
                    Block(ip_network("10.0.0.0/8"), (ip_network("10.1.0.0/16"),)),
                ),
                ports=(Ports("TCP", 80, 80), Ports("UDP", 1, 9), Ports("ICMP"), Ports("TCP"), Ports("ANY")),
            ),
        ),
    )


def test_a_range_of_one_port() -> None:
    read = only(rule("domains: [a.com]\n  ports: [{port: 5, endPort: 5}]"))
    assert isinstance(read, Egress)
    assert read.rules[0].ports == (Ports("TCP", 5, 5),)


def test_an_external_workload() -> None:
    text = egress(
        "addresses: [10.0.0.1, 10.1.0.0/24]", "ExternalWorkload", "{name: vm-1, labels: {app: billing}}"
    )
    networks = (ip_network("10.0.0.1/32"), ip_network("10.1.0.0/24"))
    assert only(text) == ExternalWorkload("vm-1", (("app", "billing"),), networks)


def test_without_a_namespace_an_egress_is_in_default() -> None:
    assert str(only(egress("{}"))) == "Egress default/web"
    assert str(only(egress("{}", metadata="{name: web, namespace: shop}"))) == "Egress shop/web"
    assert str(only(egress("{}", "ClusterEgress"))) == "ClusterEgress web"


def test_an_egress_that_says_nothing_selects_nothing_and_enforces() -> None:
    assert only(egress("{}")) == Egress("default", "web")


def test_many_documents_and_empty_ones_between() -> None:
    text = f"---\n---\n{egress('{}')}---\n# nothing\n---\n{egress('{}', metadata='{name: b}')}---\n"
    objects, problems = documents.read(text, "f.yaml")
    assert [str(found) for found in objects] == ["Egress default/web", "Egress default/b"]
    assert problems == []


@pytest.mark.parametrize("kind", ["List", "EgressList"])
def test_the_items_of_a_list_are_objects_of_their_own(kind: str) -> None:
    items = [yaml.safe_load(egress("{}", metadata=f"{{name: {name}}}")) for name in "ab"]
    items[1]["spec"] = {"rules": [{"domains": ["a*"]}]}
    objects, problems = documents.read(
        yaml.safe_dump({"apiVersion": "v1", "kind": kind, "items": items}), "f"
    )
    assert [str(found) for found in objects] == ["Egress default/a", "Egress default/b"]
    assert [(problem.object, problem.field) for problem in problems] == [
        ("Egress default/b", "spec.rules[0].domains[0]")
    ]


def test_what_the_api_server_sends_is_read_the_same() -> None:
    text = (EXAMPLES[0].parent / "egress.yaml").read_text()
    data = json.loads(json.dumps(yaml.safe_load(text)))
    data["metadata"] |= {"uid": "1", "resourceVersion": "7", "generation": 1, "managedFields": [{}]}
    data["status"] = {"conditions": [{"type": "Accepted", "status": "True"}]}
    assert documents.read_object(data) == (only(text), [])


def test_the_api_servers_data_has_problems_without_lines() -> None:
    data = yaml.safe_load(rule("domains: [1]"))
    found, (problem,) = documents.read_object(data)
    assert found == Egress("default", "web", pods=Selector(), rules=(Rule(),))
    assert str(problem) == (
        'Egress default/web: spec.rules[0].domains[0]: 1 is read as a number; write "1" in quotes'
    )


# ---- Fail closed ------------------------------------------------------------------------------------------


def test_a_bad_rule_grants_nothing_keeps_its_place_and_the_object_still_selects() -> None:
    text = egress(
        """
        podSelector: {}
        rules:
        - domains: [a.com, "b*"]
        - domains: [c.com]
        """
    )
    (found,), problems = documents.read(text, "f.yaml")
    assert found == Egress(
        "default", "web", pods=Selector(), rules=(Rule(), Rule((Pattern("c.com", exact=True),)))
    )
    assert len(problems) == 1


def test_an_object_that_is_wrong_outside_of_its_rules_is_left_out() -> None:
    objects, problems = documents.read(egress("podSelector: {matchLabel: {}}"), "f.yaml")
    assert objects == []
    assert [str(problem) for problem in problems] == [
        "f.yaml:5: Egress default/web: spec.podSelector.matchLabel: is not a field; write matchLabels"
    ]


@pytest.mark.parametrize("field", ["regex", "fqdn"])
def test_a_bad_expression_is_told_not_skipped(field: str) -> None:
    (found,), (problem,) = documents.read(rule(f"{field}: ['a.*', 'b(?=c)']\n  domains: [a.com]"), "f.yaml")
    assert problem.field == f"spec.rules[0].{field}[1]"
    assert problem.wrong == "'b(?=c)' is no RE2 expression: invalid perl operator: (?="
    assert isinstance(found, Egress)
    assert found.rules == (Rule(),)


def test_fqdn_is_the_same_as_regex() -> None:
    found = only(rule(r"regex: ['a\.com']" + "\n" + r"  fqdn: ['B[0-9]+\.com']"))
    assert isinstance(found, Egress)
    assert found.rules == (Rule(regex=(patterns.parse(r"a\.com"), patterns.parse(r"B[0-9]+\.com"))),)


# ---- Problems: where, and what to write instead -----------------------------------------------------------

PROBLEMS = [
    (
        "a boolean by accident",
        rule("domains: [a.com, no]"),
        "spec.rules[0].domains[1]",
        'write "no" in quotes',
    ),
    ("a number by accident", rule("domains: [1.5]"), "spec.rules[0].domains[0]", 'write "1.5" in quotes'),
    ("a label by accident", egress("podSelector: {matchLabels: {on: yes}}"), None, 'write "yes" in quotes'),
    ("one name without a list", rule("domains: a.com"), "spec.rules[0].domains", "write a list: [a.com]"),
    ("a port in quotes", rule('domains: [a]\n  ports: [{port: "80"}]'), None, "write 80 without quotes"),
    ("a flag in quotes", egress('dns: {onlyAllowedNames: "true"}'), None, "write true without quotes"),
    ("a misspelt field", egress("podSelectr: {}"), "spec.podSelectr", "write podSelector"),
    ("a misspelt except", rule("ipBlocks: [{cidr: 10.0.0.0/8, excpet: []}]"), None, "write except"),
    ("a misspelt mode", egress("mode: audit"), "spec.mode", "write Audit"),
    ("a misspelt protocol", rule("domains: [a]\n  ports: [{protocol: tcp}]"), None, "write TCP"),
    ("a field of the other kind", egress("nodeSelector: {}"), None, "write a ClusterEgress for it"),
    ("a strange field", egress("zzz: 1"), "spec.zzz", "choose from mode, podSelector, dns, rules"),
    (
        "a wildcard as an expression",
        rule('regex: ["*.example.com"]'),
        "spec.rules[0].regex[0]",
        "write *.example.com under domains",
    ),
    ("a wildcard in a label", rule('domains: ["a*.com"]'), "spec.rules[0].domains[0]", "write *.com"),
    ("an address as a name", rule("domains: [192.0.2.1]"), None, "write 192.0.2.1 under ips"),
    (
        "a name as an address",
        rule("ips: [a.com]"),
        None,
        "write an address such as 192.0.2.1; names are domains",
    ),
    ("a network as an address", rule("ips: [10.0.0.0/8]"), None, "write 10.0.0.0/8 under cidrs"),
    ("an address as a network", rule("cidrs: [10.0.0.1]"), None, "write 10.0.0.1/32"),
    ("host bits", rule("cidrs: [10.1.2.3/8]"), "spec.rules[0].cidrs[0]", "write 10.0.0.0/8"),
    ("host bits of IPv6", rule('cidrs: ["2001:db8::1/32"]'), None, "write 2001:db8::/32"),
    ("a mask", rule("cidrs: [10.0.0.0/255.0.0.0]"), None, "write 10.0.0.0/8"),
    ("IPv4 written as IPv6", rule('ips: ["::ffff:192.0.2.1"]'), None, "write 192.0.2.1"),
    ("IPv4 networks written as IPv6", rule('cidrs: ["::ffff:10.0.0.0/104"]'), None, "write 10.0.0.0/8"),
    ("a zone", rule("ips: ['fe80::1%eth0']"), None, "write fe80::1"),
    (
        "leading zeros",
        rule("ips: [10.0.0.01]"),
        None,
        "write an address such as 192.0.2.1; names are domains",
    ),
    (
        "an except elsewhere",
        rule("ipBlocks: [{cidr: 10.0.0.0/8, except: [11.0.0.0/8]}]"),
        "spec.rules[0].ipBlocks[0].except[0]",
        "write a network inside 10.0.0.0/8",
    ),
    (
        "an except around its network",
        rule("ipBlocks: [{cidr: 10.0.0.0/16, except: [10.0.0.0/8]}]"),
        None,
        "write a network inside 10.0.0.0/16",
    ),
    (
        "an except of another family",
        rule('ipBlocks: [{cidr: "::/0", except: [10.0.0.0/8]}]'),
        None,
        "write a network inside ::/0",
    ),
    (
        "an except that leaves nothing",
        rule("ipBlocks: [{cidr: 10.0.0.0/8, except: [10.0.0.0/8]}]"),
        None,
        "write a network inside 10.0.0.0/8",
    ),
    ("a range backwards", rule("domains: [a]\n  ports: [{port: 9, endPort: 8}]"), None, "write 9 or more"),
    ("a range from nowhere", rule("domains: [a]\n  ports: [{endPort: 8}]"), None, "add port"),
    (
        "a port of ICMP",
        rule("domains: [a]\n  ports: [{port: 8, protocol: ICMP}]"),
        None,
        "leave the port out",
    ),
    (
        "a port of ANY",
        rule("domains: [a]\n  ports: [{port: 8, protocol: ANY}]"),
        "spec.rules[0].ports[0].port",
        "write one entry each for TCP and UDP",
    ),
    ("port 0", rule("domains: [a]\n  ports: [{port: 0}]"), None, "write 1 or more"),
    ("port 65536", rule("domains: [a]\n  ports: [{port: 65536}]"), None, "write 65535 or less"),
    ("no ports in the list", rule("domains: [a]\n  ports: []"), None, "leave it out, or name at least one"),
    ("no names in the list", rule("domains: []"), None, "leave it out, or name at least one"),
    ("an empty name", rule('domains: [""]'), None, "leave it out, or name at least one"),
    (
        "a rule without a peer",
        rule("ports: [{port: 80}]"),
        "spec.rules[0]",
        'add domains, regex, ips, cidrs or ipBlocks; everything is cidrs: [0.0.0.0/0, "::/0"]',
    ),
    ("an empty selector by accident", egress("podSelector:"), None, "leave it out, or write its fields"),
    (
        "a selector that cannot hold",
        egress("podSelector: {matchExpressions: [{key: a, operator: In}]}"),
        "spec.podSelector.matchExpressions[0].values",
        "add the values of In",
    ),
    (
        "values without a use",
        egress("podSelector: {matchExpressions: [{key: a, operator: Exists, values: [b]}]}"),
        None,
        "leave it out",
    ),
    (
        "a key that is none",
        egress('podSelector: {matchLabels: {"a b": c}}'),
        None,
        "write a key such as app or example.com/app",
    ),
    (
        "a value that is none",
        egress('podSelector: {matchLabels: {a: "b c"}}'),
        None,
        "write letters, digits, -, _ and .",
    ),
    (
        "namespaces without pods",
        egress("namespaceSelector: {}", "ClusterEgress"),
        None,
        "add podSelector: {} for all their pods",
    ),
    (
        "a namespace of a cluster's object",
        egress("{}", "ClusterEgress", "{name: a, namespace: b}"),
        None,
        "leave it out",
    ),
    ("no name", egress("{}", metadata="{}"), "metadata.name", "add metadata.name"),
    (
        "a name that is none",
        egress("{}", metadata="{name: A_b}"),
        None,
        "write lower-case letters, digits and -",
    ),
    ("a name that is a number", egress("{}", metadata="{name: 010}"), None, 'write "010" in quotes'),
    ("a misspelt namespace", egress("{}", metadata="{name: a, namespce: b}"), None, "write namespace"),
    ("no metadata", egress("{}", metadata=""), "metadata", "write metadata: {name: ...}"),
    ("no spec", "apiVersion: egress.skouter/v1alpha1\nkind: Egress\nmetadata: {name: a}", "spec", "add spec"),
    ("no addresses", egress("{}", "ExternalWorkload"), "spec.addresses", "add addresses"),
    (
        "another kind",
        egress("{}", "Deployment"),
        "kind",
        "choose from Egress, ClusterEgress, ExternalWorkload",
    ),
    ("a misspelt kind", egress("{}", "egress"), "kind", "write Egress"),
    (
        "another version",
        egress("{}").replace("v1alpha1", "v1"),
        "apiVersion",
        "write egress.skouter/v1alpha1",
    ),
    ("a list at the top", "- a\n", "", "write apiVersion, kind, metadata and spec"),
    ("a text at the top", "hello", "", "write apiVersion, kind, metadata and spec"),
    ("nothing", "", "", "write an Egress"),
    ("only comments", "# nothing\n---\n", "", "write an Egress"),
    ("a key twice", rule("domains: [a]\n  domains: [b]"), "spec.rules[0].domains", "leave one of them"),
    ("a strange tag", rule("domains: [!!python/name:os.system a]"), None, "leave the tag out"),
    ("a tag that does not fit", rule("domains: [!!int a]"), None, "leave the tag out"),
    ("a key that is a list", "? [a]\n: b\n" + egress("{}"), "", "write plain keys"),
    ("an alias within itself", egress("&a {rules: [*a]}"), None, "write less"),
    (
        "an unquoted wildcard",
        rule("domains: [*.a.com]"),
        "",
        'write names with a * in quotes: "*.example.com"',
    ),
    ("no YAML", "a: [", "", "mend the YAML; texts with : # * or & in them need quotes"),
    ("control characters", "a: \x01", "", "write plain UTF-8 text"),
    ("half a character", "a: \ud800", "", "write plain UTF-8 text"),
    ("a cellar of brackets", "[" * 100_000, "", "write plain UTF-8 text"),
    ("a cellar of dashes", "- " * 100_000, "", "write plain UTF-8 text"),
]


@pytest.mark.parametrize(("text", "field", "mend"), [p[1:] for p in PROBLEMS], ids=[p[0] for p in PROBLEMS])
def test_a_problem_is_told_with_its_mend(text: str, field: str | None, mend: str) -> None:
    problems = documents.read(text, "f.yaml")[1]
    assert mend in [problem.mend for problem in problems], [str(problem) for problem in problems]
    assert field is None or field in [problem.field for problem in problems]


def test_a_mended_problem_is_gone() -> None:
    """The mends that are networks can be taken at their word."""
    for _, text, _, mend in PROBLEMS:
        if "cidrs: [" in text and mend.startswith("write ") and "/" in mend:
            start, _, rest = text.partition("cidrs: [")
            mended = f'{start}cidrs: ["{mend.removeprefix("write ")}"]{rest.partition("]")[2]}'
            assert told(mended) == []


def test_every_problem_is_told_at_once_with_its_line() -> None:
    text = textwrap.dedent(
        """\
        apiVersion: egress.skouter/v1alpha1
        kind: Egress
        metadata: {name: web}
        spec:
          mode: enforce
          podSelector:
            matchLabels: {app: 1}
          rules:
          - domains:
            - a.com
            - no
            - "b*.com"
            ports:
            - {port: 70000}
            - {port: 5, endPort: 4}
          - cidrs: [10.0.0.1/8]
            ports: []
        ---
        apiVersion: egress.skouter/v1alpha1
        kind: Egres
        ---
        a: [
        """
    )
    objects, problems = documents.read(text, "f.yaml")
    assert objects == []
    assert [(problem.line, problem.field) for problem in problems] == [
        (5, "spec.mode"),
        (7, "spec.podSelector.matchLabels.app"),
        (11, "spec.rules[0].domains[1]"),
        (12, "spec.rules[0].domains[2]"),
        (14, "spec.rules[0].ports[0].port"),
        (15, "spec.rules[0].ports[1].endPort"),
        (16, "spec.rules[1].cidrs[0]"),
        (17, "spec.rules[1].ports"),
        (20, "kind"),
        (23, ""),
    ]
    assert str(problems[0]) == (
        "f.yaml:5: Egress default/web: spec.mode: 'enforce' is not a choice; write Enforce"
    )


def test_the_same_object_twice_is_a_problem() -> None:
    objects, (problem,) = documents.read(f"{egress('{}')}---\n{egress('rules: []')}", "f.yaml")
    assert len(objects) == 1
    assert problem.field == "metadata.name"


@pytest.mark.parametrize(
    ("body", "mend"),
    [
        ("rules: [" + "{domains: [a]}, " * 65 + "]", "write at most 64, and the rest in another object"),
        ("rules: [{domains: [" + "a, " * 5001 + "]}]", "write at most 5000, and the rest in another object"),
        ("rules: [{domains: [" + "a" * 257 + "]}]", "write at most 256"),
    ],
)
def test_a_bound_of_the_schema(body: str, mend: str) -> None:
    assert mend in [mend for _, mend in told(egress(body))]


# ---- Whatever comes, a problem and never an exception -----------------------------------------------------

SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
WORDS = st.sampled_from(
    [
        *("apiVersion", "kind", "metadata", "name", "spec", "items", "rules", "domains", "cidrs", "ipBlocks"),
        *("cidr", "except", "ports", "port", "endPort", "protocol", "podSelector", "matchLabels"),
    ]
)
KINDS = st.sampled_from(["Egress", "ClusterEgress", "ExternalWorkload", "List", "x", None])
VALUES = st.recursive(
    SCALARS | WORDS | st.just("10.0.0.0/8"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=12,
)
SPECS = st.dictionaries(
    st.sampled_from([*schema.KINDS["ClusterEgress"]["properties"]["spec"]["properties"], "addresses"]),
    VALUES | st.lists(st.dictionaries(WORDS, VALUES, max_size=3), max_size=3),
)
OBJECTS = st.fixed_dictionaries(
    {"apiVersion": st.just(schema.API_VERSION), "kind": KINDS, "metadata": st.just({"name": "a"}) | VALUES},
    optional={"spec": SPECS | VALUES, "items": VALUES, "status": VALUES},
)


@settings(max_examples=300, deadline=None)
@given(OBJECTS | VALUES)
def test_any_value_is_an_object_or_has_a_problem(data: object) -> None:
    text = yaml.safe_dump(data)
    objects, problems = documents.read(text, "f.yaml")
    assert objects or problems or data == {} or "List" in text
    for problem in problems:
        assert problem.wrong
        assert problem.mend
        assert str(problem).startswith("f.yaml")
    if isinstance(data, dict):
        found, _ = documents.read_object(data)
        assert found is None or documents.read(yaml.safe_dump(data), "f.yaml")[0] == [found]


@given(st.text(max_size=40) | st.text("-:[]{}&*!|>?# \n'\"a1", max_size=40))
def test_any_text_is_read_or_has_a_problem(text: str) -> None:
    objects, problems = documents.read(text, "f.yaml")
    assert objects or problems


# ---- The schema itself ------------------------------------------------------------------------------------


def nodes(node: dict, path: str = "") -> list[tuple[str, dict]]:
    below = [(f"{path}.{key}", inner) for key, inner in node.get("properties", {}).items()]
    below += [(f"{path}[]", node["items"])] if "items" in node else []
    below += [(f"{path}{{}}", node["additionalProperties"])] if "additionalProperties" in node else []
    return [(path, node)] + [found for key, inner in below for found in nodes(inner, key)]


@pytest.mark.parametrize("kind", schema.KINDS)
def test_the_schema_is_structural_bounded_and_described(kind: str) -> None:
    for path, node in nodes(schema.KINDS[kind], kind):
        assert node["type"] in ("object", "array", "string", "integer", "boolean"), path
        assert node["description"].endswith("."), path
        assert not {"additionalProperties", "properties"} <= set(node), path
        if node["type"] == "array":
            assert "maxItems" in node, path
        if "additionalProperties" in node:
            assert "maxProperties" in node, path
        if node["type"] == "string" and ".spec" in path:
            assert "maxLength" in node, path


def test_aliases_count_at_every_use() -> None:
    bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 9)
    )
    with mock.patch.object(yaml_nodes, "MOST_VALUES", 10_000):
        assert "write less" in [mend for _, mend in told(bomb)]


def test_a_document_at_the_bounds_is_read_in_reasonable_time() -> None:
    rules = [{"domains": [f"n{i}.example.com" for i in range(5000)]}] * 2
    spec = {"podSelector": {}, "rules": rules}
    found, problems = documents.read_object({**yaml.safe_load(egress("{}")), "spec": spec})
    assert problems == []
    assert isinstance(found, Egress)
    assert len(found.rules[0].domains) == 5000
