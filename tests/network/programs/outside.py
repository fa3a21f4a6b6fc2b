"""The world around a workload under load: outside.py ADDRESS SLOW, until its input ends.

It echoes what comes by TCP to port 7 of any address. At the address SLOW it answers DNS questions, each after
a second, and each with another address. Between two lines of input it comes in to the workload's
own server at ADDRESS: twenty connections at a time on TCP 8080, each of which is silent for a while before it
sends a byte and waits for it to come back; and datagrams to UDP 8081. Then it tells, as JSON, how that went.
"""

from __future__ import annotations

import json
import random
import selectors
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from queue import SimpleQueue
from typing import Any

from dnslib import QTYPE, RR, A, DNSRecord

CONNECTIONS, SILENT = 20, 1.5
count: Counter[str] = Counter()
done = threading.Event()


def echo() -> None:
    """Many connections that speak little: one thread for all."""
    with (
        selectors.DefaultSelector() as waiting,
        socket.create_server(
            ("::", 7), family=socket.AF_INET6, backlog=1024, dualstack_ipv6=True
        ) as listener,
    ):
        waiting.register(listener, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, _ in waiting.select():
                if key.fileobj is listener:
                    waiting.register(listener.accept()[0], selectors.EVENT_READ)
                    continue
                held = key.fileobj
                assert isinstance(held, socket.socket)
                with suppress(OSError):
                    if data := held.recv(64):
                        held.sendall(data)
                        continue
                waiting.unregister(held)
                held.close()


def answer_slowly(server: str) -> None:
    """s0.DOMAIN is 10.200.128.0, s1.DOMAIN is 10.200.128.1, and so on."""
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.bind((server, 53))
    waiting: SimpleQueue[tuple[float, bytes, Any]] = SimpleQueue()
    threading.Thread(target=release, args=(sock, waiting), daemon=True).start()
    while True:
        message, client = sock.recvfrom(512)
        question = DNSRecord.parse(message)
        number = int(str(question.q.qname).split(".")[0][1:])
        reply = question.reply()
        address = A(f"10.200.{128 + (number >> 8)}.{number & 255}")
        reply.add_answer(RR(question.q.qname, QTYPE.A, ttl=8, rdata=address))
        waiting.put((time.monotonic() + 1, reply.pack(), client))


def release(sock: socket.socket, waiting: SimpleQueue[tuple[float, bytes, Any]]) -> None:
    while True:
        due, reply, client = waiting.get()
        time.sleep(max(0, due - time.monotonic()))
        sock.sendto(reply, client)


def come_in(address: str) -> None:
    with socket.create_connection((address, 8080), 5) as sock:
        done.wait(random.uniform(0, SILENT))
        sock.sendall(b"x")
        assert sock.recv(1) == b"x"


def send_in(address: str) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.sendto(b"x", (address, 8081))
        assert sock.recv(1) == b"x"
    time.sleep(0.02)


def again_and_again(call: Callable[[str], None], address: str) -> None:
    while not done.is_set():
        name = call.__name__
        try:
            call(address)
            count[name] += 1
        except (OSError, AssertionError) as error:
            count[f"{name}_failed"] += 1
            if count[f"{name}_failed"] > 5:
                continue
            print(f"{name}: {error!r}", file=sys.stderr, flush=True)


def main(address: str, server: str) -> None:
    calls = [come_in] * CONNECTIONS + [send_in]
    threads = [threading.Thread(target=again_and_again, args=(call, address)) for call in calls]
    threading.Thread(target=answer_slowly, args=(server,), daemon=True).start()
    threading.Thread(target=echo, daemon=True).start()
    sys.stdin.readline()
    for thread in threads:
        thread.start()
    sys.stdin.readline()
    done.set()
    for thread in threads:
        thread.join()
    print(json.dumps({"come_in_failed": 0, "send_in_failed": 0, **count}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(*sys.argv[1:])
