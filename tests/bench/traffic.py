"""Real traffic between two namespaces, filtered and not, in turns within one run; all on one CPU.

An arm without a filter stands in every round twice: how far these two are apart tells what the machine is
worth as a witness.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from gateway import cgroups
from tests.bench.verdicts import POLICIES
from tests.kernel.bench import Bench, Namespace

HERE, THERE = "10.9.0.1", "10.9.0.2"
BULK, SERVED, SINK = "5201", "5202", "5203"
ROUNDS, CONNECTIONS, DATAGRAMS, BYTES = 9, 3000, 200_000, "1500M"
ARMS = ("unfiltered", "unfiltered again", "filtered")


class Traffic:
    """A client here, servers there; `measure` gives one figure of one arm."""

    def __init__(self, here: Namespace, load: Path, folders: dict[str, Path]) -> None:
        self.here, self.load, self.folders = here, load, folders

    def _run(self, arm: str, *command: str) -> str:
        with self.here.entered():
            done = subprocess.run(
                ["taskset", "-c", "0", *command],
                preexec_fn=lambda: cgroups.join(self.folders[arm]),
                capture_output=True,
                text=True,
                check=True,
                timeout=60,
            )
        return done.stdout

    def bulk(self, arm: str) -> float:
        """Bits per second of one TCP stream."""
        out = self._run(arm, "iperf3", "-c", THERE, "-p", BULK, "-n", BYTES, "-J")
        return float(json.loads(out)["end"]["sum_received"]["bits_per_second"])

    def connections(self, arm: str) -> float:
        """TCP connections per second."""
        return float(self._run(arm, str(self.load), "connect", THERE, SERVED, str(CONNECTIONS)))

    def datagrams(self, arm: str) -> float:
        """Datagrams of 64 bytes per second, one way."""
        return 1e9 / float(self._run(arm, str(self.load), "blast", THERE, SINK, str(DATAGRAMS)))


def ratios(bench: Bench) -> dict[str, tuple[float, float]]:
    """By kind of traffic: (filtered, unfiltered again) over unfiltered, medians of the rounds' ratios."""
    with _servers() as (here, load), _folders(bench) as folders:
        traffic = Traffic(here, load, folders)
        return {
            "bulk TCP": _ratio(traffic.bulk),
            "TCP connections": _ratio(traffic.connections),
            "UDP datagrams": _ratio(traffic.datagrams),
        }


def _ratio(measure) -> tuple[float, float]:  # type: ignore[no-untyped-def]
    filtered, again = [], []
    for _round in range(ROUNDS):
        found = {arm: measure(arm) for arm in random.sample(ARMS, len(ARMS))}
        filtered.append(found["filtered"] / found["unfiltered"])
        again.append(found["unfiltered again"] / found["unfiltered"])
    return statistics.median(filtered), statistics.median(again)


@contextmanager
def _servers() -> Iterator[tuple[Namespace, Path]]:
    here, there = Namespace(), Namespace()
    here.join(there)
    here.ip(f"addr add {HERE}/24 dev outside")
    there.ip(f"addr add {THERE}/24 dev inside")
    running = []
    with tempfile.TemporaryDirectory() as folder:
        load = Path(folder) / "load"
        subprocess.run(["gcc", "-O2", "-o", str(load), str(Path(__file__).with_name("load.c"))], check=True)
        try:
            with there.entered():
                for command in (
                    ["iperf3", "-s", "-p", BULK, "--forceflush"],
                    [str(load), "serve", SERVED],
                    [str(load), "sink", SINK],
                ):
                    process = subprocess.Popen(
                        ["taskset", "-c", "0", *command], stdout=subprocess.PIPE, text=True
                    )
                    running.append(process)
                    _wait_for_listener(process)
            yield here, load
        finally:
            for process in running:
                process.kill()
                process.wait()
            here.close()
            there.close()


def _wait_for_listener(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if "listening" in line or line == "ready\n":
            return
    raise RuntimeError(f"{process.args}: ended with {process.wait()}")


@contextmanager
def _folders(bench: Bench) -> Iterator[dict[str, Path]]:
    """A cgroup with the programs attached and a policy that allows the servers, and one with nothing."""
    mine = POLICIES // 2
    root = cgroups.hierarchy() / f"skouter-bench-traffic-{os.getpid()}"
    held, free = root / "held", root / "free"
    held.mkdir(parents=True)
    free.mkdir()
    bench.classify(held, mine)
    bench.grant(mine, THERE, (9, 2**63))
    bench.rule(mine, 9, 4)
    for port in (BULK, SERVED, SINK):
        for protocol in (6, 17):
            bench.service(mine, 4, protocol, int(port))
    bench.d.attach(held)
    shallowest, deepest = cgroups.levels(root, 1)
    bench.d.set(shallowest=shallowest, deepest=deepest)
    try:
        yield {"unfiltered": free, "unfiltered again": free, "filtered": held}
    finally:
        bench.d.detach(held)
        for folder in (held, free, root):
            folder.rmdir()
