"""The operator's side, on a listener of its own: status for people and programs, and what an operator may do.

Who asks from this very machine may look without a token; whoever changes something, or comes from elsewhere, sends
`Authorization: Bearer TOKEN` with a token of the right role. A web page that somebody opens in a browser here could ask
too, so a question without a token must name this machine as its host.
"""

import json
import time
from collections.abc import Callable
from typing import Any

from aiohttp import web

from covey_server import access, audit, control, operation, page, status
from covey_server.access import OPERATOR, PUBLISHER, VIEWER
from covey_server.aggregator import Aggregator
from covey_server.app import GATE, Gate, answer_errors
from covey_server.bodies import read_body
from covey_server.guard import BEARER, DOOR, FOR_PEOPLE, TABLE, UPLOAD_BYTES, Door, guard
from covey_server.handlers import AGGREGATOR
from covey_server.limits import Rate
from covey_server.operation import STOPPING
from covey_server.policy import NEW, SAFE, SAME, Policy, Route, check_routes
from covey_server.refusals import Refused
from covey_shared.errors import MessageError, UsageError

JSON = "application/json"


async def get_status(request: web.Request) -> web.Response:
    """Everything that a person or a dashboard wants to know, as JSON."""
    return web.json_response(await status.report(request.app[AGGREGATOR]))


async def get_page(request: web.Request) -> web.Response:
    """The status for people."""
    html = page.render(await status.report(request.app[AGGREGATOR]))
    return web.Response(text=html, content_type="text/html", headers=page.HEADERS)


async def get_devices(request: web.Request) -> web.Response:
    """Who is enrolled, and who was revoked."""
    found = await request.app[AGGREGATOR].run.db.do(access.devices)
    return web.json_response({"devices": [{**d._asdict(), "key": d.fingerprint} for d in found]})


async def post_revoke(request: web.Request) -> web.Response:
    """Refuse a device from now on."""
    name = request.match_info["name"]
    await _or_not_found(request, _audited(request, access.revoke, "revoke device", name), name, time.time())
    return web.json_response({})


async def get_codes(request: web.Request) -> web.Response:
    """The codes that there are, without what would let anybody use them."""
    found = await request.app[AGGREGATOR].run.db.do(access.codes)
    return web.json_response({"codes": [code._asdict() for code in found]})


async def post_codes(request: web.Request) -> web.Response:
    """New codes, shown this once."""
    asked = await _json(request, {"count": 1, "ttl_s": access.TTL_S, "name": "", "label": ""})
    count, ttl_s, name = int(asked["count"]), float(asked["ttl_s"]), str(asked["name"])
    label = str(asked["label"])
    try:
        access.check_codes(count, ttl_s, name, label)
    except (UsageError, MessageError) as error:
        raise Refused("bad_message", str(error)) from None
    work = _audited(request, access.add_codes, "make codes", access.codes_said(count, ttl_s, name, label))
    made = await request.app[AGGREGATOR].run.db.do(work, count, ttl_s, name, time.time(), label)
    return web.json_response({"codes": made})


async def delete_code(request: web.Request) -> web.Response:
    """Forget an unused code."""
    code = request.match_info["id"]
    await _or_not_found(request, _audited(request, access.drop_code, "drop code", code), code)
    return web.json_response({})


async def post_pause(request: web.Request) -> web.Response:
    """Give nobody work."""
    await control.pause(request.app[AGGREGATOR], True, _audited(request, control.save, "pause", ""))
    return web.json_response({})


async def post_resume(request: web.Request) -> web.Response:
    """Give work again."""
    await control.pause(request.app[AGGREGATOR], False, _audited(request, control.save, "resume", ""))
    return web.json_response({})


async def post_close(request: web.Request) -> web.Response:
    """End the open round as its deadline would."""
    aggregator = request.app[AGGREGATOR]
    number = aggregator.state.round
    aggregator.close_round()
    await aggregator.run.db.do(_audited(request, lambda db: None, "close round", str(number)))
    return web.json_response({})


async def post_latest(request: web.Request) -> web.Response:
    """Let `latest` name a published version: an earlier one takes back what came after; -1 follows the newest."""
    version = (await _json(request, {"version": -1}))["version"]
    pinned = None if version == -1 else version
    said = "the newest" if pinned is None else f"version {pinned}"
    await control.pin(request.app[AGGREGATOR], pinned, _audited(request, control.save, "set latest", said))
    return web.json_response({})


async def get_audit(request: web.Request) -> web.Response:
    """What operators did, the newest last; `broken` names an entry that was changed."""
    found = await request.app[AGGREGATOR].run.db.do(audit.entries)
    return web.json_response({"entries": [entry._asdict() for entry in found], "broken": audit.broken(found)})


LOOK, ACT = Rate(20.0, 200), Rate(5.0, 50)
ADMIN_ROUTES = (
    Route("GET", "/", "page", get_page, Policy(VIEWER, 0, LOOK, SAFE)),
    Route("GET", "/v1/status", "status", get_status, Policy(VIEWER, 0, LOOK, SAFE)),
    Route("GET", "/v1/devices", "devices", get_devices, Policy(VIEWER, 0, LOOK, SAFE)),
    Route("POST", "/v1/devices/{name}/revoke", "revoke", post_revoke, Policy(OPERATOR, 0, ACT, SAME)),
    Route("GET", "/v1/codes", "codes", get_codes, Policy(OPERATOR, 0, LOOK, SAFE)),
    Route("GET", "/v1/audit", "audit", get_audit, Policy(OPERATOR, 0, LOOK, SAFE)),
    Route("POST", "/v1/codes", "new codes", post_codes, Policy(OPERATOR, 1024, ACT, NEW, JSON)),
    Route("POST", "/v1/pause", "pause", post_pause, Policy(OPERATOR, 0, ACT, SAME)),
    Route("POST", "/v1/resume", "resume", post_resume, Policy(OPERATOR, 0, ACT, SAME)),
    Route("POST", "/v1/close", "close", post_close, Policy(OPERATOR, 0, ACT, NEW)),
    Route("POST", "/v1/latest", "latest", post_latest, Policy(PUBLISHER, 1024, ACT, SAME, JSON)),
    Route("DELETE", "/v1/codes/{id}", "drop code", delete_code, Policy(OPERATOR, 0, ACT, SAME)),
)
ALL_ROUTES = (*ADMIN_ROUTES, *operation.ROUTES)


def make_admin(aggregator: Aggregator, door: Door, stopping: list[bool]) -> web.Application:
    """The operator's application, beside the devices' one whose `door` and `stopping` it shares."""
    app = web.Application(middlewares=[answer_errors, guard])
    app[AGGREGATOR], app[DOOR], app[FOR_PEOPLE], app[STOPPING], app[UPLOAD_BYTES] = aggregator, door, True, stopping, 0
    app[GATE] = Gate(stopping)
    for route in ALL_ROUTES:
        app.router.add_route(route.method, route.path, route.handler)
    app[TABLE] = check_routes(app, ALL_ROUTES)
    return app


def _audited(request: web.Request, work: Callable[..., Any], did: str, what: str) -> Callable[..., Any]:
    """A change in the database that leaves an entry of who made it."""
    return audit.recorded(work, request[BEARER].label, did, what, time.time())


async def _or_not_found(request: web.Request, work: Any, *args: object) -> None:
    """A change in the database; what it names but does not find is 404."""
    try:
        await request.app[AGGREGATOR].run.db.do(work, *args)
    except UsageError as error:
        raise Refused("not_found", str(error)) from None


async def _json(request: web.Request, defaults: dict[str, Any]) -> dict[str, Any]:
    """A flat JSON object with the keys and types of `defaults`, which stand in for what is missing."""
    body = await read_body(request, 1024)
    try:
        found = json.loads(body) if body else {}
    except (ValueError, RecursionError):
        raise Refused("bad_message", "the body is not JSON") from None
    if not isinstance(found, dict):
        raise Refused("bad_message", "the body is not a JSON object")
    for key, value in found.items():
        if key not in defaults:
            raise Refused("bad_message", f"the key {key[:40]!r} is unknown; known are {', '.join(defaults)}")
        kind = (int, float) if isinstance(defaults[key], float) else type(defaults[key])
        if not isinstance(value, kind) or isinstance(value, bool):
            raise Refused("bad_message", f"{key} must be like {defaults[key]!r}")
    return {**defaults, **found}
