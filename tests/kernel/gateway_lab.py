"""Machines behind a gateway, and the world behind that.

    machines                        gateway                               world
    +--------------------+  veth   +----------------------------+  veth  +---------------------------+
    | 10.20.0.2 fd20::2  |---------| 10.20.0.1            10.8.0.1|-----| 10.8.0.2  fd08::2         |
    | 10.20.0.3 fd20::3  | inside  | in0  forwards if marked  up0 |     | lo: 203.0.113.1, .2, .53  |
    +--------------------+         | fd20::1   masquerades fd08::1|     |     2001:db8::1, ::2, ::53|
                                   +----------------------------+        +---------------------------+

Both machines are registered, each with a policy of its own. The gateway's programs are attached at in0, and a
table of nftables forwards what has their mark, and what answers it. Whether a packet passed is seen in the
world: behind it another is sent that may pass, and when that has come, the first one has come or never will.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import count

from bpf import kernel
from bpf.contract import contract
from bpf.events import Event, decode
from bpf.load import GATEWAY
from routing import own
from tests.kernel import packets as p
from tests.kernel.bench import FAMILY, LATER, TCP, UDP, Bench, Namespace, now
from tests.kernel.link_lab import ETH_P_ALL, RAW, frame, packet, quiet, summed

POLICY, OTHERS, SITE = 7, 8, 100
ANY, ONLY_80, PINGS = 1, 2, 4
VM = {4: "10.20.0.2", 6: "fd20::2"}
OTHER = {4: "10.20.0.3", 6: "fd20::3"}
STRANGER = {4: "10.99.0.2", 6: "fd99::2"}
HERE = {4: "10.20.0.1", 6: "fd20::1"}
OUTSIDE = {4: "10.8.0.1", 6: "fd08::1"}
GOOD = {4: "203.0.113.1", 6: "2001:db8::1"}
BAD = {4: "203.0.113.2", 6: "2001:db8::2"}
SILENT = {4: "203.0.113.9", 6: "2001:db8::9"}  # allowed, and never answers
ELSEWHERE = {4: "203.0.113.53", 6: "2001:db8::53"}
VM_MAC, HERE_MAC = bytes.fromhex("020000000002"), bytes.fromhex("020000000001")
MACHINE = 1 << contract().constant("MACHINE_BIT") | 1
TABLE = """
table inet test {
	chain capture {
		type nat hook prerouting priority dstnat;
	}
	chain forward {
		type filter hook forward priority filter; policy drop;
	}
	chain translate {
		type nat hook postrouting priority srcnat;
		oifname up0 masquerade
	}
}
"""
CAPTURE = "add rule inet test capture iifname in0 udp dport 53 redirect to :53"
FORWARD = [
    f"add rule inet test forward {rule}"
    for rule in (
        "meta mark & 0x30 == 0x30 accept",
        "ct direction reply ct state established,related accept",
        "reject with icmpx admin-prohibited",
    )
]

_numbers = count(1)


class Site:
    """The namespaces, for a module; the tables are filled anew by each Machines."""

    def __init__(self) -> None:
        self.machines, self.gateway, self.world = Namespace(), Namespace(), Namespace()
        self.gateway.join(self.machines, "in0")
        self.gateway.join(self.world, "up0")
        quiet(self.machines, self.gateway, self.world)
        self.gateway.ip(
            f"link set in0 address {HERE_MAC.hex(':')}",
            *(f"addr add {HERE[v]}/{24 if v == 4 else 64} dev in0" for v in HERE),
            *(f"addr add {OUTSIDE[v]}/{24 if v == 4 else 64} dev up0" for v in OUTSIDE),
            *("route add 203.0.113.0/24 via 10.8.0.2", "route add 2001:db8::/64 via fd08::2"),
            *(f"neigh replace {a} lladdr {VM_MAC.hex(':')} dev in0" for a in (*VM.values(), *OTHER.values())),
            *(f"route add {a} dev in0" for a in STRANGER.values()),
        )
        self.machines.ip(
            f"link set inside address {VM_MAC.hex(':')}",
            *(f"addr add {a[v]}/{32 if v == 4 else 128} dev inside" for v in VM for a in (VM, OTHER)),
            *(f"addr add {a}/{32 if ':' not in a else 128} dev inside" for a in STRANGER.values()),
            *("route add 10.20.0.1 dev inside", "route add fd20::1 dev inside"),
            *("route add default via 10.20.0.1", "route add ::/0 via fd20::1"),
        )
        self.world.ip(
            *("addr add 10.8.0.2/24 dev inside", "addr add fd08::2/64 dev inside"),
            *("route add default via 10.8.0.1", "route add ::/0 via fd08::1"),
            *(f"addr add {a[v]}/{32 if v == 4 else 128} dev lo" for a in (GOOD, BAD, ELSEWHERE) for v in a),
            *(f"route add blackhole {a}" for a in SILENT.values()),
        )
        quiet(self.gateway)
        with self.gateway.entered():
            subprocess.run(
                ["nft", "-f", "-"], input="\n".join((TABLE, CAPTURE, *FORWARD)), text=True, check=True
            )
            self.home = own.namespace_cookie()
            self.index = socket.if_nametoindex("in0")

    def close(self) -> None:
        for each in (self.machines, self.gateway, self.world):
            each.close()


class Machines:
    """Two machines, their tables, and who sees what comes to the world."""

    def __init__(self, bench: Bench, site: Site) -> None:
        self.b, self.site = bench, site
        self.open, self.sockets = ExitStack(), list[socket.socket]()
        self.programs = bench.d.for_gateway()
        for machine, (policy, addresses) in enumerate(((POLICY, VM), (OTHERS, OTHER)), MACHINE):
            self.enter(machine, policy, *addresses.values())
        for policy in (POLICY, OTHERS):
            bench.policy(policy)
            bench.service(policy, ANY)
            bench.service(policy, ANY | ONLY_80, p.TCP, 80)
            bench.service(policy, ANY | PINGS, p.ICMP)
            bench.rule(policy, SITE, ANY)
            for version in (4, 6):
                for address in (GOOD, SILENT):
                    bench.grant(policy, address[version], (SITE, now() + LATER))
        for address in (*HERE.values(), *OUTSIDE.values()):
            bench.put("own", (p.packed(address), site.home), 1)
        self.wire = self.tap_of(site.machines)
        self.tap = self.tap_of(site.world)
        self.attach()

    def enter(self, machine: int, policy: int, *addresses: str) -> None:
        self.b.put("workloads", machine, (policy, 0, self.site.home))
        for address in addresses:
            self.b.put("sources", (128, p.packed(address)), machine)

    def close(self) -> None:
        """Connections are reset: none says farewell while the next test counts."""
        for s in self.sockets:
            if s.fileno() != -1 and s.type == TCP:
                s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.open.close()
        self.detach()
        self.b.d.set(hold_back=0, pick_up=0, dns_port=0)

    def attach(self) -> None:
        with self.site.gateway.entered():
            for name, hook in GATEWAY.hooks.items():
                kernel.attach_to_link(self.programs[name], self.site.index, hook)

    def detach(self) -> None:
        with self.site.gateway.entered():
            for name, hook in GATEWAY.hooks.items():
                kernel.detach(self.programs[name], self.site.index, hook)

    @contextmanager
    def without(self) -> Iterator[None]:
        """The gateway as it is without a defence: it forwards what comes from inside."""
        self.detach()
        self.nft("insert rule inet test forward iifname in0 accept")
        try:
            yield
        finally:
            self.nft("flush chain inet test forward", *FORWARD)
            self.attach()

    @contextmanager
    def uncaught(self) -> Iterator[None]:
        """Nothing leads questions for other servers to the gateway's own."""
        self.nft("flush chain inet test capture")
        try:
            yield
        finally:
            self.nft(CAPTURE)

    def nft(self, *lines: str) -> None:
        with self.site.gateway.entered():
            subprocess.run(["nft", "-f", "-"], input="\n".join(lines), text=True, check=True)

    @contextmanager
    def events(self, policy: int = POLICY) -> Iterator[Callable[[], list[Event]]]:
        """What is told of a policy; each call gives what came since the last one."""
        found: list[Event] = []
        key, fd = policy.to_bytes(4, sys.byteorder), kernel.create_ring(1 << 18)
        kernel.update(self.b.d["events"].fd, key, fd.to_bytes(4, sys.byteorder))
        ring = kernel.Ring(fd, lambda data: found.append(decode(data)))

        def take() -> list[Event]:
            ring.consume()
            taken = list(found)
            found.clear()
            return taken

        yield take
        kernel.delete(self.b.d["events"].fd, key)
        ring.close()
        os.close(fd)

    # ---- Sockets

    def kept(self, s: socket.socket) -> socket.socket:
        s.settimeout(5)
        self.sockets.append(s)
        return self.open.enter_context(s)

    def tap_of(self, namespace: Namespace, name: str = "inside") -> socket.socket:
        with namespace.entered():
            s = self.kept(socket.socket(socket.AF_PACKET, RAW, socket.htons(ETH_P_ALL)))
            s.bind((name, 0))
        return s

    def mine(self, kind: int, version: int, source: dict[int, str] = VM, protocol: int = 0) -> socket.socket:
        """A socket of a machine's, bound to its address."""
        with self.site.machines.entered():
            s = self.kept(socket.socket(FAMILY[version], kind, protocol))
            s.bind((source[version], 0))
        return s

    def theirs(self, kind: int, address: str, port: int = 80) -> socket.socket:
        """A socket of the world's, bound; a stream listens."""
        return self._bound(self.site.world, kind, address, port)

    def here(self, kind: int, address: str, port: int) -> socket.socket:
        """One of the gateway's own."""
        return self._bound(self.site.gateway, kind, address, port)

    def _bound(self, namespace: Namespace, kind: int, address: str, port: int) -> socket.socket:
        with namespace.entered():
            s = self.kept(socket.socket(FAMILY[6 if ":" in address else 4], kind))
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if ":" in address:
            s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        s.bind((address, port))
        if kind == TCP:
            s.listen()
        return s

    def connected(self, version: int, port: int = 80) -> tuple[socket.socket, socket.socket]:
        """A connection of the first machine to the allowed server, both ends."""
        server, s = self.theirs(TCP, GOOD[version], port), self.mine(TCP, version)
        s.connect((GOOD[version], port))
        return s, self.kept(server.accept()[0])

    # ---- What passes

    def leaves(self, *packets: bytes, marker: bytes) -> bool:
        """Whether, of these packets of a machine's, one that holds `marker` comes to the world."""
        for each in packets:
            self.send(each)
        return self.came(marker)

    def send(self, packet: bytes) -> None:
        self.wire.send(frame(packet, VM_MAC, HERE_MAC))

    def came(self, marker: bytes) -> bool:
        """Whether a packet that holds `marker` came, of all that were sent before."""
        fence = f"fence {next(_numbers)};".encode()
        self.send(datagram(SILENT[4], fence, port=9999))
        found = False
        while fence not in (seen := self.tap.recv(65536)):
            found |= marker in seen
        return found


def datagram(destination: str, payload: bytes, port: int = 80, source: str | None = None) -> bytes:
    version = 6 if ":" in destination else 4
    return summed(packet(source or VM[version], destination, p.UDP, p.udp(port, payload=payload)), 6)


def segment(
    destination: str, flags: int, payload: bytes = b"", source: str = "", ports: tuple[int, int] = (40000, 80)
) -> bytes:
    version = 6 if ":" in destination else 4
    head = p.tcp(ports[1], ports[0], flags, payload)
    return summed(packet(source or VM[version], destination, p.TCP, head), 16)


@contextmanager
def name_server(m: Machines, version: int, answer: Callable[[bytes], bytes]) -> Iterator[list[bytes]]:
    """The gateway's own DNS server; the questions that came to it."""
    anywhere = "0.0.0.0" if version == 4 else "::"
    s, seen = m.here(UDP, anywhere, 53), []

    def serve() -> None:
        while True:
            message, client = s.recvfrom(65536)
            if message == b"end":
                return
            seen.append(message)
            s.sendto(answer(message), client)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield seen
    finally:
        with m.site.gateway.entered(), socket.socket(FAMILY[version], UDP) as end:
            end.sendto(b"end", (HERE[version], 53))
        thread.join()
        s.close()
