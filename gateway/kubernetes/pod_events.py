"""Refusals as Events of a pod: which are written, and how often, whatever the pods do.

The rules this file must obey:

* Pure: takes what happened and the time (seconds since 1970), returns what is to be written.
* One event for a pod, a reason and a note; what happens again is counted in its series, written at most
  every few minutes. A note must not hold a number that changes.
* A pod has so many events at once and gets new ones slowly, and so has the node: etcd keeps each for an hour.
  What finds no room is counted (`lost`) and told elsewhere, by the journal and the metrics.

Source: KEP-383 (events.k8s.io/v1), EventSeries.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from gateway.kubernetes.cluster import Node, Pod

AGAIN = 300.0  # seconds between two writes of one event
FORGET = 900.0  # after which it is another event
POD, POD_REFILL = 20, 60.0  # new events of a pod at once, and seconds for one more
NODE, NODE_REFILL = 200, 2.0  # writes of a node

About = Pod | Node


@dataclass(slots=True)
class Told:
    """One event; `count` of times that it happened, `first` and `last`. It `is_new` until it was written."""

    name: str
    about: About
    reason: str
    note: str
    first: float
    last: float
    count: int = 1
    is_new: bool = True
    written: float = 0.0
    written_count: int = 0


@dataclass(slots=True)
class _Bucket:
    room: float
    at: float

    def take(self, most: int, refill: float, now: float) -> bool:
        self.room = min(most, self.room + max(0.0, now - self.at) / refill)
        self.at = now
        if self.room < 1:
            return False
        self.room -= 1
        return True


@dataclass(slots=True)
class PodEvents:
    lost: int = 0
    _told: dict[tuple[str, str, str], Told] = field(default_factory=dict)
    _pods: dict[str, _Bucket] = field(default_factory=dict)
    _node: _Bucket = field(default_factory=lambda: _Bucket(NODE, 0.0))

    def add(self, about: About, reason: str, note: str, now: float, count: int = 1) -> None:
        uid = about.uid if isinstance(about, Pod) else about.name
        key = uid, reason, note
        if (told := self._told.get(key)) is not None:
            told.count += count
            told.last = now
        elif self._pods.setdefault(uid, _Bucket(POD, now)).take(POD, POD_REFILL, now):
            self._told[key] = Told(_name(about, key, now), about, reason, note, now, now, count)
        else:
            self.lost += count

    def due(self, now: float) -> list[Told]:
        """What is to be written now; each counts as written from here on."""
        self._forget(now)
        return list(self._take(now))

    def failed(self, told: Told) -> None:
        """It was not written; it is again when it next happens, as an event of its own."""
        self._told = {key: each for key, each in self._told.items() if each is not told}
        self.lost += told.count

    def _take(self, now: float) -> Iterator[Told]:
        for told in self._told.values():
            if told.count > told.written_count and told.written + AGAIN <= now:
                if not self._node.take(NODE, NODE_REFILL, now):
                    return
                told.written, told.written_count = now, told.count
                yield told

    def _forget(self, now: float) -> None:
        for key, told in list(self._told.items()):
            if told.last + FORGET <= now and told.count == told.written_count:
                del self._told[key]
        for uid, bucket in list(self._pods.items()):
            if bucket.at + POD * POD_REFILL <= now:  # full again
                del self._pods[uid]


def _name(about: About, key: tuple[str, str, str], now: float) -> str:
    """As long as a name may be, and another one each time."""
    digest = hashlib.sha256("\0".join((*key, str(now))).encode()).hexdigest()
    return f"{about.name[:200].rstrip('.-')}.{digest[:16]}"
