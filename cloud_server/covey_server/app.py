"""The aiohttp application: routes, the refusal of everything that fails, and the counting of what was sent."""

import asyncio
import time
from typing import Any

from aiohttp import web

from covey_server.aggregator import Aggregator
from covey_server.bodies import IN_FLIGHT, Budget
from covey_server.guard import DOOR, MEDIA, TABLE, UPLOAD_BYTES, Door, Reader, guard, hand_out_nonce
from covey_server.handlers import AGGREGATOR, BUDGET, RECEIVED, ROUTES, device_of
from covey_server.policy import Handler, check_routes
from covey_server.refusals import Refused, refusal, respond
from covey_server.validation import max_upload_bytes


class Gate:
    """How many requests are being answered, and whether new ones are let in."""

    def __init__(self) -> None:
        self.active = 0
        self.stopping = False

    async def drain(self, timeout_s: float) -> None:
        """Let nobody in any more and wait for those inside.

        aiohttp's own shutdown ignores what still arrives of a body, so an upload in flight would be lost to it.
        """
        self.stopping = True
        deadline = time.monotonic() + timeout_s
        while self.active and time.monotonic() < deadline:
            await asyncio.sleep(0.02)


GATE = web.AppKey("gate", Gate)

# aiohttp's own defaults keep an idle connection for an hour, inflate compressed bodies and linger on refused ones.
RUNNER: dict[str, Any] = {"keepalive_timeout": 30.0, "lingering_time": 2.0, "auto_decompress": False}
NAMES = {(route.method, route.path): route.name for route in ROUTES}


def make_app(aggregator: Aggregator, *, is_open: bool = False) -> web.Application:
    """What devices reach of a served run. `is_open`: new devices need no code. Call it on the event loop's thread."""
    run = aggregator.run
    app = web.Application(middlewares=[answer_errors, guard])
    app[AGGREGATOR] = aggregator
    app[GATE] = Gate()
    app[UPLOAD_BYTES] = max_upload_bytes(run.upload)
    app[BUDGET] = Budget(max(IN_FLIGHT, 4 * app[UPLOAD_BYTES]))
    app[DOOR] = Door(Reader(run.blobs.folder.parent / "covey.sqlite"), is_open)
    for route in ROUTES:
        app.router.add_route(route.method, route.path, route.handler)
    app[TABLE] = check_routes(app, ROUTES)
    app.on_response_prepare.append(hand_out_nonce)
    app.on_response_prepare.append(count_traffic)
    app.on_cleanup.append(close_door)
    return app


async def close_door(app: web.Application) -> None:
    """Let go of the database."""
    app[DOOR].reader.close()


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure becomes a Refusal with its status."""
    gate = request.app[GATE]
    in_json = MEDIA in request.app or request.headers.get("Accept") == "application/json"
    if gate.stopping:
        return respond(Refused("stopping", "the server is being stopped; try again in a moment"), in_json=in_json)
    gate.active += 1
    try:
        return await handler(request)
    except Exception as error:
        return respond(refusal(error), in_json=in_json)
    finally:
        gate.active -= 1


async def count_traffic(request: web.Request, response: web.StreamResponse) -> None:
    """Counts the body that came and the one that is about to go, when the answer starts."""
    resource = request.match_info.route.resource
    request.app[AGGREGATOR].touched()
    name = NAMES.get((request.method, resource.canonical if resource else ""), "other")
    up, down = request.get(RECEIVED, 0), response.content_length or 0
    request.app[AGGREGATOR].traffic.add(device_of(request), name, up, down)
