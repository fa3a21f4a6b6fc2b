"""A workload with a link of its own, the node at the other end, and the world behind it.

    pod (the workload's cgroup)    node                             world
    +--------------------+  veth  +----------------------+  veth  +---------------------------+
    | 10.9.0.2  fd09::2  |--------| 10.9.0.1  fd09::1    |--------| 10.8.0.2  fd08::2         |
    |             inside |  link  | pod0  forwards   up0 |        | lo: 203.0.113.1, .2, .53  |
    +--------------------+        +----------------------+        |     2001:db8::1, ::2, ::53|
                                                                  +---------------------------+

The link's programs are attached at pod0, by tcx. Whether a frame passed is seen in the world: behind it
another frame is sent that may pass, and when that has come, the first one has come or never will.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

from bpf import kernel
from bpf.compile import INSTRUCTION
from bpf.load import LINK, LINKS
from routing import own
from tests.kernel import packets as p
from tests.kernel.bench import FAMILY, LATER, TCP, Bench, Namespace, inside, now

POLICY, SITE = 7, 100
ANY, ONLY_80, PINGS = 1, 2, 4
POD = {4: "10.9.0.2", 6: "fd09::2"}
NODE = {4: "10.9.0.1", 6: "fd09::1"}
GOOD = {4: "203.0.113.1", 6: "2001:db8::1"}
BAD = {4: "203.0.113.2", 6: "2001:db8::2"}
RESOLVER = {4: "203.0.113.53", 6: "2001:db8::53"}
FOREIGN = {4: "10.9.0.77", 6: "fd09::77"}
POD_MAC, NODE_MAC = bytes.fromhex("020000000002"), bytes.fromhex("020000000001")
OTHER_MAC, BROADCAST = bytes.fromhex("020000000077"), b"\xff" * 6
LINK_LOCAL = "fe80::ff:fe00:2"
UNREACHABLE, ECHO = {4: 3, 6: 1}, {4: 8, 6: 128}
PING = {4: socket.IPPROTO_ICMP, 6: socket.IPPROTO_ICMPV6}
RAW = socket.SOCK_RAW
ETH_P_ALL = 3
REDIRECT = 23  # enum bpf_func_id
FENCE = b"a fence"

_numbers = count(1)


# ---- Frames


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data[: len(data) // 2 * 2]))
    total += (data[-1] << 8) if len(data) % 2 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(source: str, destination: str, protocol: int, payload: bytes, **more: int) -> bytes:
    """An IP packet of the family of its addresses, as a router wants it."""
    if ":" in source:
        return p.ipv6(source, destination, protocol, payload, **more)
    return signed(p.ipv4(source, destination, protocol, payload, **more))


def signed(ipv4: bytes) -> bytes:
    """With the header's checksum."""
    head = ipv4[: (ipv4[0] & 15) * 4]
    head = head[:10] + b"\0\0" + head[12:]
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + ipv4[len(head) :]


def summed(ip: bytes, at: int) -> bytes:
    """With the checksum of its transport header, which lies at `at` of that (no options, no extensions)."""
    six = ip[0] >> 4 == 6
    start, protocol = (40, ip[6]) if six else (20, ip[9])
    addresses, body = (ip[8:40] if six else ip[12:20]), ip[start:]
    pseudo = addresses + struct.pack(">II", len(body), protocol)
    value = checksum(pseudo + body[:at] + b"\0\0" + body[at + 2 :])
    return ip[:start] + body[:at] + struct.pack(">H", value) + body[at + 2 :]


def frame(packet: bytes, source: bytes = POD_MAC, destination: bytes = NODE_MAC, tags: bytes = b"") -> bytes:
    kind = b"\x86\xdd" if packet[0] >> 4 == 6 else b"\x08\x00"
    return destination + source + tags + kind + packet


def arp(operation: int, mac: bytes, address: str, target: str = NODE[4], source: bytes = POD_MAC) -> bytes:
    body = struct.pack(">HHBBH", 1, 0x0800, 6, 4, operation) + mac + ipaddress.ip_address(address).packed
    return BROADCAST + source + b"\x08\x06" + body + bytes(6) + ipaddress.ip_address(target).packed


def datagram(destination: str, payload: bytes, port: int = 80, source: str | None = None) -> bytes:
    version = 6 if ":" in destination else 4
    return frame(packet(source or POD[version], destination, p.UDP, p.udp(port, payload=payload)))


class Lab:
    """The namespaces, for a module; the tables are filled anew by each World."""

    def __init__(self) -> None:
        self.pod, self.node, self.world = Namespace(), Namespace(), Namespace()
        self.node.join(self.pod, "pod0")
        self.node.join(self.world, "up0")
        quiet(self.pod, self.node, self.world)
        self.node.ip(
            *(f"link set pod0 address {_text(NODE_MAC)}", "link set up0 address 02:00:00:00:01:01"),
            *(f"addr add {NODE[v]}/{24 if v == 4 else 64} dev pod0" for v in NODE),
            *("addr add 10.8.0.1/24 dev up0", "addr add fd08::1/64 dev up0"),
            *("route add 203.0.113.0/24 via 10.8.0.2", "route add 2001:db8::/64 via fd08::2"),
            *("neigh replace 10.8.0.2 lladdr 02:00:00:00:01:02 dev up0 nud permanent",),
            *("neigh replace fd08::2 lladdr 02:00:00:00:01:02 dev up0 nud permanent",),
        )
        self.pod.ip(
            f"link set inside address {_text(POD_MAC)}",
            *(f"addr add {POD[v]}/{24 if v == 4 else 64} dev inside" for v in POD),
            *(f"route add default via {NODE[4]}", f"route add ::/0 via {NODE[6]}"),
        )
        self.world.ip(
            "link set inside address 02:00:00:00:01:02",
            *("addr add 10.8.0.2/24 dev inside", "addr add fd08::2/64 dev inside"),
            *("route add default via 10.8.0.1", "route add ::/0 via fd08::1"),
            *("neigh replace 10.8.0.1 lladdr 02:00:00:00:01:01 dev inside nud permanent",),
            *("neigh replace fd08::1 lladdr 02:00:00:00:01:01 dev inside nud permanent",),
            *(f"addr add {a[v]}/{32 if v == 4 else 128} dev lo" for a in (GOOD, BAD, RESOLVER) for v in a),
        )
        quiet(self.node)
        with self.pod.entered():
            Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0")
            self.home = own.namespace_cookie()
        with self.node.entered():
            self.index = socket.if_nametoindex("pod0")

    def close(self) -> None:
        for each in (self.pod, self.node, self.world):
            each.close()


def quiet(*namespaces: Namespace) -> None:
    """They forward, ask nobody whether a source is likely, and use an address at once."""
    for namespace in namespaces:
        with namespace.entered():
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
            for path in Path("/proc/sys/net/ipv4/conf").glob("*/rp_filter"):
                path.write_text("0")
            for path in Path("/proc/sys/net/ipv6/conf").glob("*/accept_dad"):
                path.write_text("0")


def _text(mac: bytes) -> str:
    return mac.hex(":")


class World:
    """One workload, its tables, and who sees what leaves it."""

    def __init__(self, bench: Bench, cgroup: Path, lab: Lab) -> None:
        self.b, self.lab, self.cgroup = bench, lab, cgroup
        self.open = ExitStack()
        bench.policy(POLICY)
        self.number = bench.classify(cgroup, POLICY, lab.home, "OWN_SOURCES", "COOKIE", "LINKED")
        bench.put("links", lab.index, (self.number, POD_MAC))
        for address in (*POD.values(), LINK_LOCAL):
            bench.put("own", (p.packed(address), lab.home), 1)
        bench.service(POLICY, ANY)
        bench.service(POLICY, ANY | ONLY_80, p.TCP, 80)
        bench.service(POLICY, ANY | PINGS, p.ICMP)
        bench.rule(POLICY, SITE, ANY)
        for version in (4, 6):
            bench.grant(POLICY, GOOD[version], (SITE, now() + LATER))
            bench.resolver(POLICY, RESOLVER[version])
        with lab.pod.entered(), inside(cgroup):
            self.wire = self.kept(socket.socket(socket.AF_PACKET, RAW, socket.htons(ETH_P_ALL)))
        self.wire.bind(("inside", 0))
        with lab.world.entered():
            self.tap = self.kept(socket.socket(socket.AF_PACKET, RAW, socket.htons(ETH_P_ALL)))
        self.tap.bind(("inside", 0))
        self.attach()

    # ---- The link's programs

    def attach(self) -> None:
        with self.lab.node.entered():
            for name, hook in LINKS.hooks.items():
                if kernel.program_info(self.b.d.for_links()[name]).id not in kernel.attached(
                    self.lab.index, hook
                ):
                    kernel.attach_to_link(self.b.d.for_links()[name], self.lab.index, hook)

    def detach(self) -> None:
        with self.lab.node.entered():
            for name, hook in LINKS.hooks.items():
                if kernel.program_info(self.b.d.for_links()[name]).id in kernel.attached(
                    self.lab.index, hook
                ):
                    kernel.detach(self.b.d.for_links()[name], self.lab.index, hook)

    @contextmanager
    def without(self) -> Iterator[None]:
        """The link as it is without a defence."""
        self.detach()
        yield
        self.attach()

    @contextmanager
    def wired_through(self) -> Iterator[None]:
        """What the link lets pass goes to the world as it is, by a program behind the link's: so that frames
        are seen which the node's own stack has no use for."""
        with self.lab.node.entered():
            code = b"".join(
                INSTRUCTION.pack(*line)
                for line in (
                    (0xB7, 1, 0, socket.if_nametoindex("up0")),
                    (0xB7, 2, 0, 0),
                    (0x85, 0, 0, REDIRECT),
                    (0x95, 0, 0, 0),
                )
            )
            program = kernel.load_program("wire", code, LINK, 0)
            assert not kernel._lib.bpf_prog_attach(program, self.lab.index, kernel.TCX_INGRESS, 0)
        yield
        with self.lab.node.entered():
            kernel.detach(program, self.lab.index, kernel.TCX_INGRESS)
        os.close(program)

    # ---- Sockets

    @contextmanager
    def as_workload(self) -> Iterator[None]:
        with self.lab.pod.entered(), inside(self.cgroup):
            yield

    def kept(self, s: socket.socket) -> socket.socket:
        s.settimeout(5)
        return self.open.enter_context(s)

    def mine(self, kind: int, version: int, protocol: int = 0) -> socket.socket:
        with self.as_workload():
            return self.kept(socket.socket(FAMILY[version], kind, protocol))

    def theirs(self, kind: int, address: str, port: int = 80) -> socket.socket:
        """A socket of the world's, bound; a stream listens."""
        with self.lab.world.entered():
            s = self.kept(socket.socket(FAMILY[6 if ":" in address else 4], kind))
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        s.bind((address, port))
        if kind == TCP:
            s.listen()
        return s

    def connect(self, s: socket.socket, address: str, port: int = 80) -> None:
        with self.as_workload():
            s.connect((address, port))

    def connected(self, version: int, port: int = 80) -> tuple[socket.socket, socket.socket]:
        """A connection to the allowed server, both ends."""
        server, s = self.theirs(TCP, GOOD[version], port), self.mine(TCP, version)
        self.connect(s, GOOD[version], port)
        return s, self.kept(server.accept()[0])

    # ---- What passes

    def leaves(self, *frames: bytes, marker: bytes) -> bool:
        """Whether, of these frames of the workload's, one that holds `marker` comes to the world."""
        for each in frames:
            self.wire.send(each)
        return self.came(marker)

    def came(self, marker: bytes) -> bool:
        """Whether a packet that holds `marker` came, of all that were sent before."""
        fence = FENCE + str(next(_numbers)).encode() + b";"
        self.wire.send(datagram(GOOD[4], fence, port=9999))
        found = False
        while fence not in (seen := self.tap.recv(65536)):
            found |= marker in seen
        return found

    def counts(self) -> dict[str, int]:
        return self.b.counted((POLICY,))

    def neighbour(self, address: str) -> str:
        """The MAC that the node knows for an address."""
        with self.lab.node.entered():
            said = subprocess.run(
                ["ip", "neigh", "show", address], capture_output=True, text=True, check=True
            )
        return said.stdout.partition("lladdr ")[2].partition(" ")[0]
