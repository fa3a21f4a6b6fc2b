"""The lab itself: with plain NAT everybody reaches everything, and what measures the gateways can fail."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway import plain
from tests.gateway.lab import DNS4, FAR4, FAR6, VMS, ZONE, GatewayLab
from tests.gateway.measures import Witness, forged, load


@pytest.fixture(scope="module")
def lab(lab_tools: None) -> Iterator[GatewayLab]:
    with GatewayLab() as built:
        for gateway in built.gateways:
            plain.forward(gateway)
        built.lead()
        built.trust(DNS4)
        yield built


def test_every_vm_reaches_everything(lab: GatewayLab) -> None:
    addresses = [*ZONE["example.com"], FAR4, FAR6]
    code = f"tell([connect(address) for address in {addresses}])"
    assert {vm: lab.do(vm, code) for vm in VMS} == dict.fromkeys(VMS, ["connected"] * 4)


def test_sources_stay_with_one_gateway_and_connections_are_spread(lab: GatewayLab) -> None:
    def used(spread: str) -> int:
        """How many gateways have seen thirty connections of one VM."""
        lab.lead(spread=spread)
        for gateway in lab.gateways:
            gateway.here.checked("nft", "reset", "counters")
        lab.do("vm1", f"tell([connect({ZONE['example.com'][0]!r}) for _ in range(30)])")
        return sum(plain.new_connections(gateway) > 0 for gateway in lab.gateways)

    assert used("connection") == 3
    assert used("source") == 1


def test_what_leaves_without_translation_is_witnessed(lab: GatewayLab) -> None:
    witness, gateway = Witness(lab), lab.gateways[0]
    lab.lead([gateway])
    assert witness.private()["packets"] == 0
    lab.do("vm1", f"tell([connect(address) for address in {ZONE['example.com']}])")
    assert witness.private()["packets"] == 0
    gateway.here.checked("nft", "flush", "chain", "inet", "plain", "postrouting")
    lab.do("vm1", f"tell([connect(address, seconds=0.1) for address in {ZONE['example.com']}])")
    assert witness.private()["packets"] >= 2
    witness.close()
    plain.forward(gateway)


def test_a_load_tells_what_failed(lab: GatewayLab) -> None:
    gateway = lab.gateways[0]
    lab.lead([gateway])
    with load(lab, 50, "example.com", vms=("vm1",)) as loaded:
        refuse = "insert rule inet plain forward ip saddr 10.20.0.11 tcp dport 80 reject with tcp reset"
        gateway.here.checked("nft", *refuse.split())
        lab.do("vm1", f"tell(until(lambda: connect({ZONE['example.com'][0]!r}), 'ECONNREFUSED'))")
    assert loaded.attempts > len(loaded.failed["vm1"]) > 0
    plain.forward(gateway)


@pytest.mark.parametrize("source", ["10.30.0.9", "10.20.0.99", "10.20.0.12", "192.0.2.53"])
def test_false_sources_come_outside_where_nobody_looks(lab: GatewayLab, source: str) -> None:
    assert forged(lab, source) > 0
