"""Whether the kernel half can hold all that an object of the cluster says, told to its author.

Rules this file obeys:

- What is told depends on the object alone, not on what else selects the same pods: every agent would say it.
- One object after the other, in a thread, and each of them once: enforcement never waits for this.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import trio

from gateway import automata
from gateway.kubernetes.cluster import Cluster
from gateway.policies import tables
from gateway.policies.policy import union
from gateway.policies.records import Egress, Object, Problem

if TYPE_CHECKING:
    from gateway.kubernetes.source import Kubernetes

MEND = "write fewer or simpler ones, or part them among several objects"


class Acceptance:
    """`look` says that there may be new objects; `run` tells of each, for ever."""

    def __init__(self, source: Kubernetes) -> None:
        self._source = source
        self._told: dict[str, Object] = {}
        self._waiting: dict[str, Object] = {}
        self._more = trio.Event()

    def look(self, cluster: Cluster) -> None:
        there = {str(item): item for item in cluster.objects}
        self._told = {name: item for name, item in self._told.items() if there.get(name) is item}
        self._waiting = {name: item for name, item in there.items() if name not in self._told}
        self._more.set()

    async def run(self) -> None:
        while True:
            await self._more.wait()
            self._more = trio.Event()
            while self._waiting:
                name, item = next(iter(self._waiting.items()))
                problems = await trio.to_thread.run_sync(found, item)
                if self._waiting.get(name) is item:
                    del self._waiting[name]
                    self._told[name] = item
                    self._source.accept(item, problems)


def found(item: Object) -> list[Problem]:
    """What of an object alone the kernel's tables have no room for."""
    policy = union([item]) if isinstance(item, Egress) else None
    if policy is None:
        return []
    automaton, left_out = automata.automaton_of(policy)
    lines: Iterable[str] = (*tables.compile(policy, 1, None, automaton).problems, *left_out)
    return [Problem("cluster", None, str(item), "spec.rules", line, MEND) for line in lines]
