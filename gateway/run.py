"""`skouter run`: one command under a policy, for as long as it and its children live.

Rules this file obeys:

- The command starts only when its policy is enforced, and never when it can't be.
- Its exit status and signals pass through; what this program itself says goes to stderr.
- What is still running when the command ends stays enforced.
"""

from __future__ import annotations

import os
import resource
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import orjson

from bpf import kernel
from bpf.datapath import other_layouts
from bpf.events import SENTENCES, decode
from gateway import place
from gateway.commands import admit, dismiss
from gateway.dns_service import ProxyThread
from gateway.engine import Engine, Held
from gateway.numbers import Options
from gateway.policies.policy import Policy
from gateway.privileges import User, become, confine, environment, invoking_user
from gateway.report import Report
from routing import own

FORWARDED = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT, signal.SIGWINCH)
FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT)
CANNOT_WRITE, NOT_EXECUTABLE, NOT_FOUND = 2, 126, 127  # POSIX shell, 2.8.2


class HasFileno(Protocol):
    def fileno(self) -> int: ...


Calls = dict[HasFileno, Callable[[], object]]


@dataclass(frozen=True)
class Request:
    """What the command line asked for."""

    command: list[str]
    policy: Policy
    options: Options
    learn: Path | None = None
    summary: str = "human"  # human, json or none


def run(request: Request, where: place.Place) -> int:
    """The exit status for the caller; a command that a signal ended ends this process by the same signal."""
    user = invoking_user()
    engine = Engine(where)
    for layout in other_layouts(where.pins):
        say(f"{where.pins / layout} is of another version and not used; 'skouter uninstall' removes it")
    proxy = ProxyThread(engine.datapath, say)
    engine.lead = proxy.listeners.lead
    name = f"run-{os.getpid()}-{os.urandom(4).hex()}"
    about = {"command": [word[:200] for word in request.command[:50]], "pid": os.getpid()}
    admitted = admit(engine, name, request.policy, request.options, own.home(), about)
    report = Report()
    lost, left = 0, []
    try:
        for problem in admitted.problems:
            say(problem)
        status = _supervise(request, user, engine, admitted, report, proxy)
    finally:
        proxy.close()
        lost = engine.counters(admitted.number).get("EVENTS_LOST", 0)
        left = dismiss(engine, admitted)
        engine.close()
    learned = _tell(request, user, report, lost, left)
    return _pass_on(status) if learned or status else CANNOT_WRITE


def _supervise(
    request: Request, user: User, engine: Engine, admitted: Held, report: Report, proxy: ProxyThread
) -> int:
    """Starts the command, feeds its events to the report, forwards signals; its wait status (< 0: signal)."""
    (cgroup,) = admitted.cgroups
    ring = kernel.Ring(admitted.ring, lambda data: report.add(decode(data)))

    def rehome() -> None:
        own.drain(addresses)
        engine.rehome(admitted, cgroup, own.home())

    try:
        process = subprocess.Popen(
            request.command,
            env=environment(user),
            preexec_fn=confine(user, cgroup, (engine.where.pins, engine.where.run)),
        )
        with _forwarding(process), own.changes() as addresses:
            calls: Calls = {ring: ring.consume, addresses: rehome}
            status = _wait(process, calls, dict.fromkeys(proxy.listeners.sockets.values(), proxy.start))
        ring.consume()
        return status
    except FileNotFoundError:
        say(f"{request.command[0]}: command not found")
        return NOT_FOUND
    except OSError as error:
        say(f"{request.command[0]}: {error.strerror}")
        return NOT_EXECUTABLE
    except subprocess.SubprocessError:
        say("the command could not be confined, so it was not started: run it outside of a container")
        return NOT_EXECUTABLE
    finally:
        ring.close()


def _wait(process: subprocess.Popen[bytes], calls: Calls, once: Calls) -> int:
    """Calls whenever something is there to be read, or the first time only.

    No event loop of a library: what there is to wait for is a few descriptors, and starting one takes longer
    than most commands (pidfd_open(2)).
    """
    end = os.pidfd_open(process.pid)
    try:
        with selectors.DefaultSelector() as waiting:
            waiting.register(end, selectors.EVENT_READ, process.poll)
            for readable, call in (calls | once).items():
                waiting.register(readable, selectors.EVENT_READ, call)
            while process.returncode is None:
                for key, _events in waiting.select():
                    key.data()
                    if key.fileobj in once:
                        waiting.unregister(key.fileobj)
        return process.returncode
    finally:
        os.close(end)


@contextmanager
def _forwarding(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Signals go on to the command, except those that the caller ignores: the command does so too."""
    # A terminal sends its signals to the whole foreground process group, the command included.
    from_terminal = FROM_TERMINAL if sys.stdin is not None and sys.stdin.isatty() else ()

    def forward(number: int, _frame: object) -> None:
        if number not in from_terminal:
            process.send_signal(number)

    taken = [n for n in (*FORWARDED, *FROM_TERMINAL) if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, forward) for number in taken}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _tell(request: Request, user: User, report: Report, lost: int, left: list[int]) -> bool:
    """Whether everything that was asked for could be told."""
    if left:
        say(f"still running and still held to the policy: {', '.join(map(str, left))}")
    if request.summary == "json":
        say(orjson.dumps({**report.as_json(), "lost": lost}).decode(), prefix="")
    elif request.summary == "human":
        for line in report.lines(SENTENCES, request.policy.audit):
            say(line)
        if lost:
            say(f"{lost} events came too fast to be told; the counts above are too low")
    if request.learn is None:
        return True
    written = _write_as(user, request.learn, report.policy("learned"))
    if written:
        say(f"the policy that would have sufficed: {request.learn}")
    return written


def _write_as(user: User, path: Path, text: str) -> bool:
    """As the invoking user, so that nobody gets root to write where they may not; whether it went well."""
    child = os.fork()
    if child == 0:
        try:
            become(user)
            path.write_text(text)
        except OSError as error:
            say(f"{path}: {error.strerror}")
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1] == 0


def _pass_on(status: int) -> int:
    if status >= 0:
        return status
    number = -status
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    return 128 + number  # not reached, unless the signal is blocked


def say(text: str, prefix: str = "skouter: ") -> None:
    """A line on stderr; where that is closed, nowhere."""
    if sys.stderr is not None:
        print(prefix + text, file=sys.stderr, flush=True)
