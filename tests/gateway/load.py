"""A steady load of new TCP connections, for a VM: `load.py RATE NAME[:PORT] ...`.

Names are asked for once, as a program with a cache does; then there are RATE attempts a second, each from a
source port of its own, to their addresses in turn. "begun" is printed when the first has come through, "on"
each second then. At the end of its input no more are begun, those under way are waited for, and the outcome
is printed as JSON:

    attempts    how many were begun
    failed      {errno's name or "timeout", and address: how many}; a lost SYN that came through later is none
    again       how many took longer than a retransmission takes, and came through
    slowest     seconds of the slowest that came through
"""

from __future__ import annotations

import errno
import json
import select
import socket
import struct
import sys
import time
from collections import Counter

TIMEOUT = 15.0  # within which Linux sends a SYN four times: after 1, 3 and 7 s
RETRANSMISSION = 0.9
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: closed by RST, so that no port waits


def addresses_of(words: list[str]) -> list[tuple[int, tuple[str, int]]]:
    found = []
    for word in words:
        name, _, port = word.partition(":")
        for family, _, _, _, to in socket.getaddrinfo(name, int(port or 80), type=socket.SOCK_STREAM):
            found.append((int(family), (str(to[0]), int(to[1]))))
    return found


class Load:
    """Attempts that are under way, and what became of the others."""

    def __init__(self, targets: list[tuple[int, tuple[str, int]]]) -> None:
        self.targets, self.poll = targets, select.epoll()
        self.waiting: dict[int, tuple[socket.socket, float, str]] = {}
        self.attempts, self.again, self.slowest = 0, 0, 0.0
        self.failed: Counter[str] = Counter()

    def begin(self) -> None:
        family, to = self.targets[self.attempts % len(self.targets)]
        sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.attempts += 1
        status = sock.connect_ex(to)
        self.waiting[sock.fileno()] = (sock, time.monotonic(), to[0])
        if status == errno.EINPROGRESS:
            self.poll.register(sock, select.EPOLLOUT)
        else:
            self.end(sock.fileno(), errno.errorcode.get(status, "") if status else "")

    def end(self, fd: int, failure: str) -> None:
        sock, began, to = self.waiting.pop(fd)
        took = time.monotonic() - began
        if failure:
            self.failed[f"{failure} {to}"] += 1
        else:
            self.slowest = max(self.slowest, took)
            self.again += took > RETRANSMISSION
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        sock.close()

    def wait(self, seconds: float) -> None:
        for fd, _ in self.poll.poll(max(seconds, 0)):
            status = self.waiting[fd][0].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self.end(fd, errno.errorcode.get(status, "") if status else "")
        late = time.monotonic() - TIMEOUT
        for fd in [fd for fd, (_, began, _) in self.waiting.items() if began < late]:
            self.end(fd, "timeout")


def main() -> None:
    rate, load = float(sys.argv[1]), Load(addresses_of(sys.argv[2:]))
    load.begin()
    while load.waiting:
        load.wait(1)
    print("begun", flush=True)
    turn = time.monotonic()
    while not select.select([0], [], [], 0)[0]:
        load.begin()
        turn += 1 / rate
        if load.attempts % max(int(rate), 1) == 0:
            print("on", flush=True)
        while (left := turn - time.monotonic()) > 0:
            load.wait(left)
        load.wait(0)
    while load.waiting:
        load.wait(0.1)
    told = {"attempts": load.attempts, "failed": load.failed, "again": load.again, "slowest": load.slowest}
    print(json.dumps(told), flush=True)


if __name__ == "__main__":
    main()
