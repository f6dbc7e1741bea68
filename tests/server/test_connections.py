"""Connections that ask for nothing: too many of one address, headers that never end, thousands of slow ones."""

import asyncio
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from covey_server import connections
from covey_server.app import RUNNER
from covey_server.connections import Open, opened, too_many
from tests.helpers_server import Served, call, send, served, signed_head, write_task


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(write_task(tmp_path_factory.mktemp("connections"))) as found:
        yield found


def connect(server: Served, stack: ExitStack) -> socket.socket:
    parts = urlsplit(server.url)
    return stack.enter_context(socket.create_connection((parts.hostname, parts.port), timeout=20))


@given(st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=60), st.integers(1, 5), st.integers(1, 40))
def test_the_newest_beyond_the_limits_go(who: list[str], most_of_one: int, most: int) -> None:
    transport = asyncio.BaseTransport()
    all_ = [Open(name, transport) for name in who]
    closed = too_many(all_, most, most_of_one)
    kept = len(all_) - len(closed)
    assert kept <= most
    for name in "abc":
        assert min(who.count(name), most_of_one) >= who.count(name) - sum(c.who == name for c in closed)
    if kept < most:
        assert all(c.who for c in closed)
    assert not too_many([Open("", transport)] * 20, 20, 1), "a reverse proxy is not counted by address"


@pytest.mark.parametrize("proxy", ["127.0.0.1", ""])
def test_strangers_behind_a_proxy_have_a_budget_each(proxy: str, tmp_path: Path) -> None:
    """Only the proxy's own word counts, the last one: what a stranger writes himself changes nothing."""
    with served(write_task(tmp_path), proxy=proxy) as server:

        def ask(forwarded: str) -> int:
            return send(server.url, "GET", "/v1/task", None, {"X-Forwarded-For": forwarded}).status

        many = [ask(f"198.51.100.{i}, 203.0.113.1") for i in range(130)]
        assert many.count(429) > 10, "however often he invents another address before his own"
        assert ask("203.0.113.2") == (401 if proxy else 429)
        assert ask("2001:db8::1") == (401 if proxy else 429)


def test_idle_connections_of_one_address_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "LOOK_S", 0.05)
    monkeypatch.setattr(connections, "opened", lambda server: opened(server, loopback_counts=True))
    monkeypatch.setattr(connections, "too_many", lambda found: too_many(found, 1000, 20))

    async def main() -> int:
        runner = web.AppRunner(web.Application(), access_log=None, **RUNNER)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        watching = asyncio.create_task(connections.watch(runner))
        port = runner.addresses[0][1]
        pairs = [await asyncio.open_connection("127.0.0.1", port) for _ in range(50)]
        ended = await asyncio.gather(*(asyncio.wait_for(reader.read(1), 0.7) for reader, _ in pairs),
                                     return_exceptions=True)  # fmt: skip
        for _, writer in pairs:
            writer.close()
        watching.cancel()
        await runner.cleanup()
        return sum(not isinstance(e, TimeoutError) for e in ended)

    assert asyncio.run(main()) == 30


def test_headers_have_a_limit(server: Served) -> None:
    for head in (b"GET /" + b"a" * 20_000, b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 20_000):
        with ExitStack() as stack:
            connection = connect(server, stack)
            connection.sendall(head + b"\r\n\r\n")
            assert connection.recv(65536).startswith(b"HTTP/1.0 400")


def test_many_slow_strangers_do_not_stop_a_device(server: Served) -> None:
    """Two hundred connections that never finish their headers; a device is answered as if they were not there."""
    with ExitStack() as stack:
        slow = [connect(server, stack) for _ in range(200)]
        for connection in slow:
            connection.sendall(b"PUT /v1/updates/1/a HTTP/1.1\r\nHost: x\r\nContent-Le")
        begun = time.monotonic()
        for _ in range(5):
            assert call(server.url, "GET", "/v1/task", who="a").status == 200
        assert time.monotonic() - begun < 5
        for connection in slow:
            connection.sendall(b"ngth: 5000\r\nContent-Type: application/msgpack\r\n\r\n")
        answers = [connection.recv(4096) for connection in slow]
    assert all(a.startswith((b"HTTP/1.1 401", b"HTTP/1.1 429")) for a in answers), (
        "without reading a byte of the bodies"
    )


def test_connections_do_not_wait_for_ever() -> None:
    """aiohttp's own default keeps a connection without a request for an hour."""
    assert RUNNER["keepalive_timeout"] <= 30
    assert RUNNER["lingering_time"] <= 5


@pytest.mark.parametrize("who", ["a", ""])
def test_who_asks_before_sending_is_answered_by_the_guard(server: Served, who: str) -> None:
    """`Expect: 100-continue`: a stranger hears no, a device is asked for its body."""
    body = b"\x80" * 100
    path = f"/v1/updates/1/{who or 'nobody'}"
    call(server.url, "GET", "/v1/task", who="a")
    head = (
        signed_head(server.url, "PUT", path, body)
        if who
        else f"PUT {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n".encode()
    )
    head = head[:-2] + b"Expect: 100-continue\r\n\r\n"
    with ExitStack() as stack:
        connection = connect(server, stack)
        connection.sendall(head)
        first = connection.recv(4096)
        if not who:
            assert first.startswith((b"HTTP/1.1 401", b"HTTP/1.1 429"))
            return
        assert first == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(4096).startswith(b"HTTP/1.1 400")
