"""What the kernel refused, told: as lines of the log, and as Events of the pods.

Rules this file obeys:

- A pod is told of by its own name, not by that of its group.
- Each policy that is held has a ring of its own, and a task that empties it. When the policy goes, what is
  still in its ring is told first.
- What looks forged may come from an address that a pod got since it was looked at: it is looked at again, but
  how often is not for a pod to say.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import trio

from bpf import kernel
from bpf.events import SENTENCES, Event, decode
from gateway.engine import Held
from gateway.journal import Journal
from gateway.kubernetes.node_pods import NodePods
from gateway.notify import WARNING, say

if TYPE_CHECKING:
    from gateway.kubernetes.source import Kubernetes

AGAIN = 5.0  # seconds between two looks at pods that seem to forge
REASON = "EgressDenied"  # of the Events


class Refusals:
    """`look_again` has the pod at a path looked at. Without a cluster there is no `source`, and no pod.
    `hear` is told of every event, and may know a name for its workload."""

    def __init__(
        self,
        pods: NodePods | None,
        source: Kubernetes | None,
        look_again: Callable[[str], None],
        hear: Callable[[Event], str] = lambda _event: "",
    ) -> None:
        self._pods, self._source, self._look_again = pods, source, look_again
        self._hear = hear
        self._journal = Journal(SENTENCES)
        self._looked = float("-inf")
        self._listening: dict[str, trio.CancelScope] = {}

    def listen(self, held: Mapping[str, Held], nursery: trio.Nursery) -> None:
        """To the policies that are held now, by name, and to no others."""
        for name in self._listening.keys() - held.keys():
            self._listening.pop(name).cancel()
        for name in held.keys() - self._listening.keys():
            self._listening[name] = trio.CancelScope()
            ring = kernel.Ring(held[name].ring, partial(self._tell, name))
            nursery.start_soon(self._follow, name, ring, self._listening[name])

    async def tell_what_waited(self) -> None:
        while True:
            await trio.sleep(1)
            for line in self._journal.due(trio.current_time()):
                say(line, WARNING)

    async def _follow(self, name: str, ring: kernel.Ring, scope: trio.CancelScope) -> None:
        with scope:
            try:
                while True:
                    await trio.lowlevel.wait_readable(ring.fileno())
                    ring.consume()
            finally:
                ring.consume()
                ring.close()
                self._journal.forget(name)

    def _tell(self, name: str, data: bytes) -> None:
        event, now = decode(data), trio.current_time()
        name = self._hear(event) or name
        titled = self._pods.by_id.get(event.workload) if self._pods else None
        if titled and titled.pod and self._source and (note := self._journal.note(titled.title, event)):
            self._source.tell(titled.pod, REASON, note)
        if titled and event.reason == "SPOOFED" and now > self._looked + AGAIN:
            self._looked = now
            self._look_again(titled.path)
        for line in self._journal.add(titled.title if titled else name, event, now):
            say(line, WARNING)
