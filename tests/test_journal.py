"""Refusals as log lines: by name, and never too many of them."""

import re
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gateway.journal import LINES, ROOM, Journal

SENTENCES = {
    "NOT_ALLOWED": "no rule allows this address",
    "EXPIRED": "it ran out",
    "QUESTION_REFUSED": "its name is not allowed",
}


@dataclass(frozen=True)
class Event:
    """The fields of bpf.events.Event that a journal looks at."""

    remote: Any = "192.0.2.80"
    reason: str = "NOT_ALLOWED"
    verdict: str = "DROP"
    protocol: int = 6
    remote_port: int = 443
    process: str = "nginx"
    name: str = ""


SEEN = Event(reason="SEEN", name="telemetry.example.net")
LINE = "refused web: telemetry.example.net (192.0.2.80) TCP 443 by nginx: no rule allows this address"


def journal() -> Journal:
    return Journal(SENTENCES)


def times(line: str) -> int:
    found = re.search(r"\((\d+) times\)", line)
    return int(found[1]) if found else 1


def test_a_refusal_is_told_at_once_by_name() -> None:
    made = journal()
    assert made.add("web", SEEN, 0) == []
    assert made.add("web", Event(), 0) == [LINE]


def test_a_name_is_the_workloads_own() -> None:
    made = journal()
    made.add("web", SEEN, 0)
    assert made.add("batch", Event(), 0) == [
        "refused batch: 192.0.2.80 TCP 443 by nginx: no rule allows this address"
    ]


def test_a_name_is_forgotten_with_its_workload() -> None:
    made = journal()
    made.add("web", SEEN, 0)
    made.forget("web")
    assert "telemetry" not in made.add("web", Event(), 0)[0]


def test_the_same_again_waits_for_a_minute_and_is_counted() -> None:
    made = journal()
    made.add("web", SEEN, 0)
    made.add("web", Event(), 0)
    other_address = replace(SEEN, remote="192.0.2.81")  # of the same name
    assert made.add("web", other_address, 1) == []
    assert [made.add("web", Event(remote="192.0.2.81"), second) for second in range(2, 50)] == [[]] * 48
    assert made.due(59.9) == []
    assert made.due(60) == [LINE.replace("by nginx", "by nginx (48 times)")]
    assert made.due(120) == []
    assert made.add("web", Event(), 121) == [LINE]


def test_destinations_reasons_and_workloads_are_told_apart() -> None:
    made = journal()
    events = [
        Event(),
        Event(remote_port=80),
        Event(protocol=17),
        Event(remote="192.0.2.81"),
        Event(reason="EXPIRED"),
    ]
    lines = [line for name in ("a", "b") for event in events for line in made.add(name, event, 0)]
    assert len(set(lines)) == len(lines) == 2 * len(events)
    assert "refused a: 192.0.2.80 TCP 443 by nginx: it ran out" in lines


def test_what_passes_is_no_line() -> None:
    assert journal().add("web", Event(verdict="PASS", reason="ALLOWED"), 0) == []


def test_audit_says_would() -> None:
    (line,) = journal().add("web", Event(verdict="WOULD_DROP"), 0)
    assert line.startswith("would refuse web: 192.0.2.80 TCP 443")


def test_refused_questions_are_told_by_the_zone_they_ask_in() -> None:
    made = journal()
    asked = [
        Event(reason="QUESTION_REFUSED", protocol=17, name=f"x{n}.evil.example", process="dig")
        for n in range(9)
    ]
    lines = [line for event in asked for line in made.add("web", event, 0)]
    assert lines == ["refused web: DNS question for *.evil.example by dig: its name is not allowed"]


def test_an_address_that_DNS_may_not_teach_is_told() -> None:
    never = Event(remote="169.254.169.254", reason="NEVER_LEARNED", name="metadata.example.com")
    made = journal()
    assert made.add("web", never, 0) == [
        "not learned for web: metadata.example.com has the address 169.254.169.254, which DNS may not teach"
    ]
    assert made.add("web", never, 1) == []


def test_a_process_does_not_write_lines_of_its_own() -> None:
    (line,) = journal().add("web", Event(process="x\n<0>panic\x1b[2J"), 0)
    assert "\n" not in line
    assert "\x1b" not in line


def test_a_flood_is_told_slowly_and_its_end_too() -> None:
    made = journal()
    events = [Event(remote_port=port) for port in range(1, 101)]
    assert sum(len(made.add("web", event, 0.5)) for event in events) == LINES
    told = [line for second in range(1, 60) for line in made.due(second)]
    assert len(told) == 100 - LINES
    assert made.due(61) == []


def test_memory_is_bounded_and_what_found_no_room_is_counted() -> None:
    made = journal()
    for number in range(3 * ROOM):
        made.add("web", Event(remote=f"address {number}"), 0)
        made.add("web", replace(SEEN, remote=f"address {number}"), 0)
    assert len(made._lines) <= ROOM + 1
    assert len(made._names) <= ROOM
    told = [line for second in range(1, ROOM) for line in made.due(second)]
    (more,) = [line for line in told if line.startswith("refused more")]
    assert times(more) == 2 * ROOM


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(1, 30), st.integers(1, 50)), max_size=40))
def test_no_second_has_too_many_lines_and_every_event_is_counted(steps: list[tuple[float, int, int]]) -> None:
    """(seconds until, different destinations, events of each) again and again."""
    made, now, sent, told, per_second = journal(), 0.0, 0, 0, Counter[int]()
    for pause, destinations, number in steps:
        now += pause
        lines = made.due(now)
        for port in range(1, destinations + 1):
            for _ in range(number):
                sent += 1
                lines += made.add("web", Event(remote_port=port), now)
        told += sum(map(times, lines))
        per_second[int(now)] += len(lines)
    for _ in range(100):
        now += 61
        told += sum(map(times, made.due(now)))
    assert max(per_second.values(), default=0) <= LINES
    assert told == sent
    assert not made._lines
