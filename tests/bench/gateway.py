"""`make bench-gateway`: a gateway beside one that filters nothing, and beside what else filters by name.

Five gateways of one lab (tests/gateway/lab.py), alike but for what runs on them; the router leads one VM's
packets to one after another, in turns within one run, so that the machine's mood is shared. The one that
filters nothing stands in every round twice: how far these two are apart tells what the machine is worth as a
witness. Written to build/bench-gateway.md.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from tests.bench import gateway_rivals as rivals
from tests.bench.__main__ import say, write
from tests.gateway import plain
from tests.gateway.gates import Gate
from tests.gateway.lab import DNS4, Gateway, GatewayLab
from tests.topology import LabError, end

OUT = Path("build") / "bench-gateway.md"
HERE = Path(__file__).parent
NAME, SHORT, ADDRESS = "bench.example.com", "short.example.com", "198.51.100.10"
ROUNDS, SECONDS, CONNECTIONS, MEGABYTES = 7, 2, 4000, 1000
DOWN = 81  # tests/gateway/sites.py
FRESH, KEPT = 300, 12
FLOOR, GRACE = 2, 1  # seconds: as long as the rival's set keeps an address
POLICY = f"""
apiVersion: egress.skouter/v1alpha1
kind: ClusterEgress
metadata: {{name: bench}}
spec:
  sourceCIDRs: [10.20.0.0/16, "fd00:20::/32"]
  rules:
    - domains: ["*.example.com"]
      ports: [{{port: 80}}, {{port: {DOWN}}}, {{port: {rivals.HTTPS}}}, {{port: 5201}}, {{port: 5202}}]
"""
PLAIN, AGAIN, SKOUTER, DNSMASQ = "plain NAT", "plain NAT again", "skouter", "dnsmasq"
TIMED = f"dnsmasq, addresses for {FLOOR + GRACE} s"
CONNECT, SPLICE = "squid CONNECT", "squid peek and splice"


class Bench:
    """The lab with all arms; each measure leads the VM to one of them first."""

    def __init__(self, held: ExitStack) -> None:
        self.lab = lab = held.enter_context(GatewayLab(5))
        first, second, third, fourth, fifth = lab.gateways
        self.arms = {
            PLAIN: first,
            AGAIN: first,
            SKOUTER: second,
            DNSMASQ: third,
            CONNECT: fourth,
            SPLICE: fourth,
            TIMED: fifth,
        }
        plain.forward(first)
        held.callback(end, rivals.dnsmasq(third))
        held.callback(end, rivals.dnsmasq(fifth, FLOOR + GRACE))
        held.callback(end, rivals.squid(fourth))
        self._skouter(held, second)
        lab.dns.set(NAME, ADDRESS, ttl=60)
        lab.dns.set(SHORT, "198.51.100.11", ttl=1)
        lab.dns.add((f"f{i}.example.com", f"198.51.100.{100 + i % 150}", 60) for i in range(FRESH))
        lab.dns.add((f"s{i}.example.com", f"198.51.100.{100 + i % 150}", 60) for i in range(FRESH))
        self.client = lab.folder / "load"
        subprocess.run(["gcc", "-O2", "-o", self.client, HERE / "load.c"], check=True)
        certificate = lab.folder / "site.pem"
        rivals.certificate(certificate)
        for words in (
            ("iperf3", "-s", "--forceflush"),
            (self.client, "serve", "5202"),
            (sys.executable, HERE / "gateway_tls.py", rivals.HTTPS, certificate),
        ):
            process = lab.outside.start(*words, stdout=subprocess.PIPE)
            held.callback(end, process)
            assert process.stdout is not None
            while process.stdout.readline() not in ("ready\n", ""):
                if "iperf3" in words:
                    break

    def _skouter(self, held: ExitStack, gateway: Gateway) -> None:
        policies = self.lab.folder / "policies"
        policies.mkdir()
        (policies / "bench.yaml").write_text(POLICY)
        gate = Gate(gateway, {"floor": FLOOR, "grace": GRACE, "peers": None})
        held.callback(gate.close)
        gate.wait_until_ready()

    def take(self, arm: str) -> None:
        """The way, and an address that was just learned."""
        gateway = self.arms[arm]
        self.lab.lead([gateway])
        if arm not in (CONNECT, SPLICE):  # squid asks by itself
            resolver = gateway.inside4 if arm in (SKOUTER, DNSMASQ) else DNS4
            self._vm(sys.executable, HERE / "gateway_names.py", resolver, NAME, "0.01")

    def _vm(self, *words: object) -> str:
        return self.lab.vms["vm1"].checked(*words, timeout=120)

    # ---- Measures

    def upload(self, arm: str) -> float:
        """Bits per second of one TCP stream."""
        return self._iperf(arm)

    def download(self, arm: str) -> float:
        return self._iperf(arm, "-R")

    def _iperf(self, arm: str, *words: str) -> float:
        self.take(arm)
        told = json.loads(self._vm("iperf3", "-c", ADDRESS, "-t", SECONDS, "-J", *words))
        if "error" in told:
            raise LabError(f"iperf3 by way of {arm}: {told['error']}")
        return float(told["end"]["sum_received"]["bits_per_second"])

    def connections(self, arm: str) -> float:
        """TCP connections per second, one after another."""
        self.take(arm)
        return float(self._vm(self.client, "connect", ADDRESS, "5202", CONNECTIONS))

    def https(self, arm: str) -> float:
        """Bytes per second of an HTTPS download."""
        self.take(arm)
        url = f"https://{NAME}:{rivals.HTTPS}/{MEGABYTES}"
        proxy = ("-x", f"http://{self.arms[arm].inside4}:3128") if arm == CONNECT else ()
        known = ("--resolve", f"{NAME}:{rivals.HTTPS}:{ADDRESS}")
        words = (*known, "-sSko", "/dev/null", "-w", "%{speed_download}")
        return float(self._vm("curl", *words, *proxy, url))

    def tunnel(self, arm: str) -> float:
        """Bytes per second of the same, were encryption for nothing."""
        self.take(arm)
        proxy = [self.arms[arm].inside4] if arm == CONNECT else []
        words = (sys.executable, HERE / "gateway_tunnel.py", ADDRESS, DOWN, MEGABYTES, *proxy)
        return float(self._vm(*words))

    def lost(self, arm: str, name: str, limit: float) -> tuple[int, int]:
        """Attempts, and those that the gateway did not let through at once."""
        self.lab.lead([self.arms[arm]])
        words = (HERE / "gateway_names.py", self.arms[arm].inside4, name, limit)
        attempts, lost = json.loads(self._vm(sys.executable, *words))
        return attempts, lost


def ratios(measure: Callable[[str], float], arms: tuple[str, ...], to: str) -> dict[str, tuple[float, float]]:
    """By arm: the median of the rounds' ratios to `to`, and the median itself."""
    found: dict[str, list[float]] = {arm: [] for arm in arms}
    for _round in range(ROUNDS):
        for arm in random.sample(arms, len(arms)):
            found[arm].append(measure(arm))
    return {
        arm: (
            statistics.median(a / b for a, b in zip(values, found[to], strict=True)),
            statistics.median(values),
        )
        for arm, values in found.items()
    }


def rows_of(bench: Bench) -> list[tuple[str, str, str, str]]:
    rows: list[tuple[str, str, str, str]] = []
    kinds = (("upload", bench.upload), ("download", bench.download), ("connections", bench.connections))
    for kind, measure in kinds:
        say(kind)
        found = ratios(measure, (PLAIN, AGAIN, SKOUTER, DNSMASQ), PLAIN)
        again, ours, theirs = (found[arm][0] for arm in (AGAIN, SKOUTER, DNSMASQ))
        void = "" if 0.95 <= again <= 1.05 else ": void"
        witness = f"A/A {again:.3f}{void}, {_human(found[SKOUTER][1])}"
        rows.append((f"{kind}, skouter / plain NAT", f"{ours:.3f}", witness, "at least 0.95"))
        rows.append((f"{kind}, skouter / dnsmasq --nftset", f"{ours / theirs:.3f}", "", "at least 1"))
    say("HTTPS")
    found = ratios(bench.https, (SKOUTER, CONNECT, SPLICE), SKOUTER)
    for arm in (CONNECT, SPLICE):
        figure = f"{1 / found[arm][0]:.1f}"
        witness = f"{_human(found[SKOUTER][1])} / {_human(found[arm][1])}"
        rows.append((f"HTTPS download, skouter / {arm}", figure, f"{witness} bytes/s", "at least 5"))
    found = ratios(bench.tunnel, (SKOUTER, CONNECT), SKOUTER)
    figure = f"{1 / found[CONNECT][0]:.1f}"
    witness = f"{_human(found[SKOUTER][1])} / {_human(found[CONNECT][1])} bytes/s"
    rows.append((f"the same without encryption, skouter / {CONNECT}", figure, witness, "at least 5"))
    for title, name, limit in (("fresh names", "f{}.example.com", FRESH), ("a name of TTL 1", SHORT, KEPT)):
        say(title)
        for arm in (SKOUTER, DNSMASQ, TIMED):
            attempts, lost = bench.lost(arm, name, limit)
            aim = "0" if arm == SKOUTER else "reported"
            rows.append(
                (f"connections lost after an answer, {title}, {arm}", str(lost), f"of {attempts}", aim)
            )
    return rows


def _human(figure: float) -> str:
    for unit, letter in ((1e9, " G"), (1e6, " M")):
        if figure > unit:
            return f"{figure / unit:.2f}{letter}"
    return f"{figure:.0f}"


def main() -> None:
    began = time.monotonic()
    with ExitStack() as held:
        rows = rows_of(Bench(held))
    write(rows, OUT, "Bench of gateways")
    say(f"{time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()
