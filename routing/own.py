"""What a network namespace is: its addresses (proc(5): net/fib_trie, net/if_inet6) and its number."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from routing.namespaces import inside, namespaces

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
LOCAL = re.compile(r"\|-- (\d+\.\d+\.\d+\.\d+)\n +/32 host LOCAL")
LOOPBACKS = ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))
NAMESPACE = Path("/proc/thread-self/ns/net")
FIB_TRIE, IF_INET6 = "/proc/thread-self/net/fib_trie", "/proc/thread-self/net/if_inet6"
SO_NETNS_COOKIE = 71  # asm-generic/socket.h, Linux 5.14
IPV4_ADDRESSES, IPV6_ADDRESSES = 0x10, 0x100  # linux/rtnetlink.h: RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR


@dataclass(frozen=True, slots=True)
class Home:
    """The network namespace that a workload lives in: its number, and its addresses without loopback's.

    The number is the cookie by which BPF knows it too, or its inode's where the kernel tells no cookie; 0 is
    no namespace that anybody knows. Without addresses it is not asked whose a packet's source is.
    """

    id: int = 0
    own: tuple[Address, ...] = ()
    is_cookie: bool = False


UNKNOWN = Home()


def home() -> Home:
    """That of the calling thread."""
    return Home(number(), tuple(own_addresses()), bool(namespace_cookie()))


def number() -> int:
    """Of the calling thread's network namespace, as :class:`Home` has it."""
    return namespace_cookie() or NAMESPACE.stat().st_ino


def home_of(pid: int) -> Home | None:
    """That of a process, as it is seen from inside; None where the process is gone, or may not be looked at.

    Raises :class:`OSError` where its namespace can't be entered (CAP_SYS_ADMIN).
    """
    with namespaces([pid]) as found:
        return next((inside(descriptor, home) for descriptor in found.values()), None)


def namespace_cookie() -> int:
    """The number by which BPF knows this network namespace; 0 where the kernel can't say."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            return int.from_bytes(probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8), sys.byteorder)
        except OSError:
            return 0


def changes() -> socket.socket:
    """Becomes readable when an address of this network namespace comes or goes (rtnetlink(7))."""
    link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE)
    link.bind((0, IPV4_ADDRESSES | IPV6_ADDRESSES))
    return link


def drain(link: socket.socket) -> None:
    """What changed is not read: whoever asks looks at the addresses anew. Lost news are news too."""
    while True:
        try:
            link.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise


def own_addresses() -> list[Address]:
    """Without loopback's, sorted; those of one family where the other is switched off."""
    return parse(_read(FIB_TRIE), _read(IF_INET6))


def parse(fib_trie: str, if_inet6: str) -> list[Address]:
    found = {*_ipv4(fib_trie), *_ipv6(if_inet6)}
    return sorted((a for a in found if not a.is_loopback), key=lambda a: (a.version, int(a)))


def _ipv4(text: str) -> Iterator[Address]:
    return (ipaddress.IPv4Address(found) for found in LOCAL.findall(text))


def _ipv6(text: str) -> Iterator[Address]:
    return (ipaddress.IPv6Address(bytes.fromhex(line.split()[0])) for line in text.splitlines())


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
