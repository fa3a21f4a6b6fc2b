"""Selection: which objects speak for which workload."""

from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.policies.records import Egress, Expression, ExternalWorkload, Selector
from gateway.policies.selection import Workload, machines, selecting, selects

ALL = Selector()
WEB = Selector((("app", "web"),))
PROD = Selector((("env", "prod"),))
NET = ip_network("10.1.0.0/24")

POD = Workload("pod", "web-1", "shop", labels={"app": "web"}, namespace_labels={"env": "prod"})
DNS_POD = Workload("pod", "coredns", "kube-system", labels={"app": "web"}, namespace_labels={"env": "prod"})
AGENT = Workload("pod", "skouter-x", "shop", labels={"app": "web"}, is_agent=True)
NODE = Workload("host", "node-1", node_labels={"app": "web"}, labels={"app": "other"})
VM = Workload("machine", "vm-1", "", labels={"app": "web"}, addresses=(ip_network("10.1.0.5/32"),))
COMMAND = Workload("command", "curl", "shop", labels={"app": "web"})


def egress(**fields):
    return Egress("shop", "x", **fields)


def cluster(**fields):
    return Egress(None, "x", **fields)


@pytest.mark.parametrize(
    ("why", "egress", "workload", "selected"),
    [
        ("{} is every pod of the namespace", egress(pods=ALL), POD, True),
        ("no selector is no pod", egress(), POD, False),
        ("labels match", egress(pods=WEB), POD, True),
        ("labels differ", egress(pods=PROD), POD, False),
        ("another namespace's pods", Egress("other", "x", pods=ALL), POD, False),
        ("an Egress never picks its node", egress(pods=ALL, nodes=ALL), NODE, False),
        ("an Egress never picks a machine", egress(pods=ALL, machines=ALL, sources=(NET,)), VM, False),
        ("a command is picked like a pod", egress(pods=WEB), COMMAND, True),
        ("a command of another namespace", Egress("other", "x", pods=ALL), COMMAND, False),
        ("the cluster's pods", cluster(pods=WEB), POD, True),
        ("a ClusterEgress without selectors", cluster(), POD, False),
        ("namespaces match", cluster(pods=ALL, namespaces=PROD), POD, True),
        ("namespaces differ", cluster(pods=ALL, namespaces=WEB), POD, False),
        ("namespaces alone pick no pods", cluster(namespaces=ALL), POD, False),
        ("kube-system is exempt", cluster(pods=ALL), DNS_POD, False),
        ("kube-system by a namespaceSelector", cluster(pods=ALL, namespaces=ALL), DNS_POD, True),
        ("kube-system by an Egress of its own", Egress("kube-system", "x", pods=ALL), DNS_POD, True),
        ("the agent, by nothing", egress(pods=ALL), AGENT, False),
        ("the agent, not even so", cluster(pods=ALL, namespaces=ALL), AGENT, False),
        ("nodes by the node's labels", cluster(nodes=WEB), NODE, True),
        ("nodes not by other labels", cluster(nodes=Selector((("app", "other"),))), NODE, False),
        ("pods are no nodes", cluster(pods=ALL), NODE, False),
        ("nodes are no pods", cluster(nodes=ALL), POD, False),
        ("machines by labels", cluster(machines=WEB), VM, True),
        ("machines by address", cluster(sources=(NET,)), VM, True),
        ("machines elsewhere", cluster(sources=(ip_network("10.2.0.0/16"),)), VM, False),
        ("pods are no machines", cluster(machines=ALL, sources=(ip_network("0.0.0.0/0"),)), POD, False),
        ("a machine without an address", cluster(sources=(NET,)), Workload("machine"), False),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_who_is_selected(why, egress, workload, selected):
    assert selects(egress, workload) is selected


def test_skouters_own_namespace_may_have_another_name():
    own = Workload("pod", "x", "egress-firewall")
    assert selects(cluster(pods=ALL), own)
    assert not selects(cluster(pods=ALL), own, exempt={"egress-firewall"})


def test_only_policies_select_and_their_order_stays():
    objects = [egress(pods=ALL), ExternalWorkload("vm"), cluster(pods=WEB), egress(pods=PROD)]
    assert selecting(objects, POD) == (objects[0], objects[2])


KEYS = st.sampled_from("ab")
VALUES = st.sampled_from("xy")
LABELS = st.dictionaries(KEYS, VALUES)


@given(
    LABELS,
    LABELS,
    KEYS,
    st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"]),
    st.sets(VALUES, min_size=1),
)
def test_selectors_mean_what_kubernetes_means(wanted, labels, key, operator, values):
    takes = tuple(values) if operator in ("In", "NotIn") else ()
    selector = Selector(tuple(sorted(wanted.items())), (Expression(key, operator, takes),))
    holds = {
        "In": labels.get(key) in values,
        "NotIn": key not in labels or labels[key] not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }[operator]
    expected = wanted.items() <= labels.items() and holds
    assert selects(egress(pods=selector), Workload("pod", "", "shop", labels=labels)) == expected


# ---- Machines: one workload for each source prefix --------------------------------------------------------


def test_the_nearest_external_workload_gives_a_prefix_its_labels():
    objects = [
        ExternalWorkload("lan", (("app", "lan"),), (NET,)),
        ExternalWorkload("vm", (("app", "vm"),), (ip_network("10.1.0.5/32"),)),
        cluster(sources=(ip_network("10.0.0.0/8"), ip_network("10.1.0.0/28"))),
        egress(sources=(ip_network("192.0.2.0/24"),)),
    ]
    found = {str(machine.addresses[0]): (machine.name, machine.labels) for machine in machines(objects)}
    assert found == {
        "10.0.0.0/8": ("10.0.0.0/8", {}),
        "10.1.0.0/24": ("lan", {"app": "lan"}),
        "10.1.0.0/28": ("lan", {"app": "lan"}),
        "10.1.0.5/32": ("vm", {"app": "vm"}),
    }


def test_of_two_with_the_same_address_the_first_by_name_has_it():
    pair = [ExternalWorkload(name, (("app", name),), (NET,)) for name in "ba"]
    assert [machine.name for machine in machines(pair)] == ["a"]
    assert machines(pair) == machines(pair[::-1])


def test_a_machine_inside_a_selected_network_is_selected_by_both():
    by_label, by_network = cluster(machines=WEB), Egress(None, "y", sources=(NET,))
    objects = [ExternalWorkload("vm", (("app", "web"),), (ip_network("10.1.0.5/32"),)), by_label, by_network]
    around, vm = machines(objects)
    assert selecting(objects, vm) == (by_label, by_network)
    assert selecting(objects, around) == (by_network,)


def test_networks_of_one_family_never_lie_in_the_other():
    objects = [cluster(sources=(ip_network("::/0"), ip_network("0.0.0.0/0")))]
    assert [str(machine.addresses[0]) for machine in machines(objects)] == ["0.0.0.0/0", "::/0"]
    assert not selects(cluster(sources=(ip_network("::/0"),)), VM)
