"""DNS over TCP, read by a proxy that nobody configures: an answer is released when the kernel knows it.

A client's connection to a trusted resolver ends here (bpf/proxy.h leads it), and goes on from here to the
very resolver that it asked for. Messages pass through byte for byte; each is held only until the kernel has
said whether it may be asked, or has learned what it says.

Rules this file obeys:

- The kernel decides (bpf/ask.py). Whoever comes without its word on who they are and whom they asked for is
  refused.
- An answer passes only where it fits an open question of its own connection, once, and is learned before.
- Nobody takes the room of another: each workload has so many connections, and where there are too many of
  all, one of whoever has the most must go. Which: the one that has been silent for longest.
- Nothing is read that can't be passed on: a client that does not read is not read either (RFC 7766 6.2.1.1).
- A message that does not come to its end in time ends its connection, as any error does: at once, so that the
  client may ask anew.
"""

from __future__ import annotations

import resource
import socket
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import trio

from bpf.ask import Asker, Door, Ends
from gateway import dns_messages as dns
from routing.own import LOOPBACKS

Who = Callable[[Ends], Asker | None]  # of a connection that was accepted
Key = tuple[int, bytes]

ABORT = struct.pack("ii", 1, 0)  # struct linger: the peer gets a reset
PIECE = 16384  # bytes that are read at once
AT_ONCE = 64  # connections that are accepted in a row
OUT_OF_ROOM = 0.1  # seconds to wait where there are no descriptors left
UNREAD = b""  # in place of a question: an answer that teaches nothing, known by its id alone


@dataclass(frozen=True, slots=True)
class Limits:
    """Connections, open questions of one connection, and seconds."""

    all: int = 1024
    of_one: int = 128
    open: int = 64
    idle: float = 30.0  # that a connection may be silent
    message: float = 10.0  # that a message may take from its first byte to its last
    reply: float = 5.0  # that a server may take to accept a connection


@dataclass(slots=True)
class Numbers:
    """What was done so far; `errors` by their names."""

    connections: int = 0
    questions: int = 0
    refused: int = 0
    taught: int = 0
    errors: Counter[str] = field(default_factory=Counter)


class Proxy:
    """All connections of one process."""

    def __init__(self, door: Door, limits: Limits | None = None, upstream: int = 0) -> None:
        """`upstream`: a port of this host, where the resolver is that answers in everybody's place."""
        self.door, self.limits, self.numbers = door, limits or Limits(), Numbers()
        self.upstream = upstream
        self.sessions: dict[int, dict[int, _Session]] = {}  # by workload, then by order of coming
        self.most = min(self.limits.all, _descriptors() // 2)

    @property
    def count(self) -> int:
        return sum(map(len, self.sessions.values()))

    async def serve(self, listeners: Sequence[tuple[socket.socket, Who]]) -> None:
        """For ever; the listeners are the caller's."""
        async with trio.open_nursery() as nursery:
            for listener, who in listeners:
                listener.setblocking(False)
                nursery.start_soon(self._accept, listener, who, nursery)

    async def _accept(self, listener: socket.socket, who: Who, nursery: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                for _ in range(AT_ONCE):  # who connects a thousand times shall not hold up who comes behind
                    made, _ = listener.accept()
                    self._admit(made, who, nursery)
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError:
                self.numbers.errors["no descriptors"] += 1
                await trio.sleep(OUT_OF_ROOM)

    def _admit(self, made: socket.socket, who: Who, nursery: trio.Nursery) -> None:
        try:
            asker = who(made)
        except OSError:  # it has gone already
            asker = None
        if asker:
            nursery.start_soon(self._attend, made, asker)
        else:
            self.numbers.errors["unknown client"] += 1
            _reset(made)

    async def _attend(self, made: socket.socket, asker: Asker) -> None:
        self._make_room(asker.workload)
        self.numbers.connections += 1
        own = self.sessions.setdefault(asker.workload, {})
        session = own[self.numbers.connections] = _Session(self, made, asker)
        number = self.numbers.connections
        try:
            await session.run()
        finally:
            own.pop(number, None)
            if not own and self.sessions.get(asker.workload) is own:
                del self.sessions[asker.workload]

    def _make_room(self, workload: int) -> None:
        if len(self.sessions.get(workload, ())) >= self.limits.of_one:
            self._end_one(workload)
        elif self.count >= self.most:
            self._end_one(max(self.sessions, key=lambda each: len(self.sessions[each])))

    def _end_one(self, workload: int) -> None:
        """At once out of the count, so that two do not end the same one."""
        own = self.sessions[workload]
        number = min(own, key=lambda each: own[each].heard)
        own.pop(number).end("too many")


class _EndError(Exception):
    """The connection is over; the message is the name under which that is counted, or empty."""


class _Session:
    """One client's connection, and the one to its server."""

    def __init__(self, proxy: Proxy, made: socket.socket, asker: Asker) -> None:
        self.proxy, self.limits, self.numbers = proxy, proxy.limits, proxy.numbers
        self.asker, self.made = asker, made
        self.client = trio.SocketStream(trio.socket.from_stdlib_socket(made))
        self.server: trio.SocketStream | None = None
        self.open: dict[Key, bool] = {}  # whether what answers it is learned
        self.answered = trio.Event()
        self.heard = trio.current_time()
        self.scope = trio.CancelScope()
        self.sending = trio.Lock()

    async def run(self) -> None:
        with self.scope:
            async with trio.open_nursery() as self.nursery:
                self.nursery.start_soon(self._watched, self._follow_client)
        self._close()

    def end(self, why: str) -> None:
        self.numbers.errors[why] += bool(why)
        self.scope.cancel()

    def _close(self) -> None:
        """A connection that is not at its end is reset: nobody shall wait for an answer."""
        if self.open:
            _reset(self.client.socket)
        self.client.socket.close()
        if self.server:
            self.server.socket.close()

    async def _watched(self, follow: Callable[[], object]) -> None:
        try:
            await follow()  # type: ignore[misc]
            self.end("")
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            self.end("broken off")
        except trio.TooSlowError:
            self.end("too slow")
        except _EndError as error:
            self.end(str(error))
        except Exception as error:  # a fault of ours: what somebody sends must not end the agent
            self.end(f"fault: {type(error).__name__}")

    # ---- From the client

    async def _follow_client(self) -> None:
        messages = _Messages(self.client, self)
        while (message := await messages.next()) is not None:
            await self._take(message)
        while self.open:  # it has said all, and still listens
            await self._wait_for_answer()

    async def _take(self, message: bytes) -> None:
        if len(message) < dns.HEADER:
            raise _EndError("no message")
        if not self.proxy.door.stands(self.asker):
            raise _EndError("no longer trusted")
        self.numbers.questions += 1
        if not self.proxy.door.may_ask(self.asker, message[: dns.QUESTION]):
            self.numbers.refused += 1
            await self._answer(dns.refusal(message))
            return
        question = dns.question_of(message) if dns.is_query(message) else None
        key = question.key if question else (dns.id_of(message), UNREAD)
        while len(self.open) >= self.limits.open or key in self.open:
            await self._wait_for_answer()
        self.open[key] = question is not None and not question.is_transfer
        with trio.fail_after(self.limits.message):
            await (self.server or await self._reach_server()).send_all(_framed(message))

    async def _wait_for_answer(self) -> None:
        self.answered = trio.Event()
        with trio.fail_after(self.limits.idle):
            await self.answered.wait()

    async def _reach_server(self) -> trio.SocketStream:
        address, port = str(self.asker.server), self.asker.server_port
        family = socket.AF_INET if self.asker.server.version == 4 else socket.AF_INET6
        if self.proxy.upstream:
            address, port = dict(LOOPBACKS)[family], self.proxy.upstream
        made = trio.socket.socket(family)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            with trio.fail_after(self.limits.reply):
                await made.connect((address, port))
        except BaseException:
            made.close()
            raise
        if not self.proxy.door.is_outside(made):
            made.close()
            raise _EndError("a workload as server")
        self.server = trio.SocketStream(made)
        self.nursery.start_soon(self._watched, self._follow_server)
        return self.server

    # ---- From the server

    async def _follow_server(self) -> None:
        assert self.server is not None
        messages = _Messages(self.server, self)
        while (message := await messages.next()) is not None:
            await self._release(message)

    async def _release(self, message: bytes) -> None:
        if len(message) < dns.HEADER:
            raise _EndError("no message")
        key = self._question_of(message)
        if key is None:
            self.numbers.errors["unasked"] += 1
            return
        if self.open[key]:
            self._teach(message)
        question = dns.question_of(message)
        if not (question and question.is_transfer):
            del self.open[key]
        await self._answer(message)
        self.answered.set()

    def _question_of(self, message: bytes) -> Key | None:
        """The open question that a message answers."""
        question, number = dns.question_of(message), dns.id_of(message)
        if question and question.key in self.open:
            return question.key
        if (number, UNREAD) in self.open:
            return number, UNREAD
        if question or message[4:6] != b"\0\0":
            return None
        # Only errors, and what follows the first message of a transfer, may leave the question out.
        of_this = [key for key in self.open if key[0] == number]
        may = dns.is_error_without_question(message) or (of_this and dns.Question(*of_this[0]).is_transfer)
        return of_this[0] if of_this and may else None

    def _teach(self, message: bytes) -> None:
        try:
            for portion in dns.portions(message):
                if not self.proxy.door.teach(self.asker, portion):
                    raise _EndError("not learned")  # unlearned it must not pass as if it were
            self.numbers.taught += 1
        except dns.BrokenMessageError:
            self.numbers.errors["unreadable answer"] += 1

    async def _answer(self, message: bytes) -> None:
        async with self.sending:
            with trio.fail_after(self.limits.message):
                await self.client.send_all(_framed(message))


class _Messages:
    """What comes in on one stream (RFC 1035 4.2.2: each behind two bytes of its length)."""

    def __init__(self, stream: trio.SocketStream, session: _Session) -> None:
        self.stream, self.session, self.buffer = stream, session, bytearray()

    async def next(self) -> bytes | None:
        """None at the end of the stream. Raises :class:`trio.TooSlowError`."""
        if not self.buffer and not await self._begins():
            return None
        with trio.fail_after(self.session.limits.message):
            while len(self.buffer) < 2 or len(self.buffer) < 2 + self._length:
                if not await self._more():
                    raise _EndError("cut off")
        message = bytes(self.buffer[2 : 2 + self._length])
        del self.buffer[: 2 + len(message)]
        self.session.heard = trio.current_time()
        return message

    @property
    def _length(self) -> int:
        return int.from_bytes(self.buffer[:2], "big")

    async def _begins(self) -> bool:
        """Waits for as long as the other side is heard."""
        while True:
            with trio.move_on_at(self.session.heard + self.session.limits.idle):
                return await self._more()
            if trio.current_time() >= self.session.heard + self.session.limits.idle:
                raise _EndError("idle" if not self.session.open else "no answer")

    async def _more(self) -> bool:
        piece = await self.stream.receive_some(PIECE)
        self.buffer += piece
        return bool(piece)


def _framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


def _reset(made: socket.socket | trio.socket.SocketType) -> None:
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, ABORT)
    finally:
        made.close()


def _descriptors() -> int:
    """How many this process may have, with some left for others."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4096 if hard == resource.RLIM_INFINITY else min(4096, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return 4096 if soft == resource.RLIM_INFINITY else max(64, soft - 256)
