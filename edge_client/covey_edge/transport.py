"""HTTP to the server: one exchange with retries, bounds and the server's own words when it refuses.

    ServerError             the server cannot be used
    ├── Unreachable         ... it did not answer in time: down, or no way there
    └── Refused             ... it answered no; carries the HTTP status and the refusal's code

Connection errors, 408, 429 and 5xx are tried again: exponential backoff with full jitter (Brooker 2015,
https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/), never sooner than the server's Retry-After.
Every other 4xx is final, but for a nonce that is not good any more: the answer brings a new one, and the request is
signed again. All requests go through `exchange` and `stream`, so that is where they are signed and counted.
"""

import asyncio
import ipaddress
import os
import random
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Container, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from covey_edge.events import printable
from covey_shared import __version__
from covey_shared.errors import CoveyError, MessageError, UsageError
from covey_shared.keys import PrivateKey
from covey_shared.messages import Hello, Refusal
from covey_shared.signing import NONCE, sign_request

T = TypeVar("T")
MSGPACK = "application/msgpack"
MSGPACK_BODY: Mapping[str, str] = {"Content-Type": MSGPACK}
SMALL_BYTES = 1 << 20  # more than any control message or refusal
CONNECT_S, IDLE_S = 10.0, 60.0  # to connect; between two pieces of an answer
MAX_RETRY_AFTER_S = 3600.0  # a server that says "in a year" is not believed
RETRIED = frozenset({408, 425, 429})
STALE, STALE_TRIES = "stale_nonce", 5  # how often in a row a request is signed again at once
NONCE_S = 3000.0  # a nonce lives for an hour at the server; an older one is not worth a large body
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


class Stale(Busy):
    """The server did not take the nonce; the answer brought another. Never leaves this module but as Busy."""

    def __init__(self, message: str):
        super().__init__(message, 0.0)


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


def server_url(text: str, *, insecure_http: bool = False) -> str:
    """The URL without a trailing slash and code, or UsageError for what is not the address of a server.

    Plain HTTP is for this machine alone, unless `insecure_http` says otherwise.
    """
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.username is not None:
        raise UsageError("this is not a server's address: write https://HOST:PORT, as `covey serve` prints it")
    if parts.scheme == "http" and not insecure_http and not is_loopback(parts.hostname or ""):
        raise UsageError(
            f"http://{parts.hostname} is not encrypted: who is on the way can read the adapters and updates that pass; "
            "use https://, or accept that with --insecure-http"
        )
    return text.partition("#")[0].rstrip("/")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by any name that cannot be pointed elsewhere.

    >>> is_loopback("127.0.0.1"), is_loopback("::1"), is_loopback("localhost"), is_loopback("localhost.example.org")
    (True, True, True, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def trust(ca: Path | None) -> ssl.SSLContext:
    """Whom to believe: the system's authorities, or those in one PEM file and no others."""
    try:
        context = ssl.create_default_context(cafile=str(ca) if ca else None)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"--ca {ca} has no certificates in PEM that can be read ({error})") from None
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


@asynccontextmanager
async def connect(
    url: str, key: PrivateKey | None, traffic: Traffic, ca: Path | None = None
) -> AsyncIterator["Transport"]:
    """A transport to one server that signs with `key`; nothing is sent yet.

    No redirects, no cookies, no decompression behind our back.
    """
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=IDLE_S)
    headers = {"User-Agent": f"covey/{__version__}", "Accept-Encoding": "identity"}
    connector = aiohttp.TCPConnector(ssl=trust(ca)) if url.startswith("https:") else aiohttp.TCPConnector()
    async with aiohttp.ClientSession(
        timeout=timeout, headers=headers, auto_decompress=False, cookie_jar=aiohttp.DummyCookieJar(),
        connector=connector,
    ) as session:  # fmt: skip
        yield Transport(url, session, traffic, key)


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
    key: PrivateKey | None = None
    notice: Callable[[str], None] = lambda sentence: None
    backoff: Backoff = field(default_factory=Backoff)
    _nonces: list[tuple[str, float]] = field(default_factory=list)  # with when they came, the oldest first

    async def exchange(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        limit: int = SMALL_BYTES,
        kind: str = "control",
        signed: bool = True,
    ) -> bytes:
        """The body of the 200 that answers; at most `limit` bytes of it are read.

        Raises Refused for a final no, Unreachable when the patience ends, ServerError for an answer that no Covey
        server gives. `kind` names the counter that the bytes are added to.
        """

        tries = self.retried(lambda: self.once(method, path, body=body, limit=limit, kind=kind, signed=signed))
        return (await tries).body

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
        signed: bool = True,
    ) -> "Reply":
        """One try. Raises one of NETWORK_ERRORS or Busy where another may help; `headers` go with a body alone."""
        url = URL(self.url + path, encoded=True)
        sent = dict(headers) if body is not None else {}
        if signed:
            sent |= await self.signature(method, url.raw_path_qs, body or b"")
        async with self.session.request(method, url, data=body, headers=sent, allow_redirects=False) as response:
            self.keep_nonce(response)
            data = await read_bounded(response, limit) if method != "HEAD" else b""
            self.traffic.add(kind, len(body or b""), len(data))
            check_status(response, data, self.url, good)
            return Reply(response.status, response.headers, data)

    async def stream(self, path: str, first: int, kind: str) -> AsyncGenerator[tuple[int, bytes], None]:
        """One try at a file from byte `first` on: pairs of (position, piece). The caller goes on after an error."""
        url = URL(self.url + path, encoded=True)
        headers = await self.signature("GET", url.raw_path_qs, b"")
        headers |= {"Range": f"bytes={first}-"} if first else {}
        async with self.session.get(url, headers=headers, allow_redirects=False) as response:
            self.keep_nonce(response)
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

    async def signature(self, method: str, target: str, body: bytes) -> dict[str, str]:
        """The headers that sign a request with a nonce of the server's, which is asked for where none is at hand."""
        if self.key is None:
            return {}
        while self._nonces and time.monotonic() - self._nonces[0][1] > NONCE_S:
            self._nonces.pop(0)
        if not self._nonces:
            async with self.session.get(self.url + "/v1/hello", allow_redirects=False) as response:
                data = await read_bounded(response, SMALL_BYTES)
                check_status(response, data, self.url)
            self._nonces.append((parse_hello(data, self.url).nonce, time.monotonic()))
        return sign_request(self.key, method, target, body, self._nonces.pop(0)[0])

    def keep_nonce(self, response: aiohttp.ClientResponse) -> None:
        """Each answer to a signed request brings the nonce of the next."""
        if self.key is not None and 8 <= len(nonce := response.headers.get(NONCE, "")) <= 64:
            self._nonces.append((nonce, time.monotonic()))
            del self._nonces[:-4]

    async def retried(self, attempt: Callable[[], Awaitable[T]], progressed: Callable[[], bool] = lambda: False) -> T:
        """The result of the first try that succeeds; waits between tries, gives up when the patience ends.

        A try that `progressed` before it failed counts as the first: the link is poor, not gone.
        """
        clock = asyncio.get_running_loop().time
        started, tries, stale = clock(), -1, 0
        while True:
            tries += 1
            try:
                return await attempt()
            except Stale as error:
                stale += 1
                cause, delay = str(error), 0.0 if stale % STALE_TRIES else self.backoff.delay(stale, random.random())
                if not delay:
                    tries -= 1
                    continue
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
    if refusal.code == STALE:
        raise Stale(refusal.message)
    if refusal.message:
        raise Refused(refusal.message, status, refusal.code)
    hint = f"; it points to {response.headers['Location'][:200]!r}" if "Location" in response.headers else ""
    raise Refused(f"{url} is not a Covey server: it answers {status} {response.reason}{hint}", status, "")


def parse_hello(data: bytes, url: str) -> Hello:
    """What a server says to anybody."""
    try:
        return Hello.from_bytes(data)
    except MessageError as error:
        raise ServerError(f"{url} is not a Covey server of this version: {error}") from None


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
