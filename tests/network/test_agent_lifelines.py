"""What the daemon does not cut off: the host's resolver and its SSH server, unless it is asked twice."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.network.conftest import REFUSED4
from tests.network.daemon import CONFIG, WEB, Host, document, until
from tests.topology import DNS4, Lab, Unbound

DNS, SSH = "/system.slice/dns.service", "/system.slice/ssh.service"
STUB = "127.0.0.53"
SHOPPING = f'tell([connect(resolve("example.com")), connect({REFUSED4!r})])'


@pytest.fixture
def host(lab: Lab, tmp_path: Path) -> Iterator[Host]:
    made = Host(lab, tmp_path)
    made.write("web.yaml", document("web", "example.com"))
    lab.trust(STUB)
    yield made
    lab.trust(DNS4)
    made.close()


class Unit:
    """The pod as an Unbound knows it, whose processes start in a unit."""

    def __init__(self, host: Host, path: str) -> None:
        self.host, self.path = host, path

    def start(self, *argv: object, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(self.host.command(self.path, *argv), text=True, **options)

    def run(self, *argv: object, **options: Any) -> subprocess.CompletedProcess[str]:
        return self.host.lab.pod.run(*argv, **options)


@contextmanager
def resolver(host: Host, number: int = 0) -> Iterator[None]:
    """A forwarder at STUB, in the unit DNS."""
    running = Unbound(Unit(host, DNS), host.folder / f"dns{number}", [STUB], forward=DNS4)  # type: ignore[arg-type]
    try:
        yield
    finally:
        running.close()


def test_the_hosts_own_policy_does_not_hold_its_resolver(host: Host) -> None:
    host.write("host.yaml", document("host", "example.com", selector="host"))
    with resolver(host), host.agent():
        for unit in (WEB, "/system.slice/other.service"):
            assert host.do(unit, SHOPPING) == ["connected", "EPERM"]
        assert host.do(DNS, f"tell(connect({REFUSED4!r}))") == "connected"


def test_a_resolver_that_starts_late_or_again_is_not_held_either(host: Host) -> None:
    host.write("host.yaml", document("host", selector="host"))
    host.unit(DNS)
    with host.agent():
        assert host.do(DNS, f"tell(connect({REFUSED4!r}))") == "EPERM"
        with resolver(host):
            until(lambda: host.do(DNS, f"tell(connect({REFUSED4!r}))"), "connected")
            assert host.do(WEB, SHOPPING) == ["connected", "EPERM"]
        host.unit(DNS).rmdir()
        with resolver(host, number=1):
            assert host.do(WEB, SHOPPING) == ["connected", "EPERM"]


@pytest.mark.parametrize(("unit", "word"), [(DNS, "resolver"), (SSH, "ssh")])
def test_a_workload_that_names_a_lifeline_does_not_hold_it_unless_asked_twice(
    host: Host, unit: str, word: str
) -> None:
    host.config.write_text(CONFIG.replace('"web*.service"', "web.service, dns.service, ssh.service"))
    host.unit(SSH)
    with resolver(host):
        with host.agent("--even", {"resolver": "ssh", "ssh": "resolver"}[word]):
            (failed,) = host.status()["agent"]["failed"]
            assert failed.startswith(
                f"NOT ENFORCED on {unit} (workload web, ClusterEgress web): it is the host's "
            )
            assert failed.endswith(f"; leave it out of the workload, or start the agent with --even {word}")
            assert failed in host.said()
            assert set(host.held()["web"]) == {WEB, DNS, SSH} - {unit}
            assert host.do(unit, f"tell(connect({REFUSED4!r}))") == "connected"
            assert host.do(WEB, f"tell(connect({REFUSED4!r}))") == "EPERM"
        with host.agent("--even", "ssh", "--even", "resolver"):
            assert set(host.held()["web"]) == {WEB, DNS, SSH}
            assert host.do(unit, f"tell(connect({REFUSED4!r}))") == "EPERM"


def test_a_policy_of_a_slice_leaves_out_the_lifelines_in_it(host: Host) -> None:
    host.config.write_text(CONFIG.replace('units: ["web*.service"]', "cgroups: [/system.slice]"))
    host.unit(SSH)
    with resolver(host), host.agent():
        assert host.held() == {"web": ["/system.slice"]}
        assert host.do(WEB, SHOPPING) == ["connected", "EPERM"]
        for unit in (DNS, SSH):
            assert host.do(unit, f"tell(connect({REFUSED4!r}))") == "connected"
            assert f"workload web leaves out {unit}: it is the host's " in host.said()


def test_ATTACK_a_held_unit_does_not_become_the_resolver_by_listening(host: Host) -> None:
    with host.agent() as agent, host.program(WEB) as program:
        assert program("keep('door', lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM))") == "kept"
        assert program(f"kept['door'].bind(({STUB!r}, 53))") is None
        host.take_messages()
        host.messages.clear()
        agent.send_signal(signal.SIGHUP)
        host.wait_for_message("READY=1", agent)
        assert program(f"connect({REFUSED4!r})") == "EPERM"
        agent.kill()
        agent.wait()
        with host.agent():
            assert program(f"connect({REFUSED4!r})") == "EPERM"
            assert host.held() == {"web": [WEB]}
            assert host.status()["agent"]["failed"] == []
