"""Reading a request's body from a stranger: bounded in size, in silence and in slowness.

aiohttp's `client_max_size` does not bound `request.content`, a stalled body is never closed, and a compressed one is
inflated as it arrives. So the size is counted here while it streams, each pause has a limit and a trickle is cut off;
`guard` has refused any Content-Encoding before (the application is started with decompression off).
"""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from aiohttp import web
from aiohttp.http_exceptions import PayloadEncodingError

from covey_server.failpoints import failpoint
from covey_server.guard import check_digest
from covey_server.refusals import Refused
from covey_shared.signing import content_digest

IDLE_S = 20.0  # without a byte; a phone changing cells is silent for a few seconds
SLOW_AFTER_S = 30.0  # from here on the average rate counts
SLOWEST_BYTES_S = 1024  # slower than a 2G link
SMALL = 64 * 1024  # bound for messages without a payload
IN_FLIGHT = 256 * 2**20  # bodies of updates that are read and checked at the same time
BODY_SHA256 = web.RequestKey("body_sha256", bytes)  # of a body that was read to its end


class Budget:
    """Bytes of bodies that may be in memory at once; who comes when it is spent is asked to come back."""

    def __init__(self, limit: int):
        self._left = limit

    @contextmanager
    def reserve(self, size: int) -> Iterator[None]:
        """Holds `size` bytes while the block runs."""
        if size > self._left:
            raise Refused("busy", "the server is reading as many bodies as it can hold; try again")
        self._left -= size
        try:
            yield
        finally:
            self._left += size


async def read_body(request: web.Request, limit: int) -> bytes:
    """The whole body, at most `limit` bytes and the one that was signed, or Refused; BODY_SHA256 is set."""
    return b"".join([piece async for piece in body_pieces(request, limit)])


async def body_pieces(request: web.Request, limit: int) -> AsyncIterator[bytes]:
    """The body as it comes, at most `limit` bytes, or Refused; whether it is the one that was signed is known last."""
    if request.headers.get("Expect", "").lower() == "100-continue":
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    size, digest = 0, hashlib.sha256()
    loop = asyncio.get_running_loop()
    started = loop.time()
    while piece := await _next_piece(request):
        size += len(piece)
        if size > limit:
            raise Refused("too_large", f"the body exceeds {limit:,} bytes, the most that is accepted here")
        elapsed = loop.time() - started
        if elapsed > SLOW_AFTER_S and size < SLOWEST_BYTES_S * elapsed:
            raise Refused("slow_body", f"the body came at under {SLOWEST_BYTES_S} bytes a second; try a better link")
        digest.update(piece)
        yield piece
        failpoint("body")
    request[BODY_SHA256] = digest.digest()
    check_digest(request, content_digest(request[BODY_SHA256]))


async def _next_piece(request: web.Request) -> bytes:
    """What has arrived, b"" at the end."""
    try:
        piece = request.content.read_nowait()
        if piece or request.content.at_eof():  # without a timer where nothing is waited for
            return piece
        async with asyncio.timeout(IDLE_S):
            return await request.content.readany()
    except TimeoutError:
        raise Refused("slow_body", f"nothing came for {IDLE_S:g} seconds; send the body again") from None
    except (PayloadEncodingError, web.RequestPayloadError):
        raise Refused("bad_message", "the body is not framed as its headers say; send it again") from None
