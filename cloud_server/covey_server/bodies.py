"""Reading a request's body from a stranger: bounded in size, in silence and in slowness.

aiohttp's `client_max_size` does not bound `request.content`, a stalled body is never closed, and a compressed one is
inflated as it arrives. So the size is counted here while it streams, each pause has a limit, a trickle is cut off, and
any Content-Encoding is refused (the application is started with decompression off).
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

from aiohttp import web
from aiohttp.http_exceptions import PayloadEncodingError

from covey_server.failpoints import failpoint
from covey_server.refusals import MEDIA_TYPE, Refused

IDLE_S = 20.0  # without a byte; a phone changing cells is silent for a few seconds
SLOW_AFTER_S = 30.0  # from here on the average rate counts
SLOWEST_BYTES_S = 1024  # slower than a 2G link
SMALL = 64 * 1024  # bound for messages without a payload
IN_FLIGHT = 256 * 2**20  # bodies of updates that are read and checked at the same time


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
    """The whole body, at most `limit` bytes, or Refused."""
    return b"".join([piece async for piece in body_pieces(request, limit, MEDIA_TYPE)])


async def body_pieces(request: web.Request, limit: int, media_type: str) -> AsyncIterator[bytes]:
    """The body as it comes, at most `limit` bytes, or Refused."""
    _check_headers(request, limit, media_type)
    size = 0
    loop = asyncio.get_running_loop()
    started = loop.time()
    while piece := await _next_piece(request):
        size += len(piece)
        if size > limit:
            raise Refused("too_large", f"the body exceeds {limit:,} bytes, the most that is accepted here")
        elapsed = loop.time() - started
        if elapsed > SLOW_AFTER_S and size < SLOWEST_BYTES_S * elapsed:
            raise Refused("slow_body", f"the body came at under {SLOWEST_BYTES_S} bytes a second; try a better link")
        yield piece
        failpoint("body")


def _check_headers(request: web.Request, limit: int, media_type: str) -> None:
    """What can be refused before a byte is read."""
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise Refused("media_type", f"Content-Encoding {encoding[:40]!r} is not accepted; send the bytes as they are")
    if request.content_type != media_type:
        raise Refused("media_type", f"Content-Type must be {media_type}, got {request.content_type[:80]!r}")
    if request.content_length is not None and request.content_length > limit:
        raise Refused(
            "too_large", f"the body has {request.content_length:,} bytes, at most {limit:,} are accepted here"
        )


async def _next_piece(request: web.Request) -> bytes:
    """What has arrived, b"" at the end."""
    try:
        async with asyncio.timeout(IDLE_S):
            return await request.content.readany()
    except TimeoutError:
        raise Refused("slow_body", f"nothing came for {IDLE_S:g} seconds; send the body again") from None
    except (PayloadEncodingError, web.RequestPayloadError):
        raise Refused("bad_message", "the body is not framed as its headers say; send it again") from None
