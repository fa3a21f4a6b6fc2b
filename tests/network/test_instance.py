"""One kernel half for several commands: who sees what, and how all of it goes away."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from bpf import kernel
from bpf.datapath import pinned_programs
from gateway import place
from tests.network.conftest import REFUSED4, ZONE
from tests.network.workload import python
from tests.topology import wait_for

SITE4 = ZONE["example.com"][0]
NET4 = ZONE["example.net"][0]


@pytest.fixture
def command(lab):
    """`skouter WORDS` of another instance than the lab's own; its name is `command.instance`."""

    def run_there(*words):
        return subprocess.run(
            lab.skouter(*words, instance=run_there.instance), capture_output=True, text=True, check=True
        )

    run_there.instance = lab.another_instance()
    return run_there


TRIES = f"""
    tell([resolve("example.com"), connect({REFUSED4!r})])
    input()
    tell(connect({REFUSED4!r}))
    input()
"""


def test_status_tells_the_workload_and_its_grants(lab, running, status):
    with running("--allow", "example.com:80", "--", *python(TRIES)) as process:
        process.stdout.readline()
        found = status()
        (workload,) = found["workloads"]
        lines = subprocess.run(
            lab.skouter("status"), capture_output=True, text=True, check=True
        ).stdout.splitlines()
    assert set(found["attached"][str(place.find(lab.instance).cgroup)]) >= {
        "egress",
        "ingress",
        "connect4",
        "connect6",
    }
    assert (workload["mode"], workload["enforced"], workload["watched"]) == ("Enforce", True, True)
    assert workload["rules"] == ["example.com (TCP 80)"]
    (grant,) = workload["grants"]
    assert (grant["name"], grant["address"]) == ("example.com", SITE4)
    assert 60 < grant["seconds_left"] <= 120
    assert lines[0] == f"instance {lab.instance}"
    assert f"command {workload['name']}: Enforce, enforced" in lines
    assert any(line.startswith(f"  granted example.com {SITE4} for ") for line in lines)


def test_status_of_an_instance_that_is_not_there(command):
    assert command("status").stdout.splitlines()[1:] == [
        "  nothing is attached: nothing is filtered",
        "no workloads",
    ]
    assert json.loads(command("status", "-o", "json").stdout)["workloads"] == []
    assert command("off").stdout == "nothing was attached\n"
    assert command("uninstall").stdout == "nothing was there\n"


def test_two_runs_side_by_side_do_not_mix(running):
    """Neither what they may reach, nor what they have learned, nor what they are told."""
    code = f"""
        mine = resolve(sys.argv[1])
        tell(mine)
        input()
        tell([connect(mine), connect({SITE4!r}), connect({NET4!r})])
    """
    with (
        running("--allow", "example.com", "--", *python(code), "example.com") as one,
        running("--allow", "example.net", "--", *python(code), "example.net") as other,
    ):
        assert [json.loads(process.stdout.readline()) for process in (one, other)] == [SITE4, NET4]
        results = [process.communicate("\n", timeout=60) for process in (one, other)]
    told = [json.loads(out) for out, _ in results]
    assert told == [["connected", "connected", "EPERM"], ["connected", "EPERM", "connected"]]
    summaries = [json.loads(said.splitlines()[-1]) for _, said in results]
    for summary, reached, refused in zip(summaries, (SITE4, NET4), (NET4, SITE4), strict=True):
        assert {row["address"] for row in summary["reached"]} == {reached}
        assert {row["address"] for row in summary["refused"]} == {refused}


def test_off_frees_what_runs_at_once_and_the_next_run_is_held_again(command, run, running):
    with running("--", *python(TRIES), instance=command.instance) as process:
        assert json.loads(process.stdout.readline())[1] == "EPERM"
        gone = command("off").stdout
        assert "detached egress from" in gone
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == '"connected"\n'
        assert "nothing is filtered" in command("status").stdout
        again = run("--", *python(f"tell(connect({REFUSED4!r}))"), instance=command.instance)
        assert again.told == "EPERM"


def test_off_needs_no_tables_and_no_state(command, running):
    """Break-glass: whatever else is broken."""
    with running("--", *python(TRIES), instance=command.instance) as process:
        process.stdout.readline()
        where = place.find(command.instance)
        for path in [*where.pins.glob("maps-*/*"), *where.run.iterdir()]:
            path.unlink()
        assert "detached egress from" in command("off").stdout
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == '"connected"\n'


def attached_anywhere(where):
    """Our programs at the root of the hierarchy, where a local resolver's answers are read."""
    fd = os.open(where.hierarchy, os.O_RDONLY)
    try:
        return kernel.attached(fd, 1)
    finally:
        os.close(fd)


@pytest.mark.parametrize("while_it_runs", [False, True], ids=["at rest", "while a command runs"])
def test_uninstall_leaves_nothing_behind(lab, command, running, while_it_runs):
    where = place.find(command.instance)
    with running(
        "--resolver",
        "127.0.0.53",
        "--",
        *python(TRIES.replace('resolve("example.com")', "0")),
        instance=command.instance,
    ) as process:
        process.stdout.readline()
        ids = set().union(
            *(pinned_programs(where.pins, name) for name in ("egress", "ingress", "resolver", "connect4"))
        )
        assert ids & set(attached_anywhere(where)), "a resolver of this host is trusted"
        if not while_it_runs:
            process.communicate("\n\n", timeout=60)
        gone = command("uninstall").stdout
        assert str(where.pins) in gone
        if while_it_runs:
            process.stdin.write("\n")
            process.stdin.flush()
            assert process.stdout.readline() == '"connected"\n'
            process.communicate("\n", timeout=60)
    assert not [path for path in (where.pins, where.run, where.cgroup) if path.exists()]
    assert not ids & set(attached_anywhere(where))
    wait_for(lambda: not any(map(is_loaded, ids)), "the end of the programs")
    assert command("uninstall").stdout == "nothing was there\n"


def is_loaded(number):
    try:
        os.close(kernel.program_by_id(number))
    except OSError:
        return False
    return True


def test_a_command_that_is_uninstalled_beneath_ends_with_its_own_status(command, running):
    with running("--", "sh", "-c", "echo started; read x; exit 5", instance=command.instance) as process:
        assert process.stdout.readline() == "started\n"
        command("uninstall")
        _, said = process.communicate("\n", timeout=60)
        assert process.returncode == 5, said
        assert "Traceback" not in said
