"""`skouter agent`: a daemon that holds units, cgroups, pods and the host itself to their policies.

Policies come from files, and on the node of a cluster from its API: then the files have what the host keeps
when a policy selects it.

Rules this file obeys:

- One nursery. A task that fails ends the agent with a message and a status that is not 0, a signal ends it
  with 0; what is enforced stays enforced in every case. Only `skouter off` opens.
- Without any good set of files the agent does not start; without the API's word on everything it enforces
  nothing new, and leaves everything as it is.
- What may take long (parsing, the engine) runs in a thread, one thing at a time, so that the log goes on
  meanwhile. What hangs stops the watchdog.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, TypeVar

import trio

from bpf.events import Event
from gateway import duties, lifelines, machines
from gateway.bulletin import Board, Bulletin
from gateway.cgroup_tree import CgroupTree
from gateway.dns_service import AgentProxy
from gateway.enforcement import Enforcement, Outcome
from gateway.engine import Engine
from gateway.good_files import GoodFiles
from gateway.kubernetes import kubelet
from gateway.kubernetes.api_following import away, first, follow, mirror, source
from gateway.kubernetes.node_pods import NodePods, refuse_version_1
from gateway.kubernetes.pod_homes import follow_interfaces
from gateway.kubernetes.succession import LET_GO, Parting, parting
from gateway.notify import NOTICE, Notifier, say
from gateway.numbers import Options
from gateway.place import Place
from gateway.plan import Guard, Plan, believable, is_of_interest, plan, select
from gateway.refusals import Refusals
from gateway.request import Request
from gateway.settings import Settings
from gateway.source_files import Documents, PolicyFiles
from gateway.states import EngineError
from gateway.surroundings import Surroundings, look
from routing.own import changes, drain
from routing.steering import Marks

if TYPE_CHECKING:
    from gateway.gate import Gate

LOOK_AGAIN = 5.0  # seconds between two looks at what nobody tells: resolv.conf, addresses, who listens
RENEW = 60.0  # and until everything is gone through again, whatever happens
OFF = "NOT ENFORCED: skouter off was used: nothing is filtered until the agent is started again"
NOT_YET = "has not told everything yet, all stays as it is"
LEFT = Parting.STAYS.value

Found = TypeVar("Found")


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
        agent.parting.clear(where)
    agent.parting.stand_by()
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
        self.board = undo.enter_context(closing(Board(where, request.node is not None)))
        self.notifier = undo.enter_context(closing(Notifier()))
        may_be_none = bool(request.node or request.mirrored)
        files = PolicyFiles(request.policies, request.config, may_be_none, request.gateway)
        self.files = undo.enter_context(closing(files))
        self.good = GoodFiles(self.files, where.kept, self._at_length)
        self.source = source(request.node)
        self.pods = NodePods(self.root, self.source.door.endpoint()) if self.source else None
        self.stirred: set[str] = set()
        self.gate: Gate | None = None
        self.mirror = mirror(request.mirrored, where)
        self._api = self.mirror.source if self.mirror else self.source
        self.refusals = Refusals(self.pods, self.source, self._look_at_pod, self._hear)
        self.guards: frozenset[Guard] = frozenset()
        self.asked, self.must_read, self.must_find = trio.Event(), False, True
        self.is_ready = self.is_whole = False
        self.parting = Parting.STAYS
        self.last: Bulletin | None = None
        self.busy_since: float | None = None
        self.attached, self.swept = True, float("-inf")

    async def main(self) -> None:
        with trio.open_signal_receiver(signal.SIGHUP, signal.SIGTERM, signal.SIGINT, LET_GO) as signals:
            async with trio.open_nursery() as self.nursery:
                self.nursery.start_soon(self._obey, signals)
                if self.mirror:
                    await first(self.mirror, self.nursery)
                await self._begin()
                for task in (self._keep_up, self._follow_files, self._follow_cgroups, self._follow_cluster):
                    self.nursery.start_soon(task)
                for task in (self._look_around, self.refusals.tell_what_waited, self._stay_alive):
                    self.nursery.start_soon(task)
                if self.pods:
                    self.nursery.start_soon(follow_interfaces, self.pods.homes, self._look_at_pod)
                if self.gate:
                    self.nursery.start_soon(self.gate.run)
                self.nursery.start_soon(self.dns.serve)
                self.nursery.start_soon(duties.attend, self)

    async def _begin(self) -> None:
        self._take(await self._first_documents())
        engine = await self._at_length(lambda: Engine(self.where, host=True))
        self.undo.callback(engine.close)
        engine.links.mark(Marks(self.settings.link.mask, self.settings.link.mark))
        gateway = self.settings.gateway
        if gateway:
            from gateway.gate import Gate  # late: what it imports is nothing to a node's agent

            self.gate = Gate(engine, self.settings)
        if self.mirror and self.gate and self.gate.neighbours:
            self.mirror.meet = self.gate.neighbours.peers.members
        upstream = gateway.dns.port if gateway else 0
        self.dns = self.undo.enter_context(closing(AgentProxy(engine.datapath, upstream)))
        engine.lead, engine.links.hand_over = self.dns.listeners.lead, self.dns.take_over
        self.tree = CgroupTree(self.root, self._is_of_interest, self._is_pod)
        self.undo.callback(self.tree.close)
        self.enforcement = Enforcement(engine, self.root, self.tree.ids)
        if self.pods:
            refuse_version_1(self.root, self.tree.ids, self.settings)
            await self._at_length(self.pods.find_server)
            self.pods.homes.remember(self.enforcement.homes_left())
        self.surroundings = await self._at_length(lambda: look(self.settings))
        status = await self._enforce()
        if not self.source:
            self._say_ready(status)

    def _say_ready(self, status: str) -> None:
        self.is_ready = True
        say(f"ready: {status}")
        self.notifier.ready(status)

    # ---- Tasks --------------------------------------------------------------------------------------------

    async def _obey(self, signals: AsyncIterator[int]) -> None:
        async for number in signals:
            if number == signal.SIGHUP:
                self._ask(read=True)
            else:
                if self.gate:
                    say(f"{signal.Signals(number).name}: not ready any more, who comes is served", NOTICE)
                    await self.gate.drain(signals)
                self.parting = await trio.to_thread.run_sync(parting, number, self.source)
                say(f"{signal.Signals(number).name}: stopping; {self.parting.value}", NOTICE)
                self.notifier.stopping(self.parting.value)
                self.nursery.cancel_scope.cancel()

    async def _keep_up(self) -> None:
        """One change after the other, however many ask for it."""
        while True:
            await self._wait_for_work()
            self.asked, read, self.must_read = trio.Event(), self.must_read, False
            if read:
                self.notifier.reloading()
                await self._reload()
            status = await self._enforce()
            if self.is_whole and not self.is_ready:
                self._say_ready(status)
            elif read and self.is_ready:
                self.notifier.ready(status)
            else:
                self.notifier.status(status)

    async def _wait_for_work(self) -> None:
        """Until somebody asks, or a pod has come to its network: of that nobody tells."""
        while not self.asked.is_set():
            pause = self.pods.homes.pause(trio.current_time()) if self.pods else None
            with trio.move_on_after(float("inf") if pause is None else pause):
                await self.asked.wait()
            now = trio.current_time()
            if self.pods and pause is not None and await trio.to_thread.run_sync(self.pods.look_again, now):
                return

    async def _follow_files(self) -> None:
        while True:
            await self.files.changed()
            self._ask(read=True)

    async def _follow_cgroups(self) -> None:
        while True:
            await self.tree.changed()
            self.stirred |= self.tree.stirred
            self.tree.stirred = set()
            self._ask()

    async def _follow_cluster(self) -> None:
        if self.source and self.pods:
            await follow(self.source, self.pods, self._ask, self.nursery)

    async def _look_around(self) -> None:
        """Addresses are told by the kernel as they change; what nobody tells is looked at again and again."""
        with changes() as addresses:
            while True:
                with trio.move_on_after(LOOK_AGAIN):
                    await trio.lowlevel.wait_readable(addresses)
                    drain(addresses)
                found, attached = await trio.to_thread.run_sync(self._look)
                is_new = (found, attached) != (self.surroundings, self.attached)
                moved = await trio.to_thread.run_sync(self.enforcement.engine.links.moved)
                if is_new or moved or trio.current_time() > self.swept + RENEW:
                    self.surroundings, self.attached = found, attached
                    self.must_find = self.must_find or is_new
                    self._ask()

    async def _stay_alive(self) -> None:
        """The watchdog is for a step that hangs; this loop itself can't hang unseen."""
        while limit := self.notifier.watchdog:
            if self.busy_since is None or trio.current_time() < self.busy_since + limit:
                self.notifier.alive()
            await trio.sleep(limit / 2)

    # ---- Steps --------------------------------------------------------------------------------------------

    def _ask(self, read: bool = False) -> None:
        self.must_read = self.must_read or read
        self.asked.set()

    async def _first_documents(self) -> Documents:
        documents = await self.good.first()
        if documents is None:
            raise EngineError(f"no policy to enforce yet, mend the files above; {LEFT}")
        return documents

    async def _reload(self) -> None:
        if documents := await self.good.read():
            self._take(documents)
        self.tree.watch(self._is_of_interest)
        self.guards, self.must_find = frozenset(), True
        self.surroundings = await self._at_length(lambda: look(self.settings))

    def _take(self, documents: Documents) -> None:
        self.settings, self.objects = documents.settings, documents.objects
        elsewhere = machines.acting(self.objects) if self.settings.gateway else ()
        self.selected = select(self.objects, self.settings, elsewhere=elsewhere)

    def _is_of_interest(self, path: str) -> bool:
        root = self.settings.cluster.cgroup_root
        return is_of_interest(self.settings, path) or bool(self.pods and kubelet.is_of_interest(path, root))

    def _is_pod(self, path: str) -> bool:
        found = kubelet.read(path, self.settings.cluster.cgroup_root) if self.pods else None
        return found is not None and found.is_pod

    async def _enforce(self) -> str:
        """Makes the kernel what the documents say; the state of things in a sentence."""
        if not self.attached:
            return self._post([OFF], [])
        ids, around = dict(self.tree.ids), self.surroundings
        if self.must_find:
            self.must_find = False
            await self._find_lifelines(around)
        even = self.request.even if around.local_resolvers else self.request.even | {"resolver"}
        stirred, self.stirred = self.stirred, set()
        now = trio.current_time()

        def enforce() -> tuple[Plan, Outcome]:
            options = _options(self.settings, around)
            if self.pods is None:
                wanted = plan(self.selected, self.settings, ids, self.guards, even)
                if self.gate is None:
                    return wanted, self.enforcement.apply(wanted, ids, options, around.home)
                held = self.enforcement
                return self.gate.enforce(wanted, self.objects, self.settings, held, ids, options, around.home)
            view = self.pods.view(self.settings, self.objects)
            wanted = plan(view.selected, self.settings, ids, self.guards, even)
            wanted = self.pods.extend(view, wanted, ids, stirred, self.enforcement, around, now)
            homes, ways = self.pods.where(around.home), self.pods.homes.ways
            return wanted, self.enforcement.apply(wanted, ids, options, around.home, homes, ways)

        wanted, outcome = await self._at_length(enforce)
        self.is_whole = self.pods is None or wanted.ranges is not None
        if trio.current_time() > self.swept + RENEW:
            self.swept = trio.current_time()
            await self._at_length(self.enforcement.sweep)
            self.stirred |= self.pods.homes.kept() if self.pods else set()
        self.refusals.listen(self.enforcement.held, self.nursery)
        failed = [*outcome.failed, *(line for line in wanted.told if line.startswith("NOT ENFORCED"))]
        for line in outcome.told:
            say(line, NOTICE)
        return self._post(failed, (line for line in wanted.told if line not in failed))

    def _look(self) -> tuple[Surroundings, bool]:
        if self.pods:
            self.pods.find_server()
        attached = self.enforcement.is_attached
        if self.gate and attached:
            self.gate.look_again()
        return look(self.settings), attached

    async def _find_lifelines(self, around: Surroundings) -> None:
        def find() -> list[Guard]:
            return lifelines.guards(around.local_resolvers, self.root, self.where.hierarchy)

        seen = await self._at_length(find)
        held = {path: name for path, (_id, name) in self.enforcement.placed.items()}
        self.guards |= frozenset(believable(seen, held))

    def packets(self) -> dict[str, dict[str, int]]:
        """By policy and reason, since the policy was put into the kernel."""
        held = list(self.enforcement.held.values())
        return {each.name: self.enforcement.engine.counters(each.number) for each in held}

    def _hear(self, event: Event) -> str:
        return self.gate.hear(event) if self.gate else ""

    def _look_at_pod(self, path: str) -> None:
        self.stirred.add(path)
        self._ask()

    def _post(self, failed: Iterable[str], told: Iterable[str]) -> str:
        rows = self.pods.rows(self.enforcement) if self.pods else []
        loose = self.pods.loose(rows) if self.pods else []
        bulletin = Bulletin(
            pid=os.getpid(),
            policies=str(self.request.policies),
            config=str(self.request.config),
            workloads=len(self.enforcement.held),
            cgroups=len(self.enforcement.placed),
            problems=self.good.problems,
            failed=tuple(failed),
            told=(*told, *loose, *away(self._api, self.is_ready)),
            pods=tuple(rows),
            dns=self.dns.numbers(),
            gateway=self.gate.rows() if self.gate else {},
        )
        self.board.post(bulletin)
        self.last = bulletin
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
        captured=settings.gateway is not None and settings.gateway.dns.capture,
        shared=settings.gateway is not None and settings.gateway.peers is not None,
        floor=settings.floor,
        grace=settings.grace,
    )
