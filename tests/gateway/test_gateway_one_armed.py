"""A gateway with one interface for both ways, that of its default route: sources say whose a packet is."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.gateway.gates import Gates, gated
from tests.gateway.lab import PUBLIC4, PUBLIC6, ZONE, GatewayLab
from tests.gateway.measures import Witness


@pytest.fixture(scope="module")
def gates(lab_tools: None) -> Iterator[Gates]:
    with GatewayLab(1, one_armed=True) as built, gated(built) as made:
        yield made


@pytest.mark.parametrize("version", [4, 6])
def test_machines_reach_what_they_may_and_no_more(gates: Gates, version: int) -> None:
    lab, family = gates.lab, f"socket.AF_INET{'6' if version == 6 else ''}"
    refused = ZONE["example.org"][version == 6]
    witness = Witness(lab)
    assert lab.inside("vm1", f"connect(resolve('example.com', {family}))") == "connected"
    assert lab.inside("vm1", f"connect({refused!r})") == "ECONNREFUSED"
    assert lab.inside("vm1", f"datagram(resolve('time.example.net', {family}))") == "echo"
    assert lab.inside("vm3", f"connect({ZONE['example.net'][version == 6]!r}, 443)") == "connected"
    assert lab.inside("stray", f"connect({refused!r})") == "ECONNREFUSED"
    assert witness.private() == {"packets": 0, "first": ""}
    witness.close()


@pytest.mark.parametrize("server", [PUBLIC4, PUBLIC6])
@pytest.mark.parametrize("tcp", [False, True], ids=["UDP", "TCP"])
def test_dns_that_is_sent_elsewhere_is_captured(gates: Gates, server: str, tcp: bool) -> None:
    """What the public server would say is another address."""
    how = f"{server!r}, 53, tcp={tcp}, timeout=3, ipv6={':' in server}"
    asked = f"answers(DNSRecord.question('example.com').send({how}))"
    assert gates.lab.inside("vm1", asked) == [ZONE["example.com"][0]]


def test_nobody_is_told_to_go_round_it(gates: Gates) -> None:
    """A router that sends a packet out of the interface it came by sends an ICMP redirect (RFC 1812)."""
    lab, seen = gates.lab, "counter name seen"
    lab.router.checked(
        "nft",
        "-f",
        "-",
        input=f"""
        table inet watch {{
            counter seen {{}}
            chain c {{
                type filter hook prerouting priority -300
                icmp type redirect {seen}
                icmpv6 type nd-redirect {seen}
            }}
        }}
    """,
    )
    for address in ZONE["example.com"]:
        assert lab.inside("vm1", f"resolve('example.com') and connect({address!r})") == "connected"
    assert "packets 0 " in lab.router.checked("nft", "list", "counters")
