"""What is measured while gateways die: new connections from VMs, and what comes outside."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.gateway.lab import ZONE, GatewayLab
from tests.topology import HERE, PATIENCE, end

GATEWAY = HERE / "gateway"
OVERTIME = 40 * PATIENCE  # seconds in which a load has ended that was told to
_NUMBERS = itertools.count()


@dataclass
class Load:
    """New connections at a steady rate; `told` is there when it has ended."""

    processes: dict[str, subprocess.Popen[str]]
    told: dict[str, dict[str, Any]] = field(default_factory=dict)

    def go_on(self, seconds: int) -> None:
        """Waits until there were so many seconds' attempts more."""
        for process in self.processes.values():
            assert process.stdout is not None
            assert ["on\n"] * seconds == [process.stdout.readline() for _ in range(seconds)]

    def stop(self) -> None:
        for process in self.processes.values():
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        for vm, process in self.processes.items():
            out, _ = process.communicate(timeout=OVERTIME)
            self.told[vm] = json.loads(out.splitlines()[-1])

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


@contextmanager
def counted(lab: GatewayLab, match: str) -> Iterator[Callable[[], int]]:
    """How many packets that nftables matches so have come outside since the block began."""
    name = f"count{next(_NUMBERS)}"
    chain = f"chain c {{ type filter hook prerouting priority -300; {match} counter name seen; }}\n}}\n"
    lab.outside.checked("nft", "-f", "-", input=f"table inet {name} {{ counter seen {{}}\n{chain}")

    def count() -> int:
        told = json.loads(lab.outside.checked("nft", "-j", "list", "counter", "inet", name, "seen"))
        return next(int(row["counter"]["packets"]) for row in told["nftables"] if "counter" in row)

    yield count
    lab.outside.checked("nft", "delete", "table", "inet", name)


def forged(lab: GatewayLab, source: str) -> int:
    """How many packets come outside of those that vm1 sends with a false source by way of each gateway."""
    there = "198.51.100.77"
    code = f"""
        [send_raw({there!r}, segment({source!r}, 40000, {there!r}, 80, 1, 0, SYN)) for _ in range(3)]
        forge({source!r}, 40000, {there!r}, 7, b"x")
        tell(connect({ZONE["example.com"][0]!r}))
    """
    with counted(lab, f"ip daddr {there}") as out:
        for gateway in lab.gateways:
            lab.lead([gateway])
            lab.router.ip(f"route replace {there}/32 via {gateway.inside4}")
            lab.inside("vm1", "resolve('example.com')")
            assert lab.do("vm1", code) == "connected"  # this came later, and passed
        lab.router.ip(f"route del {there}/32")
        lab.lead()
        return out()
