"""How long a question over TCP takes with the proxy and without: the same client and server, in turns."""

from __future__ import annotations

import json
import statistics
import subprocess

from tests.network.workload import python
from tests.topology import DNS4, Lab

NAMES, CONNECTIONS, ROUNDS = 2000, 200, 3
CLIENT = f"""
    def ask_on(s, message):
        start = time.perf_counter()
        s.sendall(message)
        data = s.recv(4096)
        while len(data) < 2 + int.from_bytes(data[:2], "big"):
            data += s.recv(4096)
        return time.perf_counter() - start

    messages = [bytes(DNSRecord.question(f"n{{i}}.many.test").pack()) for i in range({NAMES})]
    messages = [len(m).to_bytes(2, "big") + m for m in messages]
    s = socket.create_connection(({DNS4!r}, 53))
    kept = [ask_on(s, m) for m in messages]
    fresh = []
    for message in messages[:{CONNECTIONS}]:
        start = time.perf_counter()
        with socket.create_connection(({DNS4!r}, 53)) as s:
            ask_on(s, message)
        fresh.append(time.perf_counter() - start)
    tell([kept[1:], fresh[1:]])
"""


def added() -> dict[str, tuple[float, float]]:
    """Kind of connection and quantile -> (microseconds without the proxy, with it)."""
    arms: list[list[list[float]]] = [[[], []], [[], []]]
    with Lab() as lab:
        lab.dns.add((f"n{i}.many.test", f"10.200.{i >> 8}.{i & 255}", 60) for i in range(NAMES))
        plain = lab.pod.command(*python(CLIENT))
        for _ in range(ROUNDS):
            led = lab.skouter("run", "-q", "--allow", "*.many.test", "--", *python(CLIENT))
            for arm, command in zip(arms, (plain, led), strict=True):
                done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
                for kind, found in zip(arm, json.loads(done.stdout), strict=True):
                    kind += found
    found = {}
    for index, kind in enumerate(("one connection", "a new connection")):
        cuts = [statistics.quantiles(arm[index], n=100) for arm in arms]
        for quantile in (50, 99):
            without, with_it = (each[quantile - 1] * 1e6 for each in cuts)
            found[f"{kind}, p{quantile}"] = without, with_it
    return found
