"""The plan of a gateway: which source is under which policy."""

import ipaddress
from collections.abc import Mapping

from gateway.gateway_settings import GatewaySettings
from gateway.machines import NOTHING, Machines, acting, plan
from gateway.plan import EXEMPT
from gateway.policies import documents
from gateway.policies.addresses import Network
from gateway.policies.records import Object

API = "apiVersion: egress.skouter/v1alpha1\n"
network = ipaddress.ip_network
CLIENTS = (network("10.0.0.0/8"), network("fd00::/16"))


def machine(name: str, *addresses: str, app: str) -> str:
    where = ", ".join(f'"{address}"' for address in addresses)
    return (
        f"---\n{API}kind: ExternalWorkload\nmetadata: {{name: {name}, labels: {{app: {app}}}}}\n"
        f"spec: {{addresses: [{where}]}}\n"
    )


def policy(name: str, domain: str, selector: str) -> str:
    return (
        f"---\n{API}kind: ClusterEgress\nmetadata: {{name: {name}}}\n"
        f"spec: {{{selector}, rules: [{{domains: [{domain}]}}]}}\n"
    )


def by_label(app: str) -> str:
    return f"workloadSelector: {{matchLabels: {{app: {app}}}}}"


def read(*texts: str) -> list[Object]:
    found, problems = documents.read("".join(texts), "test") if texts else ([], [])
    assert not problems
    return found


def planned(
    *texts: str,
    lets: bool = False,
    at: Mapping[Network, str] | None = None,
    said: Mapping[str, str | None] | None = None,
) -> Machines:
    settings = GatewaySettings(clients=CLIENTS, lets_unselected=lets)
    return plan(read(*texts), settings, at or {}, said or {})


def allowed(made: Machines, source: str) -> list[str]:
    return sorted(peer.text for peer, _ in made.wanted[made.under[network(source)]].policy.grants)


def test_every_client_network_is_denied_everything_and_every_question() -> None:
    made = planned()
    assert {*made.under} == {*CLIENTS}
    assert {made.wanted[name].policy for name in made.under.values()} == {NOTHING}
    assert NOTHING.only_allowed_names
    assert not NOTHING.grants


def test_or_let_through_where_that_is_said() -> None:
    made = planned(lets=True)
    assert {*made.under.values()} == {EXEMPT}
    assert not made.wanted


def test_machines_that_are_held_to_the_same_share_a_group() -> None:
    made = planned(
        machine("one", "10.1.0.1", app="web"),
        machine("two", "10.1.0.2", "fd00::2", app="web"),
        machine("three", "10.1.0.3", app="db"),
        policy("web", "web.example", by_label("web")),
        policy("db", "db.example", by_label("db")),
    )
    web = {made.under[network(source)] for source in ("10.1.0.1/32", "10.1.0.2/32", "fd00::2/128")}
    assert len(web) == 1
    assert allowed(made, "10.1.0.1/32") == ["web.example"]
    assert allowed(made, "10.1.0.3/32") == ["db.example"]
    assert made.wanted[web.pop()].objects == ("ClusterEgress web",)
    assert made.titles[network("fd00::2/128")] == "two"


def test_the_longest_prefix_decides_and_sources_join_labels() -> None:
    made = planned(
        machine("one", "10.1.0.1", app="web"),
        policy("web", "web.example", by_label("web")),
        policy("all", "all.example", "sourceCIDRs: [10.1.0.0/16]"),
    )
    assert allowed(made, "10.1.0.0/16") == ["all.example"]
    assert allowed(made, "10.1.0.1/32") == ["all.example", "web.example"]


def test_what_selects_more_than_a_client_network_selects_it() -> None:
    made = planned(policy("all", "all.example", "sourceCIDRs: [0.0.0.0/0]"), lets=True)
    assert allowed(made, "10.0.0.0/8") == ["all.example"]
    assert made.under[network("fd00::/16")] == EXEMPT
    assert not made.told
    labelled = planned(machine("site", "8.0.0.0/6", app="web"), policy("web", "web.example", by_label("web")))
    assert allowed(labelled, "10.0.0.0/8") == ["web.example"]
    assert labelled.titles[network("10.0.0.0/8")] == "site"


def test_a_registered_machine_that_nothing_selects_is_as_an_unregistered_one() -> None:
    one = machine("one", "10.1.0.1", app="web")
    made = planned(one)
    assert made.wanted[made.under[network("10.1.0.1/32")]].policy == NOTHING
    assert planned(one, lets=True).under[network("10.1.0.1/32")] == EXEMPT


def test_a_machine_outside_the_clients_networks_is_told_and_not_forwarded() -> None:
    made = planned(machine("far", "192.0.2.1", app="web"), policy("web", "web.example", by_label("web")))
    assert network("192.0.2.1/32") not in made.under
    assert made.told == ("machine far: 192.0.2.1/32 is in none of the clients' networks: not forwarded",)


def test_a_policy_changes_in_place_where_all_of_its_machines_change() -> None:
    one = machine("one", "10.1.0.1", app="web")
    before = planned(one, policy("web", "web.example", by_label("web")))
    said = {name: wanted.says for name, wanted in before.wanted.items()}
    after = planned(one, policy("web", "other.example", by_label("web")), at=before.under, said=said)
    assert after.under == before.under
    assert allowed(after, "10.1.0.1/32") == ["other.example"]


def test_objects_that_select_machines_act() -> None:
    objects = read(
        machine("one", "10.1.0.1", app="web"),
        policy("web", "web.example", by_label("web")),
        policy("idle", "idle.example", by_label("nobody")),
    )
    assert acting(objects) == {"ClusterEgress web"}
