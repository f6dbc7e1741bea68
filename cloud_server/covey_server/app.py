"""The aiohttp application: routes, the refusal of everything that fails, and the counting of what was sent."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from covey_server import operation, upload_handlers, vault_handlers
from covey_server.aggregator import Aggregator
from covey_server.bodies import IN_FLIGHT, Budget
from covey_server.guard import (
    DOOR,
    FOR_PEOPLE,
    PROXY,
    TABLE,
    UPLOAD_BYTES,
    Door,
    Reader,
    guard,
    hand_out_nonce,
    route_of,
)
from covey_server.handlers import AGGREGATOR, BUDGET, RECEIVED, device_of
from covey_server.handlers import ROUTES as DEVICE_ROUTES
from covey_server.limits import network
from covey_server.logs import access, new_request_id
from covey_server.operation import ALWAYS, STOPPING
from covey_server.policy import Handler, check_routes
from covey_server.refusals import Refused, refusal, respond
from covey_server.upload_handlers import UPLOADS
from covey_server.uploads import Uploads
from covey_server.validation import max_upload_bytes


class Gate:
    """How many requests are being answered, and whether new ones are let in: `stopping` is empty until they are not."""

    def __init__(self, stopping: list[bool]) -> None:
        self.active = 0
        self.stopping = stopping

    async def drain(self, timeout_s: float) -> None:
        """Let nobody in any more and wait for those inside.

        aiohttp's own shutdown ignores what still arrives of a body, so an upload in flight would be lost to it.
        """
        self.stopping.append(True)
        deadline = time.monotonic() + timeout_s
        while self.active and time.monotonic() < deadline:
            await asyncio.sleep(0.02)


GATE = web.AppKey("gate", Gate)
MEDIA_JSON = "application/json"

# aiohttp's own defaults keep an idle connection for an hour, inflate compressed bodies and linger on refused ones.
RUNNER: dict[str, Any] = {"keepalive_timeout": 15.0, "lingering_time": 2.0, "auto_decompress": False}
ROUTES = (*DEVICE_ROUTES, *upload_handlers.ROUTES, *vault_handlers.ROUTES, *operation.HEALTH)
SWEEP_S = 60.0  # between two looks for uploads that nobody continues
PARTIAL = 256 * 2**20  # bytes that unfinished uploads may come to, all together


def make_app(aggregator: Aggregator, *, is_open: bool = False, proxy: str = "") -> web.Application:
    """What devices reach of a served run. Call it on the event loop's thread.

    `is_open`: new devices need no code. `proxy`: the address of a reverse proxy that is believed about addresses.
    """
    run = aggregator.run
    app = web.Application(middlewares=[answer_errors, guard])
    app[AGGREGATOR] = aggregator
    app[STOPPING] = []
    app[PROXY] = proxy and network(proxy)
    app[GATE] = Gate(app[STOPPING])
    app[UPLOAD_BYTES] = max_upload_bytes(run.upload)
    app[BUDGET] = Budget(max(IN_FLIGHT, 4 * app[UPLOAD_BYTES]))
    limit = max(PARTIAL, 4 * app[UPLOAD_BYTES])
    app[UPLOADS] = Uploads(run.blobs.folder.parent / "uploads", limit, time.monotonic())
    app.cleanup_ctx.append(sweep_uploads)
    app[DOOR] = Door(Reader(run.blobs.folder.parent / "covey.sqlite"), is_open)
    for route in ROUTES:
        app.router.add_route(route.method, route.path, route.handler, expect_handler=ask_later)
    app[TABLE] = check_routes(app, ROUTES)
    app.on_response_prepare.append(hand_out_nonce)
    app.on_response_prepare.append(count_traffic)
    app.on_cleanup.append(close_door)
    return app


async def sweep_uploads(app: web.Application) -> AsyncIterator[None]:
    """Removes uploads that nobody continues, as long as the application runs."""

    async def sweep() -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            app[UPLOADS].sweep(time.monotonic())

    task = asyncio.create_task(sweep())
    yield
    task.cancel()


async def ask_later(request: web.Request) -> None:
    """A client that asks before it sends its body is answered when the body is wanted, not before the guard."""


async def close_door(app: web.Application) -> None:
    """Let go of the database."""
    app[DOOR].reader.close()


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure becomes a Refusal with its status; every answer has its request's id and is counted."""
    aggregator, gate, name = request.app[AGGREGATOR], request.app[GATE], name_of(request)
    for_people = request.app.get(FOR_PEOPLE, False)
    request_id, started = new_request_id(), time.monotonic()
    if name not in ALWAYS and not for_people:
        aggregator.touched()
    gate.active += 1
    aggregator.metrics.in_flight.set(gate.active)
    try:
        if gate.stopping and name not in ALWAYS:
            raise Refused("stopping", "the server is being stopped; try again in a moment")
        response = await handler(request)
    except Exception as error:
        refused = refusal(error)
        aggregator.metrics.refusals.labels(refused.code).inc()
        response = respond(refused, in_json=for_people or request.headers.get("Accept") == MEDIA_JSON)
    finally:
        gate.active -= 1
    seconds = time.monotonic() - started
    aggregator.metrics.request_seconds(name).observe(seconds)
    if not response.prepared:
        response.headers["Covey-Request"] = request_id
    if not access.disabled:
        fields = {"route": name, "status": response.status, "seconds": round(seconds, 6)}
        access.info("%s %d", name, response.status, extra=fields)
    return response


def name_of(request: web.Request) -> str:
    """The name of a request's route; `other` for addresses that do not exist."""
    route = route_of(request)
    return route.name if route else "other"


async def count_traffic(request: web.Request, response: web.StreamResponse) -> None:
    """Counts the body that came and the one that is about to go, when the answer starts."""
    aggregator, name = request.app[AGGREGATOR], name_of(request)
    up, down = request.get(RECEIVED, 0), response.content_length or 0
    aggregator.traffic.add(device_of(request), name, up, down)
    if up:
        aggregator.metrics.bytes_of(name, "up").inc(up)
    if down:
        aggregator.metrics.bytes_of(name, "down").inc(down)
