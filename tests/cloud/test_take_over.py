"""Who takes whose routes, in worlds without a clock; and once with servers that answer as EC2 does."""

from collections.abc import Callable
from itertools import pairwise
from urllib.parse import parse_qs

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.cloud import take_over
from gateway.cloud.http import CloudError
from gateway.cloud.take_over import PATIENCE, RENEWAL, Gateway, Watch
from tests.cloud.clouds import Answer, Question, aws, serving

GATEWAYS = [Gateway(f"eni-{n}", f"127.0.0.{n}", (f"rtb-{n}",), ("0.0.0.0/0",)) for n in (1, 2, 3)]
ALL = {g.interface: True for g in GATEWAYS}


class World:
    """Three gateways, and to whom each one's routes lead."""

    def __init__(self) -> None:
        self.watches = {g.interface: Watch(GATEWAYS, g.interface) for g in GATEWAYS}
        self.leads = {g.interface: "nowhere" for g in GATEWAYS}

    def round(self, ready: dict[str, bool], running: set[str] | None = None) -> None:
        for own in running or {its for its, is_ready in ready.items() if is_ready}:
            for gateway in self.watches[own].round(ready):
                self.leads[gateway.interface] = own
                self.watches[own].done(gateway)
            self.watches[own].passed()


def test_each_has_its_own_while_all_are_ready() -> None:
    world = World()
    world.round(ALL)
    assert world.leads == {"eni-1": "eni-1", "eni-2": "eni-2", "eni-3": "eni-3"}


def test_the_next_one_takes_over_after_a_while_and_once() -> None:
    world = World()
    world.round(ALL)
    for _ in range(PATIENCE - 1):
        world.round(ALL | {"eni-2": False})
    assert world.leads["eni-2"] == "eni-2"
    world.round(ALL | {"eni-2": False})
    assert world.leads["eni-2"] == "eni-3"
    assert world.watches["eni-3"].round(ALL | {"eni-2": False}) == []


def test_the_last_one_is_followed_by_the_first() -> None:
    world = World()
    for _ in range(PATIENCE):
        world.round(ALL | {"eni-3": False, "eni-1": False})
    assert world.leads == {"eni-1": "eni-2", "eni-2": "eni-2", "eni-3": "eni-2"}


def test_a_gateway_that_is_ready_again_takes_back_its_own() -> None:
    world = World()
    for _ in range(PATIENCE):
        world.round(ALL | {"eni-2": False})
    world.watches["eni-2"] = Watch(GATEWAYS, "eni-2")  # its machine is another one
    world.round(ALL)
    assert world.leads["eni-2"] == "eni-2"


def test_who_is_not_ready_takes_nothing() -> None:
    watch = Watch(GATEWAYS, "eni-1")
    for _ in range(2 * PATIENCE):
        assert watch.round(dict.fromkeys(ALL, False)) == []


def test_two_that_do_not_see_each_other_end_up_with_their_own() -> None:
    one, two = Watch(GATEWAYS[:2], "eni-1"), Watch(GATEWAYS[:2], "eni-2")
    leads, history = {"eni-1": "", "eni-2": ""}, []
    for _ in range(3 * RENEWAL):
        for watch, ready in ((one, {"eni-1": True, "eni-2": False}), (two, {"eni-1": False, "eni-2": True})):
            for gateway in watch.round(ready):
                leads[gateway.interface] = watch.own
                watch.done(gateway)
            watch.passed()
        history.append(dict(leads))
    assert history[-1] == {"eni-1": "eni-1", "eni-2": "eni-2"}
    assert sum(before != after for before, after in pairwise(history)) <= 4


@given(st.lists(st.fixed_dictionaries({its: st.booleans() for its in ALL}), max_size=60), st.data())
def test_whatever_happened_all_end_up_well(past: list[dict[str, bool]], data: st.DataObject) -> None:
    world = World()
    for ready in past:
        world.round(ready)
    last = data.draw(st.fixed_dictionaries({its: st.booleans() for its in ALL}))
    for _ in range(RENEWAL + PATIENCE):
        world.round(last)
    for its, leads in world.leads.items():
        assert leads == its if last[its] else leads == "nowhere" or last[leads] or not any(last.values())


def test_ec2_is_asked_for_the_routes(monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(question: Question) -> Answer | None:
        if question.path == "/readyz":
            return 200, "ok"
        if question.method != "POST":
            return aws(question)
        return (500, "later") if len(posts(cloud.asked)) == 1 else (200, "<return>true</return>")

    said: list[str] = []
    with serving(answers) as cloud:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", cloud.url)
        monkeypatch.setenv("AWS_ENDPOINT_URL_EC2", cloud.url)
        monkeypatch.setattr(take_over, "PACE", 0.01)
        monkeypatch.setattr(take_over, "PROMPT", 0.5)
        monkeypatch.setattr(take_over, "is_ready", _only("127.0.0.1", lambda: posts(cloud.asked)))
        gateways = [
            Gateway("eni-1", "127.0.0.1", ("rtb-1",), ("0.0.0.0/0", "::/0")),
            Gateway("eni-2", "127.0.0.2", ("rtb-2",), ("0.0.0.0/0",)),
        ]
        with pytest.raises(EnoughError):
            take_over.run(gateways, 9808, said.append)
        asked = [
            (a["RouteTableId"], a.get("DestinationCidrBlock"), a["NetworkInterfaceId"])
            for a in posts(cloud.asked)
        ]
    assert asked[:3] == [
        ("rtb-1", "0.0.0.0/0", "eni-1"),  # refused, so all of it is tried again
        ("rtb-1", "0.0.0.0/0", "eni-1"),
        ("rtb-1", None, "eni-1"),
    ]
    assert ("rtb-2", "0.0.0.0/0", "eni-1") in asked
    assert any("can't be led here" in text and "later" in text for text in said)
    assert "127.0.0.2 is not ready: its routes lead here" in said


def test_a_machine_that_is_none_of_them_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(aws) as cloud:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", cloud.url)
        with pytest.raises(CloudError, match="eni-1, this machine's interface, is none"):
            take_over.run(GATEWAYS[1:], 9808, print)


def test_readiness_is_what_the_gateway_answers() -> None:
    with serving(lambda q: (200, "ok") if q.path == "/readyz" else None) as cloud:
        assert take_over.is_ready("127.0.0.1", int(cloud.url.rpartition(":")[2]))
    with serving(lambda _: (503, "draining")) as cloud:
        assert not take_over.is_ready("127.0.0.1", int(cloud.url.rpartition(":")[2]))
    assert not take_over.is_ready("127.0.0.1", int(cloud.url.rpartition(":")[2]))


class EnoughError(Exception):
    """Ends a loop that has no end."""


def _only(address: str, asked: Callable[[], list[dict[str, str]]]) -> Callable[[str, int], bool]:
    """This one is ready, until the routes of another have been asked for, or it takes too long."""
    rounds = iter(range(20 * PATIENCE))

    def is_ready(other: str, _port: int) -> bool:
        if next(rounds, None) is None or any(a["RouteTableId"] == "rtb-2" for a in asked()):
            raise EnoughError
        return other == address

    return is_ready


def posts(asked: list[Question]) -> list[dict[str, str]]:
    return [{k: v[0] for k, v in parse_qs(q.body).items()} for q in asked if q.method == "POST"]
