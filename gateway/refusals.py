"""What the kernel refused, told: as lines of the log, and as Events of the pods.

Rules this file obeys:

- A pod is told of by its own name, not by that of its group.
- What looks forged may come from an address that a pod got since it was looked at: it is looked at again, but
  how often is not for a pod to say.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from bpf.events import SENTENCES, decode
from gateway.journal import Journal
from gateway.node_pods import NodePods
from gateway.notify import WARNING, say

if TYPE_CHECKING:
    from gateway.source_kubernetes import Kubernetes

AGAIN = 5.0  # seconds between two looks at pods that seem to forge
REASON = "EgressDenied"  # of the Events


class Refusals:
    """`look_again` has the pod at a path looked at. Without a cluster there is no `source`, and no pod."""

    def __init__(
        self, pods: NodePods | None, source: Kubernetes | None, look_again: Callable[[str], None]
    ) -> None:
        self._pods, self._source, self._look_again = pods, source, look_again
        self._journal = Journal(SENTENCES)
        self._looked = float("-inf")

    def teller(self, name: str) -> Callable[[bytes], None]:
        """What takes in the events of a workload."""
        return lambda data: self._tell(name, data)

    def forget(self, name: str) -> None:
        self._journal.forget(name)

    async def tell_what_waited(self) -> None:
        while True:
            await trio.sleep(1)
            for line in self._journal.due(trio.current_time()):
                say(line, WARNING)

    def _tell(self, name: str, data: bytes) -> None:
        event, now = decode(data), trio.current_time()
        titled = self._pods.by_id.get(event.workload) if self._pods else None
        if titled and titled.pod and self._source and (note := self._journal.note(titled.title, event)):
            self._source.tell(titled.pod, REASON, note)
        if titled and event.reason == "SPOOFED" and now > self._looked + AGAIN:
            self._looked = now
            self._look_again(titled.path)
        for line in self._journal.add(titled.title if titled else name, event, now):
            say(line, WARNING)
