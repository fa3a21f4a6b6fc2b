"""The proxy's connections, on real sockets of the loopback, with a small kernel half beside it.

The real one is asked in tests/kernel/test_proxy.py and tests/network/test_dns_over_tcp.py.
"""

from __future__ import annotations

import ipaddress
import math
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial

import pytest
import trio
from dnslib import QTYPE, RR, A, DNSRecord

from bpf.ask import Asker
from gateway import dns_messages as dns
from gateway.dns_proxy import Limits, Proxy

HOST = ipaddress.IPv4Address("127.0.0.1")
SOON = 10  # seconds: what takes longer has gone wrong


@dataclass
class Kernel:
    """In the place of bpf.ask.Door: refuses names below `refused`, and notes what it is taught, in order."""

    refused: bytes = b"\x07refused"
    trusts: bool = True
    learns: bool = True
    fails: bool = False
    taught: list[bytes] = field(default_factory=list)

    def stands(self, _asker: Asker) -> bool:
        return self.trusts

    def is_outside(self, _connection: object) -> bool:
        return True

    def may_ask(self, _asker: Asker, message: bytes) -> bool:
        return self.refused not in message

    def teach(self, _asker: Asker, message: bytes) -> bool:
        if self.fails:
            raise KeyError("a fault")
        self.taught.append(message)
        return self.learns


class Client:
    """One connection to the proxy."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream, self.buffer = stream, b""

    async def ask(self, *messages: bytes) -> None:
        await self.stream.send_all(b"".join(len(m).to_bytes(2, "big") + m for m in messages))

    async def answer(self) -> bytes | None:
        """The next message; None at the end, however it comes."""
        with trio.fail_after(SOON):
            while len(self.buffer) < 2 or len(self.buffer) < 2 + int.from_bytes(self.buffer[:2], "big"):
                try:
                    piece = await self.stream.receive_some(65536)
                except trio.BrokenResourceError:
                    return None
                if not piece:
                    return None
                self.buffer += piece
        size = int.from_bytes(self.buffer[:2], "big")
        message, self.buffer = self.buffer[2 : 2 + size], self.buffer[2 + size :]
        return message


Handler = Callable[[Client], Awaitable[None]]


@dataclass
class World:
    proxy: Proxy
    kernel: Kernel
    address: tuple[str, int]
    workload: int = 1

    async def client(self, workload: int = 1) -> Client:
        self.workload = workload
        before = self.proxy.numbers.connections
        made = Client(await trio.open_tcp_stream(*self.address))
        with trio.fail_after(SOON):
            while self.proxy.numbers.connections == before:
                await trio.sleep(0.001)
        return made

    async def until(self, condition: Callable[[], object]) -> None:
        with trio.fail_after(SOON):
            while not condition():
                await trio.sleep(0.005)


@asynccontextmanager
async def world(
    serve: Handler, limits: Limits | None = None, kernel: Kernel | None = None
) -> AsyncIterator[World]:
    """A server that treats each connection so, and the proxy before it."""
    kernel = kernel or Kernel()
    async with trio.open_nursery() as nursery:

        async def handle(stream: trio.SocketStream) -> None:
            with suppress(trio.BrokenResourceError):
                await serve(Client(stream))

        (server,) = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        port = server.socket.getsockname()[1]
        with socket.create_server(("127.0.0.1", 0)) as listener:
            made = World(Proxy(kernel, limits), kernel, listener.getsockname())  # type: ignore[arg-type]

            def who(connection: socket.socket) -> Asker:
                return Asker(made.workload, HOST, connection.getpeername()[1], HOST, port)

            nursery.start_soon(made.proxy.serve, [(listener, who)])
            yield made
            nursery.cancel_scope.cancel()


def question(name: str, number: int, kind: str = "A") -> bytes:
    asked = DNSRecord.question(name, kind)
    asked.header.id = number
    return bytes(asked.pack())


def reply(message: bytes, count: int = 1) -> bytes:
    made = DNSRecord.parse(message).reply()
    for i in range(count):
        made.add_answer(RR(made.q.qname, QTYPE.A, ttl=60, rdata=A(f"198.51.{i >> 8}.{i & 255}")))
    return bytes(made.pack())


async def echo(client: Client) -> None:
    """Answers like a server that works."""
    while message := await client.answer():
        await client.ask(reply(message))


def test_a_message_passes_byte_for_byte_and_is_learned_before() -> None:
    async def main() -> None:
        async with world(echo) as w:
            client, asked = await w.client(), question("www.example.com", 7)
            await client.ask(asked)
            assert await client.answer() == reply(asked) == w.kernel.taught[0]
            assert (w.proxy.numbers.questions, w.proxy.numbers.taught) == (1, 1)

    trio.run(main)


def test_many_questions_at_once_are_answered_as_they_come_in_any_order() -> None:
    async def backwards(client: Client) -> None:
        messages = [await client.answer() for _ in range(50)]
        await client.ask(*(reply(m) for m in reversed(messages) if m))
        await client.answer()

    async def main() -> None:
        async with world(backwards) as w:
            client = await w.client()
            asked = [question(f"n{i}.example.com", i) for i in range(50)]
            await client.ask(*asked)
            assert [await client.answer() for _ in asked] == [reply(m) for m in reversed(asked)]

    trio.run(main)


def test_a_message_in_pieces_of_one_byte_is_one_message() -> None:
    async def main() -> None:
        async with world(echo) as w:
            client, asked = await w.client(), question("www.example.com", 7)
            client.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for byte in len(asked).to_bytes(2, "big") + asked:
                await client.stream.send_all(bytes([byte]))
            assert await client.answer() == reply(asked)

    trio.run(main)


def test_an_answer_of_64_KiB_is_divided_for_the_kernel_and_passes_whole() -> None:
    whole = reply(question("n.example.com", 7), 4000)

    async def large(client: Client) -> None:
        await client.answer()
        await client.ask(whole)
        await client.answer()

    async def main() -> None:
        async with world(large) as w:
            client = await w.client()
            await client.ask(question("n.example.com", 7))
            assert await client.answer() == whole
            assert len(w.kernel.taught) == math.ceil(4000 / dns.RECORDS)

    trio.run(main)


def test_a_refused_question_is_answered_at_once_and_never_leaves() -> None:
    seen = []

    async def notes(client: Client) -> None:
        while message := await client.answer():
            seen.append(message)
            await client.ask(reply(message))

    async def main() -> None:
        async with world(notes) as w:
            client = await w.client()
            await client.ask(question("refused.example.com", 9), question("www.example.com", 7))
            first, second = await client.answer(), await client.answer()
            assert first
            assert second
            assert DNSRecord.parse(first).header.rcode == 3
            assert dns.question_of(first) == dns.question_of(question("refused.example.com", 9))
            assert second == reply(question("www.example.com", 7))
            assert seen == [question("www.example.com", 7)]
            assert w.proxy.numbers.refused == 1

    trio.run(main)


@pytest.mark.parametrize(
    "change",
    [
        lambda m: question("www.example.com", 8)[:2] + m[2:],
        lambda m: m.replace(b"example", b"exampl3"),
        lambda m: m[:4] + b"\0\0" + m[6:12] + m[33:],
    ],
    ids=["another id", "another name", "no question"],
)
def test_what_answers_no_open_question_neither_passes_nor_teaches(change: Callable[[bytes], bytes]) -> None:
    async def lies(client: Client) -> None:
        if message := await client.answer():
            await client.ask(change(reply(message)), reply(message), reply(message))
            await client.answer()

    async def main() -> None:
        async with world(lies) as w:
            client, asked = await w.client(), question("www.example.com", 7)
            await client.ask(asked)
            assert await client.answer() == reply(asked)
            await w.until(lambda: w.proxy.numbers.errors["unasked"] == 2)
            assert w.kernel.taught == [reply(asked)]

    trio.run(main)


def test_a_transfer_of_many_messages_passes_and_teaches_nothing() -> None:
    async def transfer(client: Client) -> None:
        if message := await client.answer():
            bare = reply(message)[:4] + b"\0\0\0\0\0\0\0\0"
            await client.ask(reply(message), reply(message), bare)
            await client.answer()

    async def main() -> None:
        async with world(transfer) as w:
            client, asked = await w.client(), question("example.com", 7, "AXFR")
            await client.ask(asked)
            got = [await client.answer() for _ in range(3)]
            assert got[:2] == [reply(asked)] * 2
            assert got[2]
            assert w.kernel.taught == []

    trio.run(main)


def test_an_error_without_its_question_passes() -> None:
    async def formerr(client: Client) -> None:
        if message := await client.answer():
            await client.ask(message[:2] + b"\x81\x81" + bytes(8))
            await client.answer()

    async def main() -> None:
        async with world(formerr) as w:
            client = await w.client()
            await client.ask(question("www.example.com", 7))
            assert await client.answer() == question("www.example.com", 7)[:2] + b"\x81\x81" + bytes(8)

    trio.run(main)


def test_who_asks_and_says_no_more_is_answered_all_the_same() -> None:
    async def main() -> None:
        async with world(echo) as w:
            client, asked = await w.client(), question("www.example.com", 7)
            await client.ask(asked)
            await client.stream.send_eof()
            assert await client.answer() == reply(asked)
            assert await client.answer() is None

    trio.run(main)


def test_a_fault_of_ours_ends_the_connection_that_met_it_and_no_other() -> None:
    async def main() -> None:
        async with world(echo, kernel=Kernel(fails=True)) as w:
            other, client = await w.client(), await w.client()
            await client.ask(question("www.example.com", 7))
            assert await client.answer() is None
            await other.ask(question("refused.example.com", 7))
            assert await other.answer()
            assert w.proxy.numbers.errors["fault: KeyError"] == 1

    trio.run(main)


@pytest.mark.parametrize("kernel", [Kernel(trusts=False), Kernel(learns=False)], ids=["trusts", "learns"])
def test_what_the_kernel_no_longer_knows_ends_the_connection(kernel: Kernel) -> None:
    async def main() -> None:
        async with world(echo, kernel=kernel) as w:
            client = await w.client()
            await client.ask(question("www.example.com", 7))
            assert await client.answer() is None

    trio.run(main)


def test_a_server_that_is_not_there_ends_the_connection_at_once() -> None:
    async def main() -> None:
        async with world(echo) as w:
            client = await w.client()
            w.proxy.sessions[1][1].asker = Asker(1, HOST, 1, HOST, 1)
            await client.ask(question("www.example.com", 7))
            assert await client.answer() is None
            assert w.proxy.numbers.errors["broken off"] == 1

    trio.run(main)


@pytest.mark.parametrize(
    ("sent", "why"),
    [
        (b"", "idle"),
        (b"\0", "too slow"),
        (b"\xff\xff" + b"x" * 100, "too slow"),
        (b"\0\x05abcde", "no message"),
        (b"\0\0", "no message"),
    ],
    ids=["nothing", "half a length", "a length that lies", "too short", "empty"],
)
def test_a_connection_that_says_nothing_whole_ends(sent: bytes, why: str) -> None:
    async def main() -> None:
        async with world(echo, Limits(idle=0.3, message=0.3)) as w:
            client = await w.client()
            await client.stream.send_all(sent)
            assert await client.answer() is None
            assert w.proxy.numbers.errors[why] == 1
            assert w.proxy.count == 0

    trio.run(main)


def test_a_server_that_says_nothing_ends_it_too() -> None:
    async def silent(client: Client) -> None:
        await client.answer()
        await client.answer()

    async def main() -> None:
        async with world(silent, Limits(idle=0.3)) as w:
            client = await w.client()
            await client.ask(question("www.example.com", 7))
            assert await client.answer() is None
            assert w.proxy.numbers.errors["no answer"] == 1

    trio.run(main)


def test_who_does_not_read_is_not_read() -> None:
    """Answers of 64 KiB that nobody takes: the proxy holds no more than a few of them."""
    served = []
    whole = reply(question("n.example.com", 7), 4000)

    async def generous(client: Client) -> None:
        while message := await client.answer():
            served.append(message)
            await client.ask(message[:2] + whole[2:])

    async def main() -> None:
        async with world(generous, Limits(open=8, message=1)) as w:
            client = await w.client()
            asked = [question("n.example.com", i) for i in range(1000)]
            with trio.move_on_after(SOON), suppress(trio.BrokenResourceError):
                await client.ask(*asked * 1000)
            await w.until(lambda: w.proxy.count == 0)
            assert len(served) < 500

    trio.run(main)


def test_one_workload_with_too_many_connections_loses_its_own() -> None:
    async def main() -> None:
        async with world(echo, Limits(of_one=5)) as w:
            other = await w.client(workload=2)
            first, *rest = [await w.client(workload=1) for _ in range(6)]
            assert await first.answer() is None
            for client in (other, *rest):
                await client.ask(question("www.example.com", 7))
                assert await client.answer() == reply(question("www.example.com", 7))

    trio.run(main)


def test_where_there_are_too_many_of_all_the_one_with_the_most_loses_the_one_that_was_silent_longest() -> (
    None
):
    async def main() -> None:
        async with world(echo, Limits(all=6)) as w:
            greedy = [await w.client(workload=1) for _ in range(5)]
            await greedy[0].ask(question("www.example.com", 7))
            assert await greedy[0].answer()
            others = [await w.client(workload=number) for number in (2, 3)]
            assert await greedy[1].answer() is None
            for client in (*others, greedy[0], *greedy[2:]):
                await client.ask(question("www.example.com", 7))
                assert await client.answer()

    trio.run(main)
