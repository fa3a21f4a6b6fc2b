"""What gateways do, to look at: `make demo-gateway`.

Machines of namespaces (tests/gateway/lab.py) reach what policies allow them, by way of three gateways with a
real unbound, real nftables and real agents; then one gateway dies under a load of new connections. Ends with
a table; the exit status is 0 if every row of it is as it should be. Leaves nothing behind, also on Ctrl-C.
"""

from __future__ import annotations

import signal
import sys
import time
from contextlib import ExitStack
from typing import Any

from tests.demo import Row, mark, table
from tests.gateway.gates import POLICIES, Gates, gated, routed
from tests.gateway.lab import PUBLIC4, ZONE, GatewayLab
from tests.gateway.measures import Load, Witness, load
from tests.topology import LabError

AT_ONCE = 1500  # milliseconds: a first packet waits for what other gateways know, and is sent again
RATE = 60  # attempts a second of each machine
REFUSED, REACHED = "ECONNREFUSED", "connected"
GIGABYTE = 1 << 30
MACHINES = ("vm1", "vm2", "vm3")
# What the load goes to, which each machine may.
LOAD_POLICY = """---
apiVersion: egress.skouter/v1alpha1
kind: ClusterEgress
metadata: {name: load}
spec:
  sourceCIDRs: [10.20.0.0/24, "fd00:20::/64"]
  rules:
    - domains: [example.com]
      ports: [{port: 80}]
"""
PICTURE = f"""
  vm1    10.20.0.11  fd00:20::11 ─┐               ┌─ gw1 ─┐                 outside
  vm2    10.20.0.12  fd00:20::12 ─┤               │       │     example.com       {ZONE["example.com"][0]}
  vm3    10.20.0.13  fd00:20::13 ─┼─── router ────┼─ gw2 ─┼───  a.b.example.com   {ZONE["a.b.example.com"][0]}
  stray   10.20.9.9 fd00:20:9::9 ─┘   asks each   │       │     example.net       {ZONE["example.net"][0]}
                                     for /readyz  └─ gw3 ─┘     example.org       {ZONE["example.org"][0]}

  vm1   by its label    example.com and *.example.com on port 80, time.example.net on UDP 7
  vm2   by its label    example.net on ports 80 and 443, and no question for other names
  vm3   by its address  198.51.100.0/26
  stray is a client whom nobody has registered
"""


class Demo:
    """The scenes, one after another."""

    def __init__(self, lab: GatewayLab, gates: Gates, start: float) -> None:
        self.lab, self.gates, self.start = lab, gates, start
        self.rows: list[Row] = []

    def play(self) -> None:
        with ExitStack() as held:
            witness = Witness(self.lab)
            held.callback(witness.close)
            self.allowed_and_refused()
            self.captured()
            self.download()
            self.gates.write(POLICIES + LOAD_POLICY)
            for spread in ("source", "connection"):
                self.death(spread)
            self.agentless()
            seen = witness.private()["packets"]
            self.add(Row("packets outside with a private source, in all this", "0", str(seen)))

    def allowed_and_refused(self) -> None:
        self.say("each machine reaches what its policy allows; all else is refused at once")
        for vm, name, port, expected in (
            ("vm1", "example.com", 80, REACHED),
            ("vm1", "a.b.example.com", 80, REACHED),
            ("vm1", "example.org", 80, REFUSED),
            ("vm1", "example.com", 443, REFUSED),
            ("vm2", "example.net", 443, REACHED),
            ("vm3", "example.net", 443, REACHED),
            ("vm3", "example.net", 8080, REFUSED),
        ):
            for family in (4, 6):
                address = f"resolve({name!r}, {_family(family)})"
                self.try_in(vm, f"connect({address}, {port})", f"{name}:{port} over IPv{family}", expected)
        self.try_in("vm1", "datagram(resolve('time.example.net'))", "time.example.net, UDP 7", "echo")
        self.try_in("stray", f"connect({ZONE['example.com'][0]!r})", ZONE["example.com"][0], REFUSED)
        asked = f"ask('example.org', {self.lab.gateways[0].inside4!r})"
        self.try_in("vm2", asked, "asks for example.org", [])

    def captured(self) -> None:
        self.say("DNS that is sent to a public server is answered by the gateway")
        name = "a.b.example.com"
        self.try_in("vm1", f"ask({name!r}, {PUBLIC4!r})", f"asks {PUBLIC4} for {name}", [ZONE[name][0]])

    def download(self) -> None:
        self.say("a gigabyte")
        code = f"""
            sock = socket.create_connection((resolve("example.com"), 81), 5)
            sock.sendall(b"{GIGABYTE >> 20}\\n")
            count, room = 0, bytearray(1 << 20)
            while read := sock.recv_into(room):
                count += read
            tell(count)
        """
        began = time.monotonic()
        count = self.lab.do("vm1", code)
        took = time.monotonic() - began
        self.add(Row("vm1: a download of 1 GB", str(GIGABYTE), str(count), 1000 * took))

    def death(self, spread: str) -> None:
        self.say(
            f"{len(MACHINES)} machines connect {RATE} times a second each, led by {spread}; one gateway dies"
        )
        lab = self.lab
        with routed(lab, spread) as router:
            victim = lab.gateway_of("vm1")
            with load(lab, RATE, "example.com", vms=MACHINES) as steady:
                steady.go_on(2)
                self.gates.die(victim)
                self.say(f"{victim.name} is dead")
                router.knows(victim, "dead")
                self.say("skouter route has found out")
                steady.go_on(3)
                victim.boot()
                self.gates.boot([victim])
                router.knows(victim, "alive")
                self.say(f"{victim.name} is back, and knows what the others know")
                steady.go_on(4)
        lab.lead()
        self._judge(
            steady, f"{steady.attempts} connections as {victim.name} dies and comes back, by {spread}"
        )

    def agentless(self) -> None:
        self.say("kill -9 of an agent: the kernel goes on alone, for new addresses too")
        alone = self.lab.gateways[0]
        self.lab.lead([alone])
        self.gates[alone].kill()
        self.lab.dns.set("new.example.com", "198.51.100.50")
        self.try_in("vm1", "connect(resolve('new.example.com'))", "new.example.com, agent dead", REACHED)
        self.try_in("vm1", f"connect({ZONE['example.org'][0]!r})", "example.org, agent dead", REFUSED)
        self.gates[alone].restart()
        self.lab.lead()

    # ---- Telling

    def _judge(self, steady: Load, what: str) -> None:
        failed = sum(sum(by.values()) for by in steady.failed.values())
        seen = f"{failed} failed"
        self.add(Row(what, "0 failed", seen, 1000 * steady.slowest))
        self.say(f"{steady.again} of them came through when their SYN was sent again")

    def try_in(self, vm: str, expression: str, what: str, expected: Any) -> None:
        seen, seconds = self.lab.inside(vm, f"timed(lambda: {expression})")
        limit = AT_ONCE if expected == REFUSED else None
        self.add(Row(f"{vm}: {what}", _text(expected), _text(seen), 1000 * seconds, limit))

    def say(self, text: str) -> None:
        print(f"{time.monotonic() - self.start:6.1f} s   {text}", flush=True)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        print(f"           {mark(row)} {row.tried}   {row.seen}", flush=True)


def _family(version: int) -> str:
    return "socket.AF_INET6" if version == 6 else "socket.AF_INET"


def _text(what: Any) -> str:
    return ", ".join(what) or "NXDOMAIN" if isinstance(what, list) else str(what)


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    start = time.monotonic()
    print(PICTURE)
    print("   0.0 s   machines are made of namespaces; gateways start (the first start compiles)", flush=True)
    try:
        with GatewayLab() as lab, gated(lab) as gates:
            demo = Demo(lab, gates, start)
            demo.play()
    except KeyboardInterrupt:
        print("\n  stopped, and everything is removed")
        return 130
    except (LabError, TimeoutError) as error:
        print(f"\n  {error}", file=sys.stderr)
        return 2
    wrong = sum(not row.is_good for row in demo.rows)
    print("", *table(demo.rows), sep="\n")
    said = f"{wrong} of {len(demo.rows)} rows are not as expected" if wrong else "all as expected"
    print(f"\n    {said}, in {time.monotonic() - demo.start:.0f} s; everything is removed")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
