"""Which cgroups a host must not lose: of the process that is its resolver, and of its SSH server.

Found by who listens: sockets in /proc/net (proc(5)), and whose they are in /proc/PID/fd. What plan.py must
believe of it is its own matter; here is only what is seen.

- A resolver answers on UDP, at a trusted address and port of this host or at every address.
- An SSH server runs as root, and either its program is called so or it listens on TCP port 22. With socket
  activation the manager itself listens: its cgroup is nobody's lifeline, the unit's name tells (plan.py).
"""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from gateway.plan import Guard
from gateway.policies.addresses import Address
from gateway.resolvers import Resolver

PROC = Path("/proc")
SSH_PORT = 22
SSH_SERVERS = ("sshd", "dropbear")
LISTEN = 10  # TCP_LISTEN, include/net/tcp_states.h
MANAGER = 1

Listener = tuple[Address, int]


def local(resolvers: Collection[Resolver]) -> list[Resolver]:
    """Those whose address is this host's own."""
    return [resolver for resolver in resolvers if resolver.is_local]


def resolver_sockets(resolvers: Collection[Resolver]) -> frozenset[int]:
    """Inodes of the sockets that answer for resolvers of this host: cheap to ask again and again."""
    return frozenset(
        inode
        for (address, port), inode in _sockets("udp")
        if any(port == r.port and (address in (r.address, *_every(r.address))) for r in resolvers)
    )


def guards(resolvers: Collection[Resolver], root: Path, hierarchy: Path) -> list[Guard]:
    """The lifelines whose cgroups lie below `root`; `resolvers` are those of this host."""
    answering = resolver_sockets(resolvers)
    listening = {inode: port for (_address, port), inode in _sockets("tcp", LISTEN)}
    found: set[Guard] = set()
    for process in PROC.glob("[0-9]*"):
        with suppress(OSError):  # ended meanwhile
            inodes = set(_inodes(process))
            path = _path(process, root, hierarchy)
            if path is None:
                continue
            if inodes & answering:
                found.add(Guard("resolver", path, _name(process)))
            ports = {listening[inode] for inode in inodes & listening.keys()}
            if ports and _serves_ssh(process, ports):
                found.add(Guard("ssh", path, _name(process)))
    return sorted(found, key=lambda guard: (guard.kind, guard.cgroup, guard.process))


def _serves_ssh(process: Path, ports: Collection[int]) -> bool:
    if int(process.name) == MANAGER or process.stat().st_uid != 0:
        return False
    return SSH_PORT in ports or (process / "exe").readlink().name in SSH_SERVERS


def _every(address: Address) -> tuple[Address, ...]:
    """The addresses of a socket that listens on every address of this family; IPv6 ones take IPv4 too."""
    both = ipaddress.ip_address("::")
    return (both,) if address.version == 6 else (ipaddress.ip_address("0.0.0.0"), both)  # noqa: S104


def _sockets(protocol: str, state: int | None = None) -> Iterator[tuple[Listener, int]]:
    """((local address, port), inode) of the sockets of this network namespace."""
    for table in (protocol, f"{protocol}6"):
        with suppress(FileNotFoundError), (PROC / "net" / table).open() as lines:  # no IPv6 here
            next(lines, None)
            for fields in map(str.split, lines):
                if state is None or int(fields[3], 16) == state:
                    host, port = fields[1].split(":")
                    yield (_address(host), int(port, 16)), int(fields[9])


def _address(text: str) -> Address:
    """Words of 32 bits in the machine's order, in hexadecimal."""
    words = [int(text[start : start + 8], 16) for start in range(0, len(text), 8)]
    address = ipaddress.ip_address(struct.pack(f"={len(words)}I", *words))
    return getattr(address, "ipv4_mapped", None) or address


def _inodes(process: Path) -> Iterator[int]:
    for descriptor in (process / "fd").iterdir():
        with suppress(OSError):
            target = str(descriptor.readlink())
            if target.startswith("socket:["):
                yield int(target[8:-1])


def _path(process: Path, root: Path, hierarchy: Path) -> str | None:
    """Its cgroup as a path below `root`; None outside of it, and where its name is no text."""
    for line in (process / "cgroup").read_bytes().splitlines():
        if line.startswith(b"0::"):
            with suppress(ValueError):  # UnicodeDecodeError too
                inner = (hierarchy / line[3:].decode().lstrip("/")).relative_to(root)
                return "/" + str(inner) if inner.parts else "/"
    return None


def _name(process: Path) -> str:
    return (process / "comm").read_bytes().decode(errors="backslashreplace").strip()
