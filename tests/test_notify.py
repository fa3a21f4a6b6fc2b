"""The service manager's protocol on a real socket, and the marks of a line for its journal."""

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """A socket that listens as systemd does, and what it puts into NOTIFY_SOCKET."""
    name = (
        f"@skouter-test-{secrets.token_hex(8)}" if request.param == "abstract" else str(tmp_path / "notify")
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
        listening.settimeout(5)
        yield listening, name


def test_what_is_told(manager: tuple[socket.socket, str]) -> None:
    listening, name = manager
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready("3 workloads")
    notifier.reloading()
    notifier.status("one\ntwo")
    notifier.alive()
    notifier.stopping("left in place")
    messages = [listening.recv(4096).decode() for _ in range(5)]
    notifier.close()
    reloading = messages.pop(1).splitlines()
    assert messages == [
        "READY=1\nSTATUS=3 workloads",
        "STATUS=one; two",
        "WATCHDOG=1",
        "STOPPING=1\nSTATUS=left in place",
    ]
    assert reloading[0] == "RELOADING=1"
    assert reloading[1].startswith("MONOTONIC_USEC=")


def test_without_a_manager_nothing_happens() -> None:
    notifier = Notifier({})
    notifier.ready("x")
    assert notifier.watchdog is None
    notifier.close()


def test_a_manager_that_is_gone_is_told_of_and_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    notifier.alive()
    notifier.close()
    assert "can't be told: No such file or directory" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_asked_for_by_the_manager(environ: dict[str, str], seconds: float | None) -> None:
    notifier = Notifier(environ)
    assert notifier.watchdog == seconds
    notifier.close()


SAY = "import sys; from gateway.notify import say, WARNING; say('one\\ntwo', WARNING)"


@pytest.mark.parametrize(("is_journal", "told"), [(True, "<4>one\n<4>two\n"), (False, "one\ntwo\n")])
def test_lines_carry_a_priority_where_the_journal_reads_them(
    is_journal: bool, told: str, tmp_path: Path
) -> None:
    with (tmp_path / "log").open("w+") as log:
        stream = os.fstat(log.fileno())
        environ = {**os.environ, "JOURNAL_STREAM": f"{stream.st_dev}:{stream.st_ino + (not is_journal)}"}
        subprocess.run([sys.executable, "-c", SAY], stderr=log, env=environ, check=True)
        assert (tmp_path / "log").read_text() == told
