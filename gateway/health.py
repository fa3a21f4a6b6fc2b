"""How the agent is, over HTTP: /livez and /readyz for probes, /metrics for Prometheus.

Rules this file obeys:

- On the Unix socket whoever can open it may ask, which is root of this node. On the network it is who holds a
  token that the API server knows and lets `get` the path (TokenReview, SubjectAccessReview): NetworkPolicy
  does not cover the host's network. Without an answer of the API server nobody may.
- A token crosses the network only under TLS. The certificate is made at the start and vouches for nothing, as
  those of other components of a node do.
- What the API server allowed holds for a minute: scrapes are not to be its load. Strangers wait in a line.
- Asking must not harm: few connections at once, little to read of each, little time. One request each.
- Of two agents on a node, as at an upgrade, the older has the port; the newer waits for it.

Source: RFC 9112 by h11, RFC 6750 (Bearer), "Kubernetes API health endpoints".
"""

from __future__ import annotations

import errno
import hashlib
import os
import socket
import ssl
import subprocess
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import h11
import trio

from gateway import metrics
from gateway.notify import NOTICE, say

Answer = tuple[int, bytes]
Answering = Callable[[h11.Request], Awaitable[Answer]]
Stream = trio.abc.Stream

PATIENCE = 10.0  # seconds for one request and its answer
HEADERS, CHUNK = 16384, 4096  # bytes of a request, and read at once; a token has a thousand or two
CONNECTIONS, REVIEWS = 16, 2  # at once
EVERYBODY, OF_ONE = 256, 4  # connections at once where anybody may ask, and from one address
TRUSTED = 60.0  # seconds for which the API server's yes holds
DAYS = 3650  # of a certificate that nobody verifies
PLAIN = "text/plain; charset=utf-8"


@dataclass(frozen=True, slots=True)
class Report:
    """Sentences about what keeps the agent from living, and from being ready; none where all is well."""

    dead: tuple[str, ...] = ()
    unready: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sources:
    """Where answers come from. `may_get` (token, path) runs in a thread; where it raises, nobody may."""

    report: Callable[[], Report]
    numbers: Callable[[], metrics.Numbers]
    may_get: Callable[[str, str], bool]


async def serve_here(path: Path, sources: Sources) -> None:
    """For ever, on a Unix socket that is root's alone."""
    path.unlink(missing_ok=True)
    listening = trio.socket.socket(socket.AF_UNIX)
    await listening.bind(str(path))
    path.chmod(0o600)
    listening.listen(CONNECTIONS)

    async def answer(request: h11.Request) -> Answer:
        return _answer(sources, request)

    await _serve(trio.SocketListener(listening), answer)


async def serve_plainly(address: tuple[str, int], sources: Sources) -> None:
    """For ever, on a TCP port, to everybody: a load balancer has no token. What is told names nobody, and who
    keeps silent does not keep others out."""

    async def answer(request: h11.Request) -> Answer:
        return _answer(sources, request)

    here = Counter[str]()

    async def converse(stream: trio.SocketStream) -> None:
        source = str(stream.socket.getpeername()[0])
        if here[source] < OF_ONE and here.total() < EVERYBODY:
            here[source] += 1
            with trio.move_on_after(PATIENCE):
                await _converse(stream, answer)
            here[source] -= 1
        await trio.aclose_forcefully(stream)

    await trio.serve_listeners(converse, await _listen(address))


async def serve_network(address: tuple[str, int], folder: Path, sources: Sources) -> None:
    """For ever, on a TCP port. The key lies in `folder`, which is the agent's own."""
    context = await trio.to_thread.run_sync(_certificate, folder)
    reviews = _Reviews(sources.may_get)

    async def answer(request: h11.Request) -> Answer:
        refusal = await reviews.refusal(request)
        return refusal or _answer(sources, request)

    (listener,) = await _listen(address)
    await _serve(trio.SSLListener(listener, context), answer)


# ---- Answers --------------------------------------------------------------------------------------------


def _answer(sources: Sources, request: h11.Request) -> Answer:
    path = request.target.partition(b"?")[0]
    if request.method not in (b"GET", b"HEAD"):
        return 405, b"only GET\n"
    if path == b"/livez":
        return _told(sources.report().dead)
    if path == b"/readyz":
        report = sources.report()
        return _told((*report.dead, *report.unready))
    if path == b"/metrics":
        return 200, metrics.text(sources.numbers())
    return 404, b"/livez, /readyz or /metrics\n"


def _told(wrong: tuple[str, ...]) -> Answer:
    return (503, "".join(f"{line}\n" for line in wrong).encode()) if wrong else (200, b"ok\n")


class _Reviews:
    """Who may ask what, by the API server."""

    def __init__(self, may_get: Callable[[str, str], bool]) -> None:
        self._may_get = may_get
        self._until: dict[bytes, float] = {}  # hash of token and path
        self._line = trio.CapacityLimiter(REVIEWS)

    async def refusal(self, request: h11.Request) -> Answer | None:
        scheme, _, token = _header(request, b"authorization").partition(" ")
        if scheme.lower() != "bearer" or not token.strip():
            return 401, b"send a token of Kubernetes: Authorization: Bearer TOKEN\n"
        path = request.target.partition(b"?")[0].decode("ascii")
        about = hashlib.sha256(f"{token} {path}".encode()).digest()
        if self._until.get(about, 0.0) > trio.current_time():
            return None
        try:
            allowed = await trio.to_thread.run_sync(
                self._may_get, token.strip(), path, limiter=self._line, abandon_on_cancel=True
            )
        except Exception as error:
            return 503, f"the API server can't be asked: {error}\n".encode()
        if not allowed:
            return 403, f"the API server does not let this token get {path}\n".encode()
        self._remember(about)
        return None

    def _remember(self, about: bytes) -> None:
        now = trio.current_time()
        self._until = {known: until for known, until in self._until.items() if until > now}
        self._until[about] = now + TRUSTED


def _header(request: h11.Request, name: bytes) -> str:
    return next((value.decode("latin-1") for key, value in request.headers if key == name), "")


# ---- Connections ----------------------------------------------------------------------------------------


async def _serve(listener: trio.abc.Listener[Stream], answer: Answering) -> None:
    places = trio.Semaphore(CONNECTIONS)

    async def converse(stream: Stream) -> None:
        with trio.move_on_after(PATIENCE):
            async with places:
                await _converse(stream, answer)
        await trio.aclose_forcefully(stream)

    await trio.serve_listeners(converse, [listener])


async def _converse(stream: Stream, answer: Answering) -> None:
    """One request and its answer."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADERS)
    try:
        request = await _request(connection, stream)
        status, body = await answer(request)
        kind = metrics.CONTENT_TYPE if status == 200 and request.target.startswith(b"/metrics") else PLAIN
    except h11.RemoteProtocolError as error:
        status, body, kind = error.error_status_hint, f"{error}\n".encode(), PLAIN
    except (trio.BrokenResourceError, EOFError):
        return
    headers = [("content-type", kind), ("content-length", str(len(body))), ("connection", "close")]
    try:
        events = (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage())
        await stream.send_all(b"".join(connection.send(event) or b"" for event in events))
        await stream.aclose()
    except trio.BrokenResourceError:
        return  # whoever asked has gone


async def _request(connection: h11.Connection, stream: Stream) -> h11.Request:
    while not isinstance(event := connection.next_event(), h11.Request):
        if event is not h11.NEED_DATA:
            raise EOFError
        connection.receive_data(bytes(await stream.receive_some(CHUNK)))
    return event


async def _listen(address: tuple[str, int]) -> list[trio.SocketListener]:
    told = False
    while True:
        try:
            return await trio.open_tcp_listeners(address[1], host=address[0])
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
        if not told:
            say(f"metrics wait for TCP port {address[1]}, which another process has", NOTICE)
            told = True
        await trio.sleep(1)


def _certificate(folder: Path) -> ssl.SSLContext:
    """Of a key that is made now and known to nobody else."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    made = subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:prime256v1",
                "-nodes",
            ),
            *("-subj", "/CN=skouter", "-days", str(DAYS), "-keyout", str(key), "-out", str(certificate)),
        ],
        capture_output=True,
        text=True,
        check=False,
        umask=0o077,
        env={**os.environ, "RANDFILE": "/dev/null"},
    )
    if made.returncode:
        raise OSError(f"openssl can't make the metrics' certificate in {folder}: {made.stderr.strip()}")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(certificate, key)
    return context
