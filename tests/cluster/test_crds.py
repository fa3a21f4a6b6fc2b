"""The definitions, on a real API server: what they take and refuse, and that files are judged the same."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.crds.__main__ import texts
from gateway.kubernetes import crds
from gateway.policies import documents, schema
from tests.cluster.apiserver import ApiServer, KubectlError
from tests.refusals import REFUSALS, TEXTS, Refusal, egress, rule
from tests.tools import build

HERE = Path(__file__).parent
CHECKOUT = HERE.parent.parent
CRDS = CHECKOUT / "deploy" / "crds"
EXAMPLES = sorted((CHECKOUT / "deploy" / "examples").glob("*.yaml"))
GROUP = f"/apis/{schema.API_VERSION}"


def collection(kind: str, namespace: str = "default") -> str:
    within = f"/namespaces/{namespace}" if crds.NAMES[kind].scope == "Namespaced" else ""
    return f"{GROUP}{within}/{crds.NAMES[kind].plural}"


def kind_of(text: str) -> str:
    return next(kind for kind in crds.NAMES if f"kind: {kind}\n" in text)


def try_to_create(api: ApiServer, kind: str, body: object) -> tuple[int, Any]:
    """What the server answers to an object, of which it keeps nothing."""
    query = "?dryRun=All&fieldValidation=Strict"
    media = "application/yaml" if isinstance(body, str) else "application/json"
    return api.request("POST", collection(kind) + query, body, kind=media)


@pytest.fixture
def namespace(api: ApiServer) -> Iterator[str]:
    """`default`, with nothing of ours left behind."""
    yield "default"
    for kind in crds.NAMES:
        assert api.request("DELETE", collection(kind))[0] == 200


# ---- The files --------------------------------------------------------------------------------------------


def test_the_files_are_what_the_generator_writes() -> None:
    for name, text in texts().items():
        assert (CRDS / name).read_text() == text, "run make crds"


@pytest.mark.parametrize("kind", crds.NAMES)
def test_the_server_finds_nothing_wrong_with_a_definition(crds_applied: ApiServer, kind: str) -> None:
    """A schema that is not structural is served all the same: a condition tells."""
    name = f"{crds.NAMES[kind].plural}.{schema.GROUP}"
    _, found = crds_applied.request("GET", f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}")
    conditions = {condition["type"]: condition["status"] for condition in found["status"]["conditions"]}
    assert conditions == {"NamesAccepted": "True", "Established": "True"}


def test_the_oldest_server_takes_the_definitions() -> None:
    """Its prices are not those of a newer one: == of networks had none at all."""
    judge = build.folder("oldest") / "judge-definitions"
    files = [CRDS / name for name in texts()]
    done = subprocess.run([judge, *files], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("kind", ["Egress", "ClusterEgress"])
def test_a_definition_may_cost_a_quarter_more(api: ApiServer, kind: str) -> None:
    """Servers price rules of CEL by the largest object, and not all of them the same."""
    text = json.dumps(crds.definition(kind)).replace(schema.GROUP, f"dearer.{schema.GROUP}")
    dearer = json.loads(text)
    (version,) = dearer["spec"]["versions"]
    version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["rules"]["maxItems"] = 80
    where = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions?dryRun=All"
    status, answer = api.request("POST", where, dearer)
    assert status == 201, answer["message"]


# ---- What is taken ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_applies(crds_applied: ApiServer, path: Path) -> None:
    text = path.read_text()
    for name in set(re.findall(r"^  namespace: (\S+)$", text, re.MULTILINE)) - {"default"}:
        crds_applied.request("POST", "/api/v1/namespaces", {"metadata": {"name": name}})
    crds_applied.kubectl("apply", "--dry-run=server", "-f", "-", input=text)


def test_the_policies_of_the_readme_apply(crds_applied: ApiServer) -> None:
    policies = re.findall(r"```yaml\n(apiVersion: egress.*?)```", (CHECKOUT / "README.md").read_text(), re.S)
    assert len(policies) > 1
    for policy in policies:
        assert "created" in crds_applied.kubectl("apply", "--dry-run=server", "-f", "-", input=policy)


EVERYTHING = egress(
    """
    mode: Audit
    podSelector: {matchLabels: {b: x, a: "", example.com/c: d}}
    namespaceSelector: {matchExpressions: [{key: env, operator: In, values: [prod, ""]}]}
    nodeSelector: {matchExpressions: [{key: example.com/role, operator: Exists}]}
    workloadSelector: {}
    sourceCIDRs: [10.1.0.0/16]
    dns: {onlyAllowedNames: true}
    rules:
    - domains: [Example.com., "*.bücher.example", "*", "**.a_b.com", bücher。example, 1.2.3.4.5, "1"]
      regex: ['api-[0-9]+\\.example\\.com', '^a\\\\.[[:alpha:]]$']
      fqdn: [a]
      ips: [192.0.2.1, "2001:DB8:0::1", "::1.2.3.4"]
      cidrs: ["2001:db8::/32", 0.0.0.0/0, "::/0"]
      ipBlocks:
      - {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}
      - {cidr: "2001:DB8::/32", except: ["2001:db8::/33"]}
      ports: [{port: 80}, {port: 1, endPort: 9, protocol: UDP}, {port: 5, endPort: 5}, {protocol: ICMP}, {}]
    - ips: [192.0.2.1]
    """.replace("'^a\\\\.", "'^a\\."),
    kind="ClusterEgress",
)


def test_every_field_and_form_is_taken_by_both(crds_applied: ApiServer) -> None:
    assert documents.read(EVERYTHING, "f")[1] == []
    status, answer = try_to_create(crds_applied, "ClusterEgress", EVERYTHING)
    assert status == 201, answer["message"]


def test_the_server_writes_the_defaults_that_files_have(crds_applied: ApiServer) -> None:
    text = rule("domains: [a.com]\n  ports: [{port: 1}, {protocol: UDP}, {}]")
    _, answer = try_to_create(crds_applied, "Egress", text)
    assert answer["spec"]["mode"] == "Enforce"
    assert [ports["protocol"] for ports in answer["spec"]["rules"][0]["ports"]] == ["TCP", "UDP", "TCP"]
    assert documents.read_object(answer)[0] == documents.read(text, "f")[0][0]


LARGEST = {
    "domains": {"domains": [f"{i}.example-of-a-name.com" for i in range(1000)]},
    "names with 253 characters": {"domains": [f"{i:04}.{'.'.join(['a' * 61] * 4)}" for i in range(85)]},
    "expressions": {
        side: [f"[a-z0-9]+-{i:04}\\.{'a' * 140}\\.com" for i in range(64)] for side in ("regex", "fqdn")
    },
    "addresses": {
        "ips": [f"2001:db8::{i:x}" for i in range(1000)],
        "cidrs": [f"10.{i >> 8}.{i & 255}.0/24" for i in range(1000)],
    },
    "blocks": {
        "ipBlocks": [
            {"cidr": f"10.{i}.0.0/16", "except": [f"10.{i}.{n}.0/24" for n in range(16)]} for i in range(80)
        ]
    },
}


@pytest.mark.parametrize("name", LARGEST)
def test_an_object_as_large_as_etcd_takes_is_judged_in_time(
    crds_applied: ApiServer, namespace: str, name: str
) -> None:
    """CEL has a limit at run time too, and the server one of 60 s: etcd's, 1.5 MB, comes first."""
    ports = [{"port": n, "endPort": n, "protocol": "TCP"} for n in range(1, 65)]
    rule = {**LARGEST[name], "ports": ports}
    size = len(json.dumps(rule, separators=(",", ":")))
    fitting = min(64, 1_500_000 // size)
    assert fitting * size > 1_200_000
    spec = {"podSelector": {}, "rules": [rule] * fitting}
    body = {"apiVersion": schema.API_VERSION, "kind": "Egress", "metadata": {"name": "big"}, "spec": spec}
    status, answer = crds_applied.request("POST", collection("Egress") + "?timeout=60s", body)
    assert status == 201, answer["message"][:2000]


def test_what_the_server_sends_can_be_checked_like_a_file(crds_applied: ApiServer, namespace: str) -> None:
    """With all that the server adds: `kubectl get -o yaml | skouter policy check -`."""
    text = (CHECKOUT / "deploy" / "examples" / "egress.yaml").read_text()
    crds_applied.kubectl("apply", "-f", "-", input=text)
    condition = {
        "type": "Accepted",
        "status": "True",
        "reason": "Accepted",
        "message": "",
        "observedGeneration": 1,
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    one = collection("Egress") + "/web/status"
    patch = {"status": {"conditions": [condition]}}
    assert crds_applied.request("PATCH", one, patch, kind="application/merge-patch+json")[0] == 200
    for form in ("yaml", "json"):
        sent = crds_applied.kubectl("get", "egress", "-A", "--show-managed-fields", "-o", form)
        assert "managedFields" in sent
        assert "last-applied-configuration" in sent
        assert documents.read(sent, "-") == documents.read(text, "-")
        words = [sys.executable, "-m", "gateway", "policy", "check", "-"]
        done = subprocess.run(words, input=sent, capture_output=True, text=True, cwd=CHECKOUT, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, "1 object, 0 problems\n", "")


# ---- What is refused --------------------------------------------------------------------------------------


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda refusal: refusal.name)
def test_the_server_refuses_what_the_checker_refuses(crds_applied: ApiServer, refusal: Refusal) -> None:
    """Where it can: a row without the server's words is taken, and the agent tells it by a condition."""
    status, answer = try_to_create(crds_applied, kind_of(refusal.text), refusal.text)
    if refusal.server is None:
        assert status == 201, answer["message"]
    else:
        assert status in (400, 422), "taken"
        assert refusal.server in answer["message"]


# kubectl reads an unknown tag as if there were none, and half a character can't be sent.
WRITTEN = [row[:2] for row in TEXTS if row[0] not in ("a strange tag", "half a character")]


@pytest.mark.parametrize("text", [row[1] for row in WRITTEN], ids=[row[0] for row in WRITTEN])
def test_kubectl_refuses_what_is_no_object(crds_applied: ApiServer, text: str) -> None:
    with pytest.raises(KubectlError):
        crds_applied.kubectl("apply", "--dry-run=server", "-f", "-", input=text)


def test_kubectl_shows_field_and_mend(crds_applied: ApiServer) -> None:
    with pytest.raises(
        KubectlError, match=re.escape('spec.rules[0].cidrs[0]: Invalid value: "10.1.2.3/8": it h')
    ):
        crds_applied.kubectl("apply", "-f", "-", input=rule("cidrs: [10.1.2.3/8]"))


# ---- Whatever comes, both say the same --------------------------------------------------------------------

NAMES = st.one_of(
    st.sampled_from(
        ["example.com", "*.example.com", "*", "**.a", "a.", "A_b-c", "1.2.3.4", "*.a.", "-", "1"]
    ),
    st.text("aZ0-_.*:/ ", min_size=1, max_size=12),
    st.builds(lambda n, m: ".".join(["a" * n] * m), st.integers(60, 64), st.integers(3, 4)),
)
ADDRESSES = st.one_of(
    st.ip_addresses().map(str),
    st.ip_addresses(v=6).map(lambda address: address.exploded.upper()),
    st.ip_addresses(v=4).map(lambda address: f"::{address}"),
    st.text("0123456789abf:./%", min_size=1, max_size=10),
)
LENGTHS = st.integers(0, 33).map(str) | st.sampled_from(["64", "128", "129", "08", "-1", ""])
CIDRS = st.one_of(
    st.sampled_from(["10.0.0.0/8", "10.1.0.0/16", "10.1.2.0/24", "::/0", "2001:db8::/32", "2001:db8::/48"]),
    st.builds(lambda address, length: f"{address}/{length}", ADDRESSES, LENGTHS),
    ADDRESSES,
)
REGEXES = st.one_of(
    st.sampled_from(
        ["a+", "[a-z]+\\.com", "a{2,3}", "(a|b)", "a\\b", "(?i)a", "a$", "\\Qa\\E", "\\\\b", "ü"]
    ),
    st.text("ab.*+?()[]{}|\\^$-1,bpd", min_size=1, max_size=8),
)
BOUNDS = st.sampled_from([0, 1, 79, 80, 81, 65535, 65536])
PORTS = st.fixed_dictionaries(
    {},
    optional={
        "port": BOUNDS,
        "endPort": BOUNDS,
        "protocol": st.sampled_from(["TCP", "UDP", "SCTP", "ICMP", "ANY", "tcp"]),
    },
)
LABELS = st.one_of(
    st.sampled_from(["app", "example.com/app", "a/b/c", "/a", "a/", "", "a" * 63, "a" * 64, "A.b/c"]),
    st.text("aZ0-_./ ", max_size=8),
)
VALUES = st.text("aZ0-_. ", max_size=5) | st.sampled_from(["a" * 63, "a" * 64])
SELECTORS = st.fixed_dictionaries(
    {},
    optional={
        "matchLabels": st.dictionaries(LABELS, VALUES, max_size=2),
        "matchExpressions": st.lists(
            st.fixed_dictionaries(
                {"key": LABELS, "operator": st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist", "in"])},
                optional={"values": st.lists(VALUES, max_size=2)},
            ),
            max_size=1,
        ),
    },
)
BLOCKS = st.fixed_dictionaries({"cidr": CIDRS}, optional={"except": st.lists(CIDRS, max_size=2)})
RULES = st.fixed_dictionaries(
    {},
    optional={
        "domains": st.lists(NAMES, max_size=2),
        "regex": st.lists(REGEXES, max_size=2),
        "ips": st.lists(ADDRESSES, max_size=2),
        "cidrs": st.lists(CIDRS, max_size=2),
        "ipBlocks": st.lists(BLOCKS, max_size=1),
        "ports": st.lists(PORTS, max_size=2),
    },
)
SPECS = st.fixed_dictionaries(
    {"rules": st.lists(RULES, max_size=1)},
    optional={
        "mode": st.sampled_from(["Enforce", "Audit", "audit", ""]),
        "podSelector": SELECTORS,
        "namespaceSelector": SELECTORS,
        "sourceCIDRs": st.lists(CIDRS, max_size=1),
        "dns": st.fixed_dictionaries({}, optional={"onlyAllowedNames": st.booleans()}),
    },
)


def only_the_checker_can(problem: Any) -> bool:
    """What CEL can't say: addresses with a dot around them, and which expressions mean anything for names."""
    return ".regex[" in problem.field or (
        ".domains[" in problem.field and problem.wrong.endswith("is an address, not a name")
    )


@settings(max_examples=250)
@given(spec=SPECS)
def test_server_and_checker_agree(crds_applied: ApiServer, spec: dict[str, Any]) -> None:
    body = {
        "apiVersion": schema.API_VERSION,
        "kind": "ClusterEgress",
        "metadata": {"name": "a"},
        "spec": spec,
    }
    _, problems = documents.read_object(body)
    status, answer = try_to_create(crds_applied, "ClusterEgress", body)
    assert status in (201, 422)
    if status == 201:
        assert all(map(only_the_checker_can, problems)), problems
    else:
        assert problems, answer["message"]


# ---- What kubectl shows -----------------------------------------------------------------------------------


def test_short_names_category_and_columns(crds_applied: ApiServer, namespace: str) -> None:
    machine = egress('addresses: [10.1.0.5, "2001:db8::5"]', "ExternalWorkload", "{name: vm}")
    text = "---\n".join([egress("mode: Audit"), egress("{}", "ClusterEgress"), machine])
    crds_applied.kubectl("apply", "-f", "-", input=text)
    refused = {"type": "Accepted", "status": "False", "reason": "Invalid", "message": "rules[0]: too large"}
    refused |= {"observedGeneration": 1, "lastTransitionTime": "2026-01-01T00:00:00Z"}
    patch = {"status": {"conditions": [refused]}}
    one = collection("Egress") + "/web/status"
    assert crds_applied.request("PATCH", one, patch, kind="application/merge-patch+json")[0] == 200

    def table(*words: str) -> list[list[str]]:
        lines = crds_applied.kubectl("get", *words).splitlines()
        return [re.split(r"\s{2,}", line.strip()) for line in lines]

    assert table("eg")[0] == ["NAME", "MODE", "ACCEPTED", "AGE"]
    assert table("eg")[1][:3] == ["web", "Audit", "False"]
    assert table("eg", "-o", "wide")[1][:4] == ["web", "Audit", "False", "rules[0]: too large"]
    assert table("ceg")[1][:2] == ["web", "Enforce"]
    assert table("ew")[1][:2] == ["vm", '["10.1.0.5","2001:db8::5"]']
    assert crds_applied.kubectl("get", "skouter", "-o", "name").split() == [
        "clusteregress.egress.skouter/web",
        "egress.egress.skouter/web",
        "externalworkload.egress.skouter/vm",
    ]


def test_explain_is_the_manual(crds_applied: ApiServer) -> None:
    said = crds_applied.kubectl("explain", "egress.spec.rules.ipBlocks")
    assert "Networks inside cidr that are not meant." in " ".join(said.split())


def test_who_writes_a_status_writes_nothing_else(crds_applied: ApiServer, namespace: str) -> None:
    crds_applied.kubectl("apply", "-f", "-", input=egress("{}"))
    one = collection("Egress") + "/web"
    media = {"kind": "application/merge-patch+json"}
    crds_applied.request("PATCH", one, {"status": {"conditions": []}}, **media)
    assert "status" not in crds_applied.request("GET", one)[1]
    crds_applied.request("PATCH", one + "/status", {"spec": {"mode": "Audit"}}, **media)
    found = crds_applied.request("GET", one)[1]
    assert (found["spec"]["mode"], found["metadata"]["generation"]) == ("Enforce", 1)


# ---- Upgrade ----------------------------------------------------------------------------------------------


def older(definition: dict[str, Any]) -> dict[str, Any]:
    """As a version before this one may have been: without dns, without rules of CEL, shorter lists."""
    text = json.dumps(definition)
    plain = json.loads(text)
    (version,) = plain["spec"]["versions"]
    spec = version["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]
    del spec["dns"], version["additionalPrinterColumns"]
    domains = spec["rules"]["items"]["properties"]["domains"]
    domains |= {"maxItems": 10, "items": {"type": "string", "maxLength": 256}}
    return plain


def test_a_newer_definition_takes_over_and_objects_stay(programs: Path) -> None:
    """Also those that the older one took and the newer one would not: they stay until somebody writes."""
    with ApiServer(programs) as api:
        apply = ("apply", "--server-side", "--field-manager=skouter", "-f", "-")
        old = yaml.safe_dump(older(crds.definition("Egress")))
        api.kubectl(*apply, input=old)
        api.kubectl("wait", "--for=condition=Established", "crd/egresses.egress.skouter", "--timeout=60s")
        api.kubectl("apply", "-f", "-", input=rule("domains: [a.com]"))
        api.kubectl("apply", "-f", "-", input=rule("domains: ['a*.com']").replace("name: web", "name: bad"))
        before = json.loads(api.kubectl("get", "egresses", "-o", "json"))["items"]

        for name in texts():
            api.kubectl(*apply[:-1], CRDS / name)
        deadline = time.monotonic() + 60
        newer = egress("dns: {onlyAllowedNames: true}", metadata="{name: newer}")
        while try_to_create(api, "Egress", newer)[0] != 201:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert json.loads(api.kubectl("get", "egresses", "-o", "json"))["items"] == before
        assert [bool(documents.read_object(item)[1]) for item in before] == [True, False]
        # What was wrong before does not stop another change.
        api.kubectl("label", "egress", "bad", "seen=yes")
        worse = rule("domains: ['b*.com']").replace("name: web", "name: bad")
        with pytest.raises(KubectlError, match="stands only in front"):
            api.kubectl("apply", "-f", "-", input=worse)
