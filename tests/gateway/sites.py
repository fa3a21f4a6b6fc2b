"""What answers outside beside tests/network/servers.py; prints "ready" once everything listens.

TCP 81    sends as many megabytes as the line says that it is sent
TCP 82    counts the bytes that come, and tells when they end
DNS at 198.51.100.88 and 2001:db8:51::88, UDP and TCP: a public resolver that answers each question with
          198.51.100.99 or 2001:db8:51::99, which no other server does
"""

from __future__ import annotations

import socket
import socketserver
import threading

from dnslib import AAAA, QTYPE, RR, A, DNSRecord

PUBLIC = ("198.51.100.88", "2001:db8:51::88")
LIE4, LIE6 = "198.51.100.99", "2001:db8:51::99"
MEGABYTE = bytes(1 << 20)


class Down(socketserver.StreamRequestHandler):
    """A download."""

    def handle(self) -> None:
        for _ in range(int(self.rfile.readline())):
            self.wfile.write(MEGABYTE)


class Up(socketserver.BaseRequestHandler):
    """An upload."""

    def handle(self) -> None:
        count = 0
        while data := self.request.recv(1 << 16):
            count += len(data)
        self.request.sendall(str(count).encode())


class Both(socketserver.ThreadingTCPServer):
    """Both families on one socket."""

    address_family = socket.AF_INET6
    daemon_threads = allow_reuse_address = True


class Four(socketserver.ThreadingTCPServer):
    """Its own address only."""

    daemon_threads = allow_reuse_address = True


class FourDatagrams(socketserver.ThreadingUDPServer):
    """The same for datagrams."""

    daemon_threads = True


class Six(Four):
    """The same for IPv6."""

    address_family = socket.AF_INET6


class SixDatagrams(FourDatagrams):
    """The same for IPv6."""

    address_family = socket.AF_INET6


def lie(message: bytes) -> bytes:
    question = DNSRecord.parse(message)
    reply = question.reply()
    name, kind = question.q.qname, question.q.qtype
    if kind == QTYPE.A:
        reply.add_answer(RR(name, kind, ttl=60, rdata=A(LIE4)))
    elif kind == QTYPE.AAAA:
        reply.add_answer(RR(name, kind, ttl=60, rdata=AAAA(LIE6)))
    return bytes(reply.pack())


class Datagram(socketserver.BaseRequestHandler):
    """DNS over UDP."""

    def handle(self) -> None:
        message, sock = self.request
        sock.sendto(lie(message), self.client_address)


class Stream(socketserver.StreamRequestHandler):
    """DNS over TCP."""

    def handle(self) -> None:
        while head := self.rfile.read(2):
            reply = lie(self.rfile.read(int.from_bytes(head, "big")))
            self.wfile.write(len(reply).to_bytes(2, "big") + reply)


def main() -> None:
    servers: list[socketserver.BaseServer] = [Both(("::", 81), Down), Both(("::", 82), Up)]
    four, six = ((address, 53) for address in PUBLIC)
    servers += [
        FourDatagrams(four, Datagram),
        SixDatagrams(six, Datagram),
        Four(four, Stream),
        Six(six, Stream),
    ]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
