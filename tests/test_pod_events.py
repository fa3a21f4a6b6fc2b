"""Events of pods: each told once, counted, and never a flood."""

from gateway.kubernetes import pod_events
from gateway.kubernetes.cluster import Node, Pod
from gateway.kubernetes.pod_events import PodEvents

POD = Pod("u-1", "shop", "web")
START = 1_800_000_000.0


def test_the_first_is_written_at_once_and_its_like_counted() -> None:
    events = PodEvents()
    events.add(POD, "EgressDenied", "refused: example.com", START)
    (told,) = events.due(START)
    assert (told.about, told.reason, told.note, told.count) == (
        POD,
        "EgressDenied",
        "refused: example.com",
        1,
    )
    for second in range(1, 10):
        events.add(POD, "EgressDenied", "refused: example.com", START + second)
    assert events.due(START + 10) == []
    (again,) = events.due(START + pod_events.AGAIN)
    assert again is told
    assert (again.count, again.last) == (10, START + 9)
    assert events.due(START + 2 * pod_events.AGAIN) == []


def test_pods_reasons_and_destinations_are_told_apart() -> None:
    events = PodEvents()
    for about in (POD, Pod("u-2", "shop", "web"), Node("n1")):
        for reason in ("EgressDenied", "Other"):
            for note in ("a", "b"):
                events.add(about, reason, note, START)
    assert len({told.name for told in events.due(START)}) == 12


def test_after_a_long_silence_it_is_another_event() -> None:
    events = PodEvents()
    events.add(POD, "EgressDenied", "a", START)
    (first,) = events.due(START)
    assert events.due(START + pod_events.FORGET) == []
    events.add(POD, "EgressDenied", "a", START + pod_events.FORGET)
    (second,) = events.due(START + pod_events.FORGET)
    assert second.name != first.name


def test_attack_a_pod_that_tries_a_thousand_destinations() -> None:
    events, other = PodEvents(), Pod("u-2", "shop", "quiet")
    for number in range(1000):
        events.add(POD, "EgressDenied", f"refused: {number}", START)
    events.add(other, "EgressDenied", "refused", START)
    told = events.due(START)
    assert sum(each.about == POD for each in told) == pod_events.POD
    assert sum(each.about == other for each in told) == 1
    assert events.lost == 1000 - pod_events.POD
    later = START + pod_events.POD_REFILL
    for number in range(1000, 1010):
        events.add(POD, "EgressDenied", f"refused: {number}", later)
    assert len(events.due(later)) == 1


def test_attack_a_thousand_pods_at_once() -> None:
    events = PodEvents()
    for number in range(1000):
        events.add(Pod(f"u-{number}", "shop", f"web-{number}"), "EgressDenied", "refused", START)
    written = 0
    for second in range(60):
        written += len(events.due(START + second))
    assert written <= pod_events.NODE + 60 / pod_events.NODE_REFILL
    for second in range(60, 4000):
        written += len(events.due(START + second))
    assert written == 1000
    assert not events._told
    assert not events._pods


def test_what_failed_is_an_event_of_its_own_next_time() -> None:
    events = PodEvents()
    events.add(POD, "EgressDenied", "a", START)
    (told,) = events.due(START)
    events.failed(told)
    assert (events.lost, events.due(START + 1000)) == (1, [])
    events.add(POD, "EgressDenied", "a", START + 1)
    assert len(events.due(START + 1)) == 1


def test_a_name_is_as_long_as_the_api_takes() -> None:
    events = PodEvents()
    events.add(Pod("u", "shop", "x" * 200 + "." + "y" * 50), "EgressDenied", "a", START)
    (told,) = events.due(START)
    assert len(told.name) <= 253
    assert ".." not in told.name
