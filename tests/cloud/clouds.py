"""A server on loopback that answers as the clouds' metadata and services do, and keeps what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Question(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: str


Answer = tuple[int, str]


class Cloud:
    """`answers` is asked of each question; without an answer of its, it is 404."""

    def __init__(self, answers: Callable[[Question], Answer | None]) -> None:
        self.asked: list[Question] = []
        self.answers = answers
        self.url = ""

    def handler(self) -> type[BaseHTTPRequestHandler]:
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
                headers = {name.lower(): value for name, value in self.headers.items()}
                question = Question(self.command, self.path, headers, body)
                cloud.asked.append(question)
                status, text = cloud.answers(question) or (404, "not found")
                self.send_response(status)
                self.send_header("content-length", str(len(text.encode())))
                self.end_headers()
                self.wfile.write(text.encode())

            do_GET = do_PUT = do_POST = answer  # noqa: N815

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@contextmanager
def serving(answers: Callable[[Question], Answer | None]) -> Iterator[Cloud]:
    cloud = Cloud(answers)
    server = ThreadingHTTPServer(("127.0.0.1", 0), cloud.handler())
    cloud.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield cloud
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def aws(question: Question) -> Answer | None:
    """The metadata of a machine on AWS, only within a session."""
    if (question.method, question.path) == ("PUT", "/latest/api/token"):
        return 200, "session"
    if question.method == "GET" and question.headers.get("x-aws-ec2-metadata-token") != "session":
        return 401, "no session"
    metadata = {
        "mac": "02:00:00:00:00:01",
        "network/interfaces/macs/02:00:00:00:00:01/interface-id": "eni-1",
        "placement/region": "eu-central-1",
        "iam/security-credentials/": "skouter",
        "iam/security-credentials/skouter": (
            '{"AccessKeyId": "AKID", "SecretAccessKey": "unspoken", "Token": "role-session"}'
        ),
    }
    found = metadata.get(question.path.removeprefix("/latest/meta-data/"))
    return (200, found) if found else None
