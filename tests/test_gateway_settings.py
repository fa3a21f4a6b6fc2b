"""gateway.yaml, read: what it means, and how each mistake in it is told."""

import ipaddress

import pytest

from gateway.gateway_settings import DnsSettings, GatewaySettings, PeersSettings
from gateway.settings import LinkSettings, read

WHOLE = """
inside: eth1
outside: eth0
clients: [10.20.0.0/16, "fd00:20::/64"]
unselected: allow
policies: /srv/policies
snat: {ipv4: 203.0.113.7, ipv6: "2001:db8::7"}
dns: {upstreams: [169.254.169.253, "[2001:db8::53]:5353"], capture: false, zones: {Corp.Example.: [10.0.0.2]}}
peers:
  listen: "[::]:7000"
  members: [10.0.1.5, "fd00::7", gateways.internal]
  keyFile: /etc/skouter/peer.key
  oldKeyFile: /etc/skouter/old.key
  dumpSeconds: 3
health: {address: 127.0.0.1, port: 9900}
drainSeconds: 0
conntrack: 4096
link: {mark: 0x100, mask: 0x300}
floor: 5
"""
ip = ipaddress.ip_address
LEAST = "clients: [10.0.0.0/8]\n"


def gateway(text: str) -> GatewaySettings:
    settings, found = read(text, "gateway.yaml", gateway=True)
    assert not found
    assert settings
    assert settings.gateway
    return settings.gateway


def problems(text: str) -> list[str]:
    settings, found = read(text, "gateway.yaml", gateway=True)
    assert settings is None
    return [str(problem) for problem in found]


def test_all_of_it() -> None:
    assert gateway(WHOLE) == GatewaySettings(
        clients=(ipaddress.ip_network("10.20.0.0/16"), ipaddress.ip_network("fd00:20::/64")),
        inside="eth1",
        outside="eth0",
        lets_unselected=True,
        policies="/srv/policies",
        snat=(ipaddress.IPv4Address("203.0.113.7"), ipaddress.IPv6Address("2001:db8::7")),
        dns=DnsSettings(
            ((ip("169.254.169.253"), 53), (ip("2001:db8::53"), 5353)),
            (("corp.example", ((ip("10.0.0.2"), 53),)),),
            capture=False,
        ),
        peers=PeersSettings(
            (ip("::"), 7000),
            ("10.0.1.5", "fd00::7", "gateways.internal"),
            "/etc/skouter/peer.key",
            "/etc/skouter/old.key",
            dump=3,
        ),
        health=(ip("127.0.0.1"), 9900),
        drain=0,
        conntrack=4096,
    )


def test_it_has_what_agent_yaml_has_too() -> None:
    settings, _ = read(WHOLE, "gateway.yaml", gateway=True)
    assert settings
    assert (settings.link, settings.floor) == (LinkSettings(0x100, 0x300), 5)


def test_an_agent_s_has_no_clients() -> None:
    settings, found = read(LEAST, "agent.yaml")
    assert settings is None
    assert str(found[0]).startswith("agent.yaml:1: clients: is not a field")


def test_what_is_left_out() -> None:
    least = gateway(LEAST)
    assert least == GatewaySettings(clients=(ipaddress.ip_network("10.0.0.0/8"),))
    assert gateway(LEAST + "health: {}\n").health == (ip("0.0.0.0"), 9808)
    assert gateway(LEAST + "snat: none\n").snat == "none"
    mirrored = gateway(LEAST + "kubernetes: {kubeconfig: /k}\npeers: {keyFile: /key, service: a/b}\n")
    assert (mirrored.kubeconfig, mirrored.peers and mirrored.peers.service) == ("/k", ("a", "b"))


@pytest.mark.parametrize(
    ("text", "field", "mend"),
    [
        ("", "clients", "add clients"),
        ("clients: []", "clients", ""),
        ("clients: [10.1.2.3/8]", "clients[0]", "write 10.0.0.0/8"),
        ("clients: [10.0.0.0/8, 10.1.0.0/16]", "clients[1]", "leave it out"),
        ("clients: [0.0.0.0/0]", "clients[0]", "write the networks of your machines"),
        (LEAST + "inside: a b", "inside", "write eth0, or auto"),
        (LEAST + "inside: a/b", "inside", "write eth0, or auto"),
        (LEAST + "unselected: maybe", "unselected", "deny"),
        (LEAST + "policies: here", "policies", "write /etc/skouter/here"),
        (LEAST + "policies: /p\nkubernetes: {kubeconfig: /k}", "policies", "leave one of them out"),
        (LEAST + "snat: yes", "snat", "write masquerade, none"),
        (LEAST + "snat: {}", "snat", "write masquerade, none"),
        (LEAST + "snat: {ipv4: '2001:db8::1'}", "snat.ipv4", "write it as ipv6"),
        (LEAST + "dns: {upstreams: [x]}", "dns.upstreams[0]", "write 192.0.2.1"),
        (LEAST + "dns: {zones: {a..b: [192.0.2.1]}}", "dns.zones.a..b", ""),
        (LEAST + "dns: {zones: {corp: [x]}}", "dns.zones.corp[0]", "write 192.0.2.1"),
        (LEAST + "peers: {members: [10.0.0.1]}", "peers.keyFile", "skouter gateway --make-key"),
        (LEAST + "peers: {keyFile: /k, members: ['a b']}", "peers.members[0]", "write 10.0.0.1"),
        (LEAST + "peers: {keyFile: /k, members: ['a:0']}", "peers.members[0]", "write 10.0.0.1"),
        (LEAST + "peers: {keyFile: /k, service: a/b}", "peers.service", "kubeconfig"),
        (LEAST + "peers: {keyFile: /k, service: b}", "peers.service", "NAMESPACE/NAME"),
        (LEAST + "health: {port: 0}", "health.port", ""),
        (LEAST + "health: {address: x}", "health.address", "write 192.0.2.1"),
        (LEAST + "drainSeconds: -1", "drainSeconds", ""),
        (LEAST + "conntrack: 1", "conntrack", ""),
    ],
)
def test_mistakes_are_told_with_field_and_mend(text: str, field: str, mend: str) -> None:
    found = problems(text)
    assert len(found) == 1, found
    assert f" {field}: " in found[0]
    assert mend in found[0]
