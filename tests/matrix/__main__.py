"""`make matrix`: the kernel half under each kernel that Debian ships, one after another.

Written to build/matrix.md: kernel, programs that load with the instructions that the verifier walked, whether
they attach, tests that pass. `python -m tests.matrix --suite bullseye -- tests/kernel -k resolver` tries one
kernel with other tests; without any after the `--`, only whether all loads and attaches.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bpf import load
from tests.matrix import kernels, machine

CHECKOUT = Path(__file__).parent.parent.parent
BUILD = CHECKOUT / "build" / "matrix"
TESTS = ("tests/kernel/test_sockets.py", "tests/network/test_clients.py")


@dataclass
class Result:
    """What one kernel's guest told."""

    suite: str
    release: str
    programs: dict[str, int | None] = field(default_factory=dict)  # None: refused
    attached: list[str] = field(default_factory=list)
    tests: Counter[str] = field(default_factory=Counter)

    @property
    def good(self) -> bool:
        loads = bool(self.programs) and None not in self.programs.values()
        return loads and bool(self.attached) and not self.tests["failed"]

    def add(self, told: dict[str, Any]) -> None:
        if "program" in told:
            self.programs[told["program"]] = told.get("instructions")
        elif "attached" in told:
            self.attached = told["attached"]
        elif "test" in told:
            self.tests[told["outcome"]] += 1
        for line in (*told.get("log", ()), *told.get("why", "").splitlines()):
            print(f"    {line}")
        if told.get("outcome") not in ("passed", "skipped"):
            brief = {key: value for key, value in told.items() if key not in ("log", "why")}
            print(f"{self.suite}: {' '.join(f'{key} {value}' for key, value in brief.items())}", flush=True)


def examine(suite: str, command: list[str]) -> Result:
    kernel = kernels.fetch(suite, BUILD)
    result = Result(suite, kernel.release)
    for line in machine.run(kernel, CHECKOUT, command, BUILD / suite / "console"):
        if line.startswith("{"):
            result.add(json.loads(line))
    if not result.programs:
        print(f"{suite}: told nothing; see {BUILD / suite / 'console'}")
    return result


def table(results: list[Result]) -> str:
    names = list(dict.fromkeys(name for result in results for name in result.programs))
    lines = [
        "# The kernel half under other kernels",
        "",
        f"Verified instructions of each program; compiled on {platform.machine()}.",
        "",
        f"| | {' | '.join(f'{result.suite} {result.release}' for result in results)} |",
        f"|---|{'---|' * len(results)}",
    ]
    for name in names:
        cells = [result.programs.get(name) for result in results]
        lines.append(f"| {name} | {' | '.join('refused' if n is None else f'{n:,}' for n in cells)} |")
    attached = (f"{len(result.attached)} programs" if result.attached else "no" for result in results)
    tests = (", ".join(f"{n} {what}" for what, n in sorted(result.tests.items())) for result in results)
    return "\n".join(
        [*lines, f"| attached | {' | '.join(attached)} |", f"| tests | {' | '.join(tests)} |", ""]
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__.splitlines()[0])
    parser.add_argument("--suite", action="append", choices=kernels.SUITES, help="only this one; repeatable")
    parser.add_argument("tests", nargs="*", default=TESTS, help="pytest's arguments")
    words = parser.parse_args()
    BUILD.mkdir(parents=True, exist_ok=True)
    load.compiled()  # the guests find it where this host keeps it
    command = [sys.executable, "-m", "tests.matrix.guest", *words.tests]
    results = [examine(suite, command) for suite in words.suite or kernels.SUITES]
    text = table(results)
    (BUILD.parent / "matrix.md").write_text(text)
    print(text)
    return 0 if all(result.good for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
