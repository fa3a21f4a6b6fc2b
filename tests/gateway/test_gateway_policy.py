"""What machines reach by way of gateways: by label and by address, by name and by port, in both families."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator

import pytest

from tests.gateway.gates import HEALTH, POLICIES, Gates, gated
from tests.gateway.lab import CLIENTS, FAR4, FAR6, FAR_MTU, PUBLIC4, PUBLIC6, VMS, ZONE, GatewayLab
from tests.gateway.measures import Witness, counted, forged
from tests.topology import wait_for

AT_ONCE = 0.9  # seconds: a lost SYN is sent again after one
FAMILIES = {4: "socket.AF_INET", 6: "socket.AF_INET6"}
MEGABYTES = 64


@pytest.fixture(scope="module")
def gates(lab_tools: None) -> Iterator[Gates]:
    """One is enough, and nothing waits for what others know."""
    with GatewayLab(1) as built, gated(built, peers=None) as made:
        yield made


def reach(lab: GatewayLab, vm: str, name: str, version: int, port: int = 80) -> str:
    """As a program does it: it asks, then connects. What it gets."""
    code = f"connect(resolve({name!r}, {FAMILIES[version]}), {port})"
    return str(lab.inside(vm, code))


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("vm", "name", "port", "expected"),
    [
        ("vm1", "example.com", 80, "connected"),
        ("vm1", "www.example.com", 80, "connected"),
        ("vm1", "a.b.example.com", 80, "connected"),
        ("vm1", "example.com", 443, "ECONNREFUSED"),
        ("vm1", "evilexample.com", 80, "ECONNREFUSED"),
        ("vm1", "example.org", 80, "ECONNREFUSED"),
        ("vm2", "example.net", 80, "connected"),
        ("vm2", "example.net", 443, "connected"),
        ("vm2", "example.net", 8080, "ECONNREFUSED"),
        ("vm3", "example.net", 443, "connected"),
        ("vm3", "example.net", 8080, "ECONNREFUSED"),
        ("vm3", "far.example.com", 80, "ECONNREFUSED"),
    ],
)
def test_each_machine_reaches_what_it_may(
    lab: GatewayLab, vm: str, name: str, port: int, expected: str, version: int
) -> None:
    assert reach(lab, vm, name, version, port) == expected


@pytest.mark.parametrize("address", ZONE["example.org"])
def test_a_connection_is_refused_at_once(lab: GatewayLab, address: str) -> None:
    found, seconds = lab.inside("vm1", f"timed(lambda: opened({address!r}))")
    assert found == "ECONNREFUSED"
    assert seconds < AT_ONCE


@pytest.mark.parametrize("address", ZONE["time.example.net"])
def test_datagrams_go_where_they_may_and_are_refused_elsewhere(lab: GatewayLab, address: str) -> None:
    six = ":" in address
    family = FAMILIES[6 if six else 4]
    echo = f"datagram(resolve('time.example.net', {family}), seconds=0.2)"
    wait_for(lambda: lab.inside("vm1", echo) == "echo", "the echo")
    for vm, port in (("vm1", 9000), ("vm3", 7)):
        refusal(lab, vm, f"datagram({address!r}, {port}, connected=True, seconds=0.2)", six)


def refusal(lab: GatewayLab, vm: str, datagram: str, six: bool) -> None:
    """The first may be held back until other gateways have told what they know. RFC 1812 5.2.7.1 (code 13),
    RFC 4443 3.1 (code 1)."""
    found = wait_for(lambda: (told := lab.inside(vm, datagram)) != "timeout" and told, "a word")
    assert found == ("EACCES" if six else "EHOSTUNREACH")


@pytest.mark.parametrize("version", [4, 6])
def test_who_is_not_registered_reaches_nothing_and_may_not_ask(lab: GatewayLab, version: int) -> None:
    assert lab.inside("stray", f"connect({ZONE['example.com'][version == 6]!r})") == "ECONNREFUSED"
    assert "Name or service" in lab.inside("stray", f"resolve('example.com', {FAMILIES[version]})")


def test_a_machine_may_only_ask_for_its_names(lab: GatewayLab) -> None:
    resolver = repr(lab.gateways[0].inside4)
    assert lab.inside("vm2", f"ask('example.net', {resolver})") == [ZONE["example.net"][0]]
    with counted(lab, "udp dport 53 @th,160,40 0x046c65616b") as asked:  # "leak", behind both headers
        assert lab.inside("vm2", f"ask('leak.example.org', {resolver})") == []
        assert asked() == 0
        lab.inside("vm1", f"ask('leak.example.org', {resolver})")
        assert asked() > 0


@pytest.mark.parametrize("server", [PUBLIC4, PUBLIC6])
@pytest.mark.parametrize("tcp", [False, True], ids=["UDP", "TCP"])
def test_dns_that_is_sent_elsewhere_is_answered_by_the_gateway(
    lab: GatewayLab, server: str, tcp: bool
) -> None:
    """And learned from: the name is one that nobody asked for before."""
    name = f"captured-{tcp}-{':' in server}.example.com".lower()
    address = f"198.51.100.{60 + 2 * tcp + (':' in server)}"
    lab.dns.set(name, address)
    how = f"{server!r}, 53, tcp={tcp}, timeout=3, ipv6={':' in server}"
    with counted(lab, f"ip{'6' if ':' in server else ''} daddr {server}") as asked:
        found = lab.inside("vm1", f"answers(DNSRecord.question({name!r}).send({how}))")
        assert found == [address]
        assert asked() == 0
    assert lab.inside("vm1", f"connect({address!r})") == "connected"


@pytest.mark.parametrize("address", [FAR4, FAR6])
def test_the_path_s_mtu_comes_back_to_the_machine(lab: GatewayLab, address: str) -> None:
    level, discover, do, mtu = (41, 23, 2, 24) if ":" in address else (0, 10, 2, 14)  # ip(7), ipv6(7)
    code = f"""
        sock = socket.socket(family_of({address!r}), socket.SOCK_DGRAM)
        sock.setsockopt({level}, {discover}, {do})
        sock.connect(({address!r}, 7))
        sock.settimeout(0.2)
        def large():
            sock.send(bytes(1400))
            return sock.recv(2048) and "echoed"
        until(lambda: outcome(large), "EMSGSIZE")
        tell(sock.getsockopt({level}, {mtu}))
    """
    assert lab.do("vm1", code) == FAR_MTU


@pytest.mark.parametrize("address", [FAR4, FAR6])
def test_large_segments_find_the_path_s_mtu(lab: GatewayLab, address: str) -> None:
    code = f"""
        sock = opened = socket.create_connection(({address!r}, 82), 5)
        sock.sendall(bytes(4 << 20))
        sock.shutdown(socket.SHUT_WR)
        tell(sock.recv(100).decode())
    """
    assert lab.do("vm1", code) == str(4 << 20)


@pytest.mark.parametrize("version", [4, 6])
def test_a_download_comes_whole(lab: GatewayLab, version: int) -> None:
    code = f"""
        sock = socket.create_connection((resolve("example.com", {FAMILIES[version]}), 81), 5)
        sock.sendall(b"{MEGABYTES}\\n")
        count, room = 0, bytearray(1 << 20)
        while read := sock.recv_into(room):
            count += read
        tell(count)
    """
    assert lab.do("vm1", code) == MEGABYTES << 20


@pytest.mark.parametrize(
    ("source", "whose"),
    [
        ("10.30.0.9", "outside of all clients' networks"),
        ("10.20.0.99", "a client's, but of nobody"),
        ("10.20.0.12", "another machine's, which may not go there"),
        ("10.10.0.1", "a gateway's own, inside"),
        ("192.0.2.11", "a gateway's own, outside"),
        ("192.0.2.53", "a server's outside"),
        ("127.0.0.1", "loopback"),
    ],
)
def test_a_false_source_gets_nothing_out(lab: GatewayLab, source: str, whose: str) -> None:
    assert forged(lab, source) == 0, whose


def test_no_private_source_comes_outside(gates: Gates) -> None:
    lab, witness = gates.lab, Witness(gates.lab)
    for vm in VMS:
        for addresses in ZONE.values():
            for address in addresses:
                lab.inside(vm, f"connect({address!r}, seconds=0.05)")
    assert witness.private() == {"packets": 0, "first": ""}
    witness.close()


def test_a_withdrawn_rule_ends_its_connections_at_once(gates: Gates) -> None:
    lab = gates.lab
    lab.inside("vm1", "keep('stays', lambda: opened(resolve('example.com')))")
    lab.inside("vm2", "keep('ends', lambda: opened(resolve('example.net')))")
    assert lab.inside("vm2", "page('ends')") is True
    gates.write(POLICIES.replace("domains: [example.net]", "domains: [example.org]"))
    try:
        asked = "outcome(lambda: page('ends'))"
        found = wait_for(lambda: lab.inside("vm2", asked) != True and lab.inside("vm2", asked), "the end")  # noqa: E712
        assert found in ("ECONNRESET", "EPIPE")
        assert lab.inside("vm1", "page('stays')") is True
    finally:
        gates.write(POLICIES)
        wait_for(lambda: reach(lab, "vm2", "example.net", 4) == "connected", "the rule again")


def test_what_was_refused_is_counted_and_told(gates: Gates) -> None:
    lab, gate = gates.lab, gates[gates.lab.gateway_of("vm1")]
    began = time.time()
    assert lab.inside("vm1", f"connect({ZONE['example.org'][0]!r})") == "ECONNREFUSED"
    wait_for(lambda: "machine vm1" in gate.said() and "198.51.100.30" in gate.said(), f"its word, {began}")
    assert "skouter_" in gate.metrics()


def test_a_configuration_that_changes_is_followed_and_stays(gates: Gates) -> None:
    """Who is no client any more is not forwarded, also where nftables is written again afterwards."""
    lab, asked = gates.lab, f"connect({ZONE['example.net'][0]!r}, seconds=0.3)"
    gate = gates[lab.gateway_of("vm3")]

    def tables() -> str:
        return gate.gateway.here.checked("nft", "list", "ruleset")

    before = gate.config.read_text()
    fewer = json.loads(before) | {"clients": ["10.20.0.8/30", *CLIENTS[1:]]}  # vm1 alone, of IPv4
    try:
        gate.config.write_text(json.dumps(fewer))
        wait_for(lambda: "10.20.0.8" in tables() and CLIENTS[0] not in tables(), "other tables")
        wait_for(lambda: lab.inside("vm3", asked) != "connected", "the end of a client")
        gate.gateway.here.checked("nft", "flush", "ruleset")
        wait_for(lambda: "10.20.0.8" in tables(), "the tables again")
        assert CLIENTS[0] not in tables()
    finally:
        gate.config.write_text(before)
    wait_for(lambda: lab.inside("vm3", asked) == "connected", "the client again")


def test_skouter_off_beside_its_agent_opens_and_stays(gates: Gates) -> None:
    lab = gates.lab
    gate = gates[lab.gateway_of("vm1")]
    refused = f"connect({ZONE['example.org'][0]!r}, seconds=0.5)"
    assert lab.inside("vm1", refused) == "ECONNREFUSED"
    subprocess.run(gate.command("off"), capture_output=True, check=True)
    try:
        assert lab.inside("vm1", refused) == "connected"
        wait_for(lambda: "off was used" in gate.said(), "that the agent has looked again")
        assert lab.inside("vm1", refused) == "connected"
    finally:
        gate.agent.kill()
        gate.agent.wait()
        gate.restart()
    wait_for(lambda: lab.inside("vm1", refused) == "ECONNREFUSED", "what is refused")


def test_ATTACK_a_machine_holds_the_connections_of_whoever_asks_for_readiness(gates: Gates) -> None:
    lab, gate = gates.lab, gates[gates.lab.gateway_of("vm1")]
    code = f"[keep(f'silent {{n}}', lambda: opened({gate.gateway.inside4!r}, {HEALTH})) for n in range(40)]"
    lab.inside("vm1", f"len({code})")
    assert gate.probe()[0] == 200
