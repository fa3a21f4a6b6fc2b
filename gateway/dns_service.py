"""Where the DNS proxy listens, and who runs it.

Rules this file obeys:

- Listening costs nothing; the proxy and its libraries come with the first client.
- A listener is marked in the kernel as ours. connect() is led to no other, so that nobody who takes the port
  when we are gone takes the connections too: they are refused by then (bpf/proxy.h).
- What we write to `proxies` stays when we end.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from bpf.datapath import Datapath
from routing.own import LOOPBACKS, namespace_cookie

BACKLOG = 1024
TRANSPARENT = {  # linux/in.h, linux/in6.h: IP_TRANSPARENT, IPV6_TRANSPARENT
    socket.AF_INET: (socket.IPPROTO_IP, 19),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 75),
}


class Listeners:
    """Of the network namespace of the thread that makes them; one of each family that there is."""

    def __init__(self, datapath: Datapath) -> None:
        self.datapath, self.netns = datapath, namespace_cookie()
        self.sockets: dict[int, socket.socket] = {}
        for family, address in LOOPBACKS:
            with suppress(OSError):  # a host without that family
                made = socket.create_server((address, 0), family=family, backlog=BACKLOG)
                datapath["sockets"][made.fileno()] = {"listener": 1}
                self.sockets[family] = made

    def lead(self, number: int) -> None:
        """From now on, connections of this policy's workloads to the TCP port of their resolvers."""
        ports = (self._port(family).to_bytes(2, "big") for family, _ in LOOPBACKS)
        self.datapath["proxies"][number] = (self.netns, *ports, 0)

    def _port(self, family: int) -> int:
        return int(self.sockets[family].getsockname()[1]) if family in self.sockets else 0

    def close(self) -> None:
        for made in self.sockets.values():
            made.close()


class ProxyThread:
    """The proxy of a process that has no event loop. A failure is said, and ends it: clients are refused."""

    def __init__(self, datapath: Datapath, say: Callable[[str], None]) -> None:
        self.listeners, self.say = Listeners(datapath), say
        self.thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._end: Callable[[], None] = lambda: None

    def start(self) -> None:
        """At the first client, or a later one."""
        if self.thread is None:
            self.thread = threading.Thread(target=self._run, daemon=True)
            self.thread.start()

    def close(self) -> None:
        """Connections that are open are reset."""
        if self.thread is not None:
            self._ready.wait()
            self._end()
            self.thread.join()
        self.listeners.close()

    def _run(self) -> None:
        try:
            import trio

            trio.run(self._serve)
        except Exception as error:
            self.say(f"DNS over TCP is refused from now on: {error!r}")
            self.listeners.close()
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        import trio

        token, scope = trio.lowlevel.current_trio_token(), trio.CancelScope()

        def end() -> None:
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(scope.cancel)

        self._end = end
        self._ready.set()
        with scope:
            await serve(self.listeners)


async def serve(listeners: Listeners) -> None:
    """For ever."""
    from bpf.ask import Door
    from gateway.dns_proxy import Proxy

    door = Door(listeners.datapath)
    await Proxy(door).serve([(made, door.led) for made in listeners.sockets.values()])


class AgentProxy:
    """The proxy of a node: of what connect() led here, and of what links and gateways steer here.
    `upstream` is as :class:`gateway.dns_proxy.Proxy` has it."""

    def __init__(self, datapath: Datapath, upstream: int = 0) -> None:
        from bpf.ask import Door
        from gateway.dns_proxy import Proxy

        self.datapath = datapath
        self.listeners, self.steered = Listeners(datapath), _transparent(datapath)
        self.door = Door(datapath)
        self.proxy = Proxy(self.door, upstream=upstream)

    async def serve(self) -> None:
        """For ever."""
        led = [(made, self.door.led) for made in self.listeners.sockets.values()]
        await self.proxy.serve([*led, *((made, self.door.steered) for made in self.steered.values())])

    def numbers(self) -> dict[str, int]:
        """What was done so far, and the connections that are open."""
        done = self.proxy.numbers
        errors = {f"error: {name}": count for name, count in sorted(done.errors.items())}
        told = {name: getattr(done, name) for name in ("connections", "questions", "refused", "taught")}
        return {"open": self.proxy.count, **told, **errors}

    def take_over(self) -> None:
        """From now on the links' programs lead connections here: when all that steers them is there."""
        for index, (family, _) in enumerate(LOOPBACKS):
            if family in self.steered:
                self.datapath["listeners"][index] = self.steered[family].fileno()

    def close(self) -> None:
        self.listeners.close()
        for made in self.steered.values():
            made.close()


def _transparent(datapath: Datapath) -> dict[int, socket.socket]:
    """Listeners that take connections to any address (ip(7), IP_TRANSPARENT), one of each family.
    Their answers carry a mark by which they are not steered here again."""
    held, found = datapath["settings"][0], dict[int, socket.socket]()
    for family, address in LOOPBACKS:
        with suppress(OSError):  # a host without that family
            made = socket.socket(family, socket.SOCK_STREAM)
            level, option = TRANSPARENT[family]
            made.setsockopt(level, option, 1)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, int(held.mark_mask) & ~int(held.mark))
            made.bind((address, 0))
            datapath["sockets"][made.fileno()] = {"listener": 1}
            made.listen(BACKLOG)
            found[family] = made
    return found
