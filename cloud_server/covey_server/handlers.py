"""HTTP in, HTTP out: reads a request into a message, asks the aggregator, writes the answer. Decides nothing.

`ROUTES` is what devices can reach, and what each route allows; docs/protocol.md describes them. `admin` has the others.
"""

import time

from aiohttp import web

from covey_server import access
from covey_server.aggregator import Aggregator
from covey_server.bodies import BODY_SHA256, SMALL, Budget, read_body
from covey_server.failpoints import failpoint
from covey_server.guard import CALLER, DOOR, SIGNED, UPLOAD_BYTES, limit_of, route_of
from covey_server.limits import Rate
from covey_server.policy import ANYONE, DEVICE, KEY, SAFE, SAME, UPLOAD, Policy, Route
from covey_server.refusals import MEDIA_TYPE, Refused
from covey_server.traffic import UNNAMED
from covey_shared.bundle import MANIFEST
from covey_shared.bundle_signature import read_signatures
from covey_shared.messages import PROTOCOL, CheckIn, Enroll, Enrolled, Evaluation, Hello
from covey_shared.schema import Message, check_name

AGGREGATOR = web.AppKey("aggregator", Aggregator)
BUDGET = web.AppKey("budget", Budget)
RECEIVED = web.RequestKey("received", int)  # bytes of a request's body
MAX_NUMBER = 2**53


async def get_hello(request: web.Request) -> web.Response:
    """A nonce for the first signed request, and how to come in."""
    door = request.app[DOOR]
    return packed(Hello(protocol=PROTOCOL, enroll="open" if door.is_open else "code", nonce=door.nonces.issue()))


async def post_enroll(request: web.Request) -> web.Response:
    """A key asks for its name, with a code if it is new."""
    message = Enroll.from_bytes(await _body(request))
    key, is_open = request[SIGNED].key, request.app[DOOR].is_open
    row = (key, message.client, message.code, is_open, time.time())
    return packed(Enrolled(client=await request.app[AGGREGATOR].run.db.do(access.enroll, *row)))


async def get_task(request: web.Request) -> web.Response:
    """What there is to join, for a device of the tier that it states."""
    return packed(request.app[AGGREGATOR].task(request.query.get("tier", "")))


async def post_check_in(request: web.Request) -> web.Response:
    """A device offers itself."""
    message = CheckIn.from_bytes(await _body(request))
    _require_own(request, message.client)
    return packed(await request.app[AGGREGATOR].check_in(message))


async def get_adapter(request: web.Request) -> web.Response:
    """How to come from what a device holds to a version, of what all have or of its cohort's copies."""
    version = number_of(request.match_info["version"], "the version")
    text = request.query.get("held", "-1")
    held = -1 if text == "-1" else number_of(text, "held")
    cohort = number_of(request.query["cohort"], "the cohort") if "cohort" in request.query else None
    body = await request.app[AGGREGATOR].adapter(version, held, cohort, request[CALLER].name)
    return web.Response(body=body, content_type=MEDIA_TYPE)


async def put_update(request: web.Request) -> web.Response:
    """A device's coded change."""
    aggregator = request.app[AGGREGATOR]
    round_, client = number_of(request.match_info["round"], "the round"), client_of(request)
    failpoint("received")
    with request.app[BUDGET].reserve(request.content_length or request.app[UPLOAD_BYTES]):
        body = await _body(request)
        return packed(await aggregator.take_update(round_, client, body, request[BODY_SHA256].hex()))


async def put_evaluation(request: web.Request) -> web.Response:
    """A device's held-out loss."""
    version, client = number_of(request.match_info["version"], "the version"), client_of(request)
    message = Evaluation.from_bytes(await _body(request))
    if (message.version, message.client) != (version, client):
        raise Refused("bad_message", "the evaluation names another version or device than its address")
    await request.app[AGGREGATOR].take_evaluation(message)
    return web.Response(content_type=MEDIA_TYPE)


async def get_bundle(request: web.Request) -> web.FileResponse:
    """The manifest, whose SHA-256 is the bundle's name."""
    return web.FileResponse(
        request.app[AGGREGATOR].run.bundle.folder / MANIFEST, headers={"Content-Type": "application/json"}
    )


async def get_signature(request: web.Request) -> web.Response:
    """The bundle's signatures, as they lie beside the manifest; devices check them."""
    signatures = read_signatures(request.app[AGGREGATOR].run.bundle.folder)
    if not signatures:
        raise Refused("not_found", "the bundle is not signed: sign it with covey bundle sign")
    return web.Response(body=signatures, content_type="text/plain")


async def get_blob(request: web.Request) -> web.FileResponse:
    """One file of the bundle, by its SHA-256; nothing else on this machine has an address."""
    bundle = request.app[AGGREGATOR].run.bundle
    digest = request.match_info["sha256"]
    for name, file in bundle.manifest.files.items():
        if file.sha256 == digest:
            return web.FileResponse(bundle.folder / name, headers={"Content-Type": "application/octet-stream"})
    raise Refused("not_found", "the bundle has no file with this digest; get /v1/bundle for the ones that it has")


POLL, FETCH, SEND = Rate(20.0, 200), Rate(20.0, 200), Rate(20.0, 200)  # for one device; an honest one needs far less
ROUTES = (
    Route("GET", "/v1/hello", "hello", get_hello, Policy(ANYONE, 0, Rate(10.0, 100), SAFE)),
    Route("POST", "/v1/enroll", "enroll", post_enroll, Policy(KEY, 1024, Rate(10.0, 100), SAME)),
    Route("GET", "/v1/task", "task", get_task, Policy(DEVICE, 0, POLL, SAFE)),
    Route("POST", "/v1/checkin", "checkin", post_check_in, Policy(DEVICE, SMALL, POLL, SAME)),
    Route("GET", "/v1/adapter/{version}", "adapter", get_adapter, Policy(DEVICE, 0, FETCH, SAFE)),
    Route("PUT", "/v1/updates/{round}/{client}", "update", put_update, Policy(DEVICE, UPLOAD, SEND, SAME)),
    Route("PUT", "/v1/evaluations/{version}/{client}", "evaluation", put_evaluation, Policy(DEVICE, SMALL, SEND, SAME)),
    Route("GET", "/v1/bundle", "bundle", get_bundle, Policy(DEVICE, 0, FETCH, SAFE)),
    Route("GET", "/v1/bundle/signature", "bundle", get_signature, Policy(DEVICE, 0, FETCH, SAFE)),
    Route("GET", "/v1/blobs/{sha256}", "blob", get_blob, Policy(DEVICE, 0, FETCH, SAFE)),
)


def packed(message: Message) -> web.Response:
    """A message as an answer."""
    return web.Response(body=message.to_bytes(), content_type=MEDIA_TYPE)


async def _body(request: web.Request) -> bytes:
    """The body within its route's limit, counted."""
    route = route_of(request)
    assert route is not None
    body = await read_body(request, limit_of(request, route.policy))
    request[RECEIVED] = len(body)
    return body


def client_of(request: web.Request) -> str:
    """The device in the address, which must be the one that signed."""
    client = request.match_info["client"]
    check_name("client", client)
    _require_own(request, client)
    return client


def _require_own(request: web.Request, client: str) -> None:
    """Raises Refused when a device speaks for another one."""
    if client != request[CALLER].name:
        raise Refused("wrong_device", f"this key is enrolled as {request[CALLER].name} and cannot speak for {client}")


def number_of(text: str, what: str) -> int:
    """A number of an address: decimal digits and no more."""
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and int(text) < MAX_NUMBER):
        raise Refused("bad_message", f"{what} must be a number, got {text[:40]!r}")
    return int(text)


def device_of(request: web.Request) -> str:
    """Who sent a request, for the counters: the name of the key that signed it."""
    return request[CALLER].name if CALLER in request else UNNAMED
