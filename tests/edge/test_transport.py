import asyncio
import contextlib
import gzip
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from covey_edge.calls import enroll, get_task
from covey_edge.transport import (
    Backoff,
    Refused,
    ServerError,
    Traffic,
    Transport,
    Unreachable,
    connect,
    parse_retry_after,
    server_url,
)
from covey_shared.errors import UsageError
from covey_shared.messages import Hello
from tests.helpers_edge import Handler, Listening, refuse

FAST = Backoff(first_s=0.01, longest_s=0.05, patience_s=2.0)


@contextlib.asynccontextmanager
async def talking(handler: Handler, backoff: Backoff = FAST) -> AsyncIterator[tuple[Transport, list[str]]]:
    heard: list[str] = []
    async with Listening(handler) as url, connect(url, None, Traffic()) as transport:
        transport.backoff, transport.notice = backoff, heard.append
        yield transport, heard


def exchange(handler: Handler, **options: object) -> tuple[bytes, Traffic, list[str]]:
    async def main() -> tuple[bytes, Traffic, list[str]]:
        async with talking(handler) as (transport, heard):
            data = await transport.exchange("PUT", "/v1/x", body=b"12345", kind="k", **options)  # type: ignore[arg-type]
            return data, transport.traffic, heard

    return asyncio.run(main())


def after(count: int, failing: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> tuple[Handler, list[float]]:
    """A handler that fails `count` times and then answers; and the times of the requests."""
    times: list[float] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        times.append(time.monotonic())
        assert await request.read() == b"12345"
        return await failing(request) if len(times) <= count else web.Response(body=b"fine")

    return handle, times


async def abort(request: web.Request) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def half(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": "100"})
    await response.prepare(request)
    await response.write(b"x" * 50)
    return await abort(request)


async def busy(request: web.Request) -> web.StreamResponse:
    return refuse(503, "stopping", "the server is stopping")


async def plain_500(request: web.Request) -> web.StreamResponse:
    return web.Response(status=500, text="<html>")


@pytest.mark.parametrize("failing", [abort, half, busy, plain_500])
def test_passing_trouble_is_tried_again(failing: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> None:
    handler, times = after(3, failing)
    data, _, heard = exchange(handler)
    assert data == b"fine"
    assert len(times) == 4
    assert len(heard) == 1
    assert "trying again" in heard[0]


def test_retry_after_is_honoured() -> None:
    async def later(request: web.Request) -> web.StreamResponse:
        return refuse(429, "slow_down", "too many", retry_after_s=0.3)

    handler, times = after(1, later)
    exchange(handler)
    assert 0.3 <= times[1] - times[0] < 1.0


def test_traffic_counts_bodies_of_answered_exchanges() -> None:
    async def answer(request: web.Request) -> web.StreamResponse:
        assert request.content_type == "application/msgpack"
        assert request.headers["Accept-Encoding"] == "identity"
        return web.Response(body=b"1234567")

    _, traffic, _ = exchange(answer)
    assert (traffic.sent, traffic.received) == ({"k": 5}, {"k": 7})
    handler, _ = after(2, abort)
    _, traffic, _ = exchange(handler)
    assert (traffic.sent, traffic.received) == ({"k": 5}, {"k": 4})


@pytest.mark.parametrize("status", [400, 404, 409, 410, 413, 415])
def test_a_refusal_is_final_and_in_the_servers_words(status: int) -> None:
    async def no(request: web.Request) -> web.StreamResponse:
        return refuse(status, "late", "round 3 is closed\n\x1b[31m")

    handler, times = after(9, no)
    with pytest.raises(Refused) as error:
        exchange(handler)
    assert (error.value.status, error.value.code, len(times)) == (status, "late", 1)
    assert str(error.value) == "round 3 is closed  [31m"


async def html(request: web.Request) -> web.StreamResponse:
    return web.Response(status=404, text="<html>nothing</html>")


async def elsewhere(request: web.Request) -> web.StreamResponse:
    raise web.HTTPFound("https://login.example/")


async def garbage(request: web.Request) -> web.StreamResponse:
    return web.Response(text="<html>welcome</html>")


async def compressed(request: web.Request) -> web.StreamResponse:
    return web.Response(body=gzip.compress(b"a" * 10_000), headers={"Content-Encoding": "gzip"})


async def newer(request: web.Request) -> web.StreamResponse:
    return web.Response(body=Hello(protocol=2, enroll="code", nonce="nonce-nonce").to_bytes())


@pytest.mark.parametrize(
    ("handler", "kind", "sentence"),
    [
        (html, ServerError, "is not a Covey server: it answers 404 Not Found"),
        (elsewhere, ServerError, "it answers 302 Found; it points to 'https://login.example/'"),
        (garbage, ServerError, "is not a Covey server of this version"),
        (compressed, ServerError, "answers compressed, which was not asked for"),
        (newer, UsageError, "the server speaks protocol 2, this client 1"),
    ],
)
def test_not_a_covey_server(handler: Handler, kind: type[Exception], sentence: str) -> None:
    async def main() -> None:
        async with talking(handler) as (transport, _):
            await enroll(transport, "me", "")

    with pytest.raises(kind) as error:
        asyncio.run(main())
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_another_protocol_on_the_port() -> None:
    async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        await reader.read()
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(greet, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        try:
            async with connect(f"http://127.0.0.1:{port}", None, Traffic()) as transport:
                transport.backoff = FAST
                await get_task(transport)
        finally:
            server.close()
            await asyncio.sleep(0.05)

    with pytest.raises(ServerError, match="is not a Covey server"):
        asyncio.run(main())


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize(("size", "ok"), [(100, True), (101, False), (50_000_000, False)])
def test_answers_are_bounded(chunked: bool, size: int, ok: bool) -> None:
    sent = [0]

    async def large(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if chunked:
            response.enable_chunked_encoding()
        else:
            response.content_length = size
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            for start in range(0, size, 1 << 16):
                await response.write(b"x" * min(1 << 16, size - start))
                sent[0] += 1 << 16
        return response

    if ok:
        assert len(exchange(large, limit=100)[0]) == 100
    else:
        with pytest.raises(ServerError, match="at most 100 make sense here"):
            exchange(large, limit=100)
        assert sent[0] < 20_000_000


def test_a_server_that_is_down_is_one_sentence_in_time() -> None:
    async def main() -> None:
        async with Listening(busy) as url:
            pass
        async with connect(url, None, Traffic()) as transport:
            transport.backoff = Backoff(first_s=0.05, longest_s=0.2, patience_s=0.5)
            await get_task(transport)

    started = time.monotonic()
    with pytest.raises(Unreachable) as error:
        asyncio.run(main())
    assert time.monotonic() - started < 2
    assert "no Covey server answers at http://127.0.0.1:" in str(error.value)
    assert "(Connection refused): is `covey serve` running there?" in str(error.value)


def test_a_server_that_stays_busy_is_reported_in_its_words() -> None:
    handler, _ = after(10_000, busy)
    with pytest.raises(Unreachable, match="the server is stopping"):
        exchange(handler)


def test_a_server_that_comes_back_is_waited_for() -> None:
    """Down in the middle: the client goes on when the same address answers again."""

    async def fine(request: web.Request) -> web.StreamResponse:
        return web.Response(body=b"fine")

    async def main() -> bytes:
        async with Listening(fine) as url:
            port = int(url.rsplit(":", 1)[1])
        async with connect(url, None, Traffic()) as transport:
            transport.backoff = Backoff(first_s=0.05, longest_s=0.1)
            waiting = asyncio.create_task(transport.exchange("GET", "/v1/task"))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            async with Listening(fine, port):
                return await waiting

    assert asyncio.run(main()) == b"fine"


@pytest.mark.parametrize(
    "url", ["http://127.0.0.1:80", "https://a.example/covey", "http://[::1]:9", "http://localhost:8080/"]
)
def test_good_addresses(url: str) -> None:
    assert server_url(url) == url.rstrip("/")


@pytest.mark.parametrize(
    "url", ["", "host:8080", "ftp://host", "http://", "http://host:99999", "http://h/?a=1", "http://[::1"]
)
def test_bad_addresses(url: str) -> None:
    with pytest.raises(UsageError, match="is not a server's address: write https://HOST:PORT"):
        server_url(url)


@given(st.integers(0, 1000), st.floats(0, 1, exclude_max=True), st.floats(-10, 1e9))
def test_delays_are_bounded_and_never_before_retry_after(attempt: int, draw: float, retry_after_s: float) -> None:
    backoff = Backoff()
    delay = backoff.delay(attempt, draw, retry_after_s)
    assert 0 <= delay <= 3600 + backoff.longest_s
    assert delay >= min(max(0, retry_after_s), 3600)
    assert backoff.delay(attempt, draw) <= min(backoff.longest_s, backoff.first_s * 2**attempt)


@given(st.text(max_size=40))
def test_retry_after_is_never_trusted_to_be_well_formed(text: str) -> None:
    assert parse_retry_after(text) >= 0
