"""What is measured while gateways die: new connections from VMs, and what comes outside."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.gateway.lab import GatewayLab
from tests.topology import HERE, PATIENCE, end

GATEWAY = HERE / "gateway"
OVERTIME = 40 * PATIENCE  # seconds in which a load has ended that was told to


@dataclass
class Load:
    """New connections at a steady rate; `told` is there when it has ended."""

    processes: dict[str, subprocess.Popen[str]]
    told: dict[str, dict[str, Any]] = field(default_factory=dict)

    def stop(self) -> None:
        for process in self.processes.values():
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        for vm, process in self.processes.items():
            out, _ = process.communicate(timeout=OVERTIME)
            self.told[vm] = json.loads(out)

    @property
    def attempts(self) -> int:
        return sum(told["attempts"] for told in self.told.values())

    @property
    def failed(self) -> dict[str, dict[str, int]]:
        """By VM, those that failed: none is what it should be."""
        return {vm: told["failed"] for vm, told in self.told.items() if told["failed"]}

    @property
    def again(self) -> int:
        return sum(told["again"] for told in self.told.values())

    @property
    def slowest(self) -> float:
        return max(told["slowest"] for told in self.told.values())


@contextmanager
def load(lab: GatewayLab, rate: float, *names: str, vms: tuple[str, ...]) -> Iterator[Load]:
    """From each of `vms` so many attempts a second, from before the block to its end."""
    with ExitStack() as held:
        words = (sys.executable, GATEWAY / "load.py", rate, *names)
        running = {vm: held.enter_context(lab.program(lab.vms[vm], *words)) for vm in vms}
        for vm, process in running.items():
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n", f"{vm} comes not through"
        made = Load(running)
        yield made
        made.stop()


class Witness:
    """Outside: how many packets with a private source came from the gateways."""

    def __init__(self, lab: GatewayLab) -> None:
        program = (sys.executable, GATEWAY / "witness.py")
        self.process = lab.outside.start(*program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._read()

    def private(self) -> dict[str, Any]:
        """{"packets": number since the last time, "first": one of them}."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return dict(json.loads(self._read()))

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()

    def close(self) -> None:
        end(self.process)


def seconds(begin: float) -> float:
    return time.monotonic() - begin
