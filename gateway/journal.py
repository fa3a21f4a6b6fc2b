"""Refusals as lines of a log: from events to sentences by name, few enough to be read.

The rules this file must obey:

* Pure: takes events and the time (seconds, of any clock that never goes back), and returns lines.
* A refusal is told at once, its like (workload, destination, reason) once a minute with their number. Beyond
  so many lines in a second everything waits; nothing that was counted is forgotten before it was told.
* Memory is bounded, whatever the workloads do. What finds no room is told as a number.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gateway.report import ANSWERS, Told, destination, not_learned, printable

AGAIN = 60.0  # seconds between two lines about the same
LINES = 10  # in a second, at most
ROOM = 4096  # refusals that differ, and names of addresses

Key = tuple[str, ...]
NO_ROOM: Key = ()


@dataclass(slots=True)
class _Line:
    """`count` of events since the line was last told, which was at `told`; never is long ago."""

    before: str
    after: str
    count: int = 0
    told: float = float("-inf")

    def __str__(self) -> str:
        return self.before + (f" ({self.count} times)" if self.count > 1 else "") + self.after


class Journal:
    """What all workloads were refused. `sentences` says each reason in words."""

    def __init__(self, sentences: Mapping[str, str]) -> None:
        self.sentences = sentences
        self._names: dict[tuple[str, str], str] = {}
        self._lines: dict[Key, _Line] = {}
        self._second, self._told = 0, 0

    def add(self, workload: str, event: Told, now: float) -> list[str]:
        """An event of a workload; the lines that it makes, if any."""
        address = str(event.remote)
        if event.reason in ANSWERS:
            self._remember(workload, address, event.name)
        if event.reason == "NEVER_LEARNED":
            before = f"not learned for {workload}: {not_learned(event.name, address)}"
            return self._count((workload, event.name, event.reason), before, "", now)
        if event.reason in ANSWERS or event.verdict == "PASS" or event.reason == "HELD_BACK":
            return []  # what is held back is tried again, and told then if it is refused
        at = destination(event, self._names.get((workload, address), ""))
        verb = "would refuse" if event.verdict == "WOULD_DROP" else "refused"
        key = (workload, at.name or address, at.protocol, str(at.port), event.reason)
        return self._count(key, f"{verb} {workload}: {at}", f": {self.sentences[event.reason]}", now)

    def note(self, workload: str, event: Told) -> str:
        """A refusal as a sentence without numbers that change; "" for everything else."""
        if event.reason in ANSWERS or event.verdict != "DROP":
            return ""
        at = destination(event, self._names.get((workload, str(event.remote)), ""))
        return printable(f"refused {at}: {self.sentences[event.reason]}")

    def due(self, now: float) -> list[str]:
        """What has waited long enough; to be asked for about once a second."""
        out = []
        for key, line in list(self._lines.items()):
            if line.told + AGAIN > now:
                continue
            if line.count == 0:
                del self._lines[key]
            elif self._may_tell(now):
                out.append(_told(line, now))
        return out

    def forget(self, workload: str) -> None:
        """The names of a workload that is no more; its last lines are still told."""
        self._names = {key: name for key, name in self._names.items() if key[0] != workload}

    def _remember(self, workload: str, address: str, name: str) -> None:
        self._names.pop((workload, address), None)
        if len(self._names) >= ROOM:
            del self._names[next(iter(self._names))]
        self._names[workload, address] = name

    def _count(self, key: Key, before: str, after: str, now: float) -> list[str]:
        line = self._lines.get(key)
        if line is None:
            if len(self._lines) >= ROOM:
                key, before, after = NO_ROOM, "refused more", ": too many destinations to name them all"
            line = self._lines.setdefault(key, _Line(before, after))
        line.count += 1
        return [_told(line, now)] if line.told + AGAIN <= now and self._may_tell(now) else []

    def _may_tell(self, now: float) -> bool:
        if self._second != int(now):
            self._second, self._told = int(now), 0
        self._told += 1
        return self._told <= LINES


def _told(line: _Line, now: float) -> str:
    text = printable(str(line))
    line.count, line.told = 0, now
    return text
