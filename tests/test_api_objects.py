"""Objects of the API server: what an agent keeps of them, and what nobody can slip into them."""

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from gateway.kubernetes import api_objects
from gateway.kubernetes.api_objects import Condition, Item
from gateway.kubernetes.cluster import Node, Pod
from gateway.policies.records import Egress

HASH = "5eb63bbbe01eeed093cb22bb8f5acdc3"


def a_pod(annotations: dict[str, str] | None = None, status: Any = None, **spec: object) -> dict[str, Any]:
    metadata = {"name": "web-1", "namespace": "shop", "uid": "u-1", "annotations": annotations or {}}
    return {"metadata": metadata, "spec": {"containers": [{"name": "a"}], **spec}, "status": status or {}}


def an_egress(**more: object) -> dict[str, Any]:
    metadata = {"name": "web", "namespace": "shop", "uid": "u-2", "resourceVersion": "7", "generation": 3}
    metadata["managedFields"] = [{"manager": "kubectl"}]  # type: ignore[assignment]
    return {"metadata": metadata, "spec": {"podSelector": {}, "rules": [{"domains": ["a.example"]}]}, **more}


# ---- Pods -------------------------------------------------------------------------------------------------


def test_the_least_that_a_pod_says() -> None:
    bare = {"metadata": {"name": "web-1", "namespace": "shop", "uid": "u-1"}}
    assert api_objects.pod(bare) == Pod("u-1", "shop", "web-1")


def test_all_that_a_pod_says() -> None:
    data = a_pod(
        {"note": "free"},
        {"phase": "Running"},
        hostNetwork=True,
        runtimeClassName="gvisor",
        dnsPolicy="None",
        dnsConfig={"nameservers": ["192.0.2.1"], "searches": ["a.example", "b.example"]},
    )
    data["metadata"] |= {
        "labels": {"b": "2", "a": "1"},
        "ownerReferences": [
            {"kind": "Node", "name": "n"},
            {"kind": "DaemonSet", "name": "skouter", "controller": True},
        ],
    }
    assert api_objects.pod(data) == Pod(
        uid="u-1",
        namespace="shop",
        name="web-1",
        labels=(("a", "1"), ("b", "2")),
        host_network=True,
        runtime_class="gvisor",
        dns_policy="None",
        searches=("a.example", "b.example"),
        owner="DaemonSet skouter",
    )


@pytest.mark.parametrize(
    ("phase", "finished"), [("Pending", 0), ("Running", 0), ("Succeeded", 1), ("Failed", 1)]
)
def test_a_pod_whose_phase_is_an_end_does_not_run_again(phase: str, finished: int) -> None:
    assert api_objects.pod(a_pod(status={"phase": phase})).finished == bool(finished)


def test_capabilities_of_every_kind_of_container_count() -> None:
    def container(**context: object) -> dict[str, object]:
        return {"name": "x", "securityContext": context}

    init = container(capabilities={"add": ["CAP_NET_RAW"], "drop": ["all"]})
    main = container(capabilities={"drop": ["ALL", "CHOWN"]})
    ephemeral = container(capabilities={"add": ["sys_admin"], "drop": ["ALL"]})
    made = api_objects.pod(a_pod(initContainers=[init], containers=[main], ephemeralContainers=[ephemeral]))
    assert made.added == {"NET_RAW", "SYS_ADMIN"}
    assert made.dropped == {"ALL"}
    privileged = container(privileged=True, capabilities={"drop": ["ALL"]})
    made = api_objects.pod(a_pod(containers=[main, privileged]))
    assert (made.added, made.dropped) == ({"ALL"}, frozenset())
    assert api_objects.pod(a_pod(containers=[main, {"name": "plain"}])).dropped == frozenset()


def test_a_static_pod_is_known_by_the_hash_of_its_configuration() -> None:
    mirror = api_objects.pod(a_pod({"kubernetes.io/config.hash": HASH, "kubernetes.io/config.mirror": HASH}))
    assert (mirror.uid, mirror.cgroup_uid) == ("u-1", HASH)


@pytest.mark.parametrize(
    "annotations",
    [
        {"kubernetes.io/config.hash": HASH},
        {
            "kubernetes.io/config.hash": "0b9c1f0e-1c1f-4a57-9d5f-0f3f6b8f8a11",
            "kubernetes.io/config.mirror": "x",
        },
        {"kubernetes.io/config.hash": "../../system.slice", "kubernetes.io/config.mirror": "x"},
        {"kubernetes.io/config.hash": "", "kubernetes.io/config.mirror": ""},
    ],
)
def test_attack_an_annotation_claims_the_cgroup_of_another_pod(annotations: dict[str, str]) -> None:
    assert api_objects.pod(a_pod(annotations)).cgroup_uid == "u-1"


def test_attack_an_annotation_claims_the_cgroup_of_a_static_pod() -> None:
    static = Pod("u-1", "kube-system", "etcd", config_hash=HASH)
    thief = Pod("u-2", "shop", "thief", config_hash=HASH)
    other = Pod("u-3", "shop", "other")
    assert api_objects.by_cgroup([static, other, thief]) == {HASH: static, "u-3": other}


# ---- Nodes and DNS ----------------------------------------------------------------------------------------


def test_a_node_and_the_networks_of_its_pods() -> None:
    addresses = [
        {"type": "InternalIP", "address": "192.0.2.9"},
        {"type": "InternalIP", "address": "2001:db8::9"},
        {"type": "Hostname", "address": "n1"},
        {"type": "ExternalIP", "address": "192.0.2.9"},
    ]
    data = {
        "metadata": {"name": "n1", "labels": {"zone": "a"}},
        "spec": {"podCIDR": "10.1.0.0/24", "podCIDRs": ["10.1.0.0/24", "fd01::/64"]},
        "status": {"addresses": addresses},
    }
    found = api_objects.node(data)
    assert found.node == Node("n1", (("zone", "a"),), (ip_address("192.0.2.9"), ip_address("2001:db8::9")))
    assert found.ranges == (ip_network("10.1.0.0/24"), ip_network("fd01::/64"))
    assert api_objects.node({"metadata": {"name": "n1"}}) == api_objects.OnNode(Node("n1"))


PORTS = [
    {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": "dns"},
    {"name": "dns-tcp", "port": 53, "protocol": "TCP"},
    {"name": "metrics", "port": 9153, "protocol": "TCP"},
]


@pytest.mark.parametrize(
    ("spec", "servers"),
    [
        ({"clusterIP": "10.96.0.10", "ports": PORTS}, ["10.96.0.10"]),
        ({"clusterIPs": ["10.96.0.10", "fd00::a"], "ports": PORTS}, ["10.96.0.10", "fd00::a"]),
        ({"clusterIP": "None", "clusterIPs": ["None"], "ports": PORTS}, []),
        ({"clusterIP": "10.96.0.10", "ports": PORTS[1:]}, []),
        ({"type": "ExternalName", "externalName": "dns.example"}, []),
    ],
)
def test_a_service_is_its_addresses_on_the_ports_of_dns(spec: dict[str, Any], servers: list[str]) -> None:
    assert api_objects.service({"spec": spec}) == tuple((ip_address(each), 53) for each in servers)


def test_an_endpoint_slice_is_all_its_endpoints_on_the_ports_behind_the_service() -> None:
    data = {
        "metadata": {
            "name": "s",
            "namespace": "openshift-dns",
            "labels": {api_objects.SERVICE_NAME: "dns-default"},
        },
        "endpoints": [
            {"addresses": ["10.1.0.5"], "conditions": {"ready": True}},
            {"addresses": ["10.1.0.6"], "conditions": {"ready": False}},
            {"addresses": ["not.an.address"]},
        ],
        "ports": [{"name": "dns", "port": 5353, "protocol": "UDP"}, {"name": "m", "protocol": "UDP"}],
    }
    owner, servers = api_objects.endpoint_slice(data)
    assert owner == "openshift-dns/dns-default"
    assert servers == ((ip_address("10.1.0.5"), 5353), (ip_address("10.1.0.6"), 5353))
    assert api_objects.endpoint_slice({**data, "endpoints": None})[1] == ()


def test_the_networks_of_services() -> None:
    data = {"spec": {"cidrs": ["10.96.0.0/12", "fd00::/108"]}}
    assert api_objects.service_cidr(data) == (ip_network("10.96.0.0/12"), ip_network("fd00::/108"))


# ---- Ours -------------------------------------------------------------------------------------------------


def test_an_object_of_ours_with_what_the_api_says_beside_it() -> None:
    conditions = [
        {"type": "Other", "status": "True"},
        {
            "type": "Accepted",
            "status": "False",
            "reason": "RulesIgnored",
            "message": "why",
            "observedGeneration": 2,
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        },
    ]
    item = api_objects.item("Egress", an_egress(status={"conditions": conditions, "unknown": 1}))
    assert isinstance(item.object, Egress)
    assert (str(item.object), item.problems) == ("Egress shop/web", ())
    assert (item.uid, item.version, item.generation) == ("u-2", "7", 3)
    assert item.condition == Condition(False, "RulesIgnored", "why", 2, "2026-01-01T00:00:00Z")


def test_two_are_equal_whatever_the_api_says_beside_them() -> None:
    item = api_objects.item("Egress", an_egress())
    assert item == replace(item, version="8", generation=4, condition=Condition(True, "Accepted", ""))
    assert item != replace(item, stale=True)


def test_a_bad_rule_is_a_problem_in_the_cluster() -> None:
    data = an_egress(spec={"podSelector": {}, "rules": [{"domains": ["a..example"]}]})
    item = api_objects.item("Egress", data)
    assert item.object is not None
    (problem,) = item.problems
    assert str(problem) == (
        "cluster: Egress shop/web: spec.rules[0].domains[0]: 'a..example' has an empty label; write a.example"
    )


@pytest.mark.parametrize("spec", [{"podSelector": 7}, None, {}, {"podSelector": {}, "unknown": 1}, [], "x"])
def test_what_can_not_be_read_keeps_the_place_of_what_could(spec: object) -> None:
    before = api_objects.item("Egress", an_egress())
    after = api_objects.succeed(before, api_objects.item("Egress", an_egress(spec=spec)))
    if spec == {}:  # it selects nothing, and says so
        assert after.object == Egress("shop", "web")
        return
    assert after.object == before.object
    assert after.stale
    assert after.problems
    again = api_objects.succeed(after, api_objects.item("Egress", an_egress(spec=spec)))
    assert (again.object, again.stale) == (before.object, True)
    good = api_objects.succeed(again, api_objects.item("Egress", an_egress()))
    assert good == before


def test_another_object_of_the_same_name_keeps_nothing() -> None:
    before = api_objects.item("Egress", an_egress())
    wrong = api_objects.item("Egress", an_egress(spec={"podSelector": 7}))
    assert api_objects.succeed(before, replace(wrong, uid="u-3")).object is None
    assert api_objects.succeed(None, wrong) == wrong
    assert api_objects.succeed(Item(None), wrong).stale is False
