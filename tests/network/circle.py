"""Gateways in one process, each with an address of its own on the loopback, and somebody who knows their key.

What they have learned is in a dictionary here; tests/kernel/test_share.py has the kernel's tables.
"""

from __future__ import annotations

import ipaddress
import os
import secrets
import socket
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import wraps
from itertools import count
from time import time
from typing import Any

import trio

from gateway.peers import facts, sealing
from gateway.peers.facts import Fact, Hello, Message
from gateway.peers.members import Pace
from gateway.peers.sealing import Keys
from gateway.peers.talk import Peers, Store

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
SOON = 10  # seconds: what takes longer has gone wrong
DIGEST, OTHER_DIGEST = b"d" * 16, b"o" * 16
PEER = 0x1111
QUICK = Pace(greeting=0.05, silence=0.5, again=0.1, walk=0.05, names=0.05, unresolved=0.05, patience=1.0)
_numbers = count(1)


def new_key() -> sealing.Key:
    return sealing.read_key(sealing.key_text(secrets.token_bytes(sealing.SECRET)))


def address(number: int) -> bytes:
    return bytes(10) + b"\xff\xff" + (0xC6120000 + number).to_bytes(4, "big")


@dataclass
class Memory:
    """What a gateway has learned: by digest and address the seconds of each peer. It takes `peers` only."""

    digests: Collection[bytes] = (DIGEST,)
    peers: Collection[int] = (PEER,)
    rows: dict[tuple[bytes, bytes], dict[int, int]] = field(default_factory=dict)
    searched: int = 0
    deaf: int = 0  # searches that fail

    def learn(self, *addresses: bytes, digest: bytes = DIGEST, peer: int = PEER, seconds: int = 100) -> None:
        for each in addresses:
            self.rows.setdefault((digest, each), {})[peer] = seconds

    def knows(self, digest: bytes) -> bool:
        return digest in self.digests

    def held(self) -> Iterator[tuple[bytes, Fact]]:
        for (digest, each), row in list(self.rows.items()):
            yield from ((digest, Fact(peer, each, seconds)) for peer, seconds in row.items())

    def find(self, digest: bytes, address: bytes) -> list[Fact]:
        self.searched += 1
        if self.searched <= self.deaf:
            raise OSError
        return [Fact(peer, address, s) for peer, s in self.rows.get((digest, address), {}).items()]

    def adopt(self, digest: bytes, facts: Sequence[Fact]) -> int:
        taken = [fact for fact in facts if fact.peer in self.peers]
        for fact in taken:
            row = self.rows.setdefault((digest, fact.address), {})
            row[fact.peer] = max(fact.seconds, row.get(fact.peer, 0))
        return len(taken)

    def has(self, *addresses: bytes, digest: bytes = DIGEST) -> bool:
        return all((digest, each) in self.rows for each in addresses)


@dataclass
class Circle:
    """Gateways and strangers of one test: their addresses are in a network that no other test has."""

    nursery: trio.Nursery
    keys: Keys
    port: int
    network: str
    gateways: list[Peers] = field(default_factory=list)

    def address(self, number: int) -> Address:
        return ipaddress.ip_address(f"{self.network}.{number}")

    def members(self, count: int) -> list[str]:
        return [str(self.address(number)) for number in range(1, count + 1)]

    def gateway(
        self, number: int, members: Iterable[str], store: Store | None = None, **options: Any
    ) -> Peers:
        """Number `number`, which runs from now on."""
        here = self.address(number)
        options = {"keys": self.keys, "pace": QUICK, "dump_seconds": 2.0, "own": lambda: {here}} | options
        made = Peers(store or Memory(), names=tuple(members), listen=(here, self.port), **options)
        self.nursery.start_soon(made.run)
        self.gateways.append(made)
        return made

    async def gateways_that_know_each_other(self, count: int, more: int = 0) -> list[Peers]:
        """`more` members are not there."""
        made = [self.gateway(n, self.members(count + more)) for n in range(1, count + 1)]
        await until(lambda: all(proven(each) == count - 1 and each.ready.is_set() for each in made))
        return made

    @contextmanager
    def stranger(self, number: int) -> Iterator[Stranger]:
        """Somebody at a member's address, with the key."""
        with Stranger(self, self.address(number)) as made:
            yield made


def proven(gateway: Peers) -> int:
    return len(gateway._members.proven)


class Stranger:
    """A member that a test plays. `session` is of this one; `theirs` what a gateway said of itself."""

    def __init__(self, circle: Circle, here: Address) -> None:
        self.port, self.here = circle.port, here
        self.session = secrets.token_bytes(facts.SESSION)
        self.sealer = sealing.Sealer(circle.keys, self.session)
        self.opener = sealing.Opener(circle.keys, self.session)
        self.socket = trio.socket.from_stdlib_socket(_bound(str(here), circle.port))
        self.theirs = facts.NOBODY

    def __enter__(self) -> Stranger:
        return self

    def __exit__(self, *error: object) -> None:
        self.socket.close()

    def seal(self, message: Message, to: bytes | None = None, wall: float | None = None) -> bytes:
        text = facts.encode(message, self.theirs if to is None else to)
        return self.sealer.seal(text, time() if wall is None else wall)

    async def say(self, gateway: Peers, *what: Message | bytes) -> None:
        """Sealed, where it is no datagram yet."""
        for each in what:
            await self.socket.sendto(each if isinstance(each, bytes) else self.seal(each), where(gateway))

    async def hear(self, *kinds: type[Message], of: Peers | None = None) -> Message:
        """The next message of such a kind. Whose session it came in is noted."""
        with trio.fail_after(SOON):
            while True:
                data, source = await self.socket.recvfrom(2000)
                if of and source != where(of):
                    continue
                with suppress(sealing.RefusedError):
                    opened = self.opener.open(data, time(), trio.current_time())
                    _, message = facts.decode(opened.message)
                    self.theirs = opened.session
                    if not kinds or isinstance(message, kinds):
                        return message

    async def meet(self, gateway: Peers) -> None:
        """Each has proven to the other that it is there."""
        await until(gateway.heard)  # it knows its members
        await self.say(gateway, self.seal(Hello(True), facts.NOBODY))
        await self.hear(Hello, of=gateway)
        await self.say(gateway, Hello(True))
        await until(lambda: any(each.session == self.session for each in gateway._members))

    async def heard(self, *kinds: type[Message], seconds: float = 0.3) -> list[Message]:
        """What came of these kinds within a while."""
        found = []
        with trio.move_on_after(seconds):
            while True:
                found.append(await self.hear(*kinds))
        return found


def where(gateway: Peers) -> tuple[str, int]:
    (made,) = gateway._sockets.values()
    return made.getsockname()


def _bound(host: str, port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setblocking(False)
    made.bind((host, port))
    return made


async def until(condition: Callable[[], object], seconds: float = SOON) -> None:
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.005)


def in_a_circle(test: Callable[..., Awaitable[None]]) -> Callable[..., None]:
    """The test is given a circle, which ends with it."""

    @wraps(test)
    def run(**fixtures: Any) -> None:
        async def main() -> None:
            with trio.fail_after(60):
                async with trio.open_nursery() as nursery:
                    network = f"127.{os.getpid() >> 8 & 127 | 64}.{os.getpid() & 255}"
                    port = 20000 + next(_numbers)
                    await test(Circle(nursery, Keys(new_key()), port, network), **fixtures)
                    nursery.cancel_scope.cancel()

        trio.run(main)

    run.__signature__ = _without_first(test)  # type: ignore[attr-defined]
    return run


def _without_first(test: Callable[..., Any]) -> Any:
    from inspect import signature

    whole = signature(test)
    return whole.replace(parameters=list(whole.parameters.values())[1:])
