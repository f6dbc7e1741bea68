"""Delivering an update over a link that breaks: what has arrived need not be sent again.

A small update goes in one PUT, repeated until it is answered. A larger one, or one whose PUT broke off, goes in pieces,
in the shapes of "Resumable Uploads for HTTP" (draft-ietf-httpbis-resumable-upload): a POST that states length and
digest and is answered with an address, then PATCHes from the offset that a HEAD tells. The address is on disk before
the first byte goes there, so a client that is killed at any byte goes on from where the server is.
"""

import base64
import hashlib
import json
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from covey_edge import calls
from covey_edge.state import write_durably
from covey_edge.transport import NETWORK_ERRORS, Busy, Refused, Reply, ServerError, Transport
from covey_shared.messages import Receipt

SMALL = 256 * 1024  # up to here one PUT is tried first
TINY = 32 * 1024  # ... and again and again: a piece of it would not be worth the requests
PIECE = 512 * 1024  # of one PATCH
PARTIAL_TYPE = "application/partial-upload"
# Refusals of an upload, not of the update: it expired, it lost bytes, or another connection was faster.
AGAIN = ("not_found", "wrong_digest", "wrong_offset")
MAX_FRESH_STARTS = 5


@dataclass(frozen=True)
class Parcel:
    """An update on its way: where it belongs and its exact bytes."""

    round: int
    version: int
    client: str
    body: bytes

    @property
    def path(self) -> str:
        """Its address in one piece."""
        return f"/v1/updates/{self.round}/{self.client}"

    @property
    def sha256(self) -> str:
        """The digest of its bytes, in hex."""
        return hashlib.sha256(self.body).hexdigest()


async def deliver(transport: Transport, memory: Path, parcel: Parcel) -> Receipt:
    """The receipt, however long it takes. `memory` is a file for the address of an upload that has begun.

    Raises Refused for a final no and ServerError for answers that make no sense.
    """
    try:
        receipt = await _deliver(transport, memory, parcel)
    except Refused:
        memory.unlink(missing_ok=True)
        raise
    memory.unlink(missing_ok=True)
    return receipt


async def _deliver(transport: Transport, memory: Path, parcel: Parcel) -> Receipt:
    size = len(parcel.body)
    if TINY < size <= SMALL and not _remembered(memory, parcel):
        try:
            reply = await transport.once("PUT", parcel.path, body=parcel.body, kind=calls.UPDATE)
            return calls.receipt(reply.body, transport)
        except Busy:
            return await calls.put_update(transport, parcel.round, parcel.client, parcel.body)
        except NETWORK_ERRORS:
            pass  # what has arrived is lost; from here on it is kept
    elif size <= TINY:
        return await calls.put_update(transport, parcel.round, parcel.client, parcel.body)
    return await Pieces(transport, memory, parcel).deliver()


class Pieces:
    """One update sent in pieces. `offset`: how far the server said it is."""

    def __init__(self, transport: Transport, memory: Path, parcel: Parcel):
        self.transport, self.memory, self.parcel = transport, memory, parcel
        self.address = _remembered(memory, parcel)
        self.offset = self.told = self.fresh_starts = 0

    async def deliver(self) -> Receipt:
        """Goes on until the receipt comes."""
        while True:
            try:
                return await self.transport.retried(self.go_on, self.progressed)
            except Refused as error:
                self.fresh_starts += 1
                if error.code not in AGAIN or self.fresh_starts > MAX_FRESH_STARTS or not self.address:
                    raise
                if error.code != "wrong_offset":  # then the next try asks for the right one
                    self.address, self.offset = "", 0

    def progressed(self) -> bool:
        """Whether bytes have arrived since the last time that it was asked."""
        before, self.told = self.told, self.offset
        return self.offset > before

    async def go_on(self) -> Receipt:
        """One try: from the server's offset to the end."""
        if not self.address:
            receipt = await self.begin()
            if receipt is not None:
                return receipt
        else:
            self.offset = await self.asked()
        while True:
            reply = await self.send_piece()
            if reply.status == HTTPStatus.OK:
                return calls.receipt(reply.body, self.transport)
            self.offset = self.offset_of(reply)

    async def asked(self) -> int:
        """The server's offset. The answer to a HEAD has no body, so what a refusal means is read off its status."""
        good = (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_FOUND, HTTPStatus.UNAUTHORIZED)
        reply = await self.transport.once("HEAD", self.address, kind=calls.UPDATE, good=good)
        if reply.status == HTTPStatus.UNAUTHORIZED:  # it brought a newer nonce
            reply = await self.transport.once("HEAD", self.address, kind=calls.UPDATE, good=good[:2])
        if reply.status == HTTPStatus.NOT_FOUND:
            raise Refused("the server does not know the upload any more", HTTPStatus.NOT_FOUND, "not_found")
        return self.offset_of(reply)

    async def begin(self) -> Receipt | None:
        """An address for the update, remembered; or its receipt, if it had been counted all along."""
        digest = base64.b64encode(bytes.fromhex(self.parcel.sha256)).decode()
        headers = {
            "Upload-Complete": "?0", "Upload-Length": str(len(self.parcel.body)), "Repr-Digest": f"sha-256=:{digest}:",
        }  # fmt: skip
        path = f"{self.parcel.path}?version={self.parcel.version}&sha256={self.parcel.sha256}"
        reply = await self.transport.once(
            "POST", path, body=b"", headers=headers, kind=calls.UPDATE, good=(HTTPStatus.OK, HTTPStatus.CREATED)
        )
        if reply.status == HTTPStatus.OK:
            return calls.receipt(reply.body, self.transport)
        address = reply.headers.get("Location", "")
        if not address.startswith(f"/v1/uploads/{self.parcel.client}/") or len(address) > 500:
            raise ServerError(f"{self.transport.url} sends an update to {address[:100]!r}, which is not one of its own")
        record = {"address": address, "sha256": self.parcel.sha256}
        write_durably(self.memory, json.dumps(record).encode())
        self.address, self.offset = address, self.offset_of(reply)
        return None

    async def send_piece(self) -> Reply:
        """PATCH with what comes next."""
        piece = self.parcel.body[self.offset : self.offset + PIECE]
        last = self.offset + len(piece) == len(self.parcel.body)
        headers = {
            "Content-Type": PARTIAL_TYPE, "Upload-Offset": str(self.offset), "Upload-Complete": "?1" if last else "?0",
        }  # fmt: skip
        return await self.transport.once(
            "PATCH", self.address, body=piece, headers=headers, kind=calls.UPDATE,
            good=(HTTPStatus.OK, HTTPStatus.NO_CONTENT),
        )  # fmt: skip

    def offset_of(self, reply: Reply) -> int:
        """What the server says that it has."""
        text = reply.headers.get("Upload-Offset", "")
        if not (text.isascii() and text.isdigit() and len(text) <= 16 and int(text) <= len(self.parcel.body)):
            raise ServerError(f"{self.transport.url} says that it has {text[:40]!r} of {len(self.parcel.body):,} bytes")
        return int(text)


def _remembered(memory: Path, parcel: Parcel) -> str:
    """The address of an upload of these very bytes; empty where there is none that can be read."""
    try:
        record = json.loads(memory.read_bytes())
        address = record["address"] if record["sha256"] == parcel.sha256 else ""
        return address if isinstance(address, str) and address.startswith("/v1/uploads/") else ""
    except (OSError, ValueError, KeyError, TypeError):
        return ""
