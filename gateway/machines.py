"""The machines behind a gateway: which source is held to which policy.

The rules this file must obey:

* Pure: objects and configuration to a plan; sources.py writes it into the kernel.
* The longest prefix decides, as in the kernel's table. Every client network is in it: what nothing selects
  there is refused, names too, or let through where the configuration says so. Outside of these networks
  nobody is forwarded, whoever selects them: that is told.
* Machines that are held to the same share a policy's number (groups.py).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from gateway.gateway_settings import GatewaySettings
from gateway.groups import MACHINES, assign
from gateway.kubernetes.pods import Terms, digest
from gateway.plan import EXEMPT, Wanted
from gateway.policies.addresses import Network, inside
from gateway.policies.policy import Policy, union
from gateway.policies.records import Object
from gateway.policies.selection import machines, selecting

UNREGISTERED = "unregistered"  # what a client is called that no object names
NOTHING = Policy(only_allowed_names=True)  # not even a question leaves


@dataclass(frozen=True, slots=True)
class Machines:
    """`wanted` policies by the name of their group; `under`: source to group, EXEMPT where all may pass."""

    wanted: Mapping[str, Wanted] = field(default_factory=dict)
    under: Mapping[Network, str] = field(default_factory=dict)
    titles: Mapping[Network, str] = field(default_factory=dict)
    told: tuple[str, ...] = ()


def plan(
    objects: Collection[Object],
    settings: GatewaySettings,
    at: Mapping[Network, str],
    said: Mapping[str, str | None],
) -> Machines:
    """`at`: the group of each source now; `said`: what each group says now (`pods.digest`)."""
    policies: dict[Network, Policy] = {}
    by: dict[str, set[str]] = {}
    titles, told = dict[Network, str](), []
    for machine in machines(objects, settings.clients):
        (source,) = machine.addresses
        if any(inside(network, source) for network in settings.clients if network != source):
            continue  # wider than what is forwarded: its objects select each of these networks
        if not any(inside(source, network) for network in settings.clients):
            told.append(
                f"machine {machine.name}: {source} is in none of the clients' networks: not forwarded"
            )
            continue
        selected = selecting(objects, machine)
        titles[source] = machine.name if selected or source not in settings.clients else UNREGISTERED
        policy = union(selected) or (None if settings.lets_unselected else NOTHING)
        if policy is not None:
            policies[source] = policy
            by.setdefault(digest(Terms(policy)), set()).update(map(str, selected))
    keys = {source: digest(Terms(policy)) for source, policy in policies.items()}
    meant = {keys[source]: policy for source, policy in policies.items()}
    groups = assign(
        {str(source): key for source, key in keys.items()},
        (),
        {str(source): name for source, name in at.items() if name != EXEMPT},
        {name: key for name, key in said.items() if name.startswith(MACHINES)},
        prefix=MACHINES,
    )
    wanted = {
        name: Wanted(meant[key], frozenset(), tuple(sorted(by.get(key, ()))), says=key)
        for name, key in groups.says.items()
        if key in meant
    }
    under = {source: groups.of.get(str(source), EXEMPT) for source in titles}
    return Machines(wanted, under, titles, tuple(told))


def acting(objects: Collection[Object]) -> set[str]:
    """Names of the objects that select some machine."""
    return {str(egress) for machine in machines(objects) for egress in selecting(objects, machine)}
