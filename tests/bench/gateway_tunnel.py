"""Downloads bytes that nobody encrypts, for a VM: `gateway_tunnel.py ADDRESS PORT MEGABYTES [PROXY]`.

By a CONNECT of the proxy at port 3128, if there is one (RFC 9110 9.3.6). Prints bytes per second: what a
tunnel for HTTPS would carry, were its ends' encryption not the slower part.
"""

from __future__ import annotations

import socket
import sys
import time

PROXY_PORT, ROOM = 3128, 1 << 20


def opened(address: str, port: int, proxy: str) -> socket.socket:
    if not proxy:
        return socket.create_connection((address, port), 10)
    sock = socket.create_connection((proxy, PROXY_PORT), 10)
    sock.sendall(f"CONNECT {address}:{port} HTTP/1.1\r\nHost: {address}:{port}\r\n\r\n".encode())
    answer = sock.recv(ROOM)
    if not answer.startswith(b"HTTP/1.1 200 ") or not answer.endswith(b"\r\n\r\n"):
        raise OSError(f"{proxy}: {answer!r}")
    return sock


def main() -> None:
    address, port, megabytes, *proxy = sys.argv[1:]
    with opened(address, int(port), *(proxy or [""])) as sock:
        sock.sendall(f"{megabytes}\n".encode())
        count, room, began = 0, bytearray(ROOM), time.monotonic()
        while read := sock.recv_into(room):
            count += read
    if count != int(megabytes) << 20:
        raise OSError(f"only {count} bytes came")
    print(count / (time.monotonic() - began))


if __name__ == "__main__":
    main()
