"""Whom a command runs as, and the ways out that it does not have."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from gateway import place
from gateway.privileges import DROPPED
from tests.network.conftest import REFUSED4, ZONE
from tests.network.workload import python

SITE4, SITE6 = ZONE["example.com"]
EITHER = pytest.mark.parametrize("defended", [False, True], ids=["the defence switched off", "defended"])
NOBODY = {"SUDO_UID": "65534", "SUDO_GID": "65534", "SUDO_USER": "nobody"}


@pytest.fixture
def confined(arena, run):
    """`skouter run`, or one that confines nothing."""

    def run_there(defended, *words, env=None):
        version = arena.version("" if defended else "a command is confined")
        return run(*words, instance=version.instance, env={**version.environment, **(env or {})})

    return run_there


def status_of_process(out):
    return {key: value.split() for key, _, value in (line.partition(":") for line in out.splitlines())}


@pytest.mark.parametrize("env", [{}, NOBODY], ids=["root", "sudo"])
def test_a_command_has_no_capability_to_reach_around_and_no_way_to_gain_one(run, env):
    got = status_of_process(run("--", "cat", "/proc/self/status", env=env).out)
    assert got["NoNewPrivs"] == ["1"]
    for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        (mask,) = got[kind]
        assert not [name for name, number in DROPPED.items() if int(mask, 16) >> number & 1], kind
    assert got["Uid"] == ["65534" if env else "0"] * 4
    if env:
        assert int(got["CapEff"][0], 16) == 0


def test_under_sudo_the_command_runs_as_the_user_who_called_it(run):
    line = "id -u; id -g; id -G; echo $HOME $USER $LOGNAME; env | grep -c ^SUDO_"
    got = run("--", "sh", "-c", line, env=NOBODY)
    assert got.out.split() == ["65534", "65534", "65534", "/nonexistent", "nobody", "nobody", "0"]


def test_under_sudo_the_policy_holds_too(run):
    got = run(
        "--allow",
        "example.com",
        "--",
        "sh",
        "-c",
        "curl -4sSf http://example.com/; curl -sS http://example.org/",
        env=NOBODY,
    )
    assert (got.status, got.out) == (7, f"{SITE4}\n")


def test_what_is_learned_is_written_as_the_user_who_called_sudo(run, tmp_path):
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and parent.is_relative_to("/tmp/pytest-of-root"):
            parent.chmod(0o755)
    run("--learn", tmp_path / "learned.yaml", "--", "curl", "-4sSf", "http://example.com/", env=NOBODY)
    assert (tmp_path / "learned.yaml").stat().st_uid == 65534


@EITHER
def test_ATTACK_the_command_learns_into_a_file_of_root(confined, tmp_path, defended):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    confined(defended, "--learn", precious, "--", "curl", "-4sSf", "http://example.com/", env=NOBODY)
    assert (precious.read_text() == "kept") == defended


@EITHER
def test_ATTACK_a_program_that_makes_its_caller_root(lab, confined, defended):
    """The set-user-ID bit means nothing to a command that was started with no_new_privs."""
    program = lab.folder / f"id-{defended}"
    shutil.copy("/usr/bin/id", program)
    program.chmod(0o4755)
    got = confined(defended, "--", program, env=NOBODY)
    assert "uid=65534" in got.out
    assert ("euid=0" in got.out) != defended


@EITHER
def test_ATTACK_a_raw_socket(confined, defended):
    code = """
        kinds = [(socket.AF_INET, 255), (socket.AF_INET6, 255), (socket.AF_PACKET, 3)]
        tell([outcome(lambda: bool(socket.socket(*kind[:1], socket.SOCK_RAW, kind[1]))) for kind in kinds])
    """
    assert confined(defended, "--", *python(code)).told == (["EPERM"] * 3 if defended else [True] * 3)


# ---- Out of the cgroup ----------------------------------------------------------------------------------


@pytest.mark.parametrize("env", [{}, NOBODY], ids=["root", "sudo"])
def test_ATTACK_a_command_moves_itself_out_of_its_cgroup(lab, run, env):
    where = place.find(lab.instance)
    code = f"""
        hierarchy, own = {str(where.hierarchy)!r}, {str(where.cgroup)!r}
        for path in (hierarchy, own, "/proc/1/root" + hierarchy):
            try:
                with open(path + "/cgroup.procs", "w") as procs: procs.write("0")
                tell("moved")
            except OSError as error: tell(errno.errorcode[error.errno])
        tell(connect({REFUSED4!r}))
    """
    *moves, refused = map(json.loads, run("--", *python(code), env=env).out.splitlines())
    assert set(moves) <= {"EROFS", "EACCES", "EPERM", "ENOENT"}, moves
    assert refused == "EPERM"


def test_ATTACK_where_nothing_is_shut_a_command_of_root_moves_out(lab, confined):
    """So that the attack above can succeed."""
    where = place.find(lab.instance)
    code = f"""
        with open("{where.hierarchy}/cgroup.procs", "w") as procs: procs.write("0")
        tell(connect({REFUSED4!r}))
    """
    assert confined(False, "--", *python(code)).told == "connected"


@EITHER
@pytest.mark.parametrize("how", ["write", "clone3"])
def test_ATTACK_a_command_moves_to_a_cgroup_that_its_user_owns(lab, confined, how, defended):
    """As systemd gives every user some. Who moves needs the right to both cgroups' common parent, which here
    only root has; with clone3(2) a child is to be born there."""
    where = place.find(lab.instance)
    given = where.hierarchy / f"{lab.instance}-given"
    given.mkdir()
    for path in (given, given / "cgroup.procs"):
        os.chown(path, 65534, 65534)
    code = f"""
        where, how = {str(given)!r}, {how!r}
        def clone3():
            CLONE_INTO_CGROUP, SYSCALL = 0x200000000, 435
            libc = ctypes.CDLL(None, use_errno=True)
            folder = os.open(where, os.O_RDONLY)
            arguments = struct.pack("=11Q", CLONE_INTO_CGROUP, 0, 0, 0, 17, 0, 0, 0, 0, 0, folder)
            child = libc.syscall(SYSCALL, arguments, 88)
            if child < 0:
                raise OSError(ctypes.get_errno(), "clone3")
            if child:
                os.waitpid(child, 0)
                os._exit(0)
        def write():
            with open(where + "/cgroup.procs", "w") as procs: procs.write("0")
        tell([outcome(globals()[how]), connect({REFUSED4!r})])
    """
    try:
        got = confined(defended, "--", *python(code), env=NOBODY if defended else {})
        assert got.told == (["EACCES", "EPERM"] if defended else [None, "connected"])
    finally:
        given.rmdir()


@EITHER
@pytest.mark.parametrize("env", [{}, NOBODY], ids=["root", "sudo"])
def test_ATTACK_a_command_opens_a_pinned_table(lab, arena, confined, env, defended):
    confined(defended, "--", "true")
    pins = place.find(arena.version("" if defended else "a command is confined").instance).pins
    table = next(pins.glob("maps-*/grants"))
    code = f"""
        from pathlib import Path
        from bpf import kernel
        paths = (Path({str(table)!r}), Path("/proc/1/root{table}"))
        tell([outcome(lambda: kernel.get(path) > 0) for path in paths])
    """
    got = confined(defended, "--", *python(code), env=env)
    if defended or env:  # a user has no right to them anyway
        assert set(got.told) <= {"EACCES", "EPERM", "ENOENT"}, got.told
    else:
        assert True in got.told


def test_ATTACK_root_looks_for_the_pins_and_finds_none(lab, run):
    got = run("--", "ls", place.find(lab.instance).pins, place.find(lab.instance).run)
    assert (got.status, got.out) == (2, "") or "egress" not in got.out
    assert "Permission denied" in got.said or not got.out.split("\n")[1]


def test_ATTACK_root_mounts_the_hierarchy_writable_again(lab, run):
    where = place.find(lab.instance)
    line = f"""
        mount -o remount,rw {where.hierarchy} && echo remounted
        umount {where.pins} && echo uncovered
        mkdir -p /tmp/{lab.instance}/other && mount -t cgroup2 none /tmp/{lab.instance}/other && echo mounted
        mount -t bpf bpf /tmp/{lab.instance}/other && echo mounted
        nsenter --target 1 --mount true && echo entered
        true
    """
    assert run("--", "sh", "-c", line).out == ""


@pytest.mark.parametrize("env", [{}, NOBODY], ids=["root", "sudo"])
def test_ATTACK_a_command_becomes_root_of_a_user_namespace(lab, run, env):
    """There it may mount a cgroup hierarchy of its own, and still none that leads out."""
    where = place.find(lab.instance)
    inner = f"""
        umount {where.hierarchy}; mount -o remount,rw,bind {where.hierarchy}
        for path in {where.hierarchy} {where.cgroup}; do echo 0 >$path/cgroup.procs && echo moved; done
        mount -t tmpfs none /mnt && mkdir /mnt/c && mount -t cgroup2 none /mnt/c && mkdir /mnt/c/deeper &&
            echo $$ >/mnt/c/deeper/cgroup.procs
        for folder in /mnt/c /mnt/c/..; do echo 0 >$folder/cgroup.procs; done
        cat {where.pins}/*/*
        curl -sS -m3 http://{REFUSED4}/
    """
    got = run("--", "unshare", "-UrmC", "sh", "-c", inner, env=env)
    assert got.out == ""
    assert got.refusals() == {REFUSED4: "NOT_ALLOWED"} or "Operation not permitted" in got.said


@EITHER
def test_ATTACK_root_has_the_kernel_start_a_program_elsewhere(confined, defended):
    """What the kernel starts by itself lies in the root cgroup: core(5), cgroups(7) "release_agent"."""
    code = """
        from glob import glob
        paths = ["core_pattern", "modprobe", "hotplug", "poweroff_cmd"]
        paths = [*(f"/proc/sys/kernel/{p}" for p in paths), "/sys/kernel/uevent_helper"]
        paths += glob("/sys/fs/cgroup/*/release_agent")
        tell({p: outcome(lambda: os.close(os.open(p, os.O_WRONLY)) or "writable") for p in paths})
    """
    got = confined(defended, "--", *python(code))
    writable = [path for path, outcome in got.told.items() if outcome == "writable"]
    assert (not writable) == defended, writable
