"""Who listens on this host: real sockets of real processes in cgroups of their own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gateway import cgroups, lifelines, resolvers
from gateway.plan import Guard
from tests.topology import end

LISTEN = """
import os, socket, sys
kind, family, address, user = sys.argv[1:]
sock = socket.socket(getattr(socket, "AF_" + family), getattr(socket, "SOCK_" + kind))
sock.bind((address, 0))
if kind == "STREAM":
    sock.listen()
os.setuid(int(user))
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""

Listen = Callable[..., int]


@pytest.fixture
def listen(cgroup_root: Path, tmp_path: Path) -> Iterator[Listen]:
    """A process in a cgroup of its own that listens; its port."""
    with ExitStack() as undo:

        def start(unit: str, kind: str, address: str, program: str = sys.executable, user: int = 0) -> int:
            folder = cgroup_root / unit
            folder.mkdir()
            undo.callback(folder.rmdir)
            family = "INET6" if ":" in address else "INET"
            process = subprocess.Popen(
                [program, "-c", LISTEN, kind, family, address, str(user)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                preexec_fn=lambda: cgroups.join(folder),
            )
            undo.callback(end, process)
            assert process.stdout is not None
            return int(process.stdout.readline())

        yield start


def found(root: Path, *addresses: str) -> list[Guard]:
    trusted = [resolvers.parse(address) for address in addresses]
    return lifelines.guards(trusted, root, cgroups.hierarchy())


@pytest.mark.parametrize(
    ("listening", "trusted"),
    [
        ("127.0.0.1", "127.0.0.1:{}"),
        ("0.0.0.0", "127.0.0.1:{}"),
        ("::", "127.0.0.1:{}"),
        ("::", "[::1]:{}"),
        ("::1", "[::1]:{}"),
    ],
)
def test_the_process_that_answers_for_the_resolver(
    listen: Listen, cgroup_root: Path, listening: str, trusted: str
) -> None:
    port = listen("dns.service", "DGRAM", listening)
    (guard,) = found(cgroup_root, trusted.format(port))
    assert (guard.kind, guard.cgroup) == ("resolver", "/dns.service")
    assert guard.process.startswith("python")
    assert lifelines.resolver_sockets([resolvers.parse(trusted.format(port))])


def test_others_are_no_resolver(listen: Listen, cgroup_root: Path) -> None:
    udp, tcp = listen("a.service", "DGRAM", "127.0.0.1"), listen("b.service", "STREAM", "127.0.0.1")
    assert not found(
        cgroup_root, f"127.0.0.2:{udp}", f"[::1]:{udp}", f"127.0.0.1:{tcp}", f"127.0.0.1:{udp ^ 1}"
    )
    assert not lifelines.resolver_sockets([resolvers.parse(f"127.0.0.1:{tcp}")])


def test_outside_of_what_the_agent_looks_after_nothing_is_seen(listen: Listen, cgroup_root: Path) -> None:
    port = listen("dns.service", "DGRAM", "127.0.0.1")
    assert found(cgroup_root / "dns.service", f"127.0.0.1:{port}")[0].cgroup == "/"
    (cgroup_root / "elsewhere").mkdir()
    assert not found(cgroup_root / "elsewhere", f"127.0.0.1:{port}")
    (cgroup_root / "elsewhere").rmdir()


@pytest.fixture
def sshd(tmp_path: Path) -> str:
    """A program that the kernel knows as sshd, in a folder where everyone may run it."""
    program = tmp_path / "sshd"
    shutil.copy(os.path.realpath(sys.executable), program)
    return str(program)


def test_an_SSH_server_is_known_by_its_program_and_runs_as_root(
    listen: Listen, cgroup_root: Path, sshd: str
) -> None:
    listen("ssh.service", "STREAM", "127.0.0.1", program=sshd)
    listen("mine.service", "STREAM", "127.0.0.1", program=sshd, user=65534)
    listen("udp.service", "DGRAM", "127.0.0.1", program=sshd)
    listen("other.service", "STREAM", "127.0.0.1")
    assert found(cgroup_root) == [Guard("ssh", "/ssh.service", "sshd")]
