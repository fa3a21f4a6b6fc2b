"""What is tried under another kernel; one JSON object a line tells how it went.

    {"program": NAME, "instructions": N}            the verifier took it, after so many instructions
    {"program": NAME, "refused": ERROR, "log": []}  or not: the end of what it said
    {"attached": [NAME, ...]} or {"attached": [], "refused": ERROR}
    {"test": ID, "outcome": "passed"}               or "skipped", or "failed" with "why"

Its arguments are pytest's.
"""

from __future__ import annotations

import json
import os
import re
import sys
from typing import Any

import pytest

from bpf import datapath, kernel, load
from bpf.contract import contract
from gateway import cgroups, place

PATH, SUMMARY = 1, 4  # log levels: every instruction of the path that fails; only errors and sums
LOG_BYTES = (1 << 24) - 1  # what Linux before 5.16 takes at most
LAST_LINES = 60
PROCESSED = re.compile(r"^processed (\d+) insns", re.MULTILINE)


_results = sys.stdout  # whatever else is printed goes to the console: main()


def tell(**facts: Any) -> None:
    print(json.dumps(facts), file=_results, flush=True)


def verify_all() -> None:
    """Each program by itself, so that one that is refused hides no other."""
    code = load.compiled()
    maps = {m.name: kernel.create_map(m) for m in contract().maps.values()}
    for name, (function, kind, attach) in {
        **load.wanted(),
        **load.LINKS.wanted(),
        **load.GATEWAY.wanted(),
    }.items():
        program = load.linked(code[function], maps)
        error, log = verify(name, program, kind, attach, SUMMARY)
        if not error:
            tell(program=name, instructions=int(PROCESSED.findall(log)[-1]))
            continue
        walked, path = verify(name, program, kind, attach, PATH)
        said = path if walked == error else log  # else its log had no room
        tell(program=name, refused=os.strerror(error), log=said.splitlines()[-LAST_LINES:])
    for fd in maps.values():
        os.close(fd)


def verify(name: str, code: bytes, kind: int, attach: int, level: int) -> tuple[int, str]:
    """The error (errno, or 0) with which the kernel loads a program, and the verifier's log."""
    log = kernel.ffi.new("char[]", LOG_BYTES)
    options = kernel.ffi.new("struct load_options *")
    options.sz, options.expected_attach_type = kernel.ffi.sizeof("struct load_options"), attach
    options.log_buf, options.log_size, options.log_level = log, LOG_BYTES, level
    fd = kernel._lib.bpf_prog_load(kind, name.encode(), b"GPL", code, len(code) // 8, options)
    if fd >= 0:
        os.close(fd)
    return max(0, -fd), kernel.ffi.string(log).decode(errors="replace")


def attach_all() -> None:
    where = place.find("skouter-matrix")
    where.cgroup.mkdir()
    try:
        loaded = datapath.load(where.pins)
        loaded.attach(where.cgroup)
        loaded.attach(where.hierarchy, ("resolver",))
        tell(attached=loaded.attached(where.cgroup) + loaded.attached(where.hierarchy))
        loaded.detach(where.hierarchy)
        loaded.detach(where.cgroup)
        loaded.close()
    except (datapath.DatapathError, OSError) as error:
        tell(attached=[], refused=str(error))
    finally:
        datapath.unpin(where.pins)
        cgroups.remove_cgroup(where.cgroup)


class Teller:
    """A plugin of pytest: one line for each test."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            tell(test=report.nodeid, outcome="failed", why=report.longreprtext[-3000:])
        elif report.skipped or report.when == "call":
            tell(test=report.nodeid, outcome=report.outcome)


def main() -> None:
    sys.stdout = sys.stderr
    tell(kernel=os.uname().release)
    verify_all()
    attach_all()
    if sys.argv[1:]:
        pytest.main(["-p", "no:cacheprovider", "-q", *sys.argv[1:]], plugins=[Teller()])


if __name__ == "__main__":
    main()
