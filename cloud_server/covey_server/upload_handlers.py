"""Uploads that survive a lost connection, in the shapes of "Resumable Uploads for HTTP" (draft-ietf-httpbis-resumable-
upload): a POST that is only a promise, HEAD for the offset, PATCH to append, DELETE to give up.

The promise states length and digest. When the last byte is there the whole is hashed and taken as if it had come in one
PUT: the same checks, the same receipt. Appends to one upload exclude each other, and the newest wins: the connection of
the one before is closed, since it belongs to a device that has given it up.
"""

import asyncio
import base64
import binascii
import hashlib
import re
import time
from collections.abc import Callable

from aiohttp import web

from covey_server.bodies import body_pieces
from covey_server.guard import UPLOAD_BYTES
from covey_server.handlers import AGGREGATOR, BUDGET, FETCH, RECEIVED, SEND, client_of, number_of, packed
from covey_server.policy import DEVICE, SAFE, SAME, UPLOAD, Policy, Route
from covey_server.refusals import Refused, respond
from covey_server.uploads import Partial, Uploads
from covey_shared.errors import SignatureError
from covey_shared.messages import Receipt

UPLOADS = web.AppKey("uploads", Uploads)
UPLOAD_PATH = "/v1/uploads/{client}/{upload}"
PARTIAL_TYPE = "application/partial-upload"
NEVER_STORE = {"Cache-Control": "no-store"}


async def post_update(request: web.Request) -> web.Response:
    """A promise: an update of this length and digest will come in pieces. Asked again, the same upload."""
    aggregator, uploads = request.app[AGGREGATOR], request.app[UPLOADS]
    round_, client = number_of(request.match_info["round"], "the round"), client_of(request)
    version = number_of(request.query.get("version", ""), "the version")
    length, sha256 = _length(request), _digest(request)
    if request.headers.get("Upload-Complete") != "?0" or request.can_read_body:
        raise Refused("bad_message", "an upload begins with an empty POST and Upload-Complete: ?0")
    if length > request.app[UPLOAD_BYTES]:
        raise Refused("too_large", f"the update has {length:,} bytes, more than an update of this task can have")
    receipt = await aggregator.welcome(round_, client, version, sha256)
    if receipt is not None:
        return packed(receipt)
    partial = uploads.create(client, round_, length, sha256, time.monotonic())
    headers = {"Location": f"/v1/uploads/{client}/{partial.name}", **_state(uploads, partial)}
    return web.Response(status=201, headers=headers)


async def head_upload(request: web.Request) -> web.Response:
    """How far an upload has come; what is being appended is stopped, since its sender asks."""
    uploads, partial = request.app[UPLOADS], _find(request)
    partial.interrupt()
    async with partial.lock:
        await asyncio.to_thread(uploads.settle, partial)
        return web.Response(status=204, headers=_state(uploads, partial))


async def patch_upload(request: web.Request) -> web.StreamResponse:
    """Append; the receipt once all is there."""
    uploads, partial = request.app[UPLOADS], _find(request)
    at = number_of(request.headers.get("Upload-Offset", ""), "Upload-Offset")
    last = request.headers.get("Upload-Complete") == "?1"
    partial.interrupt()
    async with partial.lock:
        partial.interrupt = _hang_up(request)
        try:
            if at != partial.offset:
                return _wrong_offset(uploads, partial, at)
            await _append(request, uploads, partial)
            if partial.offset == partial.length and last:
                return packed(await _complete(request, uploads, partial))
            await asyncio.to_thread(uploads.settle, partial)
            return web.Response(status=204, headers=_state(uploads, partial))
        finally:
            partial.interrupt = lambda: None


async def delete_upload(request: web.Request) -> web.Response:
    """Give an upload up."""
    partial = _find(request)
    partial.interrupt()
    async with partial.lock:
        request.app[UPLOADS].remove(partial)
    return web.Response(status=204)


ROUTES = (
    Route("POST", "/v1/updates/{round}/{client}", "update", post_update, Policy(DEVICE, 0, SEND, SAME)),
    Route("HEAD", UPLOAD_PATH, "update", head_upload, Policy(DEVICE, 0, FETCH, SAFE)),
    Route("PATCH", UPLOAD_PATH, "update", patch_upload, Policy(DEVICE, UPLOAD, SEND, SAME, PARTIAL_TYPE)),
    Route("DELETE", UPLOAD_PATH, "update", delete_upload, Policy(DEVICE, 0, SEND, SAME)),
)


async def _append(request: web.Request, uploads: Uploads, partial: Partial) -> None:
    """Each piece is in the file before the next is read, so a broken connection loses none of them."""
    request[RECEIVED], begin = 0, partial.offset
    try:
        async for piece in body_pieces(request, partial.length - partial.offset):
            uploads.append(partial, piece)
            request[RECEIVED] += len(piece)
    except SignatureError:  # complete, and not what the device signed
        partial.offset = begin
        raise


async def _complete(request: web.Request, uploads: Uploads, partial: Partial) -> Receipt:
    """The whole, hashed and taken. Whatever comes of it, but a full disk or a busy server, ends the upload."""
    with request.app[BUDGET].reserve(partial.length):
        body = await asyncio.to_thread(uploads.read, partial)
        digest = await asyncio.to_thread(lambda: hashlib.sha256(body).hexdigest())
        if digest != partial.sha256:
            uploads.remove(partial)
            raise Refused("wrong_digest", f"the upload has the digest {digest}, not {partial.sha256}; begin again")
        try:
            receipt = await request.app[AGGREGATOR].take_update(partial.round, partial.client, body, digest)
        except Refused as error:
            if error.status < 500:
                uploads.remove(partial)
            raise
    uploads.remove(partial)
    return receipt


def _find(request: web.Request) -> Partial:
    return request.app[UPLOADS].find(client_of(request), request.match_info["upload"], time.monotonic())


def _state(uploads: Uploads, partial: Partial) -> dict[str, str]:
    """The headers that say where an upload stands."""
    return {
        "Upload-Offset": str(partial.offset),
        "Upload-Length": str(partial.length),
        "Upload-Complete": "?0",
        "Upload-Limit": f"max-size={partial.length}, max-age={uploads.max_age_s:.0f}",
        **NEVER_STORE,
    }


def _wrong_offset(uploads: Uploads, partial: Partial, at: int) -> web.Response:
    sentence = f"the upload is at byte {partial.offset:,}, not {at:,}; go on from there"
    response = respond(Refused("wrong_offset", sentence))
    response.headers.update(_state(uploads, partial))
    return response


def _hang_up(request: web.Request) -> Callable[[], None]:
    def hang_up() -> None:
        if request.transport is not None:
            request.transport.abort()

    return hang_up


def _length(request: web.Request) -> int:
    length = number_of(request.headers.get("Upload-Length", ""), "Upload-Length")
    if length < 1:
        raise Refused("bad_message", "Upload-Length must be at least 1")
    return length


def _digest(request: web.Request) -> str:
    """The SHA-256 of all bytes that will come, in hex: of `Repr-Digest: sha-256=:BASE64:` (RFC 9530), and of the query.

    The query is signed and the header is not, so a device that sends both cannot be given other bytes on the way.
    """
    match = re.fullmatch(r"sha-256=:([A-Za-z0-9+/]{43}=):", request.headers.get("Repr-Digest", ""))
    try:
        stated = base64.b64decode(match.group(1), validate=True).hex() if match is not None else ""
    except binascii.Error:
        stated = ""
    if not stated or request.query.get("sha256", stated) != stated:
        raise Refused("bad_message", "Repr-Digest must be sha-256=:BASE64: of all bytes that will come")
    return stated
