"""Gateways that run Skouter as their units do: unbound with the configuration that it prints, and the agent.

Rules this file obeys:

- An agent looks after a cgroup of its own, which is empty: the lab's machine is not its host.
- All gateways have the same policies, in one folder, and the same key.
"""

from __future__ import annotations

import base64
import json
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gateway import cgroups
from tests.gateway.lab import CLIENTS, DNS4, PUBLIC4, Gateway, GatewayLab
from tests.topology import PATIENCE, SKOUTER, end, wait_for

HEALTH, PEERS = 9808, 7946
FLOOR, GRACE = 60, 60  # seconds

# vm1 and vm2 by their labels, vm3 by its address alone; nothing says who the stray is.
POLICIES = """
apiVersion: egress.skouter/v1alpha1
kind: ExternalWorkload
metadata: {name: vm1, labels: {app: web}}
spec: {addresses: [10.20.0.11, "fd00:20::11"]}
---
apiVersion: egress.skouter/v1alpha1
kind: ExternalWorkload
metadata: {name: vm2, labels: {app: build}}
spec: {addresses: [10.20.0.12, "fd00:20::12"]}
---
apiVersion: egress.skouter/v1alpha1
kind: ClusterEgress
metadata: {name: web}
spec:
  workloadSelector: {matchLabels: {app: web}}
  rules:
    - domains: [example.com, "*.example.com"]
      ports: [{port: 80}, {port: 81}, {port: 82}]
    - domains: [time.example.net]
      ports: [{port: 7, protocol: UDP}]
    - cidrs: [203.0.113.0/24, "2001:db8:113::/48"]
      ports: [{port: 80}, {port: 81}, {port: 82}, {port: 7, protocol: UDP}, {protocol: ICMP}]
---
apiVersion: egress.skouter/v1alpha1
kind: ClusterEgress
metadata: {name: build}
spec:
  workloadSelector: {matchLabels: {app: build}}
  dns: {onlyAllowedNames: true}
  rules:
    - domains: [example.net]
      ports: [{port: 80}, {port: 443}]
---
apiVersion: egress.skouter/v1alpha1
kind: ClusterEgress
metadata: {name: by-address}
spec:
  sourceCIDRs: [10.20.0.13/32, "fd00:20::13/128"]
  rules:
    - cidrs: [198.51.100.0/26, "2001:db8:51::/122"]
      ports: [{port: 80}, {port: 443}]
"""


class Gate:
    """Skouter on one gateway; it lives as long as the machine at most."""

    def __init__(self, gateway: Gateway, settings: dict[str, Any] | None = None) -> None:
        """`settings` take the place of those of :func:`configuration`; None leaves one out."""
        self.gateway, folder = gateway, gateway.folder
        self.config, self.log = folder / "gateway.yaml", folder / "log"
        self.root = cgroups.hierarchy() / f"{gateway.instance}-host"
        self.root.mkdir(exist_ok=True)
        said = configuration(gateway) | (settings or {})
        self.config.write_text(json.dumps({key: value for key, value in said.items() if value is not None}))
        self.resolver = self._resolve()
        self.agent = self.start()

    def command(self, *words: object) -> list[str]:
        setting = f"SKOUTER_INSTANCE={self.gateway.instance}"
        return self.gateway.here.command("env", setting, SKOUTER, *words)

    def _resolve(self) -> subprocess.Popen[str]:
        folder = self.gateway.folder
        done = subprocess.run(
            self.command("gateway", "--config", self.config, "--unbound"), capture_output=True, text=True
        )
        assert not done.returncode, done.stderr
        # Who becomes another user is no longer killed with its parent (prctl(2), PR_SET_PDEATHSIG).
        (folder / "unbound.conf").write_text(f'{done.stdout}server:\n  username: ""\n')
        program = folder / "unbound"  # AppArmor's profile would keep the one of /usr/sbin out of the folder
        shutil.copy(str(shutil.which("unbound")), program)
        return self.gateway.here.start(
            program, "-d", "-c", folder / "unbound.conf", stderr=(folder / "resolver.log").open("w")
        )

    def start(self) -> subprocess.Popen[str]:
        """Does not wait until it is ready."""
        words = ("gateway", "--config", self.config, "--root", f"/{self.root.name}")
        with self.log.open("a") as said:
            self.agent = subprocess.Popen(self.command(*words), stderr=said, text=True)
        return self.agent

    def restart(self) -> None:
        self.start()
        self.wait_until_ready()

    def probe(self, path: str = "/readyz") -> tuple[int, str]:
        """Status and text, asked for by the router as by a load balancer; status 0: nobody answers."""
        url = f"http://{self.gateway.inside4}:{HEALTH}{path}"
        words = ("curl", "-s", "-m", "2", "-w", "\n%{http_code}", url)
        text, _, status = self.gateway.lab.router.run(*words).stdout.rpartition("\n")
        return int(status or 0), text

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            assert self.agent.poll() is None, self.said()
            return self.probe()[0] == 200

        try:
            wait_for(ready, f"{self.gateway.name} ready", 90)
        except TimeoutError as error:
            raise TimeoutError(f"{error}: {self.probe()}, {self.said()}") from None

    def said(self) -> str:
        return self.log.read_text()

    def kill(self) -> None:
        """The agent alone, without a word."""
        self.agent.kill()
        self.agent.wait()

    def status(self) -> dict[str, Any]:
        out = subprocess.run(self.command("status", "-o", "json"), capture_output=True, text=True, check=True)
        return dict(json.loads(out.stdout))

    def metrics(self) -> str:
        return self.probe("/metrics")[1]

    def close(self) -> None:
        if self.agent.poll() is None:
            self.agent.kill()
            self.agent.wait()
        end(self.resolver)
        self.root.rmdir()


class Gates:
    """All gateways of a lab with Skouter on them, ready, and the VMs led there."""

    def __init__(self, lab: GatewayLab, policies: str = POLICIES, **settings: Any) -> None:
        self.lab, self.settings = lab, settings
        self.policies = lab.folder / "policies"
        self.policies.mkdir(exist_ok=True)
        self.write(policies)
        key_of(lab).write_text(base64.b64encode(secrets.token_bytes(32)).decode())
        lab.trust(
            PUBLIC4
        )  # captured, by the gateway to which the connections go, too: it knows before they come
        self.by_name: dict[str, Gate] = {}
        self.boot(lab.gateways)
        lab.lead()

    def __getitem__(self, gateway: Gateway) -> Gate:
        return self.by_name[gateway.name]

    def write(self, policies: str) -> None:
        """As a careful editor does: whole."""
        new = self.lab.folder / "new.yaml"
        new.write_text(policies)
        new.rename(self.policies / "all.yaml")

    def boot(self, gateways: Sequence[Gateway]) -> None:
        """Skouter on machines that have none, until it is ready."""
        made = [Gate(gateway, self.settings) for gateway in gateways]
        self.by_name |= {gate.gateway.name: gate for gate in made}
        for gate in made:
            gate.wait_until_ready()

    def die(self, gateway: Gateway) -> None:
        """The machine, with all on it."""
        gate = self.by_name.pop(gateway.name)
        gateway.die()
        gate.close()

    def close(self) -> None:
        for gate in self.by_name.values():
            gate.close()


@contextmanager
def gated(lab: GatewayLab, policies: str = POLICIES, **settings: Any) -> Iterator[Gates]:
    """Skouter on all gateways of the lab, until the block ends."""
    made = Gates(lab, policies, **settings)
    try:
        yield made
    finally:
        made.close()


class Router:
    """`skouter route` on the lab's router: who is dead, it finds out by itself."""

    def __init__(self, lab: GatewayLab, spread: str) -> None:
        self.lab = lab
        self.config, self.log = lab.folder / "route.yaml", lab.folder / "route.log"
        said = {
            "inside": ["vms", "strays"],
            "clients": list(CLIENTS),
            "gateways": [{"addresses": [each.inside4, each.inside6]} for each in lab.gateways],
            "hash": {"source": "source", "connection": "flow"}[spread],
            "probe": {"port": HEALTH, "seconds": 1, "fall": 1},
            "buckets": 64,
            "idleSeconds": 1,
        }
        self.config.write_text(json.dumps(said))
        with self.log.open("w") as log:
            self.process = subprocess.Popen(self._command("--config", self.config), stderr=log, text=True)
        wait_for(self._leads, f"the router's groups: {self.log.read_text()}", 30)

    def _command(self, *words: object) -> list[str]:
        setting = f"SKOUTER_INSTANCE={self.lab.name}-router"
        return self.lab.router.command("env", setting, SKOUTER, "route", *words)

    def _leads(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        rules = "".join(self.lab.router.checked("ip", family, "rule", "show") for family in ("-4", "-6"))
        return all(client in rules for client in CLIENTS)

    def knows(self, gateway: Gateway, state: str) -> None:
        """Waits until it has found out that the gateway is dead, or alive."""

        def told() -> bool:
            lines = [line for line in self.log.read_text().splitlines() if f" {gateway.inside4} is " in line]
            return bool(lines) and lines[-1].endswith(state)

        wait_for(told, f"{gateway.name} {state}: {self.log.read_text()}", 30)

    def close(self) -> None:
        end(self.process)
        subprocess.run(self._command("--undo", "--config", self.config), check=True, capture_output=True)


@contextmanager
def routed(lab: GatewayLab, spread: str) -> Iterator[Router]:
    """The VMs are led by `skouter route` until the block ends, and by nobody then."""
    lab.let_go()
    made = Router(lab, spread)
    try:
        yield made
    finally:
        made.close()


def key_of(lab: GatewayLab) -> Path:
    return lab.folder / "peer.key"


def configuration(gateway: Gateway) -> dict[str, Any]:
    """gateway.yaml, as JSON, which YAML is, too."""
    lab = gateway.lab
    return {
        **({} if lab.one_armed else {"inside": "inside", "outside": "outside"}),
        "clients": list(CLIENTS),
        "policies": str(lab.folder / "policies"),
        "floor": FLOOR,
        "grace": GRACE,
        "dns": {"upstreams": [DNS4]},
        "peers": {
            "listen": f"{gateway.inside4}:{PEERS}",
            "members": [each.inside4 for each in lab.gateways],
            "keyFile": str(key_of(lab)),
            "dumpSeconds": 2,
        },
        "health": {"address": "0.0.0.0", "port": HEALTH},
        "drainSeconds": 3,
    }


def stopped(gate: Gate) -> int:
    """The agent told to end as a manager does it; its exit status."""
    gate.agent.send_signal(signal.SIGTERM)
    return gate.agent.wait(60 * PATIENCE)
