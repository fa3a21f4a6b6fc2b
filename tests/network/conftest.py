"""One lab for all tests of this folder, and `skouter run` in its pod."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.network.arena import Arena, Spy
from tests.topology import PATIENCE, Lab, end

HERE = Path(__file__).parent
MANY = 2000  # fresh names: n0.many.test, n1.many.test, ...
MANY_NETWORK = "10.200"

# Everything here answers HTTP where nothing filters; tests decide what is allowed.
ZONE = {
    "example.com": ("198.51.100.10", "2001:db8:51::10"),
    "www.example.com": ("198.51.100.11", "2001:db8:51::11"),
    "four.example.com": ("198.51.100.12",),
    "six.example.com": ("2001:db8:51::13",),
    "example.net": ("198.51.100.20", "2001:db8:51::20"),
    "example.org": ("198.51.100.30", "2001:db8:51::30"),
    "evilexample.com": ("198.51.100.31", "2001:db8:51::31"),
    "metadata.example.com": ("169.254.169.254",),
    "loopback.example.com": ("127.0.0.1", "::1"),
    "mapped.example.com": ("::ffff:198.51.100.40",),
}
REFUSED4, REFUSED6 = ZONE["example.org"]


@dataclass
class Result:
    """How `skouter run` ended; `summary` is what -o json told."""

    status: int
    out: str
    said: str
    summary: dict[str, Any]

    @property
    def told(self) -> Any:
        """What a program of the tests printed as JSON."""
        assert self.out, self.said
        return json.loads(self.out)

    def refusals(self) -> dict[str, str]:
        """Address to reason."""
        return {row["address"]: row["reason"] for row in self.summary["refused"]}

    def reached(self) -> set[str]:
        return {row["address"] for row in self.summary["reached"]}


def result(status: int, out: str, said: str) -> Result:
    found = [line for line in said.splitlines() if line.startswith("{")]
    return Result(status, out, said, json.loads(found[-1]) if found else {"reached": [], "refused": []})


@pytest.fixture(scope="session", autouse=True)
def signals_as_at_a_terminal() -> None:
    """Who starts the tests in the background has them ignore signals, and all that they start too."""
    for number, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def lab(lab_tools: None) -> Iterator[Lab]:
    with Lab() as built:
        records = [(name, address, 60) for name, addresses in ZONE.items() for address in addresses]
        records += [(f"n{i}.many.test", f"{MANY_NETWORK}.{i >> 8}.{i & 255}", 60) for i in range(MANY)]
        built.dns.add(records)
        yield built


@pytest.fixture(scope="session")
def arena(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Arena]:
    """Versions with and without a defence, and workloads of them."""
    made = Arena(lab, tmp_path_factory.mktemp("versions"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def spy(lab: Lab) -> Iterator[Spy]:
    """What leaves the pod."""
    made = Spy(lab)
    yield made
    made.close()


@pytest.fixture(scope="session")
def run(lab: Lab) -> Callable[..., Result]:
    """`skouter run -o json WORDS` in the pod, to its end."""

    def run_there(
        *words: object, instance: str = "", env: dict[str, str] | None = None, timeout: float = 30
    ) -> Result:
        done = subprocess.run(
            lab.skouter("run", "-o", "json", *words, instance=instance),
            capture_output=True,
            text=True,
            timeout=timeout * PATIENCE,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, **(env or {})},
        )
        return result(done.returncode, done.stdout, done.stderr)

    return run_there


Running = AbstractContextManager[subprocess.Popen[str]]


@pytest.fixture(scope="session")
def running(lab: Lab) -> Callable[..., Running]:
    """The same as a process with pipes, ended with the block."""

    @contextmanager
    def run_there(*words: object, instance: str = "", **options: Any) -> Iterator[subprocess.Popen[str]]:
        process = subprocess.Popen(
            lab.skouter("run", "-o", "json", *words, instance=instance),
            text=True,
            **{
                "stdin": subprocess.PIPE,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                **options,
            },
        )
        try:
            yield process
        finally:
            end(process)

    return run_there


@pytest.fixture(scope="session")
def status(lab: Lab) -> Callable[..., dict[str, Any]]:
    """What `skouter status` sees."""

    def ask(instance: str = "") -> dict[str, Any]:
        done = subprocess.run(
            lab.skouter("status", "-o", "json", instance=instance), capture_output=True, text=True, check=True
        )
        return dict(json.loads(done.stdout))

    return ask


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """The C programs of this folder, compiled once."""
    folder = tmp_path_factory.mktemp("programs")

    def build(name: str, compiler: str = "gcc") -> Path:
        if not shutil.which(compiler):
            pytest.skip(f"needs {compiler}: run 'make test'")
        made = folder / f"{name}-{compiler}"
        if not made.exists():
            source = HERE / "programs" / f"{name}.c"
            static = ["-static"] if compiler == "musl-gcc" else []
            subprocess.run([compiler, "-O2", "-Wall", "-Werror", *static, "-o", made, source], check=True)
        return made

    return build
