"""An HTTPS server whose cost is its encryption's: TLS at PORT with CERTIFICATE; "ready" is printed first.

/N    N megabytes
"""

from __future__ import annotations

import socketserver
import ssl
import sys
from contextlib import suppress

MEGABYTE = bytes(1 << 20)


class Site(socketserver.StreamRequestHandler):
    """One request a connection."""

    def handle(self) -> None:
        with suppress(OSError):
            self.answer()

    def answer(self) -> None:
        count = int(self.rfile.readline().split()[1][1:])
        while self.rfile.readline().strip():
            pass
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {count << 20}\r\nConnection: close\r\n\r\n"
        self.request.sendall(head.encode())
        for _ in range(count):
            self.request.sendall(MEGABYTE)


class Tls(socketserver.ThreadingTCPServer):
    """Hands shakes in the connection's own thread."""

    daemon_threads = allow_reuse_address = True
    request_queue_size = 1024

    def __init__(self, port: int, certificate: str) -> None:
        super().__init__(("0.0.0.0", port), Site)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(certificate)

    def finish_request(self, request, client_address) -> None:  # type: ignore[no-untyped-def]
        with suppress(OSError):
            wrapped = self.context.wrap_socket(request, server_side=True)
            super().finish_request(wrapped, client_address)


def main() -> None:
    server = Tls(int(sys.argv[1]), sys.argv[2])
    print("ready", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
