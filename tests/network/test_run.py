"""`skouter run` as a program among programs: status, signals, mistakes, children."""

from __future__ import annotations

import argparse
import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest

from gateway import cgroups
from gateway.__main__ import parser
from tests.network.conftest import REFUSED4, ZONE
from tests.network.workload import python
from tests.topology import SKOUTER, wait_for

SITE4, SITE6 = ZONE["example.com"]
EXAMPLE = Path(__file__).parents[2] / "deploy" / "examples" / "egress.yaml"
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
        assert process.wait(60) == 3


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
    assert process.wait(60) == 0
    os.close(main)
    assert "heard 1" in seen


def test_input_and_output_pass_through(running):
    with running("--", "cat") as process:
        assert process.communicate("one\ntwo\n", timeout=60)[0] == "one\ntwo\n"


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
    wait_for(lambda: not cgroups.is_populated(Path(left["cgroups"][0])), "the child's end")
    run("--", "true")
    assert status()["workloads"] == []


def test_the_processes_of_a_pipeline_are_all_held(run):
    curl = f"curl -sS -m2 http://{REFUSED4}/"
    line = f"echo x | ({curl}; :) | cat; setsid -w {curl}; nohup {curl}"
    got = run("--", "sh", "-c", line)
    assert (got.status, got.out) == (7, "")
    assert got.summary["refused"][0]["count"] == 3
