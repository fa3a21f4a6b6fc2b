"""`skouter agent`: a daemon that holds units, cgroups and the host itself to policies from files.

Rules this file obeys:

- One nursery. A task that fails ends the agent with a message and a status that is not 0, a signal ends it
  with 0; what is enforced stays enforced in every case. Only `skouter off` opens.
- Files are read and understood as one set. Where that is not good the last good one stays, also that of an
  earlier agent; without any the agent does not start.
- What may take long (parsing, the engine) runs in a thread, one thing at a time, so that the log goes on
  meanwhile. What hangs stops the watchdog.
- What was said is not said again until it changes.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import trio

from bpf import kernel
from bpf.events import SENTENCES, decode
from gateway import lifelines, source_files
from gateway.bulletin import Board, Bulletin
from gateway.cgroup_tree import CgroupTree
from gateway.enforcement import Enforcement
from gateway.engine import Engine
from gateway.journal import Journal
from gateway.notify import ERR, NOTICE, WARNING, Notifier, say
from gateway.numbers import Options
from gateway.place import Place
from gateway.plan import Guard, believable, is_of_interest, plan, select
from gateway.settings import Settings
from gateway.source_files import Documents, PolicyFiles, Texts, understand
from gateway.states import EngineError
from gateway.surroundings import Surroundings, look
from routing.own import changes, drain

LOOK_AGAIN = 5.0  # seconds between two looks at what nobody tells: resolv.conf, addresses, who listens
RENEW = 60.0  # and until everything is gone through again, whatever happens
OFF = "NOT ENFORCED: skouter off was used: nothing is filtered until the agent is started again"
LEFT = "what is enforced stays enforced; skouter off opens"

Found = TypeVar("Found")


@dataclass(frozen=True)
class Request:
    """What the command line asked for; `root` is the cgroup that is looked after, "/" the whole host."""

    policies: Path
    config: Path
    even: frozenset[str] = frozenset()
    root: str = "/"


def run(request: Request, where: Place) -> int:
    """Until a signal; 0 then. Raises the one error that ended it otherwise."""
    if os.geteuid() != 0:
        raise EngineError("agent needs root to load BPF programs: run it with sudo")
    with ExitStack() as undo:
        agent = _Agent(request, where, undo)
        try:
            trio.run(agent.main)
        except BaseExceptionGroup as group:
            raise _first(group) from group
    return 0


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class _Agent:
    """`undo` lets go of what is open; of nothing that is enforced."""

    def __init__(self, request: Request, where: Place, undo: ExitStack) -> None:
        self.request, self.where, self.undo = request, where, undo
        self.root = where.hierarchy / request.root.strip("/")
        if not self.root.is_dir():
            raise EngineError(f"--root {request.root}: no such cgroup; write a path below {where.hierarchy}")
        self.board = undo.enter_context(closing(Board(where)))
        self.notifier = undo.enter_context(closing(Notifier()))
        self.files = undo.enter_context(closing(PolicyFiles(request.policies, request.config)))
        self.journal = Journal(SENTENCES)
        self.texts = source_files.kept(where.kept)
        self.seen: Texts | None = None  # when the files were read last, good or not
        self.problems: tuple[str, ...] = ()
        self.guards: frozenset[Guard] = frozenset()
        self.listening: dict[str, trio.CancelScope] = {}
        self.asked, self.must_read, self.must_find = trio.Event(), False, True
        self.busy_since: float | None = None
        self.attached, self.swept = True, float("-inf")

    async def main(self) -> None:
        with trio.open_signal_receiver(signal.SIGHUP, signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as self.nursery:
                self.nursery.start_soon(self._obey, signals)
                await self._begin()
                for task in (self._keep_up, self._follow_files, self._follow_cgroups):
                    self.nursery.start_soon(task)
                for task in (self._look_around, self._tell_what_waited, self._stay_alive):
                    self.nursery.start_soon(task)

    async def _begin(self) -> None:
        self._take(await self._first_documents())
        settings = self.settings
        engine = await self._at_length(lambda: Engine(self.where, host=True))
        self.undo.callback(engine.close)
        self.tree = CgroupTree(self.root, lambda path: is_of_interest(settings, path))
        self.undo.callback(self.tree.close)
        self.enforcement = Enforcement(engine, self.root, self.tree.ids)
        self.surroundings = await self._at_length(lambda: look(settings))
        status = await self._enforce()
        say(f"ready: {status}")
        self.notifier.ready(status)

    # ---- Tasks --------------------------------------------------------------------------------------------

    async def _obey(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number == signal.SIGHUP:
                self._ask(read=True)
            else:
                say(f"{signal.Signals(number).name}: stopping; {LEFT}", NOTICE)
                self.notifier.stopping(LEFT)
                self.nursery.cancel_scope.cancel()

    async def _keep_up(self) -> None:
        """One change after the other, however many ask for it."""
        while True:
            await self.asked.wait()
            self.asked, read, self.must_read = trio.Event(), self.must_read, False
            if read:
                self.notifier.reloading()
                await self._reload()
            status = await self._enforce()
            if read:
                self.notifier.ready(status)
            else:
                self.notifier.status(status)

    async def _follow_files(self) -> None:
        while True:
            await self.files.changed()
            self._ask(read=True)

    async def _follow_cgroups(self) -> None:
        while True:
            await self.tree.changed()
            self._ask()

    async def _look_around(self) -> None:
        """Addresses are told by the kernel as they change; what nobody tells is looked at again and again."""
        with changes() as addresses:
            while True:
                with trio.move_on_after(LOOK_AGAIN):
                    await trio.lowlevel.wait_readable(addresses)
                    drain(addresses)
                found, attached = await trio.to_thread.run_sync(self._look)
                is_new = (found, attached) != (self.surroundings, self.attached)
                if is_new or trio.current_time() > self.swept + RENEW:
                    self.surroundings, self.attached = found, attached
                    self.must_find = self.must_find or is_new
                    self._ask()

    async def _tell_what_waited(self) -> None:
        while True:
            await trio.sleep(1)
            for line in self.journal.due(trio.current_time()):
                say(line, WARNING)

    async def _stay_alive(self) -> None:
        """The watchdog is for a step that hangs; this loop itself can't hang unseen."""
        while limit := self.notifier.watchdog:
            if self.busy_since is None or trio.current_time() < self.busy_since + limit:
                self.notifier.alive()
            await trio.sleep(limit / 2)

    async def _listen(self, name: str, ring: kernel.Ring, scope: trio.CancelScope) -> None:
        with scope:
            try:
                while True:
                    await trio.lowlevel.wait_readable(ring.fileno())
                    ring.consume()
            finally:
                ring.consume()
                ring.close()
                self.journal.forget(name)

    # ---- Steps --------------------------------------------------------------------------------------------

    def _ask(self, read: bool = False) -> None:
        self.must_read = self.must_read or read
        self.asked.set()

    async def _first_documents(self) -> Documents:
        documents = await self._read()
        if documents is None and self.texts is not None:
            documents, _ = understand(self.texts, str(self.request.config))
        if documents is None:
            raise EngineError(f"no policy to enforce yet, mend the files above; {LEFT}")
        return documents

    async def _reload(self) -> None:
        if documents := await self._read():
            self._take(documents)
        settings = self.settings
        self.tree.watch(lambda path: is_of_interest(settings, path))
        self.guards, self.must_find = frozenset(), True
        self.surroundings = await self._at_length(lambda: look(settings))

    def _take(self, documents: Documents) -> None:
        self.settings = documents.settings
        self.selected = select(documents.objects, documents.settings)

    async def _read(self) -> Documents | None:
        """The files, if they are good as a whole; every problem is told."""
        texts, unreadable = self.files.read()
        documents, wrong = await self._at_length(
            lambda: understand(texts, str(self.request.config), self.texts)
        )
        before, self.problems = self.problems, tuple(map(str, (*unreadable, *wrong)))
        if (texts, self.problems) != (self.seen, before):
            self._tell_problems(was_bad=bool(before))
        self.seen = texts
        if documents is None or self.problems:
            return None
        if texts != self.texts:
            say(f"files read: {len(texts.policies)}, objects: {len(documents.objects)}", NOTICE)
            self.texts = texts
            await self._at_length(self._keep)
        return documents

    def _tell_problems(self, was_bad: bool) -> None:
        for problem in self.problems:
            say(problem, ERR)
        if self.problems and self.texts is not None:
            say("the last good set of files stays in force", ERR)
        elif was_bad and not self.problems:
            say("the files are good again", NOTICE)

    def _keep(self) -> None:
        assert self.texts is not None
        try:
            source_files.keep(self.where.kept, self.texts)
        except OSError as error:
            say(f"{self.where.kept}: {error.strerror}: a restart on broken files has an older set", ERR)

    async def _enforce(self) -> str:
        """Makes the kernel what the documents say; the state of things in a sentence."""
        if not self.attached:
            return self._post([OFF], [])
        ids, around = dict(self.tree.ids), self.surroundings
        if self.must_find:
            self.must_find = False
            await self._find_lifelines(around)
        even = self.request.even if around.local_resolvers else self.request.even | {"resolver"}
        wanted = plan(self.selected, self.settings, ids, self.guards, even)
        options = _options(self.settings, around)
        outcome = await self._at_length(lambda: self.enforcement.apply(wanted, ids, options, around.home))
        if trio.current_time() > self.swept + RENEW:
            self.swept = trio.current_time()
            await self._at_length(self.enforcement.sweep)
        self._listen_to_all()
        failed = [*outcome.failed, *(line for line in wanted.told if line.startswith("NOT ENFORCED"))]
        for line in outcome.told:
            say(line, NOTICE)
        return self._post(failed, (line for line in wanted.told if line not in failed))

    def _look(self) -> tuple[Surroundings, bool]:
        return look(self.settings), self.enforcement.is_attached

    async def _find_lifelines(self, around: Surroundings) -> None:
        def find() -> list[Guard]:
            return lifelines.guards(around.local_resolvers, self.root, self.where.hierarchy)

        seen = await self._at_length(find)
        held = {path: name for path, (_id, name) in self.enforcement.placed.items()}
        self.guards |= frozenset(believable(seen, held))

    def _listen_to_all(self) -> None:
        held = self.enforcement.held
        for name in self.listening.keys() - held.keys():
            self.listening.pop(name).cancel()
        for name in held.keys() - self.listening.keys():
            self.listening[name] = trio.CancelScope()
            ring = kernel.Ring(held[name].ring, self._teller(name))
            self.nursery.start_soon(self._listen, name, ring, self.listening[name])

    def _teller(self, name: str) -> Callable[[bytes], None]:
        def tell(data: bytes) -> None:
            for line in self.journal.add(name, decode(data), trio.current_time()):
                say(line, WARNING)

        return tell

    def _post(self, failed: Iterable[str], told: Iterable[str]) -> str:
        bulletin = Bulletin(
            pid=os.getpid(),
            policies=str(self.request.policies),
            config=str(self.request.config),
            workloads=len(self.enforcement.held),
            cgroups=len(self.enforcement.placed),
            problems=self.problems,
            failed=tuple(failed),
            told=tuple(told),
        )
        self.board.post(bulletin)
        return str(bulletin)

    async def _at_length(self, step: Callable[[], Found]) -> Found:
        self.busy_since = trio.current_time()
        try:
            return await trio.to_thread.run_sync(step)
        finally:
            self.busy_since = None


def _options(settings: Settings, around: Surroundings) -> Options:
    return Options(
        resolvers=around.resolvers,
        searches=around.searches,
        names=True,
        floor=settings.floor,
        grace=settings.grace,
    )
