"""The daemon on a host: real cgroups, real sockets, its files changed under it, its process killed."""

from __future__ import annotations

import fcntl
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.network.conftest import REFUSED4, ZONE
from tests.network.daemon import CONFIG, WEB, Host, document, stream_of, until
from tests.network.workload import python
from tests.topology import Lab, end, wait_for

SITE4 = ZONE["example.com"][0]
NET4 = ZONE["example.net"][0]
OTHER = "/system.slice/other.service"


def reached(address: str) -> str:
    return f"tell(connect({address!r}))"


@pytest.fixture
def host(lab: Lab, tmp_path: Path) -> Iterator[Host]:
    made = Host(lab, tmp_path)
    made.write("web.yaml", document("web", "example.com"))
    yield made
    made.close()


# ---- Who is held -------------------------------------------------------------------------------------------


def test_a_unit_is_held_and_what_nobody_named_is_not(host: Host) -> None:
    with host.agent():
        got = host.do(WEB, f'tell([connect(resolve("example.com")), connect({REFUSED4!r})])')
        assert got == ["connected", "EPERM"]
        assert host.do(OTHER, reached(REFUSED4)) == "connected"
        assert host.held() == {"web": [WEB]}


def test_a_unit_that_starts_again_is_held_before_its_own_process_runs(host: Host) -> None:
    """Each start is a new cgroup; ExecStartPre=+skouter wait stands before the unit's process."""
    root = f"--root=/{host.root.name}"
    with host.agent():
        for number in range(8):
            unit = f"/system.slice/system-web.slice/web-{number % 2}.service"
            waiting = host.lab.skouter("wait", root, instance=host.instance)
            script = f'{" ".join(map(str, waiting[waiting.index("env") :]))} && exec "$@"'
            started = host.command(unit, "sh", "-c", script, "-", *python(reached(REFUSED4)))
            done = subprocess.run(started, capture_output=True, text=True, timeout=60)
            assert (done.stdout, done.stderr) == ('"EPERM"\n', "")
            host.unit(unit).rmdir()


def test_waiting_for_a_policy_that_does_not_come_ends_with_a_message(host: Host) -> None:
    waiting = host.lab.skouter("wait", "--timeout", "1", f"--root=/{host.root.name}", instance=host.instance)
    with host.agent():
        command = host.command(OTHER, *waiting[waiting.index("env") :])
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.startswith(
        "skouter: no policy holds this cgroup after 1 s: is skouter.service running"
    )


def test_the_nearest_workload_decides_and_the_host_is_around_all(host: Host) -> None:
    host.write("host.yaml", document("host", "example.net", selector="host"))
    with host.agent():
        code = f'tell([connect(resolve("example.net")), connect({REFUSED4!r})])'
        assert host.do(OTHER, code) == ["connected", "EPERM"]
        assert host.do(WEB, 'tell([connect(resolve(n)) for n in ("example.net", "example.com")])') == [
            "EPERM",
            "connected",
        ]
        assert host.held() == {"host": ["/"], "web": [WEB]}


def test_connections_from_outside_outlive_the_arrival_of_a_policy(host: Host) -> None:
    """As a session by SSH would: it came in before, and it is answered after."""
    host.write("host.yaml", document("host", selector="host"))
    with host.program("/system.slice/shell.service") as server:
        server("keep('door', lambda: socket.create_server(('', 2222)))")
        client = host.lab.world.start(
            *python("""
                held = socket.create_connection(("10.1.0.2", 2222), 5)
                held.settimeout(5)
                tell("connected")
                input()
                held.sendall(b"?")
                tell(held.recv(10).decode())
                tell(connect("10.1.0.2", 2222))
            """),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert client.stdout
            assert client.stdin
            assert client.stdout.readline() == '"connected"\n'
            assert server("keep('session', lambda: kept['door'].accept()[0])") == "kept"
            with host.agent():
                client.stdin.write("\n")
                client.stdin.flush()
                assert server("kept['session'].recv(1).decode()") == "?"
                assert server("reply('session', b'here')") == "sent"
                assert client.stdout.readline() == '"here"\n'
                assert client.stdout.readline() == '"connected"\n'  # and a new one
                assert server(f"connect({REFUSED4!r})") == "EPERM"
        finally:
            end(client)


# ---- Changes -----------------------------------------------------------------------------------------------


def test_a_changed_policy_is_enforced_and_what_stays_in_it_goes_on(host: Host) -> None:
    host.write("web.yaml", document("web", "example.com", "example.net"))
    with host.agent(), host.program(WEB) as program:
        for name in ("example.com", "example.net"):
            assert program(f"keep({name!r}, lambda: opened(resolve({name!r})))") == "kept"
        host.reload("web.yaml", document("web", "example.com", "www.example.com"))
        assert program("page('example.com')") is True
        assert program("page('example.net')") == "ECONNABORTED"
        assert program(f"[connect({SITE4!r}), connect({NET4!r})]") == ["connected", "EPERM"]
        host.wait_until_said(f"ended TCP to {NET4} port 80 of python: its rule was withdrawn")


def test_a_workload_that_is_no_longer_selected_is_free(host: Host) -> None:
    with host.agent():
        assert host.do(WEB, reached(REFUSED4)) == "EPERM"
        host.reload("web.yaml", document("web", "example.com", selector="host"))
        assert host.do(WEB, reached(NET4)) == "EPERM"  # but for what holds the host
        host.config.write_text(CONFIG.replace("role: build", "role: none"))
        host.wait_for_message("READY=1")
        assert host.do(WEB, reached(NET4)) == "connected"
        assert host.held() == {}


def test_a_configuration_that_names_other_units_moves_them(host: Host) -> None:
    with host.agent():
        host.config.write_text(CONFIG.replace("web*.service", "other.service"))
        host.unit(OTHER)
        host.wait_for_message("READY=1")
        until(host.held, {"web": [OTHER]})
        assert host.do(WEB, reached(REFUSED4)) == "connected"
        assert host.do(OTHER, reached(REFUSED4)) == "EPERM"


def test_a_broken_set_changes_nothing_and_is_told_once(host: Host) -> None:
    with host.agent():
        host.reload("other.yaml", "nonsense: [")
        assert host.do(WEB, f'tell([connect(resolve("example.com")), connect({REFUSED4!r})])') == [
            "connected",
            "EPERM",
        ]
        (problem,) = host.status()["agent"]["problems"]
        assert problem.startswith(f"{host.policies}/other.yaml:2: is not YAML")
        host.reload("web.yaml", document("web", "www.example.com"))  # good, but not all of them are
        assert host.do(WEB, 'tell(connect(resolve("example.com")))') == "connected"
        host.write("other.yaml", document("other", "example.net"))
        host.wait_until_said("the files are good again")
        until(lambda: host.do(WEB, 'tell(connect(resolve("example.net")))'), "connected")
        assert host.do(WEB, 'tell(connect(resolve("example.com")))') == "EPERM"
    assert host.said().count("the last good set of files stays in force") == 2


def test_a_restart_on_broken_files_enforces_the_last_good_ones(host: Host) -> None:
    with host.agent():
        pass
    (host.policies / "web.yaml").unlink()
    with host.agent():
        assert f"{host.policies}: holds no policy" in host.said()
        assert host.do(WEB, f'tell([connect(resolve("example.com")), connect({REFUSED4!r})])') == [
            "connected",
            "EPERM",
        ]
        host.reload("web.yaml", document("web", "example.net"))
        assert host.do(WEB, 'tell([connect(resolve(n)) for n in ("example.net", "example.com")])') == [
            "connected",
            "EPERM",
        ]


def test_a_first_start_on_broken_files_enforces_nothing_and_says_why(host: Host) -> None:
    host.write("web.yaml", document("web", "https://example.com"))
    with host.agent(ready=False) as agent:
        assert agent.wait(60) == 2
    assert f"{host.policies}/web.yaml:8: ClusterEgress web: spec.rules[0].domains[0]:" in host.said()
    assert "skouter: no policy to enforce yet, mend the files above" in host.said()
    assert "Traceback" not in host.said()
    assert host.status()["attached"] == {}


def test_a_signal_reads_what_no_watch_can_see(host: Host, tmp_path: Path) -> None:
    """A link to elsewhere, changed in place over there."""
    elsewhere = tmp_path / "elsewhere.yaml"
    elsewhere.write_text(document("web", "example.com"))
    (host.policies / "web.yaml").unlink()
    (host.policies / "web.yaml").symlink_to(elsewhere)
    with host.agent() as agent:
        elsewhere.write_text(document("web", "example.net"))
        agent.send_signal(signal.SIGHUP)
        assert host.wait_for_message("RELOADING=1", agent).splitlines()[1].startswith("MONOTONIC_USEC=")
        host.wait_for_message("READY=1", agent)
        assert host.do(WEB, 'tell(connect(resolve("example.net")))') == "connected"


def test_other_resolvers_are_trusted_when_the_host_has_others(host: Host) -> None:
    with host.agent():
        try:
            host.lab.trust("2001:db8:2::53")
            until(lambda: host.status()["workloads"][0]["resolvers"], ["[2001:db8:2::53]"])
            assert host.do(WEB, 'tell(connect(resolve("example.com")))') == "connected"
            assert host.do(WEB, "tell(outcome(lambda: ask('example.com')))") == "EPERM"
        finally:
            host.lab.trust("192.0.2.53")


# ---- The agent's end ---------------------------------------------------------------------------------------


def test_a_killed_agent_leaves_all_in_force_and_the_next_one_loses_nothing(host: Host) -> None:
    with host.program(WEB) as program:
        with host.agent() as agent:
            assert program("keep('page', lambda: opened(resolve('example.com')))") == "kept"
            (before,) = host.status()["workloads"]
            agent.kill()
            agent.wait()
        assert program(f"[page('page'), connect({SITE4!r}), connect({REFUSED4!r})]") == [
            True,
            "connected",
            "EPERM",
        ]
        assert not host.status()["agent"]["running"]
        with host.agent():
            (after,) = host.status()["workloads"]
            assert program(f"[page('page'), connect({SITE4!r}), connect({REFUSED4!r})]") == [
                True,
                "connected",
                "EPERM",
            ]
        assert (after["policy"], after["cgroups"]) == (before["policy"], before["cgroups"])
        assert [grant["address"] for grant in after["grants"]] == [SITE4]


def test_what_changed_while_no_agent_ran_is_made_good(host: Host) -> None:
    host.unit("/system.slice/web-2.service")
    host.write("host.yaml", document("host", selector="host"))
    with host.agent() as agent:
        agent.kill()
        agent.wait()
    host.unit("/system.slice/web-2.service").rmdir()
    host.unit("/system.slice/web-3.service")
    (host.policies / "host.yaml").unlink()
    with host.agent():
        assert host.held() == {"web": ["/system.slice/web-3.service", WEB]}
        assert host.do(OTHER, reached(REFUSED4)) == "connected"


def test_a_stopped_agent_says_that_it_opens_nothing(host: Host) -> None:
    with host.agent() as agent:
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(60) == 0
    assert host.wait_for_message("STOPPING=1").splitlines()[1] == (
        "STATUS=what is enforced stays enforced; skouter off opens"
    )
    assert "SIGTERM: stopping; what is enforced stays enforced; skouter off opens" in host.said()
    assert host.do(WEB, reached(REFUSED4)) == "EPERM"


def test_a_second_agent_does_not_start(host: Host) -> None:
    with host.agent(), host.agent(ready=False) as second:
        assert second.wait(60) == 2
    assert "another agent of instance" in host.said()


def test_the_watchdog_is_fed_until_a_step_hangs(host: Host) -> None:
    with host.agent(WATCHDOG_USEC="1000000") as agent:
        for _ in range(3):
            host.wait_for_message("WATCHDOG=1", agent)
        with host.place.lock.open() as lock:  # whatever changes something waits for it
            fcntl.flock(lock, fcntl.LOCK_EX)
            host.write("web.yaml", document("web", "example.net"))
            host.wait_for_message("RELOADING=1", agent)
            wait_for(lambda: silent_for(host, 2.5), "the silence of the watchdog", 20)
        host.wait_for_message("WATCHDOG=1", agent)
        host.wait_for_message("READY=1", agent)


def silent_for(host: Host, seconds: float) -> bool:
    host.manager.settimeout(seconds)
    try:
        host.messages.append(host.manager.recv(4096).decode())
    except TimeoutError:
        return True
    return False


# ---- What it says ------------------------------------------------------------------------------------------


def test_refusals_are_told_by_name_and_not_too_often(host: Host) -> None:
    with host.agent(JOURNAL_STREAM=stream_of(host.log)):
        code = 'there = resolve("example.org"); tell([connect(there) for _ in range(20)])'
        assert host.do(WEB, code) == ["EPERM"] * 20
        line = f"<4>refused web: example.org ({REFUSED4}) TCP 80 by python: no rule allows this address\n"
        host.wait_until_said(line)
        assert host.do(WEB, "tell([connect('198.51.100.99', port) for port in range(1, 101)][-1])") == "EPERM"
        host.wait_until_said("<4>refused web: 198.51.100.99 TCP ", times=10)
    assert host.said().count("refused web: example.org") == 1
    assert all(said.startswith("<") for said in host.said().splitlines())


def test_audit_refuses_nothing_and_says_what_it_would_have_refused(host: Host) -> None:
    host.write("web.yaml", document("web", "example.com", mode="Audit"))
    with host.agent():
        assert host.do(WEB, 'tell(connect(resolve("example.org")))') == "connected"
        host.wait_until_said(f"would refuse web: example.org ({REFUSED4}) TCP 80")


def test_an_object_that_selects_nothing_is_told(host: Host) -> None:
    host.config.write_text(CONFIG.replace("role: build", "role: none"))
    host.write("host.yaml", document("host", selector="host"))
    with host.agent():
        told = "ClusterEgress host selects nothing on this host: compare its selectors with the labels"
        assert host.status()["agent"]["told"] == [told]
        assert host.said().count(told) == 1


# ---- Beside others -----------------------------------------------------------------------------------------


def test_run_works_beside_it(host: Host) -> None:
    host.write("host.yaml", document("host", selector="host"))
    with host.agent():
        words = ("run", "-q", "--allow", "example.net", "--")
        code = f'tell([connect(resolve("example.net")), connect({SITE4!r})])'
        command = host.lab.skouter(*words, *python(code), instance=host.instance)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.stdout, done.stderr) == ('["connected", "EPERM"]\n', "")
        assert host.do(WEB, reached(REFUSED4)) == "EPERM"


def test_off_opens_beside_it_and_is_not_undone_by_a_change(host: Host) -> None:
    with host.agent():
        gone = subprocess.run(
            host.lab.skouter("off", instance=host.instance), capture_output=True, text=True, check=True
        )
        assert "detached egress" in gone.stdout
        assert host.do(WEB, reached(REFUSED4)) == "connected"
        host.wait_until_said("NOT ENFORCED: skouter off was used")
        host.reload("web.yaml", document("web", "example.net"))
        host.unit("/system.slice/web-new.service")
        assert host.do(WEB, reached(REFUSED4)) == "connected"
        assert host.status()["attached"] == {}
    with host.agent():
        assert host.do(WEB, reached(REFUSED4)) == "EPERM"
