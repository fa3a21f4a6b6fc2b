"""route.yaml: from text to a record, or every problem at once."""

from __future__ import annotations

import ipaddress
import re
from pathlib import Path

import pytest

from gateway.route import Pulse
from gateway.route_settings import RouteSettings, read

EXAMPLE = Path(__file__).parent.parent / "deploy" / "systemd" / "route.yaml"
WHOLE = """
inside: [eth1]
clients: [10.20.0.0/16, "fd00:20::/64"]
gateways:
  - addresses: [10.0.1.5, "fd00:1::5"]
  - addresses: [10.0.1.6]
hash: flow
probe: {port: 80, seconds: 2, fall: 3, rise: 4}
buckets: 64
idleSeconds: 5
unbalancedSeconds: 60
"""


def test_what_a_whole_file_says() -> None:
    found, problems = read(WHOLE, "route.yaml")
    assert not problems
    four, six, other = (ipaddress.ip_address(text) for text in ("10.0.1.5", "fd00:1::5", "10.0.1.6"))
    networks = tuple(ipaddress.ip_network(text) for text in ("10.20.0.0/16", "fd00:20::/64"))
    gateways = ((four, six), (other,))
    assert found == RouteSettings(gateways, networks, ("eth1",), True, 80, 2, 3, 4, 64, 5, 60)


def test_the_example_is_good_and_so_are_its_comments() -> None:
    text = EXAMPLE.read_text()
    found, problems = read(text, "route.yaml")
    assert found, problems
    assert read(re.sub(r"^# (?=[a-zS]+: )", "", text, flags=re.MULTILINE), "route.yaml")[0] == found


def test_what_is_left_out_is_the_default() -> None:
    text = "{inside: [a], clients: [10.0.0.0/8], gateways: [{addresses: [10.0.1.5]}]}"
    found, _ = read(text, "route.yaml")
    assert found is not None
    assert (found.by_flow, found.port, found.every, found.buckets) == (False, 9808, 1, 256)


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("inside: [eth1]", "", "inside: is missing; add inside"),
        ("[eth1]", "[eth/1]", "'eth/1' is not the name of an interface; write eth0"),
        ("10.20.0.0/16", "10.20.0.1/16", "has host bits; write 10.20.0.0/16"),
        ("10.0.1.6", "gateway1", "'gateway1' is not an address"),
        ("10.0.1.6", "10.0.1.5", "10.0.1.5 is an earlier gateway's too; leave one of them out"),
        ('"fd00:1::5"', "10.0.1.7", "has two addresses of one family; write them as two gateways"),
        ("hash: flow", "hash: flo", "hash: "),
        ("buckets: 64", "buckets: 0", "buckets: "),
        ("buckets: 64", "bucket: 64", "bucket: "),
        ("buckets: 64", "buckets: 64\n---\na: b", "holds more than one document"),
    ],
)
def test_every_mistake_is_told_with_its_mend(old: str, new: str, told: str) -> None:
    found, problems = read(WHOLE.replace(old, new), "route.yaml")
    assert found is None
    assert any(told in str(problem) for problem in problems), problems


def test_a_gateway_dies_and_comes_back_after_answers_in_a_row() -> None:
    pulse = Pulse(fall=2, rise=3)
    assert [pulse.hear(answer) for answer in (True, False, True, False)] == [True, False, False, False]
    assert pulse.hear(False)
    assert pulse.is_alive is False
    assert [pulse.hear(answer) for answer in (True, True, False, True, True, True)] == [*[False] * 5, True]
    assert pulse.is_alive
