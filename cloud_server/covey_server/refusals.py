"""Why a request is refused: the closed table of codes, their HTTP statuses, and how an error becomes an answer.

A refusal is one sentence for people and one code for programs. Nothing of a payload, a path of this machine or a
traceback goes out; what is not expected is logged here and answered as `internal`.
"""

import errno
import logging
import math
import sqlite3
from typing import NamedTuple

from aiohttp import web

from covey_shared.errors import MessageError, PayloadError, RemoteError, SignatureError
from covey_shared.messages import Refusal

log = logging.getLogger("covey.server")

MEDIA_TYPE = "application/msgpack"


class Kind(NamedTuple):
    """The status of a code, and after how many seconds trying again may help (-1: never)."""

    status: int
    retry_after_s: float = -1.0


CODES: dict[str, Kind] = {
    "bad_message": Kind(400),
    "bad_payload": Kind(400),
    "bad_signature": Kind(401),
    "stale_nonce": Kind(401, 0.0),
    "unknown_device": Kind(401),
    "bad_token": Kind(401),
    "bad_code": Kind(403),
    "revoked": Kind(403),
    "wrong_device": Kind(403),
    "wrong_role": Kind(403),
    "not_found": Kind(404),
    "method_not_allowed": Kind(405),
    "slow_body": Kind(408, 1.0),
    "wrong_layout": Kind(409),
    "wrong_codec": Kind(409),
    "wrong_version": Kind(409),
    "not_assigned": Kind(409),
    "conflict": Kind(409),
    "wrong_offset": Kind(409),
    "wrong_digest": Kind(409),
    "name_taken": Kind(409),
    "late": Kind(410),
    "stale": Kind(410),
    "too_large": Kind(413),
    "media_type": Kind(415),
    "slow_down": Kind(429, 1.0),
    "internal": Kind(500, 10.0),
    "busy": Kind(503, 2.0),
    "stopping": Kind(503, 5.0),
    "disk_full": Kind(507, 30.0),
}

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
SQLITE_FULL = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY)


class Refused(RemoteError):
    """A request that is refused with one of the codes; `retry_after_s` where it is known better than the code's."""

    def __init__(self, code: str, message: str, retry_after_s: float | None = None):
        super().__init__(message, CODES[code].status)
        self.code = code
        self.retry_after_s = CODES[code].retry_after_s if retry_after_s is None else retry_after_s


def refusal(error: Exception) -> Refused:
    """The refusal that answers an error."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, PayloadError):
        return Refused("too_large" if error.status == 413 else "bad_payload", str(error))
    if isinstance(error, MessageError):
        return Refused("bad_message", str(error))
    if isinstance(error, SignatureError):
        return Refused("bad_signature", str(error))
    if isinstance(error, web.HTTPNotFound):
        return Refused("not_found", "there is nothing at this address; docs/protocol.md lists the routes")
    if isinstance(error, web.HTTPMethodNotAllowed):
        return Refused("method_not_allowed", f"this address takes {', '.join(sorted(error.allowed_methods))}")
    if isinstance(error, ConnectionError):
        return Refused("bad_message", "the connection was lost before the body was complete")
    if is_disk_full(error):
        log.error("the disk refuses to write: %s", error)
        return Refused("disk_full", "the server's disk is full; nothing was changed, try again later")
    if isinstance(error, sqlite3.OperationalError):
        log.error("the database refuses: %s", error)
        return Refused("busy", "the server's database is busy; try again")
    log.error("a request failed", exc_info=error)
    return Refused("internal", "the server failed to handle this request; its log says why")


def is_disk_full(error: Exception) -> bool:
    """Whether an error means that the disk takes no more, from the file system or from SQLite."""
    if isinstance(error, sqlite3.OperationalError):
        return error.sqlite_errorcode & 0xFF in SQLITE_FULL  # the low byte is the primary code
    return isinstance(error, OSError) and error.errno in FULL


def respond(error: Refused, *, in_json: bool = False) -> web.Response:
    """The HTTP answer, with Retry-After where trying again may help; msgpack for devices, JSON for people."""
    after_s = error.retry_after_s
    headers = {"Retry-After": f"{math.ceil(after_s)}"} if after_s > 0 else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer" if error.code == "bad_token" else "Signature"
    if in_json:
        said = {"code": error.code, "message": str(error), "retry_after_s": after_s}
        return web.json_response(said, status=error.status, headers=headers)
    body = Refusal(code=error.code, message=str(error), retry_after_s=after_s)
    return web.Response(status=error.status, body=body.to_bytes(), content_type=MEDIA_TYPE, headers=headers)
