"""What the link's program costs a packet, beside an empty one: real packets, timed by the kernel.

BPF_PROG_TEST_RUN knows no socket that the cgroup's programs have seen, so the kernel counts what each run
took (kernel.bpf_stats_enabled, sysctl(5)); that costs both alike.
"""

from __future__ import annotations

import os
import statistics
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bpf import kernel
from bpf.load import LINK
from tests.kernel.bench import UDP, Bench
from tests.kernel.link_lab import GOOD, Lab, World, datagram

EMPTY = bytes.fromhex("b7000000ffffffff9500000000000000")  # r0 = TC_ACT_UNSPEC; exit
PACKETS, ROUNDS = 20_000, 5
RUN_TIME = 192  # offset of run_time_ns and run_cnt in struct bpf_prog_info (linux/bpf.h)
STATS = Path("/proc/sys/kernel/bpf_stats_enabled")


def costs(bench: Bench) -> dict[str, float]:
    """Median ns by case. The bench's workload is another one afterwards."""
    lab, folder = Lab(), bench.cgroup.parent
    bench.d.attach(folder)
    world = World(bench, bench.cgroup, lab)
    empty, link = kernel.load_program("empty", EMPTY, LINK, 0), bench.d.for_links()["link_ingress"]
    found: dict[str, list[float]] = {}
    with world.open, timed():
        for version in (4, 6):
            server, s = world.theirs(UDP, GOOD[version], 81), world.mine(UDP, version)
            world.connect(s, GOOD[version], 81)
            for _round in range(ROUNDS):
                for name, program in (("empty program", empty), (f"of a socket over IPv{version}", link)):
                    found.setdefault(name, []).append(cost(world, program, lambda s=s: s.send(b"x")))
            server.close()
        frame = datagram(GOOD[4], b"x", port=82)
        for _round in range(ROUNDS):
            found.setdefault("of AF_PACKET", []).append(cost(world, link, lambda: world.wire.send(frame)))
    bench.d.detach(folder)
    os.close(empty)
    lab.close()
    return {name: statistics.median(times) for name, times in found.items()}


def cost(world: World, program: int, send: Callable[[], object]) -> float:
    """Mean ns of a program's runs at the link's ingress, alone there."""
    with world.lab.node.entered():
        for number in kernel.attached(world.lab.index, kernel.TCX_INGRESS):
            fd = kernel.program_by_id(number)
            kernel.detach(fd, world.lab.index, kernel.TCX_INGRESS)
            os.close(fd)
        kernel.attach_to_link(program, world.lab.index, kernel.TCX_INGRESS)
    before = runs(program)
    for _ in range(PACKETS):
        send()
    after = runs(program)
    return (after[0] - before[0]) / (after[1] - before[1])


def runs(program: int) -> tuple[int, int]:
    """ns and number of a program's runs."""
    info = bytes(kernel.ffi.buffer(kernel.program_info(program)))
    time, count = struct.unpack_from("=QQ", info, RUN_TIME)
    return time, count


@contextmanager
def timed() -> Iterator[None]:
    before = STATS.read_text()
    STATS.write_text("1")
    yield
    STATS.write_text(before)
