"""A real API server: etcd and kube-apiserver on loopback, RBAC on, ready in seconds, gone with its owner.

Rules this file obeys:

- Nothing outlives who started it: servers run in sessions of their own (a Ctrl-C at the tests is not theirs)
  and the kernel kills them when the starting thread ends (PR_SET_PDEATHSIG), so one thread that lives as long
  as the process starts them all.
- A port is tried until it is ours, and kept over restarts, so that clients come back to the same URL.
- No controllers run: nobody makes endpoints, deletes what a deleted namespace held, or gives a namespace its
  ServiceAccount, so the admission of that name is off, as in controller-runtime's envtest. With an address
  that nodes can reach it is a whole one, for which somebody starts a controller-manager.

Source: kube-apiserver(1), etcd(1), prctl(2).
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

PREFIX = "skouter-api-"
HOST = "127.0.0.1"
JSON = "application/json"
PORTS = range(20000, 30000)  # below those that the kernel gives to clients, ours or not
TRIES = 5
PATIENCE = 120  # seconds until a server must be ready, or gone
SERVICES = "10.96.0.0/16"
# Without controllers; and its own endpoints can't be on loopback.
ALONE = ("--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none")
ISSUER = "https://kubernetes.default.svc.cluster.local"

_STARTER = ThreadPoolExecutor(1, "starter")


class ServerError(Exception):
    """A server doesn't start or end; the message holds the end of its log."""


class KubectlError(Exception):
    """kubectl failed; the message is what it said."""


class ApiServer:
    """etcd and kube-apiserver as a context manager; the caller is cluster-admin."""

    def __init__(self, programs: Path, flags: Sequence[str] = (), address: str = HOST) -> None:
        self.programs, self.flags, self.address = programs, tuple(flags), address
        self.folder = _folder()
        self.token = secrets.token_hex(16)
        self.ca = self.folder / "certificates" / "apiserver.crt"
        self.account_key = self.folder / "accounts.pem"
        self.kubeconfig = self.folder / "kubeconfig"
        self.etcd = Server(programs / "etcd", self.folder / "etcd.log", self._etcd_flags, self._etcd_ready)
        self.server = Server(
            programs / "kube-apiserver", self.folder / "kube-apiserver.log", self._flags, self._ready
        )

    def __enter__(self) -> ApiServer:
        try:
            self._write_secrets()
            self.etcd.start()
            self.server.start()
            self.write_kubeconfig(self.kubeconfig, self.token)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self.server.end(signal.SIGKILL)
        self.etcd.end(signal.SIGKILL)
        shutil.rmtree(self.folder)

    @property
    def url(self) -> str:
        return f"https://{self.address}:{self.server.port}"

    # ---- What may happen to it --------------------------------------------------------------------------

    def start(self) -> None:
        """Ready again when this returns; what was written before is there."""
        self.server.start()

    def kill(self) -> None:
        """Gone at once, as by a crash of its machine; etcd stays."""
        self.server.end(signal.SIGKILL)

    def restart(self) -> None:
        """In order, as by an upgrade: watches are closed; takes seconds."""
        self.server.end(signal.SIGTERM)
        self.start()

    def compact(self) -> None:
        """Forgets all history: a watch, or the next page of a list, from before gets 410 Gone.

        The API server itself remembers events of late, so it is killed and started again.
        """
        revision = self._ask_etcd("maintenance/status", {})["header"]["revision"]
        self._ask_etcd("kv/compaction", {"revision": revision, "physical": True})
        self.kill()
        self.start()

    # ---- Asking it --------------------------------------------------------------------------------------

    def kubectl(self, *words: object, input: str | None = None, kubeconfig: Path | None = None) -> str:
        """What kubectl prints; raises KubectlError with what it complains of."""
        done = subprocess.run(
            [self.programs / "kubectl", *map(str, words)],
            input=input,
            capture_output=True,
            text=True,
            check=False,
            env={
                **os.environ,
                "HOME": str(self.folder),
                "KUBECONFIG": str(kubeconfig or self.kubeconfig),
            },
        )
        if done.returncode:
            raise KubectlError(done.stderr)
        return done.stdout

    def request(
        self, method: str, path: str, body: object = None, *, kind: str = JSON, token: str | None = None
    ) -> tuple[int, Any]:
        """Status and JSON of one request, without kubectl's second; a text is sent as it stands."""
        try:
            with self.open(method, path, body, kind=kind, token=token) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def open(
        self, method: str, path: str, body: object = None, *, kind: str = JSON, token: str | None = None
    ) -> Any:
        """The same as an http.client.HTTPResponse, for watches; raises HTTPError."""
        headers = {"Authorization": f"Bearer {token or self.token}", "Content-Type": kind}
        text = body if isinstance(body, str) else json.dumps(body)
        data = None if body is None else text.encode()
        asked = urllib.request.Request(self.url + path, data, headers, method=method)
        context = ssl.create_default_context(cafile=self.ca)
        return urllib.request.urlopen(asked, timeout=PATIENCE, context=context)

    def account_token(self, namespace: str, name: str, seconds: int = 3600) -> str:
        """A token of a ServiceAccount that exists; the server's least is 600 seconds."""
        words = ("create", "token", name, "--namespace", namespace, f"--duration={seconds}s")
        return self.kubectl(*words).strip()

    def write_kubeconfig(self, path: Path, token: str) -> Path:
        """A configuration for kubectl and clients, for whoever `token` belongs to."""
        cluster = {"server": self.url, "certificate-authority": str(self.ca)}
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "test", "user": {"token": token}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }
        path.write_text(json.dumps(config))
        return path

    # ---- How it is started ------------------------------------------------------------------------------

    def _write_secrets(self) -> None:
        (self.folder / "tokens.csv").write_text(f'{self.token},admin,admin,"system:masters"\n')
        key = ["openssl", "ecparam", "-genkey", "-noout", "-name", "prime256v1"]
        made = subprocess.run(key, capture_output=True, check=True)
        self.account_key.write_bytes(made.stdout)

    def _etcd_flags(self, port: int) -> list[str]:
        return [
            f"--data-dir={self.folder / 'etcd'}",
            f"--listen-client-urls=http://{HOST}:{port}",
            f"--advertise-client-urls=http://{HOST}:{port}",
            f"--listen-peer-urls=http://{HOST}:0",
            "--unsafe-no-fsync",
        ]

    def _flags(self, port: int) -> list[str]:
        key = self.account_key
        return [
            f"--etcd-servers=http://{HOST}:{self.etcd.port}",
            f"--bind-address={self.address}",
            f"--secure-port={port}",
            f"--cert-dir={self.ca.parent}",
            f"--token-auth-file={self.folder / 'tokens.csv'}",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={key}",
            f"--service-account-signing-key-file={key}",
            f"--service-cluster-ip-range={SERVICES}",
            "--authorization-mode=Node,RBAC",
            "--allow-privileged",
            "--shutdown-watch-termination-grace-period=1s",  # else a restart waits a minute for each watch
            *(ALONE if self.address == HOST else ()),
            *self.flags,
        ]

    def _etcd_ready(self, port: int) -> bool:
        with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=2) as answer:
            return bool(json.load(answer)["health"] == "true")

    def _ready(self, port: int) -> bool:
        context = ssl.create_default_context(cafile=self.ca)
        url = f"https://{self.address}:{port}/readyz"
        with urllib.request.urlopen(url, timeout=2, context=context) as answer:
            return bool(answer.status == 200)

    def _ask_etcd(self, path: str, body: object) -> Any:
        url = f"http://{HOST}:{self.etcd.port}/v3/{path}"
        with urllib.request.urlopen(url, json.dumps(body).encode(), timeout=PATIENCE) as answer:
            return json.load(answer)


class Server:
    """One program that serves on one port, and its log."""

    def __init__(
        self,
        program: Path,
        log: Path,
        flags: Callable[[int], list[str]],
        ready: Callable[[int], bool],
    ) -> None:
        self.program, self.log, self.flags, self.ready = program, log, flags, ready
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Raises ServerError with the end of the log."""
        for _ in range(TRIES):
            port = self.port or _free_port()
            written = self.log.stat().st_size if self.log.exists() else 0
            with self.log.open("ab") as log:
                self.process = _STARTER.submit(_spawn, [self.program, *self.flags(port)], log).result()
            if self._becomes_ready(port):
                self.port = port
                return
            self.end(signal.SIGKILL)
            if b"address already in use" not in self.log.read_bytes()[written:]:
                break  # whatever it is, another port won't mend it
        raise ServerError(f"{self.program.name} does not start:\n{self.told()}")

    def end(self, how: signal.Signals) -> None:
        """Gone, with its port, when this returns."""
        if self.process is None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise ServerError(f"{self.program.name} does not end:\n{self.told()}") from None
        self.process = None

    def told(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-40:])

    def _becomes_ready(self, port: int) -> bool:
        assert self.process is not None
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                if self.ready(port) and self.process.poll() is None:  # not who took the port before us
                    return True
            except OSError:  # not listening yet, or not ready (URLError is one)
                pass
            time.sleep(0.05)
        return False


def _spawn(words: list[Any], log: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *map(str, words)],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )


def _folder() -> Path:
    """A new one, named by our pid; those of owners that were killed go."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*-*"):
        if not Path("/proc", path.name.removeprefix(PREFIX).split("-")[0]).exists():
            shutil.rmtree(path, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-"))


def _free_port() -> int:
    """One that nobody has at the moment."""
    while True:
        port = PORTS[secrets.randbelow(len(PORTS))]
        with socket.socket() as trial:
            try:
                trial.bind((HOST, port))
            except OSError:
                continue
        return port
