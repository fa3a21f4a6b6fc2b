"""How a workload begins and ends: nothing of an earlier one is in it, nothing that it said is lost."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gateway import cgroups, place
from tests.network.conftest import REFUSED4
from tests.network.workload import python
from tests.topology import SKOUTER, end, remove_instance, wait_for

SINK = """
import socket, sys, time
s = socket.socket(); s.setsockopt(1, 2, 1); s.setsockopt(1, 8, 4096)
s.bind(("198.51.100.30", 9000)); s.listen(); print("listening", flush=True)
c, _ = s.accept(); c.settimeout(20); got = 0
sys.stdin.readline()  # the client is gone by now
while data := c.recv(4096): got += len(data)
print(got, flush=True)
"""
SEND = """
s = socket.socket(); s.setsockopt(1, 7, 4_000_000); s.connect(("198.51.100.30", 9000)); s.settimeout(0.3)
left = 400_000
while left: left -= s.send(b"x" * min(left, 20_000))
s.close()
"""


def test_what_is_still_in_a_socket_when_the_command_ends_arrives(lab, run):
    sink = lab.world.start(
        sys.executable, "-c", SINK, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert sink.stdout.readline() == "listening\n"
        got = run("--allow", "198.51.100.30", "--", *python(SEND))
        assert got.status == 0, got.said
        out, _ = sink.communicate("\n", timeout=60)
        assert out == "400000\n"
    finally:
        end(sink)


def test_a_policy_number_starts_empty_even_where_the_record_of_its_last_use_is_lost(lab, run):
    tries = python(f"tell(connect({REFUSED4!r}))")
    instance = lab.another_instance()
    assert run("--allow", "0.0.0.0/0", "--", *tries, instance=instance).told == "connected"
    for path in place.find(instance).run.glob("*.json"):
        path.unlink()
    assert run("--allow", "198.51.100.1", "--", *tries, instance=instance).told == "EPERM"


def test_where_the_kernel_does_not_see_the_cgroup_nothing_is_started():
    """A container whose cgroup lies deeper than any level that is looked at."""
    name = f"skouter-lab-{os.getpid()}-deep"
    top = cgroups.hierarchy() / f"{name}-outer"
    deep = top.joinpath(*"abcdefgh")
    deep.mkdir(parents=True)
    mount = cgroups.hierarchy()
    script = f"umount {mount} && mount -t cgroup2 none {mount} && exec {SKOUTER} run -- echo started"
    try:
        done = subprocess.run(
            ["unshare", "--cgroup", "--mount", "--net", "sh", "-c", script],
            preexec_fn=lambda: cgroups.join(deep),
            env={**os.environ, "SKOUTER_INSTANCE": name},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert "nothing would be enforced, so nothing is started" in done.stderr
    finally:
        remove_instance(name)
        wait_for(lambda: not cgroups.is_populated(top), "an empty cgroup")
        for folder in sorted((p for p in [top, *top.rglob("*")] if p.is_dir()), reverse=True):
            folder.rmdir()


@pytest.mark.parametrize("name", ["lock", "systemd", "..", "skouter/../x", "Skouter", "skouter-"])
def test_an_instance_never_has_the_name_of_somebody_else_s_folder(name):
    done = subprocess.run(
        [SKOUTER, "status"],
        env={**os.environ, "SKOUTER_INSTANCE": name},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "write skouter, or skouter-" in done.stderr
    assert not Path("/run", name, "lock").is_file()
