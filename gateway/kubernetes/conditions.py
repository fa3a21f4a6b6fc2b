"""The condition Accepted: what an object's author is told, and when an agent writes it.

The rules this file must obey:

* A condition is a function of the object's spec alone: every agent of a cluster would write the same.
* What is there for the same generation stands, unless this agent never saw its own there: agents of two
  versions that disagree write once each, not for ever.
* Never is a condition written over that of a newer generation.

Source: API conventions of Kubernetes, "Typical status properties"; metav1.Condition.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from gateway.kubernetes.api_objects import Condition, Item
from gateway.policies.records import Problem
from gateway.policies.schema import API_VERSION

ACCEPTED, RULES_IGNORED, INVALID = "Accepted", "RulesIgnored", "Invalid"
MOST = 10  # problems that a message names
LONGEST = 4096  # characters of it


def condition(item: Item, problems: Iterable[Problem] = (), reason: str = RULES_IGNORED) -> Condition:
    """`problems` are those of its spec that reading does not find; `reason` is a word for them."""
    found = (*item.problems, *problems)
    if not found:
        return Condition(
            True, ACCEPTED, "every rule is in force wherever the object selects", item.generation
        )
    lines = [_line(problem) for problem in found[:MOST]]
    if more := len(found) - len(lines):
        lines.append(f"and {more} more")
    if item.object is None or item.stale:
        kept = (
            "the last version that could be read stays in force"
            if item.stale
            else "nothing of it is in force"
        )
        return Condition(False, INVALID, _cut("; ".join((kept, *lines))), item.generation)
    kept = "these grant nothing, the others are in force"
    word = RULES_IGNORED if item.problems else reason
    return Condition(False, word, _cut("; ".join((kept, *lines))), item.generation)


def stands(item: Item, wanted: Condition) -> bool:
    """Whether `wanted` is what the object says of itself already."""
    have = item.condition
    return have is not None and _meaning(have) == _meaning(wanted)


def may_write(item: Item, wanted: Condition) -> bool:
    """Whether `wanted` is about the object as it is, and what is there is not about a newer one."""
    have = item.condition
    return wanted.generation == item.generation and (have is None or have.generation <= wanted.generation)


def body(
    kind: str, name: str, namespace: str | None, item: Item, wanted: Condition, now: str
) -> dict[str, Any]:
    """For a server-side apply of the status; `now` in RFC 3339. The server refuses it (409) where the object
    is no longer the one that was read, by its version."""
    metadata: dict[str, Any] = {"name": name, "uid": item.uid, "resourceVersion": item.version}
    if namespace is not None:
        metadata["namespace"] = namespace
    have = item.condition
    since = have.since if have is not None and have.status == wanted.status and have.since else now
    entry = {
        "type": "Accepted",
        "status": str(wanted.status),
        "reason": wanted.reason,
        "message": wanted.message,
        "observedGeneration": wanted.generation,
        "lastTransitionTime": since,
    }
    return {
        "apiVersion": API_VERSION,
        "kind": kind,
        "metadata": metadata,
        "status": {"conditions": [entry]},
    }


def _meaning(condition: Condition) -> tuple[bool, str, str, int]:
    return condition.status, condition.reason, condition.message, condition.generation


def _line(problem: Problem) -> str:
    return ": ".join(filter(None, (problem.field, problem.wrong))) + f" ({problem.mend})"


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"
