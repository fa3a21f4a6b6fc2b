"""A door in front of the API server that tests hold in their hand: it counts, refuses, stalls and cuts.

    agent ── HTTP ──> Gate ── HTTPS ──> kube-apiserver

Rules this file obeys:

- What passes, passes as it is, event by event; the answers are the real server's unless a test gives its own.
- A stalled connection is half open: it stays, and nothing comes. A cut one ends, as by a dead machine.
- Nothing outlives the `with`.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import urllib3

from tests.cluster.apiserver import HOST, ApiServer

Answer = tuple[int, dict[str, str], object]


class Gate:
    """`requests` are (method, path, query) of all that came. `answer` may answer in the server's place."""

    def __init__(self, api: ApiServer) -> None:
        self.api = api
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.answer: Callable[[str, str, dict[str, str]], Answer | None] = lambda *_: None
        self._flows, self._open = threading.Event(), True
        self._flows.set()
        self._connections: set[Any] = set()
        self._pool = urllib3.PoolManager(maxsize=40, ca_certs=str(api.ca), retries=False)
        self._server = ThreadingHTTPServer((HOST, 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Gate:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()
        self._flows.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self._server.server_address[1]}"

    def kubeconfig(self, path: Path, token: str | None = None) -> Path:
        config = json.loads(self.api.write_kubeconfig(path, token or self.api.token).read_text())
        config["clusters"][0]["cluster"] = {"server": self.url}
        path.write_text(json.dumps(config))
        return path

    def stall(self) -> None:
        self._flows.clear()

    def flow(self) -> None:
        self._flows.set()

    def cut(self) -> None:
        """Every connection that there is; new ones are taken."""
        for each in list(self._connections):
            with suppress(OSError):
                each.shutdown(2)

    def close(self) -> None:
        """No connection, and no new one."""
        self._open = False
        self.cut()

    def open(self) -> None:
        self._open = True

    def count(self, plural: str, **query: str) -> int:
        """How often a resource was asked for with (at least) this query."""
        return sum(
            path.endswith(f"/{plural}") and all(asked.get(key) == value for key, value in query.items())
            for _, path, asked in list(self.requests)
        )

    # ---- One request --------------------------------------------------------------------------------------

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        gate = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                gate._connections.add(self.connection)

            def finish(self) -> None:
                gate._connections.discard(self.connection)
                with suppress(OSError, ValueError):
                    super().finish()

            def handle_one_request(self) -> None:
                try:
                    super().handle_one_request()
                except (OSError, urllib3.exceptions.HTTPError):
                    self.close_connection = True

            def log_message(self, *_arguments: object) -> None:
                pass

            def do_GET(self) -> None:
                gate._pass(self)

            do_POST = do_PATCH = do_PUT = do_DELETE = do_GET  # noqa: N815 (names of http.server)

        return Handler

    def _pass(self, asked: BaseHTTPRequestHandler) -> None:
        parts = urlsplit(asked.path)
        query = {key: values[0] for key, values in parse_qs(parts.query).items()}
        self.requests.append((asked.command, parts.path, query))
        if not self._open:
            raise ConnectionError
        body = asked.rfile.read(int(asked.headers.get("Content-Length") or 0)) or None
        if (given := self.answer(asked.command, parts.path, query)) is not None:
            status, headers, document = given
            _write(asked, status, headers, json.dumps(document).encode())
            return
        wanted = ("Authorization", "Content-Type", "Accept")
        headers = {key: asked.headers[key] for key in wanted if key in asked.headers}
        url = self.api.url + asked.path
        with self._pool.request(
            asked.command, url, headers=headers, body=body, preload_content=False
        ) as answer:
            self._flows.wait()
            if "watch" in query and answer.status == 200:
                self._stream(asked, answer)
            else:
                _write(asked, answer.status, dict(answer.headers), answer.read())

    def _stream(self, asked: BaseHTTPRequestHandler, answer: Any) -> None:
        asked.send_response(200)
        asked.send_header("Content-Type", "application/json")
        asked.send_header("Transfer-Encoding", "chunked")
        asked.end_headers()
        while data := answer.read1(1 << 16):
            self._flows.wait()
            asked.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        asked.wfile.write(b"0\r\n\r\n")


def _write(asked: BaseHTTPRequestHandler, status: int, headers: dict[str, str], data: bytes) -> None:
    asked.send_response(status)
    for key in ("Retry-After", "Content-Type"):
        if key in headers:
            asked.send_header(key, headers[key])
    asked.send_header("Content-Length", str(len(data)))
    asked.end_headers()
    asked.wfile.write(data)
