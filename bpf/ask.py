"""The proxy's questions to the kernel: who is this client, may this be asked, and learn this.

What a cgroup hook does with a datagram is done here with a message that came over TCP: the programs of
bpf/proxy.h are run on it (BPF_PROG_TEST_RUN, bpf(2)), and go on in the very stages that read datagrams. The
message stands in a frame between the client and the server it asked for, behind a TCP header.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, Protocol

from bpf import kernel
from bpf.contract import contract
from bpf.datapath import Datapath
from bpf.events import Address, address, pack_address

CONTEXT = 192  # struct __sk_buff (linux/bpf.h), as far as Linux 5.10 has it
MARK, PRIORITY, CB = 8, 32, 48  # offsets there
WORKLOAD = CB + 3 * 4  # enum control: CB_WORKLOAD, CB_WORKLOAD_HIGH
ETHERNET = struct.Struct(">12xH")
IPV4 = struct.Struct(">BxH4xBB2x4s4s")
IPV6 = struct.Struct(">IHBB16s16s")
TCP = struct.Struct(">HHIIBBH4x")
LONGEST_PREFIX = 128  # bits of an address, as a key of `sources`
PROTOCOL, HOPS, PUSH = 6, 64, 0x18


class Ends(Protocol):
    """A connected TCP socket."""

    def getsockname(self) -> Any: ...
    def getpeername(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Asker:
    """Whose a connection is (the id of a workload), and between which client and server it is meant to be.

    Both addresses are of one family.
    """

    workload: int
    client: Address
    port: int
    server: Address
    server_port: int


class Door:
    """The programs of one kernel half. Errors of bpf(2) are raised as :class:`OSError`."""

    def __init__(self, datapath: Datapath) -> None:
        self.datapath = datapath

    def led(self, connection: Ends) -> Asker | None:
        """The client of a connection that connect() was led to; None where it came by itself."""
        here, there = connection.getsockname(), connection.getpeername()
        listener, client = _plain(here[0]), _plain(there[0])
        frame = _frame(listener, here[1], client, there[1], b"")
        found, context = kernel.test_run_context(self.datapath.programs["whose"], frame, bytes(CONTEXT))
        if not found:
            return None
        low, high = (struct.unpack_from("=I", context, at)[0] for at in (MARK, PRIORITY))
        server, port = context[CB : CB + 16], context[CB + 16 : CB + 18]
        return Asker(high << 32 | low, client, there[1], address(server), int.from_bytes(port, "big"))

    def is_outside(self, connection: Ends) -> bool:
        """Whether a server that we are connected to is nobody whom we hold: it lies on another host, or its
        socket is there to be asked whose it is."""
        here, there = connection.getsockname(), connection.getpeername()
        ours, server = _plain(here[0]), _plain(there[0])
        if ours != server and not server.is_loopback:
            return True
        frame = _frame(ours, here[1], server, there[1], b"")
        return kernel.test_run(self.datapath.programs["outside"], frame)[0] == 1

    def steered(self, connection: Ends) -> Asker | None:
        """The client of a connection that a workload's link sent here, or a gateway's: whose that is, its
        address says, which is proven on a link. The server is the address that the connection is to."""
        here, there = connection.getsockname(), connection.getpeername()
        server, client = _plain(here[0]), _plain(there[0])
        machine = self.datapath["sources"].get((LONGEST_PREFIX, pack_address(client)))
        if machine:
            return Asker(int(machine), client, there[1], server, here[1])
        for _, link in self.datapath["links"].items():
            row = self.datapath["workloads"].get(int(link.workload))
            if row and row.home and self.datapath["own"].get((pack_address(client), int(row.home))):
                return Asker(int(link.workload), client, there[1], server, here[1])
        return None

    def stands(self, asker: Asker) -> bool:
        """Whether the workload has a policy still, and that trusts the server."""
        row = self.datapath["workloads"].get(asker.workload)
        policy = self.datapath["policies"].get(int(row.policy)) if row and row.policy else None
        if policy is None:
            return False
        if policy.flags & contract().constant("CAPTURED") and asker.server_port == contract().constant(
            "DNS_PORT"
        ):
            return True
        server = pack_address(asker.server)
        if asker.workload >> contract().constant("MACHINE_BIT") and self.datapath["own"].get(
            (server, int(row.home))
        ):
            return True
        key = (server, int(row.policy), asker.server_port.to_bytes(2, "big"))
        return self.datapath["resolvers"].get(key) is not None

    def may_ask(self, asker: Asker, message: bytes) -> bool:
        """Whether this question may be asked, by its name; `message` may end behind its question."""
        return self._run("inquire", asker, message)

    def teach(self, asker: Asker, message: bytes) -> bool:
        """Learns from an answer whose question was asked; whether it was read, be it to no avail.

        At most 64 addresses and a frame of one page: gateway/dns_messages.py lays out what is larger.
        """
        return self._run("teach", asker, message)

    def _run(self, name: str, asker: Asker, message: bytes) -> bool:
        frame = _frame(asker.client, asker.port, asker.server, asker.server_port, message)
        context = bytes(WORKLOAD) + struct.pack("=Q", asker.workload)
        return kernel.test_run(self.datapath.programs[name], frame, 1, context)[0] == 1


def _plain(text: str) -> Address:
    return address(pack_address(text.partition("%")[0]))


def _frame(source: Address, source_port: int, to: Address, port: int, message: bytes) -> bytes:
    segment = TCP.pack(source_port, port, 1, 1, 0x50, PUSH, 65535) + message
    if source.version == 4:
        head = IPV4.pack(0x45, 20 + len(segment), HOPS, PROTOCOL, source.packed, to.packed)
        return ETHERNET.pack(0x0800) + head + segment
    head = IPV6.pack(6 << 28, len(segment), PROTOCOL, HOPS, source.packed, to.packed)
    return ETHERNET.pack(0x86DD) + head + segment
