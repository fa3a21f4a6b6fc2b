"""gateway/health.py on real sockets: who may ask, what they are told, and that asking does no harm."""

from __future__ import annotations

import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from gateway import health
from gateway.health import Report, Sources
from gateway.metrics import Numbers

SEEN = Numbers(
    version="1.2",
    packets={"shop/web": {"RULE": 7, "NO_RULE": 2}},
    workloads={"enforced": 3},
    links={"attached": 2, "none": 1},
    api={"requests": 9},
    api_connected=True,
    dns={"open": 2, "questions": 5, "error: too slow": 1},
)


class World:
    """What the agent and the API server would say; `asked` is what the latter was asked."""

    def __init__(self) -> None:
        self.report = Report()
        self.asked: list[tuple[str, str]] = []
        self.is_away = False

    def may_get(self, token: str, path: str) -> bool:
        self.asked.append((token, path))
        if self.is_away:
            raise OSError("connection refused")
        return (token, path) == ("prometheus", "/metrics")

    @property
    def sources(self) -> Sources:
        return Sources(lambda: self.report, lambda: SEEN, self.may_get)


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def in_time() -> None:
        with trio.fail_after(20):
            await test()

    trio.run(in_time)


@asynccontextmanager
async def here(world: World, path: Path) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(health.serve_here, path, world.sources)
        await (await connected(path)).aclose()
        assert path.stat().st_mode & 0o777 == 0o600
        yield
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def network(world: World, folder: Path) -> AsyncIterator[tuple[str, int]]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    address = listener.socket.getsockname()
    await listener.aclose()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(health.serve_network, address, folder, world.sources)
        yield address
        nursery.cancel_scope.cancel()


async def read(stream: trio.abc.Stream) -> bytes:
    return b"".join([data async for data in stream])


async def asked(stream: trio.abc.Stream, text: str) -> tuple[int, str]:
    await stream.send_all(text.replace("\n", "\r\n").encode())
    head, _, body = (await read(stream)).decode().partition("\r\n\r\n")
    return int(head.split()[1]), body


async def connected(address: Path | tuple[str, int]) -> trio.abc.Stream:
    while True:
        try:
            if isinstance(address, Path):
                return await trio.open_unix_socket(address)
            return await trio.open_tcp_stream(*address)
        except OSError:
            await trio.sleep(0.02)


async def scrape(address: tuple[str, int], token: str = "", path: str = "/metrics") -> tuple[int, str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    stream = trio.SSLStream(await connected(address), context)
    bearer = f"Authorization: Bearer {token}\n" if token else ""
    found = await asked(stream, f"GET {path} HTTP/1.1\nHost: node\n{bearer}\n")
    await stream.aclose()
    return found


def probe(path: Path, target: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "gateway.ask", path, target]
    return subprocess.run(words, capture_output=True, text=True, check=False, timeout=20)


def test_the_probes_say_what_is_wrong(tmp_path: Path) -> None:
    world, path = World(), tmp_path / "health"

    async def test() -> None:
        async with here(world, path):
            done = await trio.to_thread.run_sync(probe, path, "/readyz")
            assert (done.returncode, done.stdout) == (0, "ok\n")
            world.report = Report(unready=("policies were not listed yet",))
            done = await trio.to_thread.run_sync(probe, path, "/readyz")
            assert (done.returncode, done.stdout) == (1, "policies were not listed yet\n")
            done = await trio.to_thread.run_sync(probe, path, "/livez")
            assert (done.returncode, done.stdout) == (0, "ok\n")
            world.report = Report(dead=("a step hangs",))
            assert (await trio.to_thread.run_sync(probe, path, "/livez")).returncode == 1
            assert (await trio.to_thread.run_sync(probe, path, "/readyz")).returncode == 1

    run(test)
    done = probe(path, "/livez")
    assert done.returncode == 1
    assert "does not answer" in done.stdout


def test_a_socket_that_an_earlier_agent_left_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "health"

    async def test() -> None:
        for _ in range(2):
            async with here(World(), path):
                stream = await trio.open_unix_socket(path)
                assert await asked(stream, "GET /livez HTTP/1.1\nHost: x\n\n") == (200, "ok\n")

    run(test)


def test_metrics_are_for_those_whom_the_api_server_lets(tmp_path: Path) -> None:
    world = World()

    async def test() -> None:
        async with network(world, tmp_path) as address:
            assert (await scrape(address))[0] == 401
            assert (await scrape(address, "somebody"))[0] == 403
            assert (await scrape(address, "prometheus", "/readyz"))[0] == 403
            status, text = await scrape(address, "prometheus")
            assert status == 200
            assert 'skouter_packets_total{policy="shop/web",reason="no_rule"} 2.0' in text
            assert 'skouter_build_info{version="1.2"} 1.0' in text
            assert 'skouter_links{state="attached"} 2.0' in text
            assert 'skouter_api_total{what="requests"} 9.0' in text
            assert 'skouter_dns_tcp_total{what="error: too slow"} 1.0' in text
            assert "skouter_dns_tcp_connections 2.0" in text
        assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600

    run(test)


def test_the_api_server_is_asked_once_a_minute_and_its_absence_opens_nothing(tmp_path: Path) -> None:
    world = World()

    async def test() -> None:
        async with network(world, tmp_path) as address:
            for _ in range(3):
                assert (await scrape(address, "prometheus"))[0] == 200
            assert world.asked == [("prometheus", "/metrics")]
            world.is_away = True
            assert (await scrape(address, "prometheus"))[0] == 200
            assert (await scrape(address, "another"))[0] == 503

    run(test)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("POST /metrics HTTP/1.1\nHost: x\nContent-Length: 0\n\n", 405),
        ("GET /secrets HTTP/1.1\nHost: x\n\n", 404),
        ("nonsense\n\n", 400),
        ("GET /livez HTTP/1.1\nHost: x\nEndless: ".ljust(health.HEADERS + 1000, "x"), 431),
        ("GET /metrics?name=x HTTP/1.1\nHost: x\n\n", 200),
    ],
)
def test_bad_requests_are_answered(tmp_path: Path, text: str, status: int) -> None:
    async def test() -> None:
        async with here(World(), tmp_path / "health"):
            assert (await asked(await trio.open_unix_socket(tmp_path / "health"), text))[0] == status

    run(test)


def test_who_says_nothing_is_hung_up_on_and_others_are_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "PATIENCE", 0.5)
    path = tmp_path / "health"

    async def test() -> None:
        async with here(World(), path):
            silent = [await trio.open_unix_socket(path) for _ in range(health.CONNECTIONS - 1)]
            stream = await trio.open_unix_socket(path)
            assert (await asked(stream, "GET /livez HTTP/1.1\nHost: x\n\n"))[0] == 200
            for stream in silent:
                assert await stream.receive_some() == b""

    run(test)


def test_the_newer_of_two_agents_waits_for_the_port(tmp_path: Path) -> None:
    older, newer = tmp_path / "older", tmp_path / "newer"
    older.mkdir()
    newer.mkdir()
    second = World()
    second.is_away = True

    async def test() -> None:
        async with trio.open_nursery() as nursery:
            async with network(World(), older) as address:
                assert (await scrape(address, "prometheus"))[0] == 200
                nursery.start_soon(health.serve_network, address, newer, second.sources)
                while not (newer / "certificate.pem").exists():
                    await trio.sleep(0.01)
                assert (await scrape(address, "prometheus"))[0] == 200
            while (await scrape(address, "prometheus"))[0] != 503:
                pass
            nursery.cancel_scope.cancel()

    run(test)
