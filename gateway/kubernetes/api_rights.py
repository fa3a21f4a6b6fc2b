"""What an agent asks of the API server, and so what its ClusterRole and Role must allow: this and no more.

The rules this file must obey:

* A table and nothing else. Tests run the agent with exactly these rights, take each away and see it told, and
  compare what is deployed with it.
* A right of one namespace is the Role's there, every other one the ClusterRole's.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gateway.kubernetes.crds import NAMES
from gateway.policies.schema import GROUP, KINDS

READ = ("list", "watch")


@dataclass(frozen=True, slots=True)
class Right:
    """`verbs` on `resource` (plural, or plural/subresource) of `group`. `names`: of these objects alone;
    `namespace`: only there, "*" in each."""

    group: str
    resource: str
    verbs: tuple[str, ...]
    names: tuple[str, ...] = ()
    namespace: str = "*"


def _of_definitions(kinds: Iterable[str]) -> Right:
    """Whether its objects were deleted, or their definition."""
    names = tuple(f"{NAMES[kind].plural}.{GROUP}" for kind in kinds)
    return Right("apiextensions.k8s.io", "customresourcedefinitions", ("get",), names)


RIGHTS = (
    Right("", "pods", READ),
    Right("", "namespaces", READ),
    Right("", "nodes", READ),
    Right("networking.k8s.io", "servicecidrs", READ),
    *(Right(GROUP, NAMES[kind].plural, READ) for kind in KINDS),
    *(Right(GROUP, f"{NAMES[kind].plural}/status", ("patch",)) for kind in KINDS),
    _of_definitions(KINDS),
    Right("events.k8s.io", "events", ("create", "patch")),
    # The cluster's DNS, in whichever namespace it is.
    Right("", "services", READ, namespace="kube-system"),
    Right("discovery.k8s.io", "endpointslices", READ, namespace="kube-system"),
    # Whether its DaemonSet goes away, and who may read its metrics.
    Right("apps", "daemonsets", READ, names=("skouter",), namespace="skouter-system"),
    Right("authentication.k8s.io", "tokenreviews", ("create",)),
    Right("authorization.k8s.io", "subjectaccessreviews", ("create",)),
)
# Of a gateway, outside of any cluster: what may select machines (an Egress never does). The other gateways'
# addresses are in whichever namespace its configuration names.
OF_MACHINES = ("ClusterEgress", "ExternalWorkload")
RIGHTS_OF_GATEWAY = (
    *(Right(GROUP, NAMES[kind].plural, READ) for kind in OF_MACHINES),
    *(Right(GROUP, f"{NAMES[kind].plural}/status", ("patch",)) for kind in OF_MACHINES),
    _of_definitions(OF_MACHINES),
    Right("discovery.k8s.io", "endpointslices", READ, namespace="skouter-system"),
)
