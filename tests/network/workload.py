"""What the programs of the tests do from within a workload; and how a test writes such a program.

python(lab, "tell(connect('198.51.100.10'))")     the command line of a program that uses this file
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import socket
import struct
import sys
import textwrap
import time
from collections.abc import Callable
from typing import Any

from dnslib import QTYPE, RR, A, DNSRecord

RESOLVER = "192.0.2.53"
ETH_P_ALL, PACKET_OUTGOING = 3, 4  # packet(7)
SYN, ACK = 2, 16  # RFC 9293 3.1


def python(code: str) -> list[str]:
    """The command line of a program: `code`, with all names of this file at hand."""
    here = os.path.dirname(os.path.abspath(__file__))  # noqa: PTH100, PTH120 - a program's own, without pathlib
    return [
        sys.executable,
        "-c",
        f"import sys; sys.path.insert(0, {here!r})\nfrom workload import *\n{textwrap.dedent(code)}",
    ]


def tell(what: object) -> None:
    print(json.dumps(what), flush=True)


def family_of(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def outcome(call: Callable[[], Any]) -> Any:
    """What the call returns, or its errno's name."""
    try:
        return call()
    except TimeoutError:
        return "timeout"
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))


def connect(address: str, port: int = 80, seconds: float = 2) -> str:
    """ "connected", or why not."""

    def call() -> str:
        with socket.create_connection((address, port), seconds):
            return "connected"

    return str(outcome(call))


def timed(call: Callable[[], Any]) -> list[Any]:
    """What it returns, and after how many seconds."""
    start = time.monotonic()
    found = outcome(call)
    return [found, time.monotonic() - start]


def datagram(address: str, port: int = 7, connected: bool = False, seconds: float = 2) -> str:
    """The echo, or why there is none."""

    def call() -> str:
        with socket.socket(family_of(address), socket.SOCK_DGRAM) as sock:
            sock.settimeout(seconds)
            if connected:
                sock.connect((address, port))
                sock.send(b"echo")
            else:
                sock.sendto(b"echo", (address, port))
            return sock.recv(100).decode()

    return str(outcome(call))


def resolve(name: str, family: int = socket.AF_INET) -> str:
    """The first address, as any program gets it."""
    return str(socket.getaddrinfo(name, 80, socket.AddressFamily(family), socket.SOCK_STREAM)[0][4][0])


def ask(name: str, server: str = RESOLVER, kind: str = "A", port: int = 53, seconds: float = 2) -> list[str]:
    """Addresses, asked for by hand over UDP."""
    with socket.socket(family_of(server), socket.SOCK_DGRAM) as sock:
        sock.settimeout(seconds)
        sock.connect((server, port))
        sock.send(DNSRecord.question(name, kind).pack())
        return answers(sock.recv(4096))


def answer(name: str, number: int, address: str, ttl: int = 60) -> bytes:
    """A whole answer to the question for the name's A record that has this id."""
    question = DNSRecord.question(name)
    question.header.id = number
    reply = question.reply()
    reply.add_answer(RR(name, QTYPE.A, ttl=ttl, rdata=A(address)))
    return bytes(reply.pack())


def packet(source: str, to: str, protocol: int, payload: bytes) -> bytes:
    """IPv4 without a checksum, which the kernel fills in for a raw socket; frame() needs one."""
    addresses = socket.inet_aton(source) + socket.inet_aton(to)
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0) + addresses
    return head[:10] + checksum(head) + head[12:] + payload


def checksum(data: bytes) -> bytes:
    """RFC 1071."""
    total = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total >> 16) + (total & 0xFFFF)
    return struct.pack("!H", ~total & 0xFFFF)


def udp_packet(source: str, source_port: int, to: str, port: int, data: bytes) -> bytes:
    """A UDP checksum of 0 is none."""
    return packet(source, to, 17, struct.pack("!HHHH", source_port, port, 8 + len(data), 0) + data)


def segment(source: str, source_port: int, to: str, port: int, number: int, ack: int, flags: int) -> bytes:
    """A TCP segment without data."""
    head = struct.pack("!HHIIBBHHH", source_port, port, number, ack, 0x50, flags, 65535, 0, 0)
    pseudo = socket.inet_aton(source) + socket.inet_aton(to) + struct.pack("!HH", 6, len(head))
    return packet(source, to, 6, head[:16] + checksum(pseudo + head) + head[18:])


def send_raw(to: str, whole: bytes, broadcast: bool = False) -> None:
    """With any IPv4 source (raw(7), IP_HDRINCL): needs NET_RAW."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, broadcast)
        sock.sendto(whole, (to, 0))


def frame(device: str, whole: bytes) -> None:
    """Past the sockets' hooks, onto the device (packet(7)): needs NET_RAW."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x800)) as sock:
        sock.sendto(whole, (device, 0x800, 0, 0, bytes(6)))  # loopback has no other address


def forge(source: str, source_port: int, to: str, port: int, data: bytes, broadcast: bool = False) -> None:
    """A datagram with any IPv4 source."""
    send_raw(to, udp_packet(source, source_port, to, port, data), broadcast)


def answers(message: bytes) -> list[str]:
    return [str(r.rdata) for r in DNSRecord.parse(message).rr if r.rtype in (QTYPE.A, QTYPE.AAAA)]


def until(call: Callable[[], Any], wanted: object, seconds: float = 10) -> float:
    """After how many seconds the call returned `wanted`; AssertionError if it did not."""
    start = time.monotonic()
    while (found := call()) != wanted:
        assert time.monotonic() < start + seconds, f"still {found}, not {wanted}, after {seconds} s"
        time.sleep(0.05)
    return time.monotonic() - start


def disconnect(sock: socket.socket) -> None:
    """connect(2) to AF_UNSPEC: the socket forgets its peer. Python's own connect() can't say it."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(sock.fileno(), struct.pack("H14x", socket.AF_UNSPEC), 16):
        raise OSError(ctypes.get_errno(), "connect")
