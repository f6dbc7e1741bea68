"""The aiohttp application: routes, the refusal of everything that fails, and the counting of what was sent."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from aiohttp import web

from covey_server import operation, upload_handlers
from covey_server.aggregator import Aggregator
from covey_server.bodies import IN_FLIGHT, Budget
from covey_server.handlers import AGGREGATOR, BUDGET, RECEIVED, Handler, device_of
from covey_server.handlers import ROUTES as DEVICE_ROUTES
from covey_server.logs import access, new_request_id
from covey_server.operation import ALWAYS, STOPPING
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

# aiohttp's own defaults keep an idle connection for an hour, inflate compressed bodies and linger on refused ones.
RUNNER: dict[str, Any] = {"keepalive_timeout": 30.0, "lingering_time": 2.0, "auto_decompress": False}
ROUTES = (*DEVICE_ROUTES, *upload_handlers.ROUTES, *operation.ROUTES)
SWEEP_S = 60.0  # between two looks for uploads that nobody continues
PARTIAL = 256 * 2**20  # bytes that unfinished uploads may come to, all together
NAMES = {(route.method, route.path): route.name for route in ROUTES}


def make_app(aggregator: Aggregator) -> web.Application:
    """The application for a served run."""
    app = web.Application(middlewares=[answer_errors])
    app[AGGREGATOR] = aggregator
    app[STOPPING] = []
    app[GATE] = Gate(app[STOPPING])
    app[BUDGET] = Budget(max(IN_FLIGHT, 4 * max_upload_bytes(aggregator.run.upload)))
    limit = max(PARTIAL, 4 * max_upload_bytes(aggregator.run.upload))
    app[UPLOADS] = Uploads(aggregator.run.blobs.folder.parent / "uploads", limit, time.monotonic())
    app.cleanup_ctx.append(sweep_uploads)
    for route in ROUTES:
        app.router.add_route(route.method, route.path, route.handler)
    app.on_response_prepare.append(count_traffic)
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


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure becomes a Refusal with its status; every answer has its request's id and is counted."""
    aggregator, gate, name = request.app[AGGREGATOR], request.app[GATE], route_of(request)
    request_id, started = new_request_id(), time.monotonic()
    if name not in ALWAYS:
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
        response = respond(refused)
    finally:
        gate.active -= 1
    seconds = time.monotonic() - started
    aggregator.metrics.requests.labels(name).observe(seconds)
    if not response.prepared:
        response.headers["Covey-Request"] = request_id
    fields = {"route": name, "status": response.status, "seconds": round(seconds, 6)}
    access.info("%s %d", name, response.status, extra=fields)
    return response


def route_of(request: web.Request) -> str:
    """The name of a request's route; `other` for addresses that do not exist."""
    resource = request.match_info.route.resource
    return NAMES.get((request.method, resource.canonical if resource else ""), "other")


async def count_traffic(request: web.Request, response: web.StreamResponse) -> None:
    """Counts the body that came and the one that is about to go, when the answer starts."""
    aggregator, name = request.app[AGGREGATOR], route_of(request)
    up, down = request.get(RECEIVED, 0), response.content_length or 0
    aggregator.traffic.add(device_of(request), name, up, down)
    aggregator.metrics.body_bytes.labels(name, "up").inc(up)
    aggregator.metrics.body_bytes.labels(name, "down").inc(down)
