"""How an agent hears of what the API server says: of its node's pods, or of a gateway's policies."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from gateway.kubernetes.acceptance import Acceptance
from gateway.kubernetes.node_pods import NodePods
from gateway.notify import NOTICE, say
from gateway.place import Place
from gateway.request import Mirrored, NodeOf

if TYPE_CHECKING:
    from gateway.kubernetes.mirror import Mirror
    from gateway.kubernetes.source import Kubernetes

# Imported late where they are wanted: the API's client is slow to import.


def source(node: NodeOf | None) -> Kubernetes | None:
    if node is None:
        return None
    from gateway.kubernetes.source import Asked, Kubernetes

    return Kubernetes(node.name, node.kubeconfig, Asked(home=node.namespace))


def mirror(asked: Mirrored | None, where: Place) -> Mirror | None:
    if asked is None:
        return None
    from gateway.kubernetes.mirror import Mirror
    from gateway.kubernetes.source import Asked, Kubernetes

    wanted = Asked(gateway=True, peers=asked.peers, dns=())
    return Mirror(Kubernetes(where.name, asked.kubeconfig, wanted), where.mirror)


async def follow(
    source: Kubernetes, pods: NodePods, changed: Callable[[], None], nursery: trio.Nursery
) -> None:
    """For ever; `changed` is called when `pods` have another cluster."""
    await nursery.start(source.run)
    acceptance = Acceptance(source)
    nursery.start_soon(acceptance.run)
    while True:
        pods.cluster = source.cluster
        acceptance.look(pods.cluster)
        changed()
        await source.changed()


async def first(mirror: Mirror, nursery: trio.Nursery) -> None:
    """Has it follow; returns when there is something to begin with, of an earlier agent if need be."""
    if mirror.is_there:
        nursery.start_soon(mirror.run)
    else:
        say("waiting for the policies of the API server: nothing is enforced yet", NOTICE)
        await nursery.start(mirror.run)


def away(source: Kubernetes | None, is_ready: bool) -> list[str]:
    """What to tell while the API server does not answer."""
    if source is None or source.health.connected:
        return []
    if not is_ready:
        return [f"the API server has not told everything yet, all stays as it is: {source.health.error}"]
    return [f"the API server does not answer, what it said last holds: {source.health.error}"]
