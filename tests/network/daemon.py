"""`skouter agent` in the lab: the pod plays the host, its units are cgroups as systemd lays them out.

There is no systemd here. What it would do is done by hand: a cgroup for each unit, processes started in it,
a datagram socket that is told of the agent's state.
"""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gateway import cgroups, place
from tests.network.workload import python
from tests.topology import PATIENCE, SKOUTER, Lab, end, wait_for

WEB = "/system.slice/web.service"

CONFIG = """
node: {labels: {role: build}}
workloads:
  - name: web
    units: ["web*.service"]
    labels: {app: web}
"""
SELECTORS = {
    "web": "workloadSelector: {matchLabels: {app: web}}",
    "host": "nodeSelector: {matchLabels: {role: build}}",
}


def document(name: str, *domains: str, selector: str = "web", mode: str = "Enforce") -> str:
    rules = json.dumps([{"domains": list(domains)}] if domains else [])
    return f"""
apiVersion: egress.skouter/v1alpha1
kind: ClusterEgress
metadata: {{name: {name}}}
spec:
  {SELECTORS[selector]}
  mode: {mode}
  rules: {rules}
"""


class Program:
    """A process of a unit; it evaluates what it is told, with all names of workload.py at hand."""

    LOOP = """
        kept = {}
        def keep(name, make):
            kept[name] = make()
            return "kept"
        def opened(address, port=80):
            return socket.create_connection((address, port), 3)
        def page(name):
            kept[name].settimeout(3)
            kept[name].sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
            return len(kept[name].recv(65536)) > 0
        def reply(name, data):
            kept[name].sendall(data)
            return "sent"
        tell("ready")
        for line in sys.stdin:
            tell(outcome(lambda: eval(line)))
    """

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        assert self.read() == "ready"

    def read(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def __call__(self, expression: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()
        return self.read()


@contextmanager
def daemon(command: Sequence[str], log: Path) -> Iterator[subprocess.Popen[str]]:
    """An agent that is started by this command line, and stopped as a manager does it when the block ends."""
    with log.open("a") as said:
        process = subprocess.Popen(command, stderr=said, text=True)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


class Host:
    """One instance of the agent with its files, and the units of its host."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        self.instance = lab.another_instance()
        self.place = place.find(self.instance)
        self.root = self.place.hierarchy / f"{self.instance}-host"
        self.policies, self.config = folder / "policies", folder / "agent.yaml"
        self.policies.mkdir()
        self.config.write_text(CONFIG)
        self.root.mkdir()
        self.unit(WEB)
        self.log = folder / "log"
        self.log.touch()
        self.manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.manager.bind(str(folder / "notify"))
        self.messages: list[str] = []

    # ---- Files and units

    def write(self, name: str, text: str) -> None:
        """As a careful editor does: whole."""
        (self.folder / "new").write_text(text)
        (self.folder / "new").rename(self.policies / name)

    def unit(self, path: str) -> Path:
        folder = self.root / path.lstrip("/")
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def command(self, path: str, *argv: object) -> list[str]:
        """`argv` as a process of this unit."""
        move = f'echo $$ > {self.unit(path)}/cgroup.procs && exec "$@"'
        return self.lab.pod.command("env", f"SKOUTER_INSTANCE={self.instance}", "sh", "-c", move, "-", *argv)

    def do(self, path: str, code: str) -> Any:
        """What a Python program in the unit tells."""
        done = subprocess.run(self.command(path, *python(code)), capture_output=True, text=True, timeout=60)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    @contextmanager
    def program(self, path: str) -> Iterator[Program]:
        process = subprocess.Popen(
            self.command(path, *python(Program.LOOP)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield Program(process)
        finally:
            end(process)

    # ---- The agent

    @contextmanager
    def agent(
        self, *words: str, ready: bool = True, within: tuple[object, ...] = (), **environ: str
    ) -> Iterator[subprocess.Popen[str]]:
        """It is ready when the block begins. `within`: a command line that runs it."""
        command = self.lab.pod.command(
            *within,
            *("env", f"SKOUTER_INSTANCE={self.instance}", f"NOTIFY_SOCKET={self.folder}/notify"),
            *(f"{key}={value}" for key, value in environ.items()),
            *(SKOUTER, "agent", "--policy-dir", self.policies, "--config", self.config),
            *("--root", f"/{self.root.name}", *words),
        )
        with daemon(command, self.log) as process:
            if ready:
                self.wait_for_message("READY=1", process)
            yield process

    def wait_for_message(self, wanted: str, process: subprocess.Popen[str] | None = None) -> str:
        """The next message of the agent that has this line; what comes before is in `messages`."""

        def found() -> str | None:
            self.take_messages()
            assert process is None or process.poll() is None, self.said()
            for index, message in enumerate(self.messages):
                if wanted in message.splitlines():
                    del self.messages[: index + 1]
                    return message
            return None

        return str(wait_for(found, f"{wanted!r}, after {self.messages} and {self.said()}", 30))

    def take_messages(self) -> None:
        self.manager.setblocking(False)
        while True:
            try:
                self.messages.append(self.manager.recv(1 << 16).decode())
            except BlockingIOError:
                return

    def said(self) -> str:
        return self.log.read_text()

    def wait_until_said(self, text: str, times: int = 1) -> None:
        wait_for(lambda: self.said().count(text) >= times, f"{text!r} in {self.said()}")

    def reload(self, name: str, text: str) -> None:
        """A changed file, and the agent's word that it is enforced."""
        self.take_messages()
        self.messages.clear()
        self.write(name, text)
        self.wait_for_message("READY=1")

    def status(self) -> dict[str, Any]:
        done = subprocess.run(
            self.lab.skouter("status", "-o", "json", instance=self.instance),
            capture_output=True,
            text=True,
            check=True,
        )
        return dict(json.loads(done.stdout))

    def held(self) -> dict[str, list[str]]:
        """Workload to its cgroups, those that are enforced."""
        prefix = str(self.root)
        return {
            workload["name"]: sorted(path.removeprefix(prefix) or "/" for path in workload["cgroups"])
            for workload in self.status()["workloads"]
            if workload["enforced"]
        }

    def close(self) -> None:
        self.manager.close()
        (self.root / "cgroup.kill").write_text("1")
        wait_for(lambda: not cgroups.is_populated(self.root), f"the end of all in {self.root}")
        for folder in sorted((p for p in self.root.rglob("*") if p.is_dir()), reverse=True):
            folder.rmdir()
        self.root.rmdir()
        self.lab.remove(self.instance)


def until(call: Callable[[], Any], wanted: Any, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds * PATIENCE
    while (found := call()) != wanted:
        assert time.monotonic() < deadline, f"still {found}, not {wanted}"
        time.sleep(0.05)


def stream_of(path: Path) -> str:
    """What JOURNAL_STREAM says where stderr is this file."""
    found = path.stat()
    return f"{found.st_dev}:{found.st_ino}"
