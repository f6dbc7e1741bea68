"""At the door: every request meets its route's policy before its handler, and before its body.

    length, encoding and type of the body     415, 413    from the headers alone
    the nonce: ours, fresh, not used           401 stale_nonce, with a fresh one
    the key: enrolled here, not revoked        401 unknown_device, 403 revoked
    the signature over it all                  401 bad_signature
    the rate of this device                    429 slow_down
    the body's digest, once it is there        401 bad_signature

Whatever fails before the signature holds is charged to the address that it came from, and so are requests that need no
signature. A signature is only computed for a nonce that we gave out, so nobody makes us compute more of them than that.
"""

import ipaddress
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

from aiohttp import web
from yarl import URL

from covey_server import access
from covey_server.access import ROLES, VIEWER, Bearer, Device
from covey_server.limits import Buckets, Rate, network
from covey_server.nonces import Nonces
from covey_server.policy import DEVICE, KEY, Handler, Policy, Route
from covey_server.refusals import Refused
from covey_shared.errors import SignatureError
from covey_shared.keys import PublicKey
from covey_shared.signing import DIGEST, EMPTY_DIGEST, INPUT, NONCE, SIGNATURE, Signed, parse_signed, verify_request

STRANGER = Rate(10.0, 100)  # requests of an address that nobody signed for
CALLER = web.RequestKey("caller", Device)
BEARER = web.RequestKey("bearer", Bearer)
SIGNED = web.RequestKey("signed", Signed)
GIVES_NONCE = web.RequestKey("gives_nonce", bool)
ROUTE = web.RequestKey[Route | None]("route")


@dataclass
class Door:
    """What the guard remembers and reads. `is_open`: new devices need no code."""

    reader: "Reader"
    is_open: bool
    nonces: Nonces = field(default_factory=Nonces)
    buckets: Buckets = field(default_factory=Buckets)
    clock: Callable[[], float] = time.monotonic


DOOR = web.AppKey("door", Door)
FOR_PEOPLE = web.AppKey("for_people", bool)  # refusals are JSON
PROXY = web.AppKey("proxy", str)  # the reverse proxy whose word on addresses is taken; "" for none
TABLE = web.AppKey("table", dict[tuple[str, str], Route])
UPLOAD_BYTES = web.AppKey("upload_bytes", int)


class Reader:
    """A second connection for the event loop: a row by key takes microseconds, and never waits for a commit."""

    def __init__(self, path: Path):
        self._db = sqlite3.connect(path, isolation_level=None, timeout=1.0, check_same_thread=False)
        self._db.execute("PRAGMA query_only=ON")

    def device(self, key: str) -> Device | None:
        """The device of a key, as it is on disk now."""
        return access.find(self._db, key)

    def bearer(self, token: str) -> Bearer | None:
        """Whose an administrator's token is."""
        return access.bearer_of(self._db, token, time.time())

    def close(self) -> None:
        """Let go of the file."""
        self._db.close()


def route_of(request: web.Request) -> Route | None:
    """The row of the table for a request; None for what is not there. Looked up once."""
    if ROUTE not in request:
        resource = request.match_info.route.resource
        request[ROUTE] = request.app[TABLE].get((request.method, resource.canonical if resource else ""))
    return request[ROUTE]


@web.middleware
async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Let in whom the policy lets in."""
    route, door = route_of(request), request.app[DOOR]
    if route is None:
        charge_stranger(request)
        return await handler(request)
    policy = route.policy
    if policy.who in (DEVICE, KEY):
        request[GIVES_NONCE] = True
        admit(request, policy, door)
    elif policy.who in ROLES:
        admit_operator(request, policy, door)
    who = request[CALLER].name if CALLER in request else address(request)
    _charge(request, who, route.name, policy.rate)
    check_headers(request, limit_of(request, policy), policy.media)
    return await handler(request)


def admit(request: web.Request, policy: Policy, door: Door) -> None:
    """Sets SIGNED, and CALLER for an enrolled device; raises Refused or SignatureError, charged to the address."""
    try:
        signed = parse_signed(*(_one(request, name) for name in (DIGEST, INPUT, SIGNATURE)))
        number = door.nonces.spend(signed.nonce)
        device = door.reader.device(signed.key)
        if device is not None:
            access.require_welcome(device)
        elif policy.who == DEVICE:
            raise Refused(
                "unknown_device", "this device is not enrolled here: ask the operator for a code, and join with --code"
            )
        verify_request(_public(signed.key), signed, request.method, request.raw_path)
    except (Refused, SignatureError):
        charge_stranger(request)
        raise
    if device is not None:
        door.nonces.in_order(device.name, number)
        request[CALLER] = device
    request[SIGNED] = signed


def admit_operator(request: web.Request, policy: Policy, door: Door) -> None:
    """Raises Refused without the role that the policy asks for; sets BEARER. Every role may look."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if not token:
        if policy.who == VIEWER and is_local(request):
            return
        raise Refused("bad_token", f"this needs a token of the role {policy.who}, sent as Authorization: Bearer TOKEN")
    bearer = door.reader.bearer(token.strip()) if scheme.lower() == "bearer" else None
    if bearer is None:
        charge_stranger(request)
        raise Refused("bad_token", "the token is unknown or expired; `covey admin new` makes one")
    if policy.who not in (bearer.role, VIEWER):
        raise Refused("wrong_role", f"this needs the role {policy.who}, the token has {bearer.role}")
    request[BEARER] = bearer


def is_local(request: web.Request) -> bool:
    """Whether a question comes from this machine and means it: a page in a browser here could ask under any name."""
    return is_loopback(request.remote or "") and is_loopback(URL(f"http://{request.host}").host or "")


def is_loopback(host: str) -> bool:
    """Whether a host is this machine by any name that cannot be pointed elsewhere."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_headers(request: web.Request, limit: int, media: str) -> None:
    """What can be refused of a body before a byte of it is read."""
    encoding = request.headers.get("Content-Encoding", "identity")
    if encoding != "identity":
        raise Refused("media_type", f"Content-Encoding {encoding[:40]!r} is not accepted; send the bytes as they are")
    if request.content_length is not None and request.content_length > limit:
        raise Refused(
            "too_large", f"the body has {request.content_length:,} bytes, at most {limit:,} are accepted here"
        )
    if limit == 0:
        if request.body_exists:
            raise Refused("too_large", "this request takes no body; send it without one")
        check_digest(request, EMPTY_DIGEST)
    elif request.content_type != media:
        raise Refused("media_type", f"Content-Type must be {media}, got {request.content_type[:80]!r}")


def check_digest(request: web.Request, digest: str) -> None:
    """Raises SignatureError unless the body that came is the one that was signed."""
    signed = request.get(SIGNED)
    if signed is not None and signed.digest != digest:
        raise SignatureError("the body is not the one that was signed; send it again")


def limit_of(request: web.Request, policy: Policy) -> int:
    """The longest body in bytes."""
    return policy.max_body if policy.max_body >= 0 else request.app[UPLOAD_BYTES]


def charge_stranger(request: web.Request) -> None:
    """One request that nobody signed for."""
    _charge(request, address(request), "", STRANGER)


def _charge(request: web.Request, who: str, what: str, rate: Rate) -> None:
    """Raises Refused when `who` asks for `what` too often."""
    door = request.app[DOOR]
    wait_s = door.buckets.take(who, what, rate, door.clock())
    if wait_s > 0:
        request[GIVES_NONCE] = False
        raise Refused("slow_down", "too many requests; wait as long as Retry-After says", wait_s)


def address(request: web.Request) -> str:
    """Whom to charge where no device answers for itself; a device's name never looks like this.

    Of a connection from the proxy that may be believed it is the last address in X-Forwarded-For, which is the one that
    the proxy saw and wrote; whatever stands before it came with the request.
    """
    peer, proxy = network(request.remote or ""), request.app.get(PROXY, "")
    if proxy and peer == proxy:
        peer = network(request.headers.getall("X-Forwarded-For", [""])[-1].rpartition(",")[2].strip()) or peer
    return f"@{peer}"


async def hand_out_nonce(request: web.Request, response: web.StreamResponse) -> None:
    """The next nonce goes with every answer to a signed request."""
    if request.get(GIVES_NONCE):
        response.headers[NONCE] = request.app[DOOR].nonces.issue()


def _one(request: web.Request, name: str) -> str:
    """A header that may stand once; twice is as good as wrong."""
    values = request.headers.getall(name, [])
    return values[0] if len(values) == 1 else ""


@lru_cache(10_000)
def _public(text: str) -> PublicKey:
    return PublicKey.from_text(text)
