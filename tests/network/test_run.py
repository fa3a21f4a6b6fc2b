"""`skouter run` as a program among programs: status, signals, users, children, and what it tells."""

from __future__ import annotations

import argparse
import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest
import yaml

from gateway import cgroups, place
from gateway.__main__ import parser
from gateway.privileges import DROPPED
from tests.network.conftest import REFUSED4, ZONE
from tests.network.workload import python
from tests.topology import SKOUTER, wait_for

SITE4, SITE6 = ZONE["example.com"]
EXAMPLE = Path(__file__).parents[2] / "deploy" / "examples" / "egress.yaml"
NOBODY = {"SUDO_UID": "65534", "SUDO_GID": "65534", "SUDO_USER": "nobody"}
LISTENS = """
    import signal
    def heard(number, _):
        tell(signal.Signals(number).name)
        if number == signal.SIGTERM: sys.exit(3)
    for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, heard)
    tell("ready")
    while True: signal.pause()
"""

# ---- Status and signals ---------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [0, 255])
def test_the_exit_status_passes_through(run, status):
    assert run("--", "sh", "-c", f"exit {status}").status == status


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV])
def test_a_command_that_a_signal_ends_ends_skouter_by_the_same_signal(run, number):
    assert run("--", "sh", "-c", f"kill -{int(number)} $$").status == -number


def test_signals_to_skouter_reach_its_command(running):
    with running("--", *python(LISTENS)) as process:
        assert process.stdout.readline() == '"ready"\n'
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            process.send_signal(number)
            assert process.stdout.readline() == f'"{number.name}"\n'
        assert process.wait(10) == 3


def test_control_C_at_a_terminal_reaches_the_command_once(lab):
    """The terminal sends SIGINT to the whole foreground group: skouter must not send it again."""
    count = """
        import signal
        heard = []
        signal.signal(signal.SIGINT, lambda *_: heard.append(1))
        print("ready", flush=True)
        input()
        print(f"heard {len(heard)}", flush=True)
    """
    main, terminal = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", *lab.skouter("run", "-q", "--", *python(count))],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    seen = ""
    for until, answer in (("ready", b"\x03"), ("^C", b"\n"), ("heard", b"")):
        while until not in seen:
            seen += os.read(main, 1000).decode()
        os.write(main, answer)
    assert process.wait(10) == 0
    os.close(main)
    assert "heard 1" in seen


def test_input_and_output_pass_through(running):
    with running("--", "cat") as process:
        assert process.communicate("one\ntwo\n", timeout=10)[0] == "one\ntwo\n"


@pytest.mark.parametrize(
    ("command", "status", "says"),
    [
        ("no-such-command", 127, "no-such-command: command not found"),
        ("/no/such/file", 127, "/no/such/file: command not found"),
        ("/etc/resolv.conf", 126, "/etc/resolv.conf: Permission denied"),
        ("/etc", 126, "/etc: Permission denied"),
    ],
)
def test_a_command_that_cannot_be_started(run, status, command, says):
    got = run("--", command)
    assert (got.status, got.out) == (status, "")
    assert f"skouter: {says}\n" in got.said


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ((), "no command: write skouter run --allow NAME -- COMMAND"),
        (("--allow", "a b", "--", "true"), "--allow a b"),
        (("--allow", "example.com:99999", "--", "true"), "99999"),
        (("--policy", "/no/such/policy.yaml", "--", "true"), "/no/such/policy.yaml"),
        (("--resolver", "dns.example.com", "--", "true"), "is not an IP address"),
        (("--workload", "app=none", "--policy", EXAMPLE, "--", "true"), "no object selects"),
    ],
)
def test_a_mistake_of_the_caller_is_one_sentence_and_status_2(run, words, says):
    got = run(*words)
    assert (got.status, got.out) == (2, "")
    assert says in got.said
    assert "Traceback" not in got.said


def test_a_policy_with_a_mistake_starts_nothing(run, tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(EXAMPLE.read_text().replace("- example.com", "- exa mple.com"))
    got = run("--policy", path, "--", "echo", "started")
    assert (got.status, got.out) == (2, "")
    assert "bad.yaml" in got.said


def test_who_is_not_root_is_told_to_be(lab):
    done = lab.pod.run("setpriv", "--reuid", "65534", "--clear-groups", SKOUTER, "run", "--", "true")
    if "Permission denied" in done.stderr:
        pytest.skip("the checkout lies where others than root can't read it")
    assert done.returncode == 2
    assert done.stderr == "skouter: skouter needs root to load BPF programs: run it with sudo\n"


def all_commands(made, words=()):
    yield words
    for action in made._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, inner in action.choices.items():
                yield from all_commands(inner, (*words, name))


@pytest.mark.parametrize(
    "words", list(all_commands(parser())), ids=lambda words: " ".join(words) or "skouter"
)
def test_every_command_explains_itself(words, capsys):
    with pytest.raises(SystemExit) as ended:
        parser().parse_args([*words, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {' '.join(('skouter', *words))}")


# ---- Whom the command runs as ---------------------------------------------------------------------------


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


def test_ATTACK_the_command_learns_into_a_file_of_root(run, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    run("--learn", precious, "--", "curl", "-4sSf", "http://example.com/", env=NOBODY)
    assert precious.read_text() == "kept"


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


@pytest.mark.parametrize("env", [{}, NOBODY], ids=["root", "sudo"])
def test_ATTACK_a_command_opens_a_pinned_table(lab, run, env):
    pins = place.find(lab.instance).pins
    table = next(pins.glob("maps-*/grants"))
    code = f"""
        from pathlib import Path
        from bpf import kernel
        paths = (Path({str(table)!r}), Path("/proc/1/root{table}"))
        tell([outcome(lambda: kernel.get(path)) for path in paths])
    """
    got = run("--", *python(code), env={**env, "PYTHONPATH": str(EXAMPLE.parents[2])})
    assert set(got.told) <= {"EACCES", "EPERM", "ENOENT"}, got.told


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


@pytest.mark.parametrize("file", ["core_pattern", "modprobe", "hotplug"])
def test_ATTACK_root_has_the_kernel_start_a_program_elsewhere(run, file):
    """What the kernel starts lies in the root cgroup (core(5))."""
    path = f"/proc/sys/kernel/{file}"
    if not Path(path).exists():
        pytest.skip("not in this kernel")
    got = run("--", *python(f"tell(outcome(lambda: os.close(os.open({path!r}, os.O_WRONLY)) or 'writable'))"))
    assert got.told in ("EROFS", "EACCES", "EPERM", "ENOENT")


# ---- Children -------------------------------------------------------------------------------------------

DAEMON = """
    ready, go, told = {paths!r}
    if os.fork():
        until(lambda: os.path.exists(ready), True)
        sys.exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    for fd in (0, 1, 2):
        os.dup2(os.open("/dev/null", os.O_RDWR), fd)
    open(ready, "w").close()
    until(lambda: os.path.exists(go), True)
    result = [connect({refused!r}), connect(resolve("example.com"))]
    open(told + ".part", "w").write(json.dumps(result))
    os.rename(told + ".part", told)
"""


def test_a_child_that_outlives_the_command_is_told_of_and_still_held(lab, run, status, tmp_path):
    ready, go, told = (tmp_path / name for name in ("ready", "go", "told"))
    code = DAEMON.format(paths=[str(ready), str(go), str(told)], refused=REFUSED4)
    got = run("--allow", "example.com", "--", *python(code))
    assert got.status == 0
    (left,) = [w for w in status()["workloads"] if w["processes"]]
    assert f"still running and still held to the policy: {left['processes'][0]}\n" in got.said
    assert left["enforced"]
    go.touch()
    wait_for(told.exists, "what the child found")
    assert json.loads(told.read_text()) == ["EPERM", "connected"]
    wait_for(lambda: not cgroups.is_populated(Path(left["cgroup"])), "the child's end")
    run("--", "true")
    assert status()["workloads"] == []


def test_the_processes_of_a_pipeline_are_all_held(run):
    curl = f"curl -sS -m2 http://{REFUSED4}/"
    line = f"echo x | ({curl}; :) | cat; setsid -w {curl}; nohup {curl}"
    got = run("--", "sh", "-c", line)
    assert (got.status, got.out) == (7, "")
    assert got.summary["refused"][0]["count"] == 3


# ---- What it tells --------------------------------------------------------------------------------------

CURL_BOTH = ("sh", "-c", "curl -4sSf -m5 http://example.com/ && curl -4sSf -m5 http://example.org/")


def test_audit_refuses_nothing_and_tells_what_it_would_have_refused(run):
    got = run("--audit", "--allow", "example.com", "--", *CURL_BOTH)
    assert (got.status, got.out.split()) == (0, [SITE4, REFUSED4])
    assert got.refusals() == {REFUSED4: "NOT_ALLOWED"}
    human = run("-o", "human", "--audit", "--allow", "example.com", "--", *CURL_BOTH)
    assert f"skouter: would be refused  example.org ({REFUSED4}) TCP 80 by curl" in human.said


def test_the_summary_as_JSON(run):
    got = run("--allow", "example.com", "--", *CURL_BOTH)
    row = {"protocol": "TCP", "port": 80, "process": "curl", "count": 1}
    assert got.summary == {
        "reached": [{"name": "example.com", "address": SITE4, **row}],
        "refused": [{"name": "example.org", "address": REFUSED4, **row, "reason": "NOT_ALLOWED"}],
        "lost": 0,
    }


def test_the_summary_for_people(run):
    got = run("-o", "human", "--allow", "example.com", "--", *CURL_BOTH)
    assert f"skouter: reached  example.com ({SITE4}) TCP 80 by curl\n" in got.said
    assert (
        f"skouter: refused  example.org ({REFUSED4}) TCP 80 by curl: no rule allows this address\n"
        in got.said
    )


def test_quiet_says_nothing_at_all(run):
    got = run("-q", "--", "sh", "-c", "echo out; echo err >&2")
    assert (got.out, got.said) == ("out\n", "err\n")


def test_what_was_learned_suffices_for_the_same_command_and_for_nothing_else(run, tmp_path):
    learned = tmp_path / "learned.yaml"
    code = f"""
        families = socket.AF_INET, socket.AF_INET6
        tell([connect(resolve(n, f)) for n in ("example.com", "www.example.com") for f in families])
        tell([datagram(resolve("example.net")), connect({REFUSED4!r}, 8080)])
    """
    everything = ['["connected", "connected", "connected", "connected"]', '["echo", "connected"]']
    first = run("--learn", learned, "--", *python(code))
    assert first.out.splitlines() == everything
    document = yaml.safe_load(learned.read_text())
    assert document["kind"] == "Egress"
    second = run("--policy", learned, "--", *python(code))
    assert second.out.splitlines() == everything
    assert second.summary["refused"] == []
    others = (
        f"tell([connect(a) for a in ({REFUSED4!r}, resolve('example.net'), resolve('four.example.com'))])"
    )
    assert run("--policy", learned, "--", *python(others)).told == ["EPERM"] * 3
    assert (
        subprocess.run([SKOUTER, "policy", "check", learned], capture_output=True, check=False).returncode
        == 0
    )


def test_learning_under_a_policy_enforces_it_and_tells_what_was_missing(run, tmp_path):
    learned = tmp_path / "learned.yaml"
    got = run("--learn", learned, "--allow", "example.com", "--", *CURL_BOTH)
    assert got.status == 7
    rules = yaml.safe_load(learned.read_text())["spec"]["rules"]
    assert rules == [{"domains": ["example.com", "example.org"], "ports": [{"port": 80, "protocol": "TCP"}]}]


def test_the_example_policy_holds_for_the_workload_that_its_labels_select(run):
    policy = ("--policy", EXAMPLE, "--workload", "app=web", "--")
    assert run(*policy, "curl", "-4sSf", "http://example.com/").status == 0
    assert run(*policy, "curl", "-4sSf", "http://example.com:8080/").refusals() == {SITE4: "PORT_NOT_ALLOWED"}
