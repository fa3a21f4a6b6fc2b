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

from gateway.policies import documents, patterns, schema, yaml_nodes
from gateway.policies.names import Pattern
from gateway.policies.records import (
    Block,
    Egress,
    Expression,
    ExternalWorkload,
    Object,
    Ports,
    Rule,
    Selector,
)
from tests.refusals import REFUSALS, TEXTS, egress, rule

EXAMPLES = sorted((Path(__file__).parent.parent / "deploy" / "examples").glob("*.yaml"))


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

PROBLEMS = [row[:4] for row in REFUSALS] + TEXTS


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


@settings(max_examples=300)
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
    rules = [{"domains": [f"n{i}.example.com" for i in range(1000)]}] * 10
    spec = {"podSelector": {}, "rules": rules}
    found, problems = documents.read_object({**yaml.safe_load(egress("{}")), "spec": spec})
    assert problems == []
    assert isinstance(found, Egress)
    assert sum(len(rule.domains) for rule in found.rules) == 10_000
