"""A bench for the real programs: tables are laid, a packet is run or sent, counters say why it went so.

How BPF_PROG_TEST_RUN is used, as found by trial:

- A frame starts with an Ethernet header. The kernel refuses (EINVAL) one that has less behind it than a fixed
  IP header of its type, and one larger than a page less its own head and tail.
- The socket is a new one for every call (family AF_UNSPEC, closed, with a new cookie) and shared by the
  repeats of that call only. It belongs to the cgroup that the caller is in: so the caller moves in, for the
  run, and out again.
- The device is `lo` unless the context names another by `ifindex`; it must be one of the caller's network
  namespace. The programs take `lo` for loopback traffic: so there is a namespace with a veth pair.
"""

from __future__ import annotations

import ctypes
import ipaddress
import os
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

from bpf import kernel
from bpf.contract import contract
from bpf.datapath import Datapath, write
from gateway import cgroups
from tests.kernel.packets import packed

CLONE_NEWNET = 0x40000000
IFINDEX = 40  # offset in struct __sk_buff (linux/bpf.h)
REASONS = contract().enumerators("reason")
FLAGS = {name: value for value, name in contract().enumerators("flag").items()}
WRITTEN_BY_PROGRAMS = (
    *("grants", "grant_ring", "holdings", "questions", "question_ring", "tallies"),
    *("flows", "flow_ring", "inbounds", "inbound_ring", "carried", "claims", "fragments", "misses"),
)
SECOND = 10**9
LATER = 3600 * SECOND
FAMILY = {4: socket.AF_INET, 6: socket.AF_INET6}
TCP, UDP = socket.SOCK_STREAM, socket.SOCK_DGRAM

_libc = ctypes.CDLL(None, use_errno=True)
_generations = count(1)


def now() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def wait_until(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline, f"not within 5 s: {what}"
        time.sleep(0.002)


def _checked(result: int) -> None:
    if result:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


class Namespace:
    """A network namespace that lives as long as its descriptor."""

    def __init__(self) -> None:
        with _namespace_kept():
            _checked(_libc.unshare(CLONE_NEWNET))
            self.fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        self.ip("link set lo up")

    @property
    def path(self) -> str:
        return f"/proc/{os.getpid()}/fd/{self.fd}"

    @contextmanager
    def entered(self) -> Iterator[None]:
        with _namespace_kept():
            _checked(_libc.setns(self.fd, CLONE_NEWNET))
            yield

    def ip(self, *commands: str) -> None:
        with self.entered():
            subprocess.run(["ip", "-batch", "-"], input="\n".join(commands), text=True, check=True)

    def join(self, other: Namespace, name: str = "outside") -> None:
        """A veth pair: `name` here, `inside` there."""
        self.ip(f"link add {name} type veth peer name inside netns {other.path}", f"link set {name} up")
        other.ip("link set inside up")

    def close(self) -> None:
        os.close(self.fd)


@contextmanager
def _namespace_kept() -> Iterator[None]:
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        yield
    finally:
        _checked(_libc.setns(before, CLONE_NEWNET))
        os.close(before)


def own_cgroup() -> Path:
    text = Path("/proc/self/cgroup").read_text()
    path = next(line for line in text.splitlines() if line.startswith("0::")).removeprefix("0::/")
    return cgroups.hierarchy() / path


@contextmanager
def inside(cgroup: Path) -> Iterator[None]:
    """This process lives in `cgroup` meanwhile."""
    before = own_cgroup()
    cgroups.join(cgroup)
    try:
        yield
    finally:
        cgroups.join(before)


class Bench:
    """The tables of one Datapath, and what its counters say."""

    def __init__(self, datapath: Datapath, cgroup: Path, network: Namespace) -> None:
        self.d, self.cgroup, self.network = datapath, cgroup, network
        with network.entered():
            index = next(number for number, name in _interfaces() if name != "lo")
        self.context = bytes(IFINDEX) + struct.pack("<I", index)
        self.policies: set[int] = set()
        self.rows: list[tuple[str, Any]] = []

    # ---- Tables

    def clear(self) -> None:
        """A walk goes through every bucket of a large table, so only where programs write there is one."""
        for name, key in self.rows:
            write(self.d.tables, name, key, None)
        for name in WRITTEN_BY_PROGRAMS:
            for raw in self.d[name].raw_keys():
                self.d[name].remove_raw(raw)
        for number in self.policies:
            self.d["policies"][number] = (next(_generations),)
            self.d["paces"][number] = (0, 0)
        self.policies, self.rows = set(), []

    def put(self, name: str, key: Any, value: object) -> None:
        """One row, to be removed by clear()."""
        write(self.d.tables, name, key, value)
        self.rows.append((name, key))

    def policy(self, number: int, *flags: str, floor: int = 60, grace: int = 60) -> None:
        """Written again, it gets a new generation."""
        bits = sum(FLAGS[flag] for flag in flags)
        self.d["policies"][number] = (next(_generations), bits, floor, grace)
        self.policies.add(number)

    def classify(self, cgroup: Path, policy: int, home: int = 0, *flags: str) -> int:
        number = cgroups.cgroup_id(cgroup)
        self.put("workloads", number, (policy, sum(FLAGS[flag] for flag in flags), home))
        return number

    def service(
        self, policy: int, mask: int, protocol: int = 0, port: int = 0, bits: int | None = None
    ) -> None:
        """A row of the table of ports; how many bits of it count follows from what is given."""
        if bits is None:
            bits = 40 if port else 24 if protocol else 16
        key = (bits, policy.to_bytes(2, "big"), protocol, port.to_bytes(2, "big"))
        self.put("services", key, (mask,))

    def rule(self, policy: int, peer: int, mask: int) -> None:
        self.put("rules", (policy, peer), (mask,))

    def prefix(self, policy: int, network: str, *peers: int) -> None:
        block = ipaddress.ip_network(network)
        length = block.prefixlen + (96 if block.version == 4 else 0)
        key = (16 + length, policy.to_bytes(2, "big"), packed(str(block.network_address)))
        self.put("prefixes", key, ([*peers, *[0] * (4 - len(peers))],))

    def grant(self, policy: int, address: str, *slots: tuple[int, int]) -> None:
        self.put("grants", (packed(address), policy), ([*slots, *[(0, 0)] * (4 - len(slots))],))

    def resolver(self, policy: int, address: str, port: int = 53) -> None:
        self.put("resolvers", (packed(address), policy, port.to_bytes(2, "big")), 1)

    def name(self, policy: int, pattern: str, *peers: int) -> None:
        text = pattern.removeprefix("*")[::-1].encode() + (b"" if pattern.startswith("*") else b"\0")
        key = (16 + 8 * len(text), policy.to_bytes(2, "big"), text)
        self.put("names", key, ([*peers, *[0] * (4 - len(peers))],))

    # ---- Packets

    @contextmanager
    def seated(self) -> Iterator[None]:
        """This process as a process of the workload, where its packets would leave by a veth."""
        with self.network.entered(), inside(self.cgroup):
            yield

    def run(self, program: str, frame: bytes, *, loopback: bool = False, repeat: int = 1) -> int:
        """The program's return value; the caller is seated, or not."""
        context = b"" if loopback else self.context
        return kernel.test_run(self.d.programs[program], frame, repeat, context)[0]

    # ---- Counters

    def counted(self, policies: Iterable[int]) -> dict[str, int]:
        """Reason to packets, of some policies together."""
        found: dict[str, int] = {}
        for policy in policies:
            for reason in range(1, len(REASONS) - 1):
                if number := self.d["counters"].sum_cpus(policy * (len(REASONS) - 1) + reason):
                    found[REASONS[reason]] = found.get(REASONS[reason], 0) + number
        return found

    @contextmanager
    def counting(self, *policies: int) -> Iterator[dict[str, int]]:
        """Filled at the end of the block with what was counted within it."""
        before, told = self.counted(policies), {}
        yield told
        after = self.counted(policies)
        told.update(
            {reason: n - before.get(reason, 0) for reason, n in after.items() if n != before.get(reason)}
        )


def _interfaces() -> list[tuple[int, str]]:
    import socket

    return socket.if_nameindex()
