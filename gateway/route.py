"""`skouter route`: a router in front of several gateways leads what machines send to those that are alive.

Rules this file obeys:

- A gateway is alive when it says that it is ready (/readyz); one that drains or hangs is not.
- What the kernel was told last stays when this ends, however it ends. Only `--undo` takes it away.
- Whatever else changes is put right within LOOK_AGAIN seconds, links of this host at once.
"""

from __future__ import annotations

import signal
from contextlib import closing
from pathlib import Path

import trio

from gateway.notify import ERR, NOTICE, Notifier, say
from gateway.place import ROUTE, Place
from gateway.policies.addresses import Address
from gateway.route_settings import RouteSettings
from routing import interfaces, next_hops
from routing.next_hops import Spread

LOOK_AGAIN = 5.0
ANSWER = 64  # bytes of an answer that tell its status (RFC 9112, section 4)


def run(settings: RouteSettings, where: Place) -> int:
    """Until a signal. Raises :class:`OSError` where the router can't be set up to begin with."""
    with closing(Notifier()) as notifier:
        try:
            trio.run(_Router(settings, where.state / ROUTE, notifier).main)
        except BaseExceptionGroup as group:
            raise _first(group) from group
    return 0


def undo(where: Place) -> list[str]:
    """What was removed, in words."""
    return next_hops.remove(where.state / ROUTE)


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


class Pulse:
    """Whether a gateway is alive, from its answers; the first one counts at once."""

    def __init__(self, fall: int, rise: int) -> None:
        self.needed = {True: fall, False: rise}  # answers of the other kind that change it
        self.is_alive: bool | None = None
        self.others = 0

    def hear(self, is_ready: bool) -> bool:
        """Whether that changes it."""
        self.others = 0 if is_ready == self.is_alive else self.others + 1
        if self.is_alive is not None and self.others < self.needed[self.is_alive]:
            return False
        self.is_alive, self.others = is_ready, 0
        return True


class _Router:
    def __init__(self, settings: RouteSettings, kept: Path, notifier: Notifier) -> None:
        self.settings, self.kept, self.notifier = settings, kept, notifier
        self.pulses = {gateway: Pulse(settings.fall, settings.rise) for gateway in settings.gateways}
        self.spread = Spread(
            gateways=tuple(address for gateway in settings.gateways for address in gateway),
            clients=settings.clients,
            inside=frozenset(settings.inside),
            by_flow=settings.by_flow,
            buckets=settings.buckets,
            idle=settings.idle,
            unbalanced=settings.unbalanced,
        )
        self.changed = trio.Event()
        self.trouble = ""

    async def main(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async with trio.open_nursery() as nursery:
                for gateway in self.pulses:
                    nursery.start_soon(self._ask, gateway)
            await self._apply()  # what an earlier one of us left has done meanwhile
            async with trio.open_nursery() as nursery:
                for gateway in self.pulses:
                    nursery.start_soon(self._follow, gateway)
                nursery.start_soon(self._follow_links)
                nursery.start_soon(self._keep_up)
                self.notifier.ready(f"{len(self.pulses)} gateways")
                async for _ in signals:
                    nursery.cancel_scope.cancel()
                    break

    async def _follow(self, gateway: tuple[Address, ...]) -> None:
        while True:
            begun = trio.current_time()
            await self._ask(gateway)
            await trio.sleep_until(begun + self.settings.every)

    async def _ask(self, gateway: tuple[Address, ...]) -> None:
        pulse = self.pulses[gateway]
        if pulse.hear(await is_ready(gateway[0], self.settings.port, self.settings.every)):
            say(f"gateway {gateway[0]} is {'alive' if pulse.is_alive else 'dead'}", NOTICE)
            self.changed.set()

    async def _follow_links(self) -> None:
        with interfaces.changes() as news:
            while True:
                await trio.lowlevel.wait_readable(news)
                interfaces.changed(news)
                self.changed.set()

    async def _keep_up(self) -> None:
        while True:
            with trio.move_on_after(LOOK_AGAIN):
                await self.changed.wait()
            self.changed = trio.Event()
            try:
                await self._apply()
                self.trouble = ""
            except OSError as error:
                if str(error) != self.trouble:
                    say(f"the router can't be set up: {error}", ERR)
                self.trouble = str(error)

    async def _apply(self) -> None:
        alive = frozenset(
            address for gateway, pulse in self.pulses.items() if pulse.is_alive for address in gateway
        )
        for line in await trio.to_thread.run_sync(next_hops.apply, self.spread, alive, self.kept):
            say(line, NOTICE)


async def is_ready(address: Address, port: int, patience: float) -> bool:
    """Whether `GET /readyz` is answered with 200, within `patience` seconds."""
    host = str(address) if address.version == 4 else f"[{address}]"
    question = f"GET /readyz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    answer = b""
    with trio.move_on_after(patience):
        try:
            async with await trio.open_tcp_stream(str(address), port) as stream:
                await stream.send_all(question.encode())
                while b"\r\n" not in answer and len(answer) < ANSWER:
                    if not (piece := await stream.receive_some(ANSWER)):
                        break
                    answer += piece
        except (OSError, trio.BrokenResourceError):
            return False
    return answer.startswith((b"HTTP/1.1 200 ", b"HTTP/1.0 200 "))
