"""What an agent writes at the API server: conditions of objects, and Events.

The rules this file must obey:

- No leader: every agent means to write each condition, at a random moment within `spread`, and then finds it
  written. Whoever comes between reading and writing is refused by the server (the version of what was read
  goes with it), so an object gets one write, however many agents there are.
- Server-side apply of the status, under one name for all agents: it owns the condition Accepted and nothing
  else, where a patch of the list would carry away what others wrote into it.
- What can't be written is tried again later, Events are not: they tell of the moment. Nothing here ever
  holds up enforcement.
- Events of what has no namespace (the node) lie in `default`, as the API wants it.

Source: KEP-555 (server-side apply), KEP-383 (Events), API conventions of Kubernetes.
"""

from __future__ import annotations

import heapq
import math
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import trio

from gateway.kubernetes import conditions
from gateway.kubernetes.api_objects import Condition, Item
from gateway.kubernetes.api_server import APPLY, Data, Door, ServerError
from gateway.kubernetes.cluster import Node, Pod
from gateway.kubernetes.crds import NAMES
from gateway.kubernetes.pod_events import PodEvents, Told
from gateway.policies.records import Problem
from gateway.policies.schema import API_VERSION

MANAGER = "skouter"
EVENTS = "/apis/events.k8s.io/v1/namespaces/{}/events"
MERGE = "application/merge-patch+json"
EACH = 0.1  # seconds that are added to the spread for each object that waits
PAUSE = 1.0  # between two looks at what is to be told
LONGEST_NOTE = 1024  # bytes
ROOM = 20_000  # objects whose condition was seen

Key = tuple[str, str]  # kind, namespace/name


@dataclass(slots=True)
class _Waiting:
    uid: str
    wanted: Condition
    due: float


class Writer:
    """`item` gives an object as it is known now. `error` is why the last write failed."""

    def __init__(
        self, door: Door, node: str, spread: float, later: float, item: Callable[[str, str], Item | None]
    ) -> None:
        self.door, self.node, self.spread, self.later, self.item = door, node, spread, later, item
        self.error = ""
        self._waiting: dict[Key, _Waiting] = {}
        self._queue: list[tuple[float, Key]] = []  # by when they are due
        self._done: dict[Key, tuple[str, int]] = {}  # uid and generation whose condition was seen once
        self._more = trio.Event()
        self._events = PodEvents()
        self._conditions_written = self._events_written = 0

    def accept(self, kind: str, key: str, item: Item, problems: tuple[Problem, ...], reason: str) -> None:
        at, wanted = (kind, key), conditions.condition(item, problems, reason)
        if self._is_done(at, item, wanted):
            self._waiting.pop(at, None)
        elif (before := self._waiting.get(at)) is None or (before.uid, before.wanted) != (item.uid, wanted):
            self._wait(at, item.uid, wanted)

    def tell(self, about: Pod | Node, reason: str, note: str, count: int) -> None:
        self._events.add(about, reason, note, time.time(), count)

    def counts(self) -> dict[str, int]:
        lost = self._events.lost
        return {"conditions": self._conditions_written, "events": self._events_written, "events_lost": lost}

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write_conditions)
            nursery.start_soon(self._write_events)

    # ---- Conditions ---------------------------------------------------------------------------------------

    async def _write_conditions(self) -> None:
        while True:
            due, at = self._queue[0] if self._queue else (math.inf, None)
            if at is None or due > trio.current_time():
                self._more = trio.Event()
                with trio.move_on_at(due):
                    await self._more.wait()
                continue
            heapq.heappop(self._queue)
            if at in self._waiting and self._waiting[at].due == due:  # else it was put off, or is done
                await self._write(at)

    async def _write(self, at: Key) -> None:
        waiting, item = self._waiting.pop(at), self.item(*at)
        if item is None or item.uid != waiting.uid or not conditions.may_write(item, waiting.wanted):
            return  # who sees what came in its place asks for that
        if self._is_done(at, item, waiting.wanted):
            return
        try:
            await trio.to_thread.run_sync(self._apply, at, item, waiting.wanted, abandon_on_cancel=True)
        except ServerError as error:
            if error.status == 404:
                return
            is_behind = (
                error.status == 409
            )  # another agent, most likely: the watch tells before it is due again
            if not is_behind:
                self.error = f"the condition of {at[0]} {at[1]} can't be written: {error}"
            if at not in self._waiting:
                self._wait(
                    at, waiting.uid, waiting.wanted, 0.0 if is_behind else max(self.later, error.retry_after)
                )
        else:
            self._conditions_written += 1
            self.error = ""
            self._done[at] = item.uid, item.generation

    def _apply(self, at: Key, item: Item, wanted: Condition) -> None:
        kind, (namespace, _, name) = at[0], at[1].rpartition("/")
        body = conditions.body(kind, name, namespace or None, item, wanted, _rfc3339(time.time()))
        inside = f"namespaces/{namespace}/" if namespace else ""
        path = f"/apis/{API_VERSION}/{inside}{NAMES[kind].plural}/{name}/status"
        self.door.send("PATCH", path, body, APPLY, fieldManager=MANAGER, force="true")

    def _is_done(self, at: Key, item: Item, wanted: Condition) -> bool:
        if conditions.stands(item, wanted):
            if len(self._done) >= ROOM:
                self._done.clear()  # at worst two versions of agents write a condition once more
            self._done[at] = item.uid, item.generation
        return self._done.get(at) == (item.uid, item.generation)

    def _wait(self, at: Key, uid: str, wanted: Condition, least: float = 0.0) -> None:
        """The more there is to write, the longer it may take: no burst when a whole set is new."""
        spread = self.spread + EACH * len(self._waiting) if self.spread else 0.0
        due = trio.current_time() + least + random.uniform(0, spread)
        self._waiting[at] = _Waiting(uid, wanted, due)
        heapq.heappush(self._queue, (due, at))
        self._more.set()

    # ---- Events -------------------------------------------------------------------------------------------

    async def _write_events(self) -> None:
        while True:
            for told in self._events.due(time.time()):
                try:
                    await trio.to_thread.run_sync(self._send, told, abandon_on_cancel=True)
                    self._events_written += 1
                    self.error = ""
                except ServerError as error:
                    self._events.failed(told)
                    self.error = f"the event of {told.about} can't be written: {error}"
            await trio.sleep(PAUSE)

    def _send(self, told: Told) -> None:
        namespace = told.about.namespace if isinstance(told.about, Pod) else "default"
        path = EVENTS.format(namespace)
        if told.is_new:
            self.door.send("POST", path, _event(told, namespace, self.node))
            told.is_new = False
        else:
            self.door.send("PATCH", f"{path}/{told.name}", {"series": _series(told)}, MERGE)


def _event(told: Told, namespace: str, node: str) -> Data:
    about = told.about
    if isinstance(about, Pod):
        regarding = {"kind": "Pod", "namespace": about.namespace, "name": about.name, "uid": about.uid}
    else:  # whose events are looked up by its name, as kubelet writes them
        regarding = {"kind": "Node", "name": about.name, "uid": about.name}
    body: dict[str, Any] = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": told.name, "namespace": namespace},
        "eventTime": _micro(told.first),
        "reportingController": "egress.skouter/agent",
        "reportingInstance": f"skouter-{node}"[:128],
        "action": "Refuse",
        "reason": told.reason,
        "note": told.note.encode()[:LONGEST_NOTE].decode(errors="ignore"),
        "type": "Warning",
        "regarding": {"apiVersion": "v1", **regarding},
    }
    return body | ({"series": _series(told)} if told.count > 1 else {})


def _series(told: Told) -> Data:
    return {"count": told.count, "lastObservedTime": _micro(told.last)}


def _rfc3339(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _micro(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
