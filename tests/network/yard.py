"""A gateway between a client and a server, in one process's hands: sockets made in each namespace.

      client                      gateway                        world
    ┌────────────┐        ┌───────────────────────┐        ┌─────────────────┐
    │ 10.9.0.2   ├─ in0 ──┤ 10.9.0.1    192.0.2.1 ├─ out0 ─┤ 192.0.2.2       │   two arms
    │ fd09::2    │        │ fd09::1 2001:db8:2::1 │        │ 2001:db8:2::2   │   one: all on one LAN, and both
    └────────────┘        └───────────────────────┘        └─────────────────┘   pairs of addresses on in0

The world has no way back to the client but for what the gateway translates. A table of nftables plays the
program that admits: it marks what comes from the client.
"""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from routing import forwarding
from routing.forwarding import Forwarding
from routing.namespaces import inside
from routing.steering import Marks
from tests.topology import Namespace

T = TypeVar("T")
ETH_P_ALL, PACKET_OUTGOING = 3, 4
MARKS = Marks(0x30, 0x10)
CLIENTS = (ipaddress.ip_network("10.9.0.0/24"), ipaddress.ip_network("fd09::/64"))
PRIVATE = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))
CLIENT = {4: "10.9.0.2", 6: "fd09::2"}
GATEWAY = {4: "10.9.0.1", 6: "fd09::1"}
OUTSIDE = {4: "192.0.2.1", 6: "2001:db8:2::1"}
WORLD = {4: "192.0.2.2", 6: "2001:db8:2::2"}
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
PROGRAM = """
table inet program {
  chain admit { type filter hook prerouting priority -310; %s }
}
"""
ADMIT = "".join(
    f'iifname "in0" {source} meta mark set 0x30; '
    for source in ("ip saddr 10.9.0.0/24", "ip6 saddr fd09::/64")
)
BELL = b"the end of what was sent"


class Yard:
    """`arms`: whether the gateway's one interface does both."""

    def __init__(self, arms: int, name: str, folder: Path) -> None:
        self.name, self.kept, self.arms = name, folder / "forwarding.json", arms
        self.spaces = {name: Namespace(name) for name in ("client", "gateway", "world", "lan")}
        self.fds = {
            name: os.open(f"/proc/{space.holder.pid}/ns/net", os.O_RDONLY)
            for name, space in self.spaces.items()
        }
        self.client, self.gateway, self.world, lan = self.spaces.values()
        for space in self.spaces.values():
            space.checked("sysctl", "-qw", "net.ipv4.ip_forward=0", "net.ipv6.conf.all.forwarding=0")
            space.ip("link set lo up")
        self._two() if arms == 2 else self._one(lan)
        out = "out0" if arms == 2 else "in0"
        self.client.ip("addr add 10.9.0.2/24 dev eth0\naddr add fd09::2/64 dev eth0 nodad")
        self.client.ip("route add default via 10.9.0.1\nroute add default via fd09::1")
        self.gateway.ip("addr add 10.9.0.1/24 dev in0\naddr add fd09::1/64 dev in0 nodad")
        self.gateway.ip(f"addr add 192.0.2.1/24 dev {out}\naddr add 2001:db8:2::1/64 dev {out} nodad")
        self.gateway.ip("route add default via 192.0.2.2\nroute add default via 2001:db8:2::2")
        self.world.ip("addr add 192.0.2.2/24 dev eth0\naddr add 2001:db8:2::2/64 dev eth0 nodad")
        self.world.ip("route add default via 192.0.2.1\nroute add default via 2001:db8:2::1")
        self.gateway.checked("sysctl", "-qw", "net.ipv4.conf.all.rp_filter=2")  # as some distributions do
        self.out = out
        self.heard = self.in_("world", listening_to_all)

    def _two(self) -> None:
        pid = self.gateway.holder.pid
        self.client.ip(f"link add eth0 type veth peer name in0 netns {pid}\nlink set eth0 up")
        self.world.ip(f"link add eth0 type veth peer name out0 netns {pid}\nlink set eth0 up")
        self.gateway.ip("link set in0 up\nlink set out0 up")

    def _one(self, lan: Namespace) -> None:
        lan.ip("link add br0 type bridge\nlink set br0 up")
        for space, name in ((self.client, "eth0"), (self.gateway, "in0"), (self.world, "eth0")):
            space.ip(f"link add {name} type veth peer name {space.name} netns {lan.holder.pid}")
            space.ip(f"link set {name} up")
            lan.ip(f"link set {space.name} master br0 up")

    def in_(self, name: str, work: Callable[[], T]) -> T:
        return inside(self.fds[name], work)

    # ---- The gateway --------------------------------------------------------------------------------------

    def wanted(self, **more: object) -> Forwarding:
        given = {"inside": frozenset({"in0"}), "outside": frozenset({self.out}), "clients": CLIENTS}
        return Forwarding(**{**given, "marks": MARKS, **more})  # type: ignore[arg-type]

    def apply(self, **more: object) -> list[str]:
        return self.in_("gateway", lambda: forwarding.apply(self.name, self.wanted(**more), self.kept))

    def remove(self) -> list[str]:
        return self.in_("gateway", lambda: forwarding.remove(self.name, self.kept))

    def admit(self, rules: str = ADMIT) -> None:
        """These rules are the program's from now on."""
        self.gateway.checked("nft", "-f", "-", input="table inet program {}\ndelete table inet program\n")
        self.gateway.checked("nft", "-f", "-", input=PROGRAM % rules)

    # ---- What came out ------------------------------------------------------------------------------------

    def seen(self) -> list[bytes]:
        """IP packets that reached the world since the last time; one of the gateway itself is the last."""
        with self.udp("gateway", 4) as bell:
            bell.sendto(BELL, (WORLD[4], 9))
        found = []
        self.heard.settimeout(10)
        while True:
            packet, about = self.heard.recvfrom(1 << 16)
            if about[2] == PACKET_OUTGOING or packet[0] >> 4 not in (4, 6):  # ARP
                continue
            if packet.endswith(BELL):
                return found
            found.append(packet)

    def escaped(self) -> list[bytes]:
        """Of those, what has a source that only the gateway may know."""
        there = [packet for packet in self.seen() if str(destination(packet)) in WORLD.values()]
        return [packet for packet in there if any(source(packet) in network for network in PRIVATE)]

    # ---- Sockets ------------------------------------------------------------------------------------------

    def udp(self, where: str, version: int, port: int = 0) -> socket.socket:
        def make() -> socket.socket:
            made = socket.socket(FAMILY[version], socket.SOCK_DGRAM)
            made.settimeout(3)
            made.bind((CLIENT[version] if where == "client" else {4: "0.0.0.0", 6: "::"}[version], port))
            return made

        return self.in_(where, make)

    def listener(self, where: str, version: int, port: int) -> socket.socket:
        def make() -> socket.socket:
            made = socket.create_server(("0.0.0.0" if version == 4 else "::", port), family=FAMILY[version])
            made.settimeout(3)
            return made

        return self.in_(where, make)

    def connect(self, address: str, port: int, where: str = "client") -> socket.socket:
        return self.in_(where, lambda: socket.create_connection((address, port), 3))

    def send_raw(self, where: str, packet: bytes) -> None:
        """A whole IP packet, as it is."""
        to = str(destination(packet))

        def send() -> None:
            if packet[0] >> 4 == 4:
                with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as made:
                    made.sendto(packet, (to, 0))
            else:
                with socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_RAW) as made:
                    made.sendto(packet, (to, 0))

        self.in_(where, send)

    def close(self) -> None:
        self.heard.close()
        for fd in self.fds.values():
            os.close(fd)
        for space in self.spaces.values():
            space.close()


def listening_to_all() -> socket.socket:
    return socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))


def source(packet: bytes) -> Any:
    return ipaddress.ip_address(packet[12:16] if packet[0] >> 4 == 4 else packet[8:24])


def destination(packet: bytes) -> Any:
    return ipaddress.ip_address(packet[16:20] if packet[0] >> 4 == 4 else packet[24:40])
