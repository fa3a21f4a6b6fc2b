"""The sockets of this network namespace, found and ended by netlink (sock_diag(7)).

Rules this file obeys:

- A socket is ended by what the kernel itself wrote of it, its cookie included: if its addresses belong to
  another socket by now, nothing is ended.
- Only the kernel is listened to. Whoever has NET_ADMIN in a pod's namespace may send to any netlink socket
  there, whose port is easily guessed; to a connected one, nobody else can.
- An answer that was cut, interrupted or not understood is an error, never a shorter list.

What a list can't promise: the kernel gives it in pieces of about 100 sockets, each exact; what opens or
closes between two pieces may be in it or not, or push a neighbour in the same hash bucket out of it. Who must
know all sockets asks until a list brings nothing new.

Structs by hand rather than a library: pyroute2 0.9 can neither ask for socket storage nor end a socket, takes
an error for an IPv4 socket, and needs a third of a second to be imported. Sources: linux/netlink.h,
linux/sock_diag.h, linux/inet_diag.h. Linux 5.8 or newer.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from socket import AF_INET, AF_INET6, IPPROTO_RAW, IPPROTO_TCP, IPPROTO_UDP
from struct import Struct

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

NETLINK_SOCK_DIAG, SOCK_DIAG_BY_FAMILY, SOCK_DESTROY = 4, 20, 21
NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_ACK, NLM_F_DUMP_INTR, NLM_F_DUMP = 0x01, 0x04, 0x10, 0x300
NLA_TYPE = 0x3FFF  # without the flag bits
REQ_SK_BPF_STORAGES, STORAGE_REQ_MAP_FD = 2, 1
SHUTDOWN, SK_BPF_STORAGES, CGROUP_ID = 8, 20, 21  # INET_DIAG_*
STORAGE, STORAGE_MAP_VALUE = 1, 3  # SK_DIAG_BPF_*

HEADER = Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port
ATTRIBUTE = Struct("=HH")  # nlattr: length, type
REQUEST = Struct("=BBBBI48s")  # inet_diag_req_v2: family, protocol, extensions, raw protocol, states, id
FOUND = Struct("=BBBB48s20x")  # inet_diag_msg: family, state, timer, retransmissions, id
ENDS = Struct(">HH16s16s")  # inet_diag_sockid, in network order: ports and addresses
REST = Struct("=III")  # the rest of it in the machine's: interface, lower and upper half of the cookie

PIECE = 1 << 16  # the kernel makes pieces of 32 KiB at most, but for a socket that needs more
ATTEMPTS = 10


class State(IntEnum):
    """TCP's states as net/tcp_states.h numbers them. A connected UDP socket is ESTABLISHED, another CLOSE."""

    ESTABLISHED = 1
    SYN_SENT = 2
    SYN_RECV = 3
    FIN_WAIT1 = 4
    FIN_WAIT2 = 5
    TIME_WAIT = 6
    CLOSE = 7
    CLOSE_WAIT = 8
    LAST_ACK = 9
    LISTEN = 10
    CLOSING = 11
    NEW_SYN_RECV = 12
    BOUND_INACTIVE = 13  # Linux 6.8


ALL_STATES = 0xFFFFFFFF & ~(1 << State.TIME_WAIT)  # which there may be thousands of, none with a socket


@dataclass(frozen=True, slots=True)
class Socket:
    """One open socket. Addresses are IPv4 where v4-mapped; unspecified and port 0 where there is no peer."""

    family: int
    protocol: int
    state: int  # a State
    local: Address
    local_port: int  # of a raw socket: its protocol
    remote: Address
    remote_port: int
    interface: int  # that it is bound to, or 0
    cookie: int  # SO_COOKIE, bpf_get_socket_cookie()
    cgroup: int  # that it was made in, or 0 where the kernel can't say
    storage: bytes | None  # its value in the map that was asked for; TCP only
    identity: bytes  # struct inet_diag_sockid, as destroy() needs it


def dump(
    protocols: Sequence[int] = (IPPROTO_TCP, IPPROTO_UDP), storage_map: int | None = None
) -> list[Socket]:
    """All sockets that a packet can come from or go to, IPv4 and IPv6.

    `storage_map` is the descriptor of a BPF_MAP_TYPE_SK_STORAGE map. The kernel gives TCP's storage only
    (inet_sk_diag_fill() returns early for what is not connection-oriented): for the rest see borrowed.py.

    Raises :class:`OSError`: ENOENT where the kernel can't list TCP or UDP (CONFIG_INET_DIAG); another
    protocol it can't list is left out. EPERM without CAP_BPF where storage is asked for.
    """
    wanted = b"" if storage_map is None else _attribute(REQ_SK_BPF_STORAGES, _map_attribute(storage_map))
    found = []
    for protocol in protocols:
        for family in (AF_INET, AF_INET6):
            request = REQUEST.pack(family, protocol, 0, 0, ALL_STATES, bytes(48)) + wanted
            try:
                replies = _list(request)
            except FileNotFoundError as error:
                if protocol in (IPPROTO_TCP, IPPROTO_UDP):
                    raise OSError(error.errno, f"the kernel can't list protocol {protocol}") from error
                continue
            found += [one for reply in replies if (one := _read(protocol, reply))]
    return found


def destroy(found: Socket) -> bool:
    """Ends a socket of this network namespace; False where it was gone already.

    Its owner gets ECONNABORTED at once, from a call that is waiting or from the next; the peer of a TCP
    connection gets a reset. A UDP socket stays open, unconnected. Of unconnected ones that share address and
    port (SO_REUSEPORT) the kernel looks at one only: for the others this is False too.

    Raises :class:`OSError`: EOPNOTSUPP where the kernel can't (CONFIG_INET_DIAG_DESTROY, or the protocol),
    EPERM without CAP_NET_ADMIN.
    """
    raw = found.local_port & 0xFF if found.protocol == IPPROTO_RAW else 0
    request = REQUEST.pack(found.family, found.protocol, 0, raw, ALL_STATES, found.identity)
    try:
        _ask(SOCK_DESTROY, NLM_F_ACK, request)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ESTALE):
            return False
        if error.errno == errno.EOPNOTSUPP:
            message = f"the kernel can't end sockets of protocol {found.protocol} (CONFIG_INET_DIAG_DESTROY)"
            raise OSError(error.errno, message) from error
        raise
    return True


# ---- Netlink


class InterruptedDumpError(Exception):
    """Something changed while the kernel made a list: it must be asked for again."""


def connected() -> socket.socket:
    """A netlink socket that hears the kernel only."""
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_SOCK_DIAG)
    link.connect((0, 0))
    return link


def replies(receive: Callable[[], bytes]) -> list[bytes]:
    """The payloads of one whole answer.

    Raises :class:`OSError` with the error that the kernel answers, or :class:`InterruptedDumpError`.
    """
    payloads: list[bytes] = []
    interrupted = 0
    while True:
        for (kind, flags, _, _), payload in _split(HEADER, receive()):
            interrupted |= flags & NLM_F_DUMP_INTR
            if kind in (NLMSG_ERROR, NLMSG_DONE):
                if failure := -int.from_bytes(payload[:4], sys.byteorder, signed=True):
                    raise OSError(failure, f"sock_diag: {os.strerror(failure)}")
                if interrupted:
                    raise InterruptedDumpError
                return payloads
            payloads.append(payload)


def _list(request: bytes) -> list[bytes]:
    for _ in range(ATTEMPTS):
        try:
            return _ask(SOCK_DIAG_BY_FAMILY, NLM_F_DUMP, request)
        except InterruptedDumpError:
            continue
    raise OSError(errno.EINTR, f"sock_diag: {ATTEMPTS} lists of sockets were interrupted")


def _ask(kind: int, flags: int, request: bytes) -> list[bytes]:
    header = HEADER.pack(HEADER.size + len(request), kind, NLM_F_REQUEST | flags, 1, 0)
    with connected() as link:
        link.send(header + request)
        return replies(lambda: _receive(link))


def _receive(link: socket.socket) -> bytes:
    data, _, flags, _ = link.recvmsg(PIECE)
    if flags & socket.MSG_TRUNC:
        raise OSError(errno.EMSGSIZE, f"sock_diag: an answer of more than {PIECE} bytes")
    return data


# ---- Layouts


def _read(protocol: int, reply: bytes) -> Socket | None:
    """None for what is no full socket: half-open and dying connections have neither owner nor storage."""
    family, state, _, _, identity = FOUND.unpack_from(reply)
    attributes = _attributes(reply[FOUND.size :])
    if SHUTDOWN not in attributes:
        return None
    local_port, remote_port, local, remote = ENDS.unpack_from(identity)
    interface, low, high = REST.unpack_from(identity, ENDS.size)
    return Socket(
        family=family,
        protocol=protocol,
        state=state,
        local=_address(family, local),
        local_port=local_port,
        remote=_address(family, remote),
        remote_port=remote_port,
        interface=interface,
        cookie=high << 32 | low,
        cgroup=int.from_bytes(attributes.get(CGROUP_ID, b""), sys.byteorder),
        storage=_storage(attributes.get(SK_BPF_STORAGES, b"")),
        identity=identity,
    )


def _address(family: int, data: bytes) -> Address:
    if family == AF_INET:
        return ipaddress.IPv4Address(data[:4])
    address = ipaddress.IPv6Address(data)
    return address.ipv4_mapped or address


def _storage(data: bytes) -> bytes | None:
    """At most one map was asked for, so at most one is there."""
    return _attributes(_attributes(data).get(STORAGE, b"")).get(STORAGE_MAP_VALUE)


def _attributes(data: bytes) -> dict[int, bytes]:
    return {kind & NLA_TYPE: value for (kind,), value in _split(ATTRIBUTE, data)}


def _split(layout: Struct, data: bytes) -> Iterator[tuple[tuple[int, ...], bytes]]:
    """Messages or attributes, each with a header that begins with the length of both, padded to words."""
    at = 0
    while at < len(data):
        length, *fields = layout.unpack_from(data, at) if at + layout.size <= len(data) else (0,)
        if not layout.size <= length <= len(data) - at:
            raise OSError(errno.EBADMSG, "sock_diag: an answer that is cut or garbled")
        yield tuple(fields), data[at + layout.size : at + length]
        at += (length + 3) & ~3


def _map_attribute(descriptor: int) -> bytes:
    return _attribute(STORAGE_REQ_MAP_FD, descriptor.to_bytes(4, sys.byteorder))


def _attribute(kind: int, data: bytes) -> bytes:
    """`data` is whole words, so there is nothing to pad."""
    return ATTRIBUTE.pack(ATTRIBUTE.size + len(data), kind) + data
