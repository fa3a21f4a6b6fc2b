"""Connects to names right after their answers, for a VM: `gateway_names.py RESOLVER NAME LIMIT`.

NAME with {} in it: that many fresh names, each asked for once. Else one name, whose answer is kept as long
as its TTL says, and connected to again and again for so many seconds. Prints [attempts, how many were refused
or lost]: a lost SYN is sent again only after a second, so that half of one tells.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Iterator

from dnslib import QTYPE, DNSRecord

PORT, AT_ONCE, PAUSE = 80, 0.5, 0.05


def ask(name: str, resolver: str) -> tuple[str, int]:
    """Its address, and for how many seconds."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(5)
        sock.connect((resolver, 53))
        sock.send(DNSRecord.question(name).pack())
        record = next(r for r in DNSRecord.parse(sock.recv(4096)).rr if r.rtype == QTYPE.A)
    return str(record.rdata), int(record.ttl)


def fails(address: str) -> bool:
    try:
        socket.create_connection((address, PORT), AT_ONCE).close()
        return False
    except OSError:
        return True


def fresh(name: str, resolver: str, count: int) -> Iterator[bool]:
    for number in range(count):
        yield fails(ask(name.format(number), resolver)[0])


def kept(name: str, resolver: str, seconds: float) -> Iterator[bool]:
    end, until, address = time.monotonic() + seconds, 0.0, ""
    while (now := time.monotonic()) < end:
        if now >= until:
            address, ttl = ask(name, resolver)
            until = now + ttl
        yield fails(address)
        time.sleep(PAUSE)


def main() -> None:
    resolver, name, limit = sys.argv[1], sys.argv[2], float(sys.argv[3])
    each = fresh(name, resolver, int(limit)) if "{}" in name else kept(name, resolver, limit)
    found = list(each)
    print(json.dumps([len(found), sum(found)]))


if __name__ == "__main__":
    main()
