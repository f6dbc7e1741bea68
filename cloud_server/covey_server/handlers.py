"""HTTP in, HTTP out: reads a request into a message, asks the aggregator, writes the answer. Decides nothing.

`ROUTES` is the protocol's whole surface; docs/protocol.md describes each.
"""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from aiohttp import web

from covey_server import page, status
from covey_server.aggregator import Aggregator
from covey_server.bodies import SMALL, Budget, read_body
from covey_server.failpoints import failpoint
from covey_server.refusals import MEDIA_TYPE, Refused
from covey_server.traffic import UNNAMED
from covey_server.validation import max_upload_bytes
from covey_shared.bundle import MANIFEST
from covey_shared.bundle_signature import read_signatures
from covey_shared.messages import CheckIn, Evaluation, Message, check_name

AGGREGATOR = web.AppKey("aggregator", Aggregator)
BUDGET = web.AppKey("budget", Budget)
DEVICE = web.RequestKey("device", str)  # who a request is about, for the traffic counters
RECEIVED = web.RequestKey("received", int)  # bytes of its body
CLIENT_HEADER = "Covey-Client"
MAX_NUMBER = 2**53

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Route(NamedTuple):
    """A route: its name in the traffic counters, and who answers it."""

    method: str
    path: str
    name: str
    handler: Handler


async def get_task(request: web.Request) -> web.Response:
    """What there is to join."""
    return packed(request.app[AGGREGATOR].task())


async def post_check_in(request: web.Request) -> web.Response:
    """A device offers itself."""
    message = CheckIn.from_bytes(await _body(request, SMALL))
    request[DEVICE] = message.client
    return packed(await request.app[AGGREGATOR].check_in(message))


async def get_adapter(request: web.Request) -> web.Response:
    """How to come from what a device holds to a version."""
    version = number_of(request.match_info["version"], "the version")
    text = request.query.get("held", "-1")
    held = -1 if text == "-1" else number_of(text, "held")
    return web.Response(body=await request.app[AGGREGATOR].adapter(version, held), content_type=MEDIA_TYPE)


async def put_update(request: web.Request) -> web.Response:
    """A device's coded change."""
    aggregator = request.app[AGGREGATOR]
    round_, client = number_of(request.match_info["round"], "the round"), client_of(request)
    failpoint("received")
    limit = max_upload_bytes(aggregator.run.upload)
    with request.app[BUDGET].reserve(min(request.content_length or limit, limit)):
        body = await _body(request, limit)
        return packed(await aggregator.take_update(round_, client, body))


async def put_evaluation(request: web.Request) -> web.Response:
    """A device's held-out loss."""
    version, client = number_of(request.match_info["version"], "the version"), client_of(request)
    message = Evaluation.from_bytes(await _body(request, SMALL))
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


async def get_status(request: web.Request) -> web.Response:
    """Everything that a person or a dashboard wants to know, as JSON."""
    return web.json_response(await status.report(request.app[AGGREGATOR]))


async def get_page(request: web.Request) -> web.Response:
    """The status for people."""
    html = page.render(await status.report(request.app[AGGREGATOR]))
    return web.Response(text=html, content_type="text/html", headers=page.HEADERS)


ROUTES = (
    Route("GET", "/", "page", get_page),
    Route("GET", "/v1/task", "task", get_task),
    Route("POST", "/v1/checkin", "checkin", post_check_in),
    Route("GET", "/v1/adapter/{version}", "adapter", get_adapter),
    Route("PUT", "/v1/updates/{round}/{client}", "update", put_update),
    Route("PUT", "/v1/evaluations/{version}/{client}", "evaluation", put_evaluation),
    Route("GET", "/v1/bundle", "bundle", get_bundle),
    Route("GET", "/v1/bundle/signature", "bundle", get_signature),
    Route("GET", "/v1/blobs/{sha256}", "blob", get_blob),
    Route("GET", "/v1/status", "status", get_status),
)


def packed(message: Message) -> web.Response:
    """A message as an answer."""
    return web.Response(body=message.to_bytes(), content_type=MEDIA_TYPE)


async def _body(request: web.Request, limit: int) -> bytes:
    """The body, counted."""
    body = await read_body(request, limit)
    request[RECEIVED] = len(body)
    return body


def client_of(request: web.Request) -> str:
    """The device that an address names."""
    client = request.match_info["client"]
    check_name("client", client)
    request[DEVICE] = client
    return client


def number_of(text: str, what: str) -> int:
    """A number of an address: decimal digits and no more."""
    if not (text.isascii() and text.isdigit() and len(text) <= 16 and int(text) < MAX_NUMBER):
        raise Refused("bad_message", f"{what} must be a number, got {text[:40]!r}")
    return int(text)


def device_of(request: web.Request) -> str:
    """Who a request is about: its address, its message, or its Covey-Client header; only devices that are known, so
    that a stranger's inventions do not fill the counters."""
    name = request.get(DEVICE) or request.headers.get(CLIENT_HEADER, UNNAMED)
    return name if name in request.app[AGGREGATOR].known else UNNAMED
