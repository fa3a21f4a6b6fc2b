"""The UDP sockets on which gateways hear each other.

Rules this file obeys:

- What does not come from a member, or does not begin with the id of a key of ours, is dropped by the kernel
  before it takes any room (a classic BPF filter, socket(7): SO_ATTACH_FILTER), and only counted: a flood of
  it displaces nothing.
- A socket of each family there is; none answers by itself.
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import socket
import struct
from collections.abc import Iterable
from contextlib import suppress

from gateway.peers.sealing import Keys
from routing.own import Address

ANY, PORT = ipaddress.IPv6Address(0), 7946
NO_FAMILY = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)  # a host without it, or where it is switched off
BUFFER = 4 << 20  # bytes
SO_ATTACH_FILTER, SO_RCVBUFFORCE, SO_MEMINFO = 26, 33, 55  # asm-generic/socket.h
MEMINFO, DROPS = struct.Struct("=9I"), 8  # linux/sock_diag.h: SK_MEMINFO_DROPS
LOAD, SHIFT, SAME, RETURN = (
    0x20,
    0x74,
    0x15,
    0x06,
)  # linux/bpf_common.h: LD W ABS, ALU RSH K, JMP JEQ K, RET K
NO, YES = (RETURN, 0, 0, 0), (RETURN, 0, 0, 0xFFFF)
UDP_HEADER, NETWORK_HEADER = 8, 0xFFF00000  # what follows the first; linux/filter.h: SKF_NET_OFF
INSTRUCTION = struct.Struct("=HBBI")  # linux/filter.h: struct sock_filter


def listen(address: Address, port: int) -> list[socket.socket]:
    """Bound in the network namespace of the caller; :: is of both families. Raises :class:`OSError`."""
    both = address == ANY
    found = list[socket.socket]()
    for each in (address, ipaddress.IPv4Address(0)) if both else (address,):
        try:
            found.append(_bound(each, port))
        except OSError as error:
            if both and error.errno in NO_FAMILY:
                continue
            for made in found:
                made.close()
            raise
    return found


def _bound(address: Address, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if address.version == 6 else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        if address.version == 6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        with suppress(PermissionError):  # without CAP_NET_ADMIN: what the host gives everybody
            made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        made.setblocking(False)
        made.bind((str(address), port))
    except BaseException:
        made.close()
        raise
    return made


def admit(made: socket.socket, keys: Keys, members: Iterable[Address]) -> None:
    """From now on the socket hears members only, and of these what begins with the id of one of the keys."""
    version = 4 if made.family == socket.AF_INET else 6
    lines = [(LOAD, 0, 0, 0), (SHIFT, 0, 0, 16), (SAME, 1, 0, made.getsockname()[1]), NO]
    lines += [(LOAD, 0, 0, UDP_HEADER)]
    ids = [int.from_bytes(key.id, "big") for key in keys.all]
    lines += [(SAME, len(ids) - at, 0, each) for at, each in enumerate(ids)]
    lines += [NO]
    for member in members:
        lines += _from(member) if member.version == version else []
    lines += [NO]
    code = ctypes.create_string_buffer(b"".join(INSTRUCTION.pack(*line) for line in lines))
    program = struct.pack("HP", len(lines), ctypes.addressof(code))  # struct sock_fprog
    made.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, program)


def _from(member: Address) -> list[tuple[int, int, int, int]]:
    """Ends with a yes where the source is this one, else goes on behind."""
    words = [int.from_bytes(member.packed[at : at + 4], "big") for at in range(0, len(member.packed), 4)]
    source, lines = (12 if member.version == 4 else 8), list[tuple[int, int, int, int]]()
    for at, word in enumerate(words):
        behind = 2 * (len(words) - at) - 1
        lines += [(LOAD, 0, 0, NETWORK_HEADER + source + 4 * at), (SAME, 0, behind, word)]
    return [*lines, YES]


def dropped(made: socket.socket) -> int:
    """Datagrams that were not heard: of no member, under no key of ours, or without room."""
    return int(MEMINFO.unpack(made.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, MEMINFO.size))[DROPS])
