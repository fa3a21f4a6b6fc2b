"""What a command decides in a network namespace of its own counts for nothing where it came from."""

import os
import pwd
import sys
from pathlib import Path

import pytest

from bpf.datapath import Datapath
from gateway import place, states
from tests.topology import wait_for

PROGRAM = Path(__file__).parent / "programs" / "own_resolver.py"
TARGET = "198.51.100.30"  # example.org, which nothing allows


@pytest.mark.parametrize("defended", [False, True], ids=["the defence switched off", "defended"])
@pytest.mark.usefixtures("lab")
def test_ATTACK_a_trusted_resolver_of_ones_own(lab, running, tmp_path, defended):
    """As an ordinary user, who may make user and network namespaces; with the defence off, it works."""
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.read_text())
    for folder in (*tmp_path.parents, tmp_path):
        if str(folder).startswith("/tmp/pytest"):
            folder.chmod(0o755)
    user = str(pwd.getpwnam("nobody").pw_uid)
    command = ("/usr/bin/python3", program, "example.com", TARGET, "192.0.2.53")
    with running("--allow", "example.com", "--", *command, env={**os.environ, "SUDO_UID": user}) as process:
        if not defended:
            switch_off(lab, process)
        out, said = process.communicate("\n", timeout=60)
    assert "answer of" in out, said
    assert out.splitlines()[-1] == ("EPERM" if defended else "connected"), said


def switch_off(lab, process) -> None:
    """It is not asked where the workload lives, nor whether a source is one of its own."""
    where = place.find(lab.instance)

    def started():
        found = [state for state in states.states(where) if state["pid"] == process.pid and state["cgroups"]]
        return found[0] if found else None

    state = wait_for(started, "the workload")
    loaded = Datapath(where.pins)
    (workload,) = state["cgroups"].values()
    assert loaded["workloads"][workload].home
    loaded["workloads"][workload] = (state["policy"],)
    loaded.close()


def test_the_program_of_the_attack_needs_nothing_but_the_system_s_python():
    assert sys.executable
    compile(PROGRAM.read_text(), str(PROGRAM), "exec")
