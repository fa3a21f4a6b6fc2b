"""The lab itself: nothing of it stays, however it ends; and the demo, which lives in one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

from gateway import cgroups, place
from tests.topology import HERE, PREFIX, sweep, wait_for

BUILD = """
import subprocess, sys
from tests.topology import Lab
with Lab() as lab:
    command = lab.skouter("run", "--", "sh", "-c", "echo ready; exec sleep 60")
    running = subprocess.Popen(command, stdout=subprocess.PIPE)
    running.stdout.readline()
    holders = [machine.holder.pid for machine in (lab.pod, lab.node, lab.world)]
    print(lab.instance, *holders, lab.dns.process.pid, lab.servers.pid, running.pid, flush=True)
    sys.stdin.read()
"""


def left(pid: int) -> list[Path]:
    """Files and folders of labs that were this process's."""
    folders = (place.find(PREFIX).bpffs, cgroups.hierarchy(), Path("/run"), Path("/tmp"))
    return [path for folder in folders for path in folder.glob(f"{PREFIX}-{pid}-*")]


def test_a_lab_whose_process_is_killed_is_swept_by_the_next(lab):
    builder = subprocess.Popen(
        [sys.executable, "-c", BUILD],
        cwd=HERE.parent,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    instance, *pids = builder.stdout.readline().split()
    assert {path.parent for path in left(builder.pid)} >= {Path("/tmp"), Path("/run")}
    workload = next(place.find(instance).cgroup.glob("run-*"))
    builder.kill()
    for stream in (builder.stdin, builder.stdout):
        stream.close()
    wait_for(lambda: not any(map(is_alive, pids)), "the end of the namespaces and of all that served in them")
    assert cgroups.is_populated(workload), "a command outlives its skouter, and is held"
    builder.wait()  # until then it is there, and no other process's lab sweeps it
    sweep()
    assert left(builder.pid) == []


def is_alive(pid: str) -> bool:
    try:
        return "State:\tZ" not in Path("/proc", pid, "status").read_text()
    except OSError:
        return False


def demo() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tests.demo"],
        cwd=HERE.parent,
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_the_demo_shows_what_it_promises_and_leaves_nothing_behind():
    process = demo()
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, out
    assert "all as expected" in out
    assert left(process.pid) == []


def test_the_demo_leaves_nothing_behind_when_it_is_interrupted():
    process = demo()
    for line in process.stdout:
        if "moves to another site" in line:
            os.kill(process.pid, signal.SIGINT)
            break
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130, out
    assert left(process.pid) == []
