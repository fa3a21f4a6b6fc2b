"""A gateway without Skouter: plain nftables NAT that filters nothing; the baseline of the bench."""

from __future__ import annotations

import json

from tests.gateway.lab import CLIENTS, Gateway

TABLE = f"""
table inet plain {{}}
delete table inet plain
table inet plain {{
  counter new {{}}
  chain forward {{
    type filter hook forward priority filter; policy accept;
    tcp flags syn tcp option maxseg size set rt mtu
  }}
  chain postrouting {{
    type nat hook postrouting priority srcnat;
    counter name new
    ip saddr {CLIENTS[0]} oifname outside masquerade
    ip6 saddr {CLIENTS[1]} oifname outside masquerade
  }}
}}
"""


def forward(gateway: Gateway) -> None:
    gateway.here.checked("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
    gateway.here.checked("nft", "-f", "-", input=TABLE)


def new_connections(gateway: Gateway) -> int:
    """Since the counters were reset: a chain of NAT sees the first packet of each."""
    told = json.loads(gateway.here.checked("nft", "-j", "list", "counters"))["nftables"]
    return sum(int(row["counter"]["packets"]) for row in told if "counter" in row)
