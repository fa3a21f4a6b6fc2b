"""Frames that are something else when they are judged than on the wire, and neighbours that lie.

Each attack by its name, seen to succeed where the link has no programs."""

from __future__ import annotations

import array
import fcntl
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.kernel import packets as p
from tests.kernel.bench import UDP, wait_until
from tests.kernel.link_lab import (
    ANY,
    GOOD,
    ONLY_80,
    OTHER_MAC,
    POD,
    POD_MAC,
    POLICY,
    SITE,
    World,
    datagram,
    frame,
    packet,
    summed,
)

LOOT, FENCE = b"loot;", b"a fence!"
SIOCETHTOOL, ETHTOOL_STXCSUM = 0x8946, 0x17  # linux/sockios.h, linux/ethtool.h
SOL_PACKET, PACKET_VNET_HDR, NEEDS_CSUM = 263, 15, 1  # linux/if_packet.h, linux/virtio_net.h
OTHER = "fe80::77"


@pytest.fixture
def w(w_link: World) -> World:
    return w_link


# ---- Checksums that are written later ---------------------------------------------------------------------


@pytest.fixture
def plain_uplink(w: World) -> Iterator[None]:
    """The node's uplink leaves checksums to the kernel, as many devices do."""

    def offload(on: int) -> None:
        with w.lab.node.entered(), socket.socket(socket.AF_INET, UDP) as s:
            words = array.array("B", struct.pack("=II", ETHTOOL_STXCSUM, on))
            fcntl.ioctl(s, SIOCETHTOOL, struct.pack("16sQ", b"up0", words.buffer_info()[0]) + bytes(16))

    offload(0)
    yield
    offload(1)


def folded(data: bytes) -> int:
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def unfinished(whole: bytes, start: int, wanted: int) -> bytes:
    """With the words of PACKET_VNET_HDR: the kernel writes `wanted` at `start` of the frame, later."""
    head = whole[:-2]
    fill = ((~wanted & 0xFFFF) - folded(head[start:] + bytes(2))) % 0xFFFF
    return struct.pack("=BBHHHH", NEEDS_CSUM, 0, 0, 0, start, 0) + head + struct.pack(">H", fill)


@pytest.mark.usefixtures("plain_uplink")
@pytest.mark.parametrize("what", ["address", "port"])
@pytest.mark.parametrize("judged", [False, True], ids=["without the link", "with the link"])
def test_ATTACK_what_was_judged_is_overwritten_as_a_checksum(w: World, what: str, judged: bool) -> None:
    """The one who makes a frame says where in it a checksum is to be written when it leaves the node."""
    w.b.service(POLICY, ANY | ONLY_80, p.UDP, 80)
    w.b.rule(POLICY, SITE, ONLY_80)
    with w.as_workload():
        s = w.kept(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3)))
    s.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    s.bind(("inside", 0))
    version, start, wanted = (6, 14 + 38, 2) if what == "address" else (4, 14 + 22, 2222)
    seen = frame(packet(POD[version], GOOD[version], p.UDP, p.udp(80, payload=LOOT + bytes(3))))
    with _link(w, judged):
        s.send(unfinished(seen, start, wanted))
        w.wire.send(datagram(GOOD[4], FENCE))
        came = False
        while FENCE not in (packet_seen := w.tap.recv(65536)):
            came |= LOOT in packet_seen
        assert came is not judged


@contextmanager
def _link(w: World, judged: bool) -> Iterator[None]:
    if judged:
        yield
    else:
        with w.without():
            yield


def test_a_checksum_that_the_workloads_own_kernel_left_out_is_written_later(w: World) -> None:
    for version in (4, 6):
        server, s = w.theirs(UDP, GOOD[version]), w.mine(UDP, version)
        with w.as_workload():
            s.sendto(LOOT, (GOOD[version], 80))
        assert server.recv(99) == LOOT


# ---- Neighbours -------------------------------------------------------------------------------------------


def solicitation(source: str, target: str, to: str, options: bytes = b"") -> bytes:
    body = socket.inet_pton(socket.AF_INET6, target) + options
    return summed(p.ipv6(source, to, p.ICMPV6, b"\x87\0\0\0" + bytes(4) + body, hops=255), 2)


def addresses_of_node(w: World) -> str:
    with w.lab.node.entered():
        said = subprocess.run(
            ["ip", "-6", "-o", "addr", "show", "dev", "pod0"], capture_output=True, text=True, check=True
        )
    return said.stdout


@pytest.mark.parametrize("judged", [False, True], ids=["without the link", "with the link"])
def test_ATTACK_a_solicitation_speaks_for_a_link_local_address_of_somebody_else(
    w: World, judged: bool
) -> None:
    w.lab.node.ip(f"neigh replace {OTHER} lladdr {OTHER_MAC.hex(':')} dev pod0 nud reachable")
    target = next(word for word in addresses_of_node(w).split() if word.startswith("fe80")).split("/")[0]
    said = solicitation(OTHER, target, target, b"\x01\x01" + POD_MAC)
    with _link(w, judged):
        w.wire.send(frame(said))
        assert not w.came(b"no such thing")  # a fence: it was seen
        assert (w.neighbour(OTHER) == POD_MAC.hex(":")) is not judged
    w.lab.node.ip(f"neigh del {OTHER} dev pod0")


@pytest.mark.parametrize("judged", [False, True], ids=["without the link", "with the link"])
def test_ATTACK_who_asks_for_an_address_denies_it_to_others(w: World, judged: bool) -> None:
    """RFC 4862 5.4.3: a node that tries an address gives it up when another one tries it too."""
    accept = Path("/proc/sys/net/ipv6/conf/pod0/accept_dad")
    with w.lab.node.entered():
        accept.write_text("1")
    said = solicitation("::", "fd09::55", "ff02::1:ff00:55")
    raw = bytes.fromhex("3333ff000055") + POD_MAC + b"\x86\xdd" + said
    with _link(w, judged):
        w.lab.node.ip("addr add fd09::55/64 dev pod0")

        def is_settled() -> bool:
            w.wire.send(raw)
            line = next(line for line in addresses_of_node(w).splitlines() if "fd09::55" in line)
            return "dadfailed" in line or "tentative" not in line

        wait_until(is_settled, "the address is tried")
        failed = "dadfailed" in addresses_of_node(w)
    w.lab.node.ip("addr del fd09::55/64 dev pod0")
    with w.lab.node.entered():
        accept.write_text("0")
    assert failed is not judged
