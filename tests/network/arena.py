"""Where attacks are fought: workloads of this program, and of ones with a defence switched off (weakened.py).

Rules this file obeys:

- An attacker is an unprivileged user, with the capabilities that the attack names and no others.
- What got out is what the node saw arrive from the pod: a spy there reads every frame.
- Nothing is weakened but an instance of its own. The lab's own sees nothing of all this: workloads live to
  the end of the session.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.network.weakened import WEAKENED
from tests.network.workload import python
from tests.topology import HERE, Lab, Namespace, end
from tests.variants import CHECKOUT, variant

HOLD = HERE / "network" / "programs" / "hold.py"
NOBODY = 65534
SECONDS = 20  # that an attack may take
SPY = """
    frames = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
    frames.bind(("pod", ETH_P_ALL))
    tell("ready")
    for line in sys.stdin:
        seen, bell = [], bytes.fromhex(line)
        while True:
            packet, (_, kind, direction, *_) = frames.recvfrom(65536)
            if bell in packet:
                break
            if direction != PACKET_OUTGOING and kind in (0x800, 0x86DD):
                seen.append(packet.hex())
        tell(seen)
"""
ATTACKER = f"""
    import signal
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            signal.alarm({SECONDS})
            code, *sys.argv[1:] = json.loads(line)
            try:
                exec(code, globals())
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        print("the end", flush=True)
"""
BELL = """
    for line in sys.stdin:
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(bytes.fromhex(line), ("192.0.2.1", 9))
        tell("rung")
"""


@dataclass
class Version:
    """One version of the program: where it lies, and the instance that it runs as."""

    folder: Path
    instance: str

    @property
    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.folder), "SKOUTER_INSTANCE": self.instance}


def as_nobody(capabilities: Sequence[str], *command: object) -> list[str]:
    kept = ",".join(["-all", *(f"+{name}" for name in capabilities)])
    ids = ["--reuid", str(NOBODY), "--regid", str(NOBODY), "--clear-groups", "--no-new-privs"]
    caps = [f"--{kind}={kept}" for kind in ("inh-caps", "ambient-caps", "bounding-set")]
    return ["setpriv", *ids, *caps, "--", *map(str, command)]


@dataclass
class Workload:
    """A cgroup under a policy, in the pod; whatever is started in it is held to it."""

    lab: Lab
    version: Version
    cgroup: str
    holder: subprocess.Popen[str]
    attackers: dict[tuple[str, ...], subprocess.Popen[str]] = field(default_factory=dict)

    @contextmanager
    def started(
        self, code: str, *arguments: object, capabilities: Sequence[str] = ()
    ) -> Iterator[subprocess.Popen[str]]:
        """A program (workload.py) with pipes, ended with the block."""
        process = self._start(code, capabilities, *arguments)
        try:
            yield process
        finally:
            end(process)

    def _start(self, code: str, capabilities: Sequence[str], *arguments: object) -> subprocess.Popen[str]:
        join = 'echo $$ >"$0/cgroup.procs"; exec "$@"'
        attack = as_nobody(capabilities, *python(code), *arguments)
        return _piped(self.lab.pod, ["sh", "-c", join, self.cgroup, *attack])

    def attack(self, code: str, *arguments: object, capabilities: Sequence[str] = ()) -> list[object]:
        """What the program told, line by line, when it has ended: a child of one that waits in the cgroup."""
        waiting = self.attackers.get(tuple(capabilities))
        if waiting is None:
            self.attackers[tuple(capabilities)] = waiting = self._start(ATTACKER, capabilities)
        assert waiting.stdin is not None
        assert waiting.stdout is not None
        waiting.stdin.write(json.dumps([textwrap.dedent(code), *map(str, arguments)]) + "\n")
        waiting.stdin.flush()
        return [json.loads(line) for line in iter(waiting.stdout.readline, "the end\n")]

    def close(self) -> None:
        for process in (*self.attackers.values(), self.holder):
            assert process.stdin is not None
            process.stdin.close()
            process.wait(60)
            end(process)

    def counters(self) -> Counter[str]:
        """Packets of this policy so far, by reason."""
        assert self.holder.stdin is not None
        assert self.holder.stdout is not None
        self.holder.stdin.write("\n")
        self.holder.stdin.flush()
        return Counter(json.loads(self.holder.stdout.readline()))


@dataclass
class Arena:
    """Starts versions and workloads, each once."""

    lab: Lab
    folder: Path
    versions: dict[str, Version] = field(default_factory=dict)
    workloads: dict[tuple[object, ...], Workload] = field(default_factory=dict)

    def version(self, without: str = "") -> Version:
        """This program, or one without the defence of that name."""
        if without not in self.versions:
            made = variant(self.folder / str(len(self.versions)), WEAKENED[without]) if without else CHECKOUT
            self.versions[without] = Version(made, self.lab.another_instance())
        return self.versions[without]

    def workload(
        self,
        *rules: str,
        without: str = "",
        resolvers: Sequence[str] = (),
        audit: bool = False,
        only_allowed_names: bool = False,
        searches: Sequence[str] = (),
    ) -> Workload:
        """One is enough for all attacks that ask for the same."""
        key = (rules, without, *resolvers, audit, only_allowed_names, *searches)
        if key not in self.workloads:
            settings = json.dumps(
                {
                    "rules": rules,
                    "resolvers": list(resolvers),
                    "audit": audit,
                    "only_allowed_names": only_allowed_names,
                    "searches": list(searches),
                }
            )
            version = self.version(without)
            words = [f"{name}={value}" for name, value in version.environment.items()]
            holder = self.lab.pod.start(
                "env",
                *words,
                sys.executable,
                HOLD,
                f"arena-{os.getpid()}-{len(self.workloads)}",
                settings,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            assert holder.stdout is not None
            self.workloads[key] = Workload(self.lab, version, holder.stdout.readline().strip(), holder)
        return self.workloads[key]

    def close(self) -> None:
        for workload in self.workloads.values():
            workload.close()


class Spy:
    """Every IP packet that leaves the pod, as the node sees it arrive."""

    def __init__(self, lab: Lab) -> None:
        self.watching = _piped(lab.node, python(SPY))
        assert self.watching.stdout.readline() == '"ready"\n'
        self.bell = _piped(lab.pod, python(BELL))

    def seen(self) -> list[bytes]:
        """All since the last time. A packet that is sent now, from outside of every workload, is the last."""
        token = os.urandom(16).hex() + "\n"
        for process in (self.bell, self.watching):
            process.stdin.write(token)
            process.stdin.flush()
        assert self.bell.stdout.readline() == '"rung"\n'
        return [bytes.fromhex(packet) for packet in json.loads(self.watching.stdout.readline())]

    def close(self) -> None:
        end(self.bell)
        end(self.watching)


def _piped(machine: Namespace, words: list[str]) -> subprocess.Popen[str]:
    return machine.start(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
