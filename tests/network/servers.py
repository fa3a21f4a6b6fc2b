"""What answers in the lab's world, whatever address it is asked at: web sites, echoes, and an odd DNS server.

Started by tests/topology.py in the world's namespace; prints "ready" once everything listens.

    TCP 80, 443, 8080   HTTP: "/" tells the address that was asked, "/endless" sends until nobody reads
    TCP 9               takes connections and closes them
    UDP 7, 9000         sends back what comes, from the address that was asked
    DNS at 192.0.2.54, ports 53 and 5353: the first label says how to answer: see odd_answer()
"""

from __future__ import annotations

import itertools
import socket
import socketserver
import threading
import time
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from dnslib import AAAA, CNAME, QTYPE, RR, TXT, A, DNSRecord

ODD = "192.0.2.54"
WEB, SINK, ECHO = (80, 443, 8080), 9, (7, 9000)
SITE, SITE6 = "198.51.100.54", "2001:db8:51::54"
TRUNCATED = 1
HEAD = 12  # bytes of a DNS message before its question
FRESH = itertools.count(int.from_bytes(bytes([11, 0, 0, 1]), "big"))  # IPv4 addresses


class Site(BaseHTTPRequestHandler):
    """Tells by which address it was reached, as often as it is asked on one connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        here = self.connection.getsockname()[0].removeprefix("::ffff:")
        if self.path == "/endless":
            self.send_header("Connection", "close")
            self.end_headers()
            self.pour(f"{here}\n".encode())
            return
        text = f"{here}\n".encode()
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def pour(self, line: bytes) -> None:
        with suppress(OSError):
            while True:
                self.wfile.write(line)
                time.sleep(0.02)

    def log_message(self, *_: object) -> None:
        pass


class Web(ThreadingHTTPServer):
    """Both families on one socket."""

    address_family = socket.AF_INET6
    request_queue_size = 128

    def handle_error(self, *_: object) -> None:
        pass


def take_and_close() -> None:
    listener = socket.create_server(("::", SINK), family=socket.AF_INET6, backlog=8192, dualstack_ipv6=True)

    def work() -> None:
        while True:
            listener.accept()[0].close()

    threading.Thread(target=work, daemon=True).start()


def echo(port: int) -> None:
    """From the address that was asked: where every address is local, the kernel would choose another."""
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    sock.bind(("::", port))

    def work() -> None:
        while True:
            data, (asked,), _, peer = sock.recvmsg(2048, 128)
            source = asked[2][:16] + bytes(4)
            with suppress(OSError):
                sock.sendmsg([data], [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, source)], 0, peer)

    threading.Thread(target=work, daemon=True).start()


def full_answer(message: bytes) -> bytes:
    """By hand, as thousands are asked for."""
    records = b"".join(b"\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4" + next(FRESH).to_bytes(4, "big") for _ in range(64))
    return message[:2] + b"\x81\x80\0\1\0\x40\0\0\0\0" + message[HEAD:] + records


def odd_answer(message: bytes, tcp: bool) -> tuple[float, bytes | None]:
    """After how many seconds to answer, and what (None: nothing).

    silent.*  never; slow.* after three seconds; large.* truncated over UDP, whole over TCP; other.* an
    answer to another question; alias.* by way of another domain; full-*.* with sixty-four addresses that it
    never gave before; huge.* with 4,000 addresses over TCP; signed.* with as much beside the address as
    signatures take; all others like any server.
    """
    if message[HEAD : HEAD + 6] == b"\x0dfull-":
        return 0, full_answer(message)
    question = DNSRecord.parse(message)
    name = str(question.q.qname).rstrip(".")
    kind = name.split(".")[0]
    reply = question.reply()
    if kind == "silent":
        return 0, None
    if kind == "other":
        reply.q.qname = f"not-{name}"
    if kind == "alias":
        reply.add_answer(RR(name, QTYPE.CNAME, ttl=60, rdata=CNAME("target.example.net")))
        name = "target.example.net"
    if kind in ("large", "huge", "signed") and not tcp:
        reply.header.tc = TRUNCATED
    elif kind == "huge":
        for i in range(4000):
            reply.add_answer(RR(name, QTYPE.A, ttl=60, rdata=A(f"10.200.{16 + (i >> 8)}.{i & 255}")))
    elif question.q.qtype == QTYPE.A:
        reply.add_answer(RR(name, QTYPE.A, ttl=60, rdata=A(SITE)))
    elif question.q.qtype == QTYPE.AAAA:
        reply.add_answer(RR(name, QTYPE.AAAA, ttl=60, rdata=AAAA(SITE6)))
    if kind == "signed":
        for _ in range(20):
            reply.add_auth(RR(name, QTYPE.TXT, ttl=60, rdata=TXT("x" * 250)))
    return (3 if kind == "slow" else 0), reply.pack()


class OddDatagrams(socketserver.BaseRequestHandler):
    """Over UDP."""

    def handle(self) -> None:
        message, sock = self.request
        wait, reply = odd_answer(message, tcp=False)
        time.sleep(wait)
        if reply:
            sock.sendto(reply, self.client_address)


class OddStreams(socketserver.StreamRequestHandler):
    """Over TCP (RFC 1035 4.2.2: two bytes of length)."""

    def handle(self) -> None:
        while head := self.rfile.read(2):
            _, reply = odd_answer(self.rfile.read(int.from_bytes(head, "big")), tcp=True)
            if reply:
                self.wfile.write(len(reply).to_bytes(2, "big") + reply)


class DatagramServer(socketserver.ThreadingUDPServer):
    """Answers each question on its own, so that a slow one holds up no other."""

    daemon_threads = True


class StreamServer(socketserver.ThreadingTCPServer):
    """The same for connections."""

    daemon_threads = allow_reuse_address = True


def main() -> None:
    servers: list[socketserver.BaseServer] = [Web(("::", port), Site) for port in WEB]
    servers += [DatagramServer((ODD, port), OddDatagrams) for port in (53, 5353)]
    servers += [StreamServer((ODD, 53), OddStreams)]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    take_and_close()
    for port in ECHO:
        echo(port)
    print("ready", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
