"""Gateways that die, come back and are told to end, under a load of new connections: none fails.

An attempt fails when the program gets an error or waits for longer than four SYNs take (load.py): one that is
lost and sent again is none.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from tests.gateway.gates import Gates, routed, stopped
from tests.gateway.lab import ZONE, GatewayLab
from tests.gateway.measures import Witness, counted, load
from tests.topology import wait_for

FAMILIES = ("socket.AF_INET", "socket.AF_INET6")
MACHINES = ("vm1", "vm2", "vm3")
NAMES = ("example.com", "example.net")
RATE = 40  # attempts a second, of each machine
AT_ONCE = 0.9  # seconds: a lost SYN is sent again after one
LOOK = 5  # seconds between two looks of an agent at what others may take away
POLICIES = """
apiVersion: egress.skouter/v1alpha1
kind: ClusterEgress
metadata: {name: all}
spec:
  sourceCIDRs: [10.20.0.0/24, "fd00:20::/64"]
  rules:
    - domains: [example.com, example.net, "*.example.com"]
      ports: [{port: 80}]
"""


@pytest.fixture
def witness(lab: GatewayLab) -> Iterator[Witness]:
    made = Witness(lab)
    yield made
    made.close()


@pytest.fixture(scope="module")
def policies() -> str:
    return POLICIES


@pytest.mark.parametrize("spread", ["source", "connection"])
def test_no_attempt_fails_when_a_gateway_dies_and_when_it_comes_back(
    gates: Gates, witness: Witness, spread: str
) -> None:
    """Connections that it had end at once where they come to another, and go nowhere untranslated."""
    lab = gates.lab
    held = [(vm, number) for vm in MACHINES for number in range(4)]
    with routed(lab, spread) as router:
        victim = lab.gateway_of("vm1")
        for vm, number in held:
            opening = f"opened(resolve('example.com', {FAMILIES[number % 2]}))"
            assert lab.inside(vm, f"keep({number}, lambda: {opening}) and page({number})") is True
        with load(lab, RATE, *NAMES, vms=MACHINES) as steady:
            steady.go_on(2)
            gates.die(victim)
            router.knows(victim, "dead")
            wait_for(lambda: lab.gateway_of("vm1") is not victim, "another way")
            found = [lab.inside(vm, f"timed(lambda: page({number}))") for vm, number in held]
            steady.go_on(2)
            victim.boot()
            gates.boot([victim])
            router.knows(victim, "alive")
            steady.go_on(4)
    lab.lead()
    assert steady.failed == {}
    assert steady.again > 0, "nobody was led to the one that died"
    assert {outcome for outcome, _ in found} == {True, "ECONNRESET"}
    assert max(seconds for _, seconds in found) < AT_ONCE
    assert witness.private() == {"packets": 0, "first": ""}


def test_a_name_that_one_gateway_was_asked_for_opens_the_others(gates: Gates) -> None:
    """The first packet after the answer may come by way of any."""
    lab = gates.lab
    for number, (asked, led) in enumerate((a, b) for a in lab.gateways for b in lab.gateways if a is not b):
        name, address = f"shared{number}.example.com", f"198.51.100.{200 + number}"
        lab.dns.set(name, address)
        lab.lead([led])
        code = f"ask({name!r}, {asked.inside4!r}) and timed(lambda: connect({address!r}, seconds=4))"
        (found, seconds), asked_again = lab.inside("vm1", code), seconds_of_a_retransmission()
        assert found == "connected"
        assert seconds < asked_again
    lab.lead()


def seconds_of_a_retransmission() -> float:
    """Of a SYN (RFC 6298 2.1), and some for the way."""
    return 1.5


def test_without_its_agent_a_gateway_goes_on(gates: Gates) -> None:
    """Old names and new ones, over UDP; connections that are there; and what is refused."""
    lab = gates.lab
    alone = lab.gateways[0]
    lab.lead([alone])
    lab.dns.set("new.example.com", "198.51.100.50", "2001:db8:51::50")
    lab.inside("vm1", "keep('held', lambda: opened(resolve('example.com')))")
    gates[alone].kill()
    assert gates[alone].probe()[0] == 0
    assert lab.inside("vm1", "page('held')") is True
    assert lab.inside("vm1", "connect(resolve('example.net'))") == "connected"
    for family in ("socket.AF_INET", "socket.AF_INET6"):
        assert lab.inside("vm1", f"connect(resolve('new.example.com', {family}))") == "connected"
    assert lab.inside("vm1", f"connect({ZONE['example.org'][0]!r})") == "ECONNREFUSED"
    with load(lab, RATE, "example.com", vms=("vm1",)) as steady:
        gates[alone].restart()
        steady.go_on(1)
    assert steady.failed == {}
    assert lab.inside("vm1", "page('held')") is True
    lab.lead()


def test_one_that_is_told_to_end_is_not_ready_first_and_serves_meanwhile(gates: Gates) -> None:
    lab = gates.lab
    leaving = lab.gateways[1]
    gate = gates[leaving]
    lab.lead([leaving])
    with load(lab, RATE, "example.com", vms=("vm1",)) as steady:
        gate.agent.terminate()
        wait_for(lambda: gate.probe()[0] == 503, "not ready")
        steady.go_on(1)
        lab.lead([gateway for gateway in lab.gateways if gateway is not leaving])
        assert gate.agent.wait(30) == 0
        steady.go_on(1)
        gate.restart()
        lab.lead()
    assert steady.failed == {}


def test_a_second_word_ends_it_before_its_time(gates: Gates) -> None:
    gate = gates[gates.lab.gateways[1]]
    gate.agent.terminate()
    wait_for(lambda: gate.probe()[0] == 503, "not ready")
    assert stopped(gate) == 0
    gate.restart()


def test_tables_that_somebody_flushed_are_there_again_soon(gates: Gates, witness: Witness) -> None:
    """Until then nothing is forwarded, told: neither what is refused nor, untranslated, what is admitted."""
    lab = gates.lab
    flushed = lab.gateways[2]
    lab.lead([flushed])
    with (
        counted(lab, f"ip daddr {ZONE['example.org'][0]}") as out,
        load(lab, RATE, *NAMES, vms=("vm1",)) as steady,
    ):
        flushed.here.checked("nft", "flush", "ruleset")
        began, refused = time.monotonic(), set()

        def back() -> bool:
            refused.add(lab.inside("vm1", f"connect({ZONE['example.org'][0]!r}, seconds=0.2)"))
            return "masquerade" in flushed.here.checked("nft", "list", "ruleset")

        wait_for(back, "the tables", 2 * LOOK)
        lasted = time.monotonic() - began
        steady.go_on(2)
        assert out() == 0
    assert lasted < LOOK
    assert "connected" not in refused
    assert witness.private() == {"packets": 0, "first": ""}
    failed = steady.failed.get("vm1", {})
    assert {what.split()[0] for what in failed} <= {"EHOSTUNREACH", "EACCES"}
    assert sum(failed.values()) <= RATE * (lasted + 1)
    lab.lead()
