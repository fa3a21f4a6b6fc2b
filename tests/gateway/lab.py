"""The lab of the gateway's tests, demo and bench: ten machines made of namespaces.

    vm1  10.20.0.11  fd00:20::11 ─┐               ┌─ gw1 ─┐              outside
    vm2  10.20.0.12  fd00:20::12 ─┤               │       │            ┌─────────────────────────────────┐
    vm3  10.20.0.13  fd00:20::13 ─┼── router ─────┼─ gw2 ─┼────────────┤ 192.0.2.2       2001:db8:2::2   │
    stray 10.20.9.9 fd00:20:9::9 ─┘  10.10.0.254  │       │            │ DNS  192.0.2.53 2001:db8:2::53  │
                                     fd00:10::254 └─ gw3 ─┘            │ sites  198.51.100/24 and        │
                        inside 10.10.0.N          outside 192.0.2.1N   │   2001:db8:51::/48 answer HTTP  │
                               fd00:10::N                2001:db8:2::1N└───────────────┬─────────────────┘
                                                                                   MTU 1300
                                                                          far  203.0.113/24  2001:db8:113::/48

With one arm, gateways and router stand on the outside's network: 192.0.2.1N and 192.0.2.254 (::fe) there.

The router leads what comes from VMs to the gateways by a resilient next-hop group, each source to one of
them or each connection (`spread`). Nobody outside has a route to the VMs: only what a gateway translates is
answered.

Rules this file obeys:

- All that tests/topology.py says of namespaces: they end with this process, even after a crash.
- Bridges and gateways have addresses of their own: else a bridge's would change with its ports, and every
  neighbour's memory be wrong.
- A gateway's death is a machine's: its processes, connections and kernel state are gone, and nobody is told.
- What a gateway does is said by who starts it: lab.py only wires, so that plain NAT can be measured, too.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.network.daemon import Program
from tests.network.workload import python
from tests.topology import HERE, PREFIX, LabError, Namespace, Unbound, end, lacking, remove_instance, sweep

DNS4, DNS6 = "192.0.2.53", "2001:db8:2::53"
PUBLIC4, PUBLIC6 = "198.51.100.88", "2001:db8:51::88"  # as 8.8.8.8: outside, DNS that no gateway gives
CLIENTS = ("10.20.0.0/16", "fd00:20::/32")
VMS = {"vm1": ("10.20.0.11", "fd00:20::11"), "vm2": ("10.20.0.12", "fd00:20::12")}
VMS |= {"vm3": ("10.20.0.13", "fd00:20::13"), "stray": ("10.20.9.9", "fd00:20:9::9")}
FAR4, FAR6, FAR_MTU = "203.0.113.10", "2001:db8:113::10", 1300
TABLE, GROUP, BUCKETS, IDLE = 100, 100, 64, 1
FIELDS = {"source": 0x1, "connection": 0x37}  # of ip-sysctl.rst: source address alone, or the 5-tuple

SITES = ("198.51.100.0/24", "2001:db8:51::/48")
ZONE = {
    "example.com": ("198.51.100.10", "2001:db8:51::10"),
    "www.example.com": ("198.51.100.11", "2001:db8:51::11"),
    "a.b.example.com": ("198.51.100.12", "2001:db8:51::12"),
    "evilexample.com": ("198.51.100.13", "2001:db8:51::13"),
    "example.net": ("198.51.100.20", "2001:db8:51::20"),
    "example.org": ("198.51.100.30", "2001:db8:51::30"),
    "time.example.net": ("198.51.100.40", "2001:db8:51::40"),
    "far.example.com": (FAR4, FAR6),
    "gateway.probe": ("192.0.2.2",),
}

ROUTER = """
    link set lo up
    link add vms type bridge
    link add strays type bridge
    link add gates address 02:00:00:00:00:fe type bridge
    link set vms up
    link set strays up
    link set gates up
    addr add 10.20.0.1/24 dev vms
    addr add fd00:20::1/64 dev vms nodad
    addr add 10.20.9.1/24 dev strays
    addr add fd00:20:9::1/64 dev strays nodad
    addr add 10.10.0.254/24 dev gates
    addr add fd00:10::254/64 dev gates nodad
"""
OUTSIDE = f"""
    link set lo up
    link add gates address 02:00:00:00:01:fe type bridge
    link set gates up
    addr add 192.0.2.2/24 dev gates
    addr add {DNS4}/24 dev gates
    addr add 192.0.2.54/24 dev gates
    addr add 2001:db8:2::2/64 dev gates nodad
    addr add {DNS6}/64 dev gates nodad
    link set far up
    addr add 198.18.0.1/30 dev far
    addr add 2001:db8:f::1/64 dev far nodad
    route add 203.0.113.0/24 via 198.18.0.2 mtu lock {FAR_MTU}
    route add 2001:db8:113::/48 via 2001:db8:f::2 mtu lock {FAR_MTU}
""" + "\n".join(f"    route add local {network} dev lo" for network in SITES)
FAR = """
    link set lo up
    link set eth0 up
    addr add 198.18.0.2/30 dev eth0
    addr add 2001:db8:f::2/64 dev eth0 nodad
    addr add 192.0.2.54/32 dev lo
    route add local 203.0.113.0/24 dev lo
    route add local 2001:db8:113::/48 dev lo
    route add default via 198.18.0.1
    route add default via 2001:db8:f::1
"""
# Of the whole machine it stands in: loose, no redirects, nothing of DAD's waiting.
FORWARDS = (
    *(
        f"net.ipv4.conf.{which}.{key}=0"
        for which in ("all", "default")
        for key in ("rp_filter", "send_redirects")
    ),
    *("net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1", "net.ipv6.conf.default.accept_dad=0"),
)


# What a gateway's own interfaces are, when the machine has booted.
TWO_ARMS = """
    link set lo up
    link set inside up
    link set outside up
    addr add 10.10.0.{n}/24 dev inside
    addr add fd00:10::{n}/64 dev inside nodad
    addr add 192.0.2.1{n}/24 dev outside
    addr add 2001:db8:2::1{n}/64 dev outside nodad
    route add 10.20.0.0/16 via 10.10.0.254
    route add fd00:20::/32 via fd00:10::254
    route add default via 192.0.2.2
    route add default via 2001:db8:2::2
"""
ONE_ARM = """
    link set lo up
    link set outside up
    addr add 192.0.2.1{n}/24 dev outside
    addr add 2001:db8:2::1{n}/64 dev outside nodad
    route add 10.20.0.0/16 via 192.0.2.254
    route add fd00:20::/32 via 2001:db8:2::fe
    route add default via 192.0.2.2
    route add default via 2001:db8:2::2
"""
ROUTER_OUTSIDE = """
    link set wan up
    addr add 192.0.2.254/24 dev wan
    addr add 2001:db8:2::fe/64 dev wan nodad
"""


class Gateway:
    """One gateway's machine, which can die and be booted again; a service is what runs on it."""

    def __init__(self, lab: GatewayLab, number: int) -> None:
        self.lab, self.number, self.name = lab, number, f"gw{number}"
        self.outside4, self.outside6 = f"192.0.2.1{number}", f"2001:db8:2::1{number}"
        self.inside4, self.inside6 = f"10.10.0.{number}", f"fd00:10::{number}"
        if lab.one_armed:
            self.inside4, self.inside6 = self.outside4, self.outside6
        self.instance = f"{lab.name}-{self.name}"
        self.folder = lab.folder / self.name
        self.services: list[AbstractContextManager[Any]] = []
        self.machine: Namespace | None = None

    @property
    def here(self) -> Namespace:
        assert self.machine is not None, f"{self.name} is dead"
        return self.machine

    def boot(self) -> None:
        """A machine that knows nothing, with both cables in."""
        self.machine = machine = Namespace(self.name)
        for segment, (there, name) in enumerate(self.cables()):
            card = f"02:00:00:00:0{segment}:0{self.number}"  # neighbours remember it
            there.ip(f"""
                link add {self.name} type veth peer name {name} address {card} netns {machine.holder.pid}
                link set {self.name} master gates
                link set {self.name} up
            """)
        machine.checked("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0")
        machine.ip(ONE_ARM.format(n=self.number) if self.lab.one_armed else TWO_ARMS.format(n=self.number))
        self.folder.mkdir()

    def cables(self) -> list[tuple[Namespace, str]]:
        """Where the other end of each is, and its name here."""
        outside = (self.lab.outside, "outside")
        return [outside] if self.lab.one_armed else [(self.lab.router, "inside"), outside]

    def die(self) -> None:
        """As when the power fails."""
        for there, _ in self.cables():  # at the other ends: it is not to find another way for anything
            there.ip(f"link set {self.name} down")
        for process in self.processes():
            os.kill(process, 9)
        for there, _ in self.cables():
            there.run("ip", "link", "del", self.name)
        self.here.close()
        self.machine = None
        remove_instance(self.instance)
        shutil.rmtree(self.folder, ignore_errors=True)

    def processes(self) -> list[int]:
        """What runs on it, but for the holder of the namespace."""
        mine = Path(f"/proc/{self.here.holder.pid}/ns/net").stat().st_ino
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.here.holder.pid:
                try:
                    if (entry / "ns/net").stat().st_ino == mine:
                        found.append(int(entry.name))
                except OSError:
                    continue
        return found


class GatewayLab(AbstractContextManager["GatewayLab"]):
    """All the machines; the gateways are booted and do nothing yet."""

    def __init__(self, gateways: int = 3, one_armed: bool = False) -> None:
        if needed := lacking():
            raise LabError(f"the lab needs {needed}")
        sweep()
        self.name = f"{PREFIX}-{os.getpid()}-{secrets.token_hex(3)}"
        self.folder = Path("/tmp", self.name)
        self.spread, self.one_armed = "source", one_armed
        self._programs: dict[str, Program] = {}
        with ExitStack() as undo:
            undo.callback(shutil.rmtree, self.folder, ignore_errors=True)
            self.folder.mkdir(mode=0o755)
            self.router, self.outside, self.far = (
                self._machine(undo, n) for n in ("router", "outside", "far")
            )
            self.vms = {name: self._machine(undo, name) for name in VMS}
            self._wire()
            self.gateways = [Gateway(self, number + 1) for number in range(gateways)]
            undo.callback(self._end_gateways)
            for gateway in self.gateways:
                gateway.boot()
            self.dns = Unbound(self.outside, self.folder / "dns", (DNS4, DNS6))
            undo.callback(self.dns.close)
            self.dns.add((name, address, 60) for name, addresses in ZONE.items() for address in addresses)
            for machine in (self.outside, self.far):
                for program in (HERE / "network" / "servers.py", HERE / "gateway" / "sites.py"):
                    undo.callback(end, self._serve(machine, program))
            self._undo = undo.pop_all()

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def _end_gateways(self) -> None:
        for gateway in self.gateways:
            if gateway.machine:
                gateway.die()

    # ---- Machines

    def _machine(self, undo: ExitStack, name: str) -> Namespace:
        conf = None
        if name in VMS:
            conf = self.folder / f"{name}.conf"
            conf.write_text("")
        machine = Namespace(name, conf)
        undo.callback(machine.close)
        return machine

    def _wire(self) -> None:
        for machine in (self.router, self.outside):
            machine.checked("sysctl", "-qw", *FORWARDS)
        self.outside.checked("sysctl", "-qw", "net.ipv6.ip_nonlocal_bind=1", "net.core.somaxconn=8192")
        self.far.ip(f"link add eth0 type veth peer name far netns {self.outside.holder.pid}")
        self.router.ip(ROUTER)
        self.outside.ip(OUTSIDE)
        if self.one_armed:
            self.router.ip(f"link add wan type veth peer name wan netns {self.outside.holder.pid}")
            self.outside.ip("link set wan master gates\nlink set wan up")
            self.router.ip(ROUTER_OUTSIDE)
        self.far.checked("sysctl", "-qw", "net.ipv6.ip_nonlocal_bind=1", "net.ipv4.ip_nonlocal_bind=1")
        self.far.ip(FAR)
        for name, (four, six) in VMS.items():
            bridge = "strays" if name == "stray" else "vms"
            first4, first6 = four.rsplit(".", 1)[0] + ".1", six.rsplit("::", 1)[0] + "::1"
            self.vms[name].ip(f"link add eth0 type veth peer name {name} netns {self.router.holder.pid}")
            self.router.ip(f"link set {name} master {bridge}\nlink set {name} up")
            self.vms[name].ip(f"""
                link set lo up
                link set eth0 up
                addr add {four}/24 dev eth0
                addr add {six}/64 dev eth0 nodad
                route add default via {first4}
                route add default via {first6}
            """)

    def _serve(self, machine: Namespace, program: Path) -> subprocess.Popen[str]:
        servers = machine.start(sys.executable, program, stdout=subprocess.PIPE)
        assert servers.stdout is not None
        if servers.stdout.readline() != "ready\n":
            raise LabError("the web sites do not start")
        return servers

    def trust(self, *resolvers: str) -> None:
        """What every VM's /etc/resolv.conf says."""
        text = "".join(f"nameserver {address}\n" for address in resolvers)
        for name in VMS:
            (self.folder / f"{name}.conf").write_text(f"{text}options timeout:2 attempts:2\n")

    # ---- What is done in a VM

    def do(self, vm: str, code: str, *arguments: object, timeout: float = 60) -> Any:
        """What a program in the VM tells (tests/network/workload.py)."""
        done = self.vms[vm].run(*python(code), *arguments, timeout=timeout)
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def inside(self, vm: str, expression: str) -> Any:
        """What an expression of workload.py is in the VM, in a process that stays there."""
        if vm not in self._programs:
            running = self._undo.enter_context(self.program(self.vms[vm], *python(Program.LOOP)))
            self._programs[vm] = Program(running)
        return self._programs[vm](expression)

    @contextmanager
    def program(self, machine: Namespace, *words: object) -> Iterator[subprocess.Popen[str]]:
        """A process with pipes, ended with the block."""
        process = machine.start(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        try:
            yield process
        finally:
            end(process)

    # ---- The router

    def lead(self, gateways: Iterable[Gateway] | None = None, spread: str | None = None) -> None:
        """By hand what `skouter route` does: VMs' packets to these gateways, by a resilient group."""
        self.spread = spread or self.spread
        members, device = list(self.gateways if gateways is None else gateways), self.device
        for version in (4, 6):
            self.router.checked(
                *("sysctl", "-qw", f"net.ipv{version}.fib_multipath_hash_policy=3"),
                f"net.ipv{version}.fib_multipath_hash_fields={FIELDS[self.spread]}",
            )
            for each in members:
                via = each.inside4 if version == 4 else each.inside6
                self._route(
                    version, f"nexthop replace id {10 * each.number + version} via {via} dev {device}"
                )
            ids = "/".join(str(10 * each.number + version) for each in members)
            kind = f"type resilient buckets {BUCKETS} idle_timer {IDLE}"
            group = f"nexthop replace id {GROUP + version} group {ids} {kind}"
            self.router.checked("ip", *group.split())
            self._route(version, f"route replace default nhid {GROUP + version} table {TABLE}")
            if f"{TABLE}:" not in self._route(version, "rule show"):
                self._route(version, "rule add pref 90 lookup main suppress_prefixlength 0")
                self._route(version, f"rule add pref {TABLE} from {CLIENTS[version == 6]} lookup {TABLE}")

    def let_go(self) -> None:
        """Undoes what :meth:`lead` did."""
        for version in (4, 6):
            self._route(version, f"rule del pref {TABLE}")
            self._route(version, "rule del pref 90")

    @property
    def device(self) -> str:
        """The router's interface to the gateways."""
        return "wan" if self.one_armed else "gates"

    def _route(self, version: int, words: str) -> str:
        return self.router.checked("ip", f"-{version}", *words.split())

    def gateway_of(self, vm: str, version: int = 4) -> Gateway:
        """Whom the router leads this VM's packets to; with `spread` by connection, those without ports."""
        source, to = VMS[vm][version == 6], ZONE["example.com"][version == 6]
        bridge = "strays" if vm == "stray" else "vms"
        (route,) = json.loads(self._route(version, f"-j route get {to} from {source} iif {bridge}"))
        via = route.get("gateway") or route["via"]["host"]
        return next(g for g in self.gateways if via in (g.inside4, g.inside6))
