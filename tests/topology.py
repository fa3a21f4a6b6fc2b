"""The lab of every network test and of the demo: three machines made of namespaces.

      pod                          node (forwards)                      world
    ┌──────────────────┐         ┌──────────────────────┐         ┌────────────────────────────────────┐
    │ 10.1.0.2         ├─ veth ──┤ 10.1.0.1   192.0.2.1 ├─ veth ──┤ 192.0.2.2       2001:db8:2::2      │
    │ fd01::2          │         │ fd01::1  2001:db8:2::1│        │ DNS  192.0.2.53 2001:db8:2::53     │
    │                  │         │                      │         │      unbound; its zone can change  │
    │ /etc/resolv.conf │         └──────────────────────┘         │      192.0.2.54, odd on purpose    │
    │ of its own       │                                          │ sites  every address of 10.200/16, │
    │ skouter run ...  │                                          │   198.51.100/24, 2001:db8:51::/48, │
    └──────────────────┘                                          │   169.254.169.254 answers HTTP     │
                                                                  └────────────────────────────────────┘

Rules this file obeys:

- A namespace lives as long as its holder, a `cat` whose input ends with this process. What runs inside is
  killed by the kernel when this process dies (PR_SET_PDEATHSIG). So even a crash leaves no namespace behind.
- The engine runs as an instance of its own. What a crash leaves of that carries this process's pid in its
  name and is swept by the next lab; labs of several processes may be there at once, and sweep in turn.
- The pod has a mount namespace for its resolv.conf, in which cgroupfs and bpffs are still to be seen
  (`ip netns exec` would hide them).
- Nothing is waited for by the clock alone.
"""

from __future__ import annotations

import fcntl
import ipaddress
import itertools
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from gateway import cgroups, place, removal

PREFIX = "skouter-lab"
HERE = Path(__file__).parent
SKOUTER = Path(sys.executable).parent / "skouter"
PATIENCE = float(os.environ.get("SKOUTER_TEST_PATIENCE", "1"))  # how many times longer all may take
TOOLS = ("unbound", "unbound-control", "ip", "nsenter", "unshare", "setpriv", "sysctl")

DNS4, DNS6 = "192.0.2.53", "2001:db8:2::53"
ODD = "192.0.2.54"  # a DNS server that does what the test asks it for: network/servers.py
ATTACKER = "192.0.2.66"  # another host of the world
SITES = ("10.200.0.0/16", "198.51.100.0/24", "169.254.169.254/32", "2001:db8:51::/48")

NETWORK = {
    "pod": """
        link set lo up
        link set eth0 up
        addr add 10.1.0.2/24 dev eth0
        addr add fd01::2/64 dev eth0 nodad
        route add default via 10.1.0.1
        route add default via fd01::1
    """,
    "node": """
        link set lo up
        link set pod up
        link set world up
        addr add 10.1.0.1/24 dev pod
        addr add fd01::1/64 dev pod nodad
        addr add 192.0.2.1/24 dev world
        addr add 2001:db8:2::1/64 dev world nodad
        route add default via 192.0.2.2
        route add default via 2001:db8:2::2
    """,
    "world": f"""
        link set lo up
        link set eth0 up
        addr add 192.0.2.2/24 dev eth0
        addr add {DNS4}/24 dev eth0
        addr add {ODD}/24 dev eth0
        addr add {ATTACKER}/24 dev eth0
        addr add 2001:db8:2::2/64 dev eth0 nodad
        addr add {DNS6}/64 dev eth0 nodad
        route add 10.1.0.0/24 via 192.0.2.1
        route add fd01::/64 via 2001:db8:2::1
    """
    + "\n".join(f"route add local {network} dev lo" for network in SITES),
}

UNBOUND = """
server:
  {interfaces}
  access-control: 0.0.0.0/0 allow
  access-control: ::/0 allow
  chroot: ""
  directory: "{folder}"
  pidfile: "{folder}/pid"
  username: ""
  use-syslog: no
  logfile: "{folder}/log"
  do-daemonize: no
  do-not-query-localhost: no
  module-config: "iterator"
  num-threads: 1
  so-reuseport: no
  rrset-roundrobin: no
  minimal-responses: yes
  {zone}
remote-control:
  control-enable: yes
  control-interface: "{folder}/control"
  control-use-cert: no
{forward}
"""


class LabError(Exception):
    """The lab can't be built here; the message says why."""


def lacking() -> str:
    """What the lab can't do without and doesn't have here, if anything."""
    if os.geteuid():
        return "root: namespaces, cgroups and BPF"
    missing = [tool for tool in TOOLS if not shutil.which(tool)]
    return f"{', '.join(missing)}: run 'make test'" if missing else ""


def wait_for(condition: Callable[[], Any], what: str, seconds: float = 10) -> Any:
    """The first true value of `condition`."""
    deadline = time.monotonic() + seconds * PATIENCE
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {seconds} s")
        time.sleep(0.01)
    return found


class Namespace:
    """A machine: a network and a mount namespace of its own."""

    def __init__(self, name: str, resolv_conf: Path | None = None) -> None:
        self.name = name
        mount = f"mount --bind {resolv_conf} /etc/resolv.conf &&" if resolv_conf else ""
        self.holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "sh", "-c", f"{mount} echo ready; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self.holder.stdout is not None
        if self.holder.stdout.readline() != b"ready\n":
            raise LabError(f"no namespace for {name}: is this root on a whole machine?")

    def command(self, *argv: object) -> list[str]:
        """`argv` as it is run from outside; it replaces the nsenter, whose pid it has."""
        enter = ["nsenter", "--target", str(self.holder.pid), "--net", "--mount"]
        return [*enter, "setpriv", "--pdeathsig", "KILL", "--", *map(str, argv)]

    def run(self, *argv: object, timeout: float = 30, **options: Any) -> subprocess.CompletedProcess[str]:
        """Its output is captured; a status that is not 0 is for the caller to judge."""
        limit = timeout * PATIENCE
        return subprocess.run(
            self.command(*argv), **{"capture_output": True, "text": True, "timeout": limit, **options}
        )

    def start(self, *argv: object, **options: Any) -> subprocess.Popen[str]:
        return subprocess.Popen(self.command(*argv), **{"text": True, "start_new_session": True, **options})

    def checked(self, *argv: object, **options: Any) -> str:
        done = self.run(*argv, **options)
        if done.returncode:
            raise LabError(f"{self.name}: {' '.join(map(str, argv))}: {done.stderr or done.stdout}")
        return done.stdout

    def ip(self, lines: str) -> None:
        self.checked("ip", "-batch", "-", input=lines)

    def close(self) -> None:
        assert self.holder.stdin is not None
        assert self.holder.stdout is not None
        self.holder.stdin.close()
        self.holder.wait(60)
        self.holder.stdout.close()


class Unbound:
    """A real DNS server, whose zone can be changed as it runs; or a forwarder to another."""

    def __init__(self, where: Namespace, folder: Path, addresses: Iterable[str], forward: str = "") -> None:
        self.where, self.config = where, folder / "unbound.conf"
        folder.mkdir()
        # AppArmor's profile for /usr/sbin/unbound would keep it out of our folder: a copy is not held to it.
        self.program = folder / "unbound"
        shutil.copy(str(shutil.which("unbound")), self.program)
        self.config.write_text(
            UNBOUND.format(
                folder=folder,
                interfaces="\n  ".join(f"interface: {address}" for address in addresses),
                zone="cache-max-ttl: 0" if forward else 'local-zone: "." static',
                forward=f'forward-zone:\n  name: "."\n  forward-addr: {forward}' if forward else "",
            )
        )
        self.process = where.start(self.program, "-c", self.config, stderr=subprocess.DEVNULL)
        wait_for(self._answers, "unbound")

    def _answers(self) -> bool:
        if self.process.poll() is not None:
            raise LabError(f"unbound ended with status {self.process.returncode}")
        return self.where.run("unbound-control", "-c", self.config, "status").returncode == 0

    def control(self, *words: str, text: str = "") -> None:
        self.where.checked("unbound-control", "-c", self.config, *words, input=text)

    def set(self, name: str, *addresses: str, ttl: int = 60) -> None:
        """The name has these addresses from now on, and no others."""
        self.control("local_data_remove", name)
        self.add((name, address, ttl) for address in addresses)

    def add(self, records: Iterable[tuple[str, str, int]]) -> None:
        """(name, address, TTL), many at once."""
        lines = (f"{name}. {ttl} IN {_type(address)} {address}\n" for name, address, ttl in records)
        self.control("local_datas", text="".join(lines))

    def close(self) -> None:
        end(self.process)


def _type(address: str) -> str:
    return "A" if ipaddress.ip_address(address).version == 4 else "AAAA"


class Lab(AbstractContextManager["Lab"]):
    """The three machines with all that runs in them; also the instance of the engine to be used there."""

    def __init__(self) -> None:
        if needed := lacking():
            raise LabError(f"the lab needs {needed}")
        sweep()
        self.instance = f"{PREFIX}-{os.getpid()}-{secrets.token_hex(3)}"
        self.folder = Path("/tmp", self.instance)
        self.instances: list[str] = []
        self._numbers = itertools.count()
        with ExitStack() as undo:
            undo.callback(self._forget)
            self.folder.mkdir(mode=0o755)
            self.resolv_conf = self.folder / "resolv.conf"
            self.trust(DNS4)
            self.pod, self.node, self.world = (self._machine(undo, name) for name in NETWORK)
            self._wire()
            self.dns = Unbound(self.world, self.folder / "dns", (DNS4, DNS6))
            undo.callback(self.dns.close)
            self.servers = self._serve()
            undo.callback(end, self.servers)
            self._undo = undo.pop_all()

    def _machine(self, undo: ExitStack, name: str) -> Namespace:
        machine = Namespace(name, self.resolv_conf if name == "pod" else None)
        undo.callback(machine.close)
        return machine

    def _wire(self) -> None:
        node = self.node.holder.pid
        self.pod.ip(f"link add eth0 type veth peer name pod netns {node}")
        self.world.ip(f"link add eth0 type veth peer name world netns {node}")
        for machine in (self.pod, self.node, self.world):  # a new namespace has what the host has
            forwards = int(machine is self.node)
            machine.checked(
                *(
                    "sysctl",
                    "-qw",
                    f"net.ipv4.ip_forward={forwards}",
                    f"net.ipv6.conf.all.forwarding={forwards}",
                )
            )
        self.world.checked("sysctl", "-qw", "net.core.somaxconn=8192", "net.ipv4.tcp_max_syn_backlog=8192")
        self.world.checked("sysctl", "-qw", "net.ipv6.ip_nonlocal_bind=1")  # to answer from any of SITES
        for machine in (self.pod, self.node, self.world):
            machine.ip(NETWORK[machine.name])

    def _serve(self) -> subprocess.Popen[str]:
        servers = self.world.start(sys.executable, HERE / "network" / "servers.py", stdout=subprocess.PIPE)
        assert servers.stdout is not None
        if servers.stdout.readline() != "ready\n":
            raise LabError("the web sites do not start")
        return servers

    def trust(self, *resolvers: str) -> None:
        """What the pod's /etc/resolv.conf says; written in place, since it is bind-mounted."""
        text = "".join(f"nameserver {address}\n" for address in resolvers)
        self.resolv_conf.write_text(f"{text}options timeout:2 attempts:1\n")

    def another_instance(self) -> str:
        """The name of an instance that is removed with the lab, or by :meth:`remove`."""
        self.instances.append(f"{self.instance}-{next(self._numbers)}")
        return self.instances[-1]

    def remove(self, instance: str) -> None:
        """What is attached to the whole hierarchy sees every packet of this machine, and there is room for 64
        (BPF_CGROUP_MAX_PROGS): who held a host lets go of it."""
        remove_instance(instance)
        self.instances.remove(instance)

    def skouter(self, *words: object, instance: str = "", machine: Namespace | None = None) -> list[str]:
        """The command line of `skouter WORDS` in the pod, of the lab's own instance."""
        setting = f"SKOUTER_INSTANCE={instance or self.instance}"
        return (machine or self.pod).command("env", setting, SKOUTER, *words)

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def _forget(self) -> None:
        for instance in (self.instance, *self.instances):
            remove_instance(instance)
        shutil.rmtree(self.folder, ignore_errors=True)


def end(process: subprocess.Popen[Any]) -> None:
    """Ends one process that was started here, and waits for it."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        if stream:
            stream.close()


def kill_all(cgroup: Path) -> None:
    """What lives in a cgroup or below it, to its end; not by cgroup.kill, which needs Linux 5.14."""

    def is_empty() -> bool:
        for pid in cgroups.processes_below(cgroup):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not cgroups.is_populated(cgroup)

    wait_for(is_empty, f"the end of all in {cgroup}")


def remove_instance(name: str) -> None:
    """An instance of the engine with all that runs in its workloads."""
    where = place.find(name)
    if where.cgroup.is_dir():
        kill_all(where.cgroup)
    removal.uninstall(where)


def sweep() -> None:
    """What labs of processes that are no more have left."""
    folders = (place.find(PREFIX).bpffs, cgroups.hierarchy(), Path("/run"), Path("/tmp"))
    with in_turn():
        for name in {path.name for folder in folders for path in stale(folder, PREFIX)}:
            remove_instance(name)
            shutil.rmtree(Path("/tmp", name), ignore_errors=True)


@contextmanager
def in_turn() -> Iterator[None]:
    """One process at a time: two that sweep the same thing would trip over each other."""
    door = os.open("/run", os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(door, fcntl.LOCK_EX)
        yield
    finally:
        os.close(door)


def stale(folder: Path, prefix: str) -> list[Path]:
    """What is called PREFIX-PID-... after a process that is no more."""

    def is_stale(name: str) -> bool:
        pid = name.removeprefix(f"{prefix}-").split("-")[0]
        return pid.isdigit() and not Path("/proc", pid).exists()

    return [path for path in folder.glob(f"{prefix}-*") if is_stale(path.name)]
