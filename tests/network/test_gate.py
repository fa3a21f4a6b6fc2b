"""A gateway before its agent has anything to enforce: closed, or not begun at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from gateway import gate, place
from gateway.settings import Settings, read
from routing import forwarding
from tests.network.test_forwarding import assert_refused, echo
from tests.network.yard import CLIENT, CLIENTS, OUTSIDE, Yard

NAME = f"skouter-lab-gate-{os.getpid()}"
families = pytest.mark.parametrize("version", [4, 6])


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    if os.geteuid():
        pytest.skip("needs root: namespaces")
    if not shutil.which("nft"):
        pytest.skip("needs nft: the package nftables")
    made = Yard(2, NAME, tmp_path_factory.mktemp("kept"))
    for setting in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
        made.gateway.checked("sysctl", "-qw", f"{setting}=1")
    made.world.ip("".join(f"route add {CLIENT[v]} via {OUTSIDE[v]}\n" for v in (4, 6)))
    yield made
    made.close()


def settings(**said: str) -> Settings:
    given = {"inside": "in0", "outside": "out0"} | said
    text = "".join(f"{name}: {value}\n" for name, value in given.items())
    clients = ", ".join(f'"{client}"' for client in CLIENTS)
    found, problems = read(f"{text}clients: [{clients}]", "gateway.yaml", gateway=True)
    assert not problems
    assert found
    return found


@families
def test_a_host_that_forwards_already_is_closed_first(yard: Yard, version: int) -> None:
    where = place.find(NAME)
    kept = where.state / gate.FORWARDING
    assert echo(yard, version) == CLIENT[version]
    yard.seen()
    try:
        yard.in_("gateway", lambda: gate.refuse_first(where, settings()))
        assert_refused(yard, version)
    finally:
        yard.in_("gateway", lambda: forwarding.remove(NAME, kept))
        shutil.rmtree(where.state)
    assert echo(yard, version) == CLIENT[version]


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"inside": "lo"}, "lo is no Ethernet: clients can't be judged there"),
        ({"inside": "in7"}, "there is no interface in7: write one of `ip link`, or auto"),
        ({"outside": "out7"}, "there is no interface out7"),
    ],
)
def test_an_interface_that_will_not_do_is_named(yard: Yard, said: dict[str, str], told: str) -> None:
    with pytest.raises(OSError, match=told):
        yard.in_("gateway", lambda: gate.refuse_first(place.find(NAME), settings(**said)))
    shutil.rmtree(place.find(NAME).state)
    assert echo(yard, 4) == CLIENT[4]
