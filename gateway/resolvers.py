"""Which DNS servers a command of this host trusts (resolv.conf(5), systemd-resolved(8))."""

from __future__ import annotations

import ipaddress
import socket
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bpf.events import Address
from gateway.policies.addresses import BadAddressError, parse_server
from gateway.policies.names import BadNameError, normal

STUB = "127.0.0.53"
RESOLV_CONF = Path("/etc/resolv.conf")
UPSTREAMS = Path("/run/systemd/resolve/resolv.conf")
PORT = 53


class BadResolverError(ValueError):
    """Not an address of a DNS server; the message says what to write."""


@dataclass(frozen=True, slots=True, order=True)
class Resolver:
    """One address and port of a trusted server; `local` where it lies on this host."""

    address: Address
    port: int = PORT

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return host if self.port == PORT else f"{host}:{self.port}"

    @property
    def is_local(self) -> bool:
        """Whether packets to it go over loopback: the kernel would choose its address as their source."""
        family = socket.AF_INET if self.address.version == 4 else socket.AF_INET6
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((str(self.address), self.port))  # sends nothing
            except OSError:
                return False
            return ipaddress.ip_address(probe.getsockname()[0]) == self.address or self.address.is_loopback


def parse(text: str) -> Resolver:
    """`192.0.2.1`, `192.0.2.1:5353`, `2001:db8::1` or `[2001:db8::1]:5353`."""
    try:
        return Resolver(*parse_server(text, PORT))
    except BadAddressError as error:
        raise BadResolverError(f"resolver {error.wrong}: {error.mend}") from None


def from_resolv_conf(text: str) -> list[Resolver]:
    """The servers of a resolv.conf, 127.0.0.1 where it names none (as the C library does)."""
    found = []
    for line in text.splitlines():
        fields = line.split()
        if len(fields) >= 2 and fields[0] == "nameserver":
            try:
                found.append(Resolver(ipaddress.ip_address(fields[1].split("%")[0])))
            except ValueError:
                continue
    return found or [Resolver(ipaddress.ip_address("127.0.0.1"))]


def searches_from(text: str) -> tuple[str, ...]:
    """The search suffixes of a resolv.conf, in normal form; the last `search` or `domain` line counts."""
    found: list[str] = []
    for fields in (line.split() for line in text.splitlines()):
        if fields and fields[0] in ("search", "domain"):
            found = fields[1:]
    suffixes = []
    for suffix in found:
        with suppress(BadNameError):
            suffixes.append(normal(suffix))
    return tuple(dict.fromkeys(suffixes))


def resolv_conf() -> str:
    try:
        return RESOLV_CONF.read_text()
    except FileNotFoundError:
        return ""


def of_this_host() -> list[Resolver]:
    """The servers of /etc/resolv.conf; behind systemd-resolved's stub its upstreams too."""
    found = from_resolv_conf(resolv_conf())
    if any(str(resolver.address) == STUB for resolver in found) and UPSTREAMS.exists():
        found += from_resolv_conf(UPSTREAMS.read_text())
    return sorted(set(found), key=lambda r: (r.address.version, r))
