"""The configuration of the resolver beside a gateway: unbound, which answers the clients and caches for all.

The rules this file must obey:

* Pure: a text from settings. Whoever runs unbound writes it down (deploy/systemd/skouter-resolver.service).
* Only clients are answered, and this host: an open resolver is a weapon.
* Answers fit a packet that no path has to cut (RFC 9715): what doesn't comes over TCP, and is read there.

Source: unbound.conf(5).
"""

from __future__ import annotations

from collections.abc import Iterable

from gateway.gateway_settings import GatewaySettings
from gateway.policies.addresses import Server

LARGEST = 1232  # bytes of an answer over UDP
TCP = 1024  # clients at once over TCP: the proxy asks for all of them


def configuration(settings: GatewaySettings) -> str:
    dns = settings.dns
    allowed = ["127.0.0.0/8", "::1/128", *map(str, settings.clients)]
    lines = [
        "# Made by `skouter gateway --unbound` from the gateway's configuration: change that one.",
        "server:",
        "  interface: 0.0.0.0",
        "  interface: ::0",
        "  interface-automatic: yes",  # an answer leaves from the address that was asked
        f"  port: {dns.port}",
        *(f"  access-control: {network} allow" for network in allowed),
        '  chroot: ""',
        '  pidfile: ""',
        "  use-syslog: no",
        "  log-time-ascii: no",
        f"  max-udp-size: {LARGEST}",
        f"  edns-buffer-size: {LARGEST}",
        f"  incoming-num-tcp: {TCP}",
        "  minimal-responses: yes",
        "  prefetch: yes",
        "  hide-identity: yes",
        "  hide-version: yes",
        # What upstreams answer is theirs to validate: many a cloud's can't be asked for signatures.
        *(['  module-config: "iterator"'] if dns.upstreams else []),
        "  do-not-query-localhost: no",  # an upstream may be on this host
        *(f'  domain-insecure: "{name}"' for name, _ in dns.zones),
        *(f'  local-zone: "{name}" nodefault' for name, _ in dns.zones),
        "remote-control:",
        "  control-enable: no",
    ]
    for name, servers in dns.zones:
        lines += _forward(name, servers)
    if dns.upstreams:
        lines += _forward(".", dns.upstreams)
    return "\n".join(lines) + "\n"


def _forward(name: str, servers: Iterable[Server]) -> list[str]:
    addresses = [f"  forward-addr: {address}@{port}" for address, port in servers]
    return ["forward-zone:", f'  name: "{name}"', *addresses]
