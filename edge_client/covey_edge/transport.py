"""HTTP to the server: one exchange with retries, bounds and the server's own words when it refuses.

    ServerError             the server cannot be used
    ├── Unreachable         ... it did not answer in time: down, or no way there
    └── Refused             ... it answered no; carries the HTTP status and the refusal's code

Connection errors, 408, 429 and 5xx are tried again: exponential backoff with full jitter (Brooker 2015,
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), never sooner than the server's Retry-After.
Every other 4xx is final. All requests of the client go through `Transport.exchange`, so that is where they are
counted, and where a signature would be added.
"""

import asyncio
import os
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Container, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

import aiohttp

from covey_edge.events import printable
from covey_shared import __version__
from covey_shared.errors import CoveyError, MessageError, UsageError
from covey_shared.messages import Refusal

T = TypeVar("T")
MSGPACK = "application/msgpack"
MSGPACK_BODY: Mapping[str, str] = {"Content-Type": MSGPACK}
SMALL_BYTES = 1 << 20  # more than any control message or refusal
CONNECT_S, IDLE_S = 10.0, 60.0  # to connect; between two pieces of an answer
MAX_RETRY_AFTER_S = 3600.0  # a server that says "in a year" is not believed
RETRIED = frozenset({408, 425, 429})
NETWORK_ERRORS = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, asyncio.TimeoutError, ConnectionError)


class ServerError(CoveyError):
    """The server cannot be used as it answers, or does not answer."""


class Unreachable(ServerError):
    """No usable answer in the time given."""


class Refused(ServerError):
    """The server answered no. `status` is HTTP's, `code` the refusal's stable word."""

    def __init__(self, message: str, status: int, code: str):
        super().__init__(message)
        self.status, self.code = status, code


class Busy(ServerError):
    """The server answered that it cannot now; `retry_after_s` is what it asks for. Never leaves this module."""

    def __init__(self, message: str, retry_after_s: float):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Backoff(NamedTuple):
    """Waits between tries: uniform in 0..min(`longest_s`, `first_s` * 2^try), `patience_s` in all (None = for ever)."""

    first_s: float = 0.5
    longest_s: float = 30.0
    patience_s: float | None = None

    def delay(self, attempt: int, draw: float, retry_after_s: float = 0.0) -> float:
        """Seconds before try `attempt` + 1; `draw` is uniform in [0, 1). Jitter also spreads what Retry-After herds.

        >>> Backoff().delay(3, 0.5), Backoff().delay(0, 0.5, retry_after_s=7.0)
        (2.0, 7.25)
        """
        jitter = draw * min(self.longest_s, self.first_s * 2.0 ** min(attempt, 30))
        return min(max(0.0, retry_after_s), MAX_RETRY_AFTER_S) + jitter if retry_after_s > 0 else jitter


@dataclass
class Traffic:
    """Bytes of bodies in exchanges that were answered, by kind; headers and lower layers are not in it."""

    sent: dict[str, int] = field(default_factory=dict)
    received: dict[str, int] = field(default_factory=dict)

    def add(self, kind: str, sent: int, received: int) -> None:
        """Count one exchange."""
        self.sent[kind] = self.sent.get(kind, 0) + sent
        self.received[kind] = self.received.get(kind, 0) + received


def server_url(text: str) -> str:
    """The URL without a trailing slash, or UsageError for what is not the address of a server."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        raise UsageError(f"{text!r} is not a server's address: write http://HOST:PORT, as `covey serve` prints it")
    return text.rstrip("/")


@asynccontextmanager
async def connect(url: str, client: str, traffic: Traffic) -> AsyncIterator["Transport"]:
    """A transport to one server; nothing is sent yet. No redirects, no cookies, no decompression behind our back."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=IDLE_S)
    headers = {"User-Agent": f"covey/{__version__}", "Accept-Encoding": "identity", "Covey-Client": client}
    async with aiohttp.ClientSession(
        timeout=timeout, headers=headers, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        yield Transport(url, session, traffic)


class Reply(NamedTuple):
    """An answer that was wanted."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@dataclass
class Transport:
    """One server. `notice` hears why something is tried again, once for each time that it happens."""

    url: str
    session: aiohttp.ClientSession
    traffic: Traffic
    notice: Callable[[str], None] = lambda sentence: None
    backoff: Backoff = field(default_factory=Backoff)

    async def exchange(
        self, method: str, path: str, *, body: bytes | None = None, limit: int = SMALL_BYTES, kind: str = "control"
    ) -> bytes:
        """The body of the 200 that answers; at most `limit` bytes of it are read.

        Raises Refused for a final no, Unreachable when the patience ends, ServerError for an answer that no Covey
        server gives. `kind` names the counter that the bytes are added to.
        """

        return (await self.retried(lambda: self.once(method, path, body=body, limit=limit, kind=kind))).body

    async def once(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        limit: int = SMALL_BYTES,
        kind: str = "control",
        headers: Mapping[str, str] = MSGPACK_BODY,
        good: Container[int] = (HTTPStatus.OK,),
    ) -> "Reply":
        """One try. Raises one of NETWORK_ERRORS or Busy where another may help; `headers` go with a body alone."""
        sent = dict(headers) if body is not None else {}
        async with self.session.request(
            method, self.url + path, data=body, headers=sent, allow_redirects=False
        ) as response:
            data = await read_bounded(response, limit) if method != "HEAD" else b""
            self.traffic.add(kind, len(body or b""), len(data))
            check_status(response, data, self.url, good)
            return Reply(response.status, response.headers, data)

    async def stream(self, path: str, first: int, kind: str) -> AsyncGenerator[tuple[int, bytes], None]:
        """One try at a file from byte `first` on: pairs of (position, piece). The caller goes on after an error."""
        headers = {"Range": f"bytes={first}-"} if first else {}
        async with self.session.get(self.url + path, headers=headers, allow_redirects=False) as response:
            if response.status != HTTPStatus.PARTIAL_CONTENT:
                if response.status != HTTPStatus.OK:
                    check_status(response, await read_bounded(response, SMALL_BYTES), self.url)
                first = 0
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {first}-"):
                raise ServerError(f"{self.url} answers with another part of the file than the one asked for")
            refuse_encoding(response)
            async for piece in response.content.iter_chunked(1 << 18):
                self.traffic.add(kind, 0, len(piece))
                yield first, piece
                first += len(piece)

    async def retried(self, attempt: Callable[[], Awaitable[T]], progressed: Callable[[], bool] = lambda: False) -> T:
        """The result of the first try that succeeds; waits between tries, gives up when the patience ends.

        A try that `progressed` before it failed counts as the first: the link is poor, not gone.
        """
        clock = asyncio.get_running_loop().time
        started, tries = clock(), -1
        while True:
            tries += 1
            try:
                return await attempt()
            except (Busy, *NETWORK_ERRORS) as error:
                refuse_certificate(error, self.url)
                tries = 0 if progressed() else tries
                cause = describe(error)
                delay = self.backoff.delay(tries, random.random(), getattr(error, "retry_after_s", 0.0))
            except aiohttp.ClientError as error:  # what is left is not HTTP as we know it
                raise ServerError(f"{self.url} is not a Covey server: {describe(error)}") from None
            if self.backoff.patience_s is not None and clock() - started + delay > self.backoff.patience_s:
                raise Unreachable(f"no Covey server answers at {self.url} ({cause}): is `covey serve` running there?")
            if tries == 0:
                self.notice(f"{self.url} does not answer ({cause}); trying again")
            await asyncio.sleep(delay)


async def read_bounded(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The whole body, or ServerError as soon as it is known to be longer than `limit`."""
    refuse_encoding(response)
    announced, pieces, size = response.content_length or 0, [], 0
    if announced <= limit:
        async for piece in response.content.iter_chunked(1 << 18):
            pieces.append(piece)
            size += len(piece)
            if size > limit:
                break
    if max(announced, size) > limit:
        raise ServerError(
            f"{response.url} answers with {max(announced, size):,} bytes or more, at most {limit:,} make sense here"
        )
    return b"".join(pieces)


def refuse_encoding(response: aiohttp.ClientResponse) -> None:
    """We asked for identity: a compressed answer could be a bomb, and its size would not be the one we count."""
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ServerError(f"{response.url} answers compressed, which was not asked for; is a proxy between?")


def refuse_certificate(error: BaseException, url: str) -> None:
    """A certificate that is wrong now is wrong in a minute."""
    if isinstance(error, aiohttp.ClientSSLError):
        raise ServerError(f"the TLS connection to {url} is not trusted: {error}") from None


def check_status(
    response: aiohttp.ClientResponse, data: bytes, url: str, good: Container[int] = (HTTPStatus.OK,)
) -> None:
    """Raises Busy for what may be tried again and Refused for what is final; returns for a `good` status."""
    status = response.status
    if status in good:
        return
    refusal = parse_refusal(data)
    if status in RETRIED or status >= 500:
        after = max(parse_retry_after(response.headers.get("Retry-After", "")), refusal.retry_after_s)
        raise Busy(refusal.message or f"HTTP {status} {response.reason}", after)
    if refusal.message:
        raise Refused(refusal.message, status, refusal.code)
    hint = f"; it points to {response.headers['Location'][:200]!r}" if "Location" in response.headers else ""
    raise Refused(f"{url} is not a Covey server: it answers {status} {response.reason}{hint}", status, "")


def parse_refusal(data: bytes) -> Refusal:
    """The refusal in a body, its sentence fit to be printed; an empty one where there is none."""
    try:
        found = Refusal.from_bytes(data)
    except MessageError:
        return Refusal(code="", message="", retry_after_s=0.0)
    return Refusal(code=found.code[:64], message=printable(found.message[:500]), retry_after_s=found.retry_after_s)


def parse_retry_after(text: str, now: float | None = None) -> float:
    """Seconds from a Retry-After header: a number, or an HTTP date; 0 for anything else.

    >>> parse_retry_after("3"), parse_retry_after("Sat, 01 Jan 2000 00:00:10 GMT", 946684800.0), parse_retry_after("?")
    (3.0, 10.0, 0.0)
    """
    try:
        if text.strip().isdecimal():
            return float(text)
        return max(0.0, parsedate_to_datetime(text).timestamp() - (time.time() if now is None else now))
    except (ValueError, OverflowError):
        return 0.0


def describe(error: BaseException) -> str:
    """The cause of a network error in a few words."""
    if isinstance(error, aiohttp.ClientConnectorError):
        number = error.os_error.errno or 0  # negative for a name that does not resolve
        return os.strerror(number) if number > 0 else error.os_error.strerror or str(error.os_error)
    return str(error) or ("timed out" if isinstance(error, asyncio.TimeoutError) else type(error).__name__)
