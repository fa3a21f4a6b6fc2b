"""Which pod is held to what: nothing here needs a cluster."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from gateway.kubernetes.cluster import Cluster, Node, Pod
from gateway.kubernetes.node_plan import extend
from gateway.kubernetes.pods import (
    Lookups,
    Placement,
    Selection,
    Terms,
    digest,
    place,
    raw_frames,
    uncontained,
)
from gateway.plan import EXEMPT, Plan
from gateway.policies import documents
from gateway.policies.policy import Policy
from gateway.settings import ClusterSettings

OBJECTS = """
apiVersion: egress.skouter/v1alpha1
kind: Egress
metadata: {name: web, namespace: shop}
spec: {podSelector: {matchLabels: {app: web}}, rules: [{domains: [example.com]}]}
---
apiVersion: egress.skouter/v1alpha1
kind: ClusterEgress
metadata: {name: all}
spec: {podSelector: {matchLabels: {tier: all}}}
---
apiVersion: egress.skouter/v1alpha1
kind: ClusterEgress
metadata: {name: teams}
spec: {namespaceSelector: {matchLabels: {team: a}}, podSelector: {}, rules: [{domains: [example.org]}]}
"""
DNS, NODE_DNS = (ip_address("10.96.0.10"), 53), (ip_address("192.0.2.53"), 53)
STUB = (ip_address("127.0.0.53"), 53)
SETTINGS = ClusterSettings()
LOOKUPS = Lookups((STUB, NODE_DNS), ("corp.example",))
STATIC = "3c1f0a9be0f54a7e9f7a3e6d8c2b1a00"
TOP = "/kubepods"


def uid(number: int) -> str:
    return f"00000000-0000-4000-8000-{number:012}"


def path(number: int) -> str:
    return f"{TOP}/pod{uid(number)}"


def pod(number: int, namespace: str = "shop", **fields: object) -> Pod:
    made = Pod(uid(number), namespace, f"pod-{number}", dropped=frozenset({"ALL"}))
    return replace(made, **fields)  # type: ignore[arg-type]


WEB = (("app", "web"),)
SPACES = {"shop": (), "kube-system": (), "a": (("team", "a"),)}


def cluster(*pods: Pod, namespaces: dict[str, tuple[tuple[str, str], ...]] = SPACES) -> Cluster:
    found, problems = documents.read(OBJECTS, "objects")
    assert not problems
    return Cluster(Node("n"), tuple(found), (), namespaces, {each.cgroup_uid: each for each in pods}, (DNS,))


def placed(
    *pods: Pod,
    own: str = "",
    before: tuple[str, ...] = (),
    settings: ClusterSettings = SETTINGS,
    **kw: object,
) -> dict[str, Placement]:
    paths = ["/", TOP, *(path(number) for number in range(9)), f"{TOP}/pod{STATIC}"]
    known = cluster(*pods, **kw)  # type: ignore[arg-type]
    return place(known, paths, Selection(), LOOKUPS, settings, own, before)


def terms(placement: Placement) -> Terms:
    assert placement.terms is not None
    return placement.terms


def names(placement: Placement) -> list[str]:
    return sorted(peer.text for peer, _ in terms(placement).policy.grants)


# ---- Who is held ------------------------------------------------------------------------------------------


def test_a_selected_pod_is_held_to_its_policy_and_others_to_nothing() -> None:
    found = placed(pod(1, labels=WEB), pod(2), pod(3, "a"))
    assert (names(found[path(1)]), found[path(1)].objects) == (["example.com"], ("Egress shop/web",))
    assert found[path(2)] == Placement("pod shop/pod-2")
    assert names(found[path(3)]) == ["example.org"]


def test_a_cgroup_without_a_pod_is_not_placed_but_a_static_one_is_open() -> None:
    found = placed(pod(1))
    assert set(found) == {path(1), f"{TOP}/pod{STATIC}"}
    assert found[f"{TOP}/pod{STATIC}"].terms is None
    assert set(placed(pod(1), before=(f"{TOP}/pod{STATIC}",))) == {path(1)}


def test_a_static_pod_is_known_by_the_hash_of_its_file() -> None:
    found = placed(pod(1, labels=WEB, config_hash=STATIC))
    assert names(found[f"{TOP}/pod{STATIC}"]) == ["example.com"]
    assert path(1) not in found


def test_a_pod_whose_namespace_is_not_known_is_not_placed() -> None:
    assert path(1) not in placed(pod(1, "new", labels=WEB))


def test_exempt_namespaces() -> None:
    tier = (("tier", "all"),)
    found = placed(pod(1, labels=tier), pod(2, "kube-system", labels=tier))
    assert (names(found[path(1)]), found[path(2)].terms) == ([], None)
    none = replace(SETTINGS, exempt_namespaces=frozenset())
    assert placed(pod(2, "kube-system", labels=tier), settings=none)[path(2)].terms is not None


def test_the_agents_own_pods_are_held_to_nothing() -> None:
    mine = {"owner": "DaemonSet skouter"}
    found = placed(pod(1, "a", **mine), pod(2, "a", **mine), pod(3, "a"), own=uid(1))
    assert [found[path(number)].terms is None for number in (1, 2, 3)] == [True, True, False]
    assert placed(own=uid(4))[path(4)].terms is None  # before the API told of anything


def test_one_that_has_finished_is_held_while_its_cgroup_is_there() -> None:
    assert names(placed(pod(1, labels=WEB, finished=True))[path(1)]) == ["example.com"]


def test_a_selection_follows_objects_and_namespaces_and_keeps_equal_policies() -> None:
    selection, first = Selection(), cluster(pod(1, labels=WEB), pod(2, "a"))
    before = place(first, [path(1), path(2)], selection, LOOKUPS, SETTINGS)
    second = replace(first, namespaces={**SPACES, "a": ()})
    after = place(second, [path(1), path(2)], selection, LOOKUPS, SETTINGS)
    assert terms(after[path(1)]).policy is terms(before[path(1)]).policy
    assert after[path(2)].terms is None
    third = replace(second, objects=second.objects[1:])
    assert place(third, [path(1)], selection, LOOKUPS, SETTINGS)[path(1)].terms is None


# ---- DNS --------------------------------------------------------------------------------------------------

IN_SHOP = ("shop.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example")


@pytest.mark.parametrize(
    ("fields", "resolvers", "searches"),
    [
        ({}, (DNS,), IN_SHOP),
        ({"searches": ("Extra.Example",)}, (DNS,), (*IN_SHOP, "extra.example")),
        ({"dns_policy": "Default"}, (NODE_DNS,), ("corp.example",)),
        ({"dns_policy": "None", "searches": ("my.example",)}, (DNS,), ("my.example",)),
        ({"host_network": True}, (STUB, NODE_DNS), ("corp.example",)),
        ({"host_network": True, "dns_policy": "ClusterFirstWithHostNet"}, (DNS,), IN_SHOP),
    ],
)
def test_a_pod_trusts_the_servers_of_its_dns_policy(
    fields: dict[str, object], resolvers: tuple[object, ...], searches: tuple[str, ...]
) -> None:
    found = terms(placed(pod(1, labels=WEB, **fields))[path(1)])
    assert (found.resolvers, found.searches) == (resolvers, searches)


def test_no_pod_with_a_network_of_its_own_trusts_its_own_loopback() -> None:
    found = terms(placed(pod(1, labels=WEB, dns_policy="Default"))[path(1)])
    assert not any(address.is_loopback for address, _ in found.resolvers)


# ---- What is told -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"dropped": frozenset({"ALL"})}, ""),
        ({"dropped": frozenset({"NET_RAW"})}, ""),
        ({"dropped": frozenset()}, ""),
        ({"added": frozenset({"NET_ADMIN"})}, "can forge what comes in"),
        ({"added": frozenset({"ALL"})}, "ALL"),
        ({"dropped": frozenset(), "host_network": True}, "NET_RAW on the host's network"),
        ({"runtime_class": "kata-qemu"}, "runtimeClassName kata-qemu"),
        ({"runtime_class": "gvisor"}, "runtimeClassName gvisor"),
        ({"runtime_class": "runc"}, ""),
    ],
)
def test_who_cant_be_contained_is_told(fields: dict[str, object], told: str) -> None:
    found = uncontained(pod(1, **fields), SETTINGS)
    assert (told in found) if told else found == ""


@pytest.mark.parametrize(
    ("fields", "raw"),
    [
        ({"dropped": frozenset({"ALL"})}, ""),
        ({"dropped": frozenset()}, "it has NET_RAW"),
        ({"added": frozenset({"NET_ADMIN", "NET_RAW"})}, ""),
        ({"dropped": frozenset(), "host_network": True}, ""),
    ],
)
def test_who_is_contained_by_its_link_alone_is_known(fields: dict[str, object], raw: str) -> None:
    found = pod(1, **fields)
    assert raw_frames(found) == raw


def test_a_digest_tells_terms_apart_and_is_the_same_for_equal_ones() -> None:
    policy = terms(placed(pod(1, labels=WEB))[path(1)]).policy
    other = terms(placed(pod(3, "a"))[path(3)]).policy
    made = [
        Terms(policy, (DNS,), ("a.example",)),
        Terms(other, (DNS,), ("a.example",)),
        Terms(replace(policy, audit=True), (DNS,), ("a.example",)),
        Terms(replace(policy, only_allowed_names=True), (DNS,), ("a.example",)),
        Terms(policy, (NODE_DNS,), ("a.example",)),
        Terms(policy, (DNS,), ("b.example",)),
        Terms(policy, ((DNS[0], 5353),), ("a.example",)),
    ]
    assert len({digest(each) for each in made}) == len(made)
    again = Terms(Policy(frozenset(list(policy.grants)[::-1])), (DNS,), ("a.example",))
    assert digest(again) == digest(made[0])


# ---- The node's plan --------------------------------------------------------------------------------------

PATHS = ["/", TOP, path(1), path(2), path(3)]


def extended(
    placements: dict[str, Placement], at: dict[str, str], homes: tuple[str, ...], **settings: object
) -> Plan:
    mine = replace(SETTINGS, **settings)  # type: ignore[arg-type]
    there = {path: one for path, one in placements.items() if path in PATHS}
    return extend(Plan(), there, PATHS, homes, at, {"host": None, "pods-1": "old"}, mine)


def test_pods_are_held_once_their_network_is_known_and_the_root_is_shut() -> None:
    found = placed(pod(1, labels=WEB), pod(2, labels=WEB), pod(3))
    plan = extended(found, {}, (path(1),))
    ((name, wanted),) = plan.wanted.items()
    assert (name, wanted.cgroups) == ("pods-2", {path(1)})
    assert (plan.exempt, plan.shut, plan.opened) == ({path(3)}, {TOP}, set())
    assert plan.titles[path(2)] == "pod shop/pod-2"


def test_a_host_network_pod_waits_for_nothing() -> None:
    plan = extended(placed(pod(1, labels=WEB, host_network=True)), {}, ())
    assert [wanted.cgroups for wanted in plan.wanted.values()] == [{path(1)}]


def test_the_root_is_open_where_that_is_asked_for() -> None:
    plan = extended({}, {}, (), closed=False)
    assert (plan.shut, plan.opened) == (set(), {TOP})


def test_what_has_no_object_stays_where_it_is() -> None:
    plan = extended({}, {path(1): "pods-1", path(2): EXEMPT}, ())
    assert (plan.kept, plan.exempt, plan.wanted) == ({"pods-1"}, {path(2)}, {})


def test_one_that_is_selected_now_is_open_no_longer_though_its_network_is_not_known() -> None:
    plan = extended(placed(pod(1, labels=WEB)), {path(1): EXEMPT}, ())
    assert (plan.exempt, plan.wanted) == (set(), {})


def test_one_that_is_selected_no_more_leaves_before_its_group_says_something_else() -> None:
    found = placed(pod(1, labels=WEB), pod(2))
    plan = extended(found, {path(1): "pods-1", path(2): "pods-1"}, (path(1),))
    ((name, wanted),) = plan.wanted.items()
    assert (name != "pods-1", wanted.cgroups, plan.exempt) == (True, {path(1)}, {path(2)})
