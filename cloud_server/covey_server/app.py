"""The aiohttp application: routes, the refusal of everything that fails, and the counting of what was sent."""

from typing import Any

from aiohttp import web

from covey_server.aggregator import Aggregator
from covey_server.handlers import AGGREGATOR, RECEIVED, ROUTES, Handler, device_of
from covey_server.refusals import refusal, respond

# aiohttp's own defaults keep an idle connection for an hour, inflate compressed bodies and linger on refused ones.
RUNNER: dict[str, Any] = {"keepalive_timeout": 30.0, "lingering_time": 2.0, "auto_decompress": False}
NAMES = {(route.method, route.path): route.name for route in ROUTES}


def make_app(aggregator: Aggregator) -> web.Application:
    """The application for a served run."""
    app = web.Application(middlewares=[answer_errors])
    app[AGGREGATOR] = aggregator
    for route in ROUTES:
        app.router.add_route(route.method, route.path, route.handler)
    app.on_response_prepare.append(count_traffic)
    return app


@web.middleware
async def answer_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every failure becomes a Refusal with its status."""
    request.app[AGGREGATOR].touched()
    try:
        return await handler(request)
    except Exception as error:
        return respond(refusal(error))


async def count_traffic(request: web.Request, response: web.StreamResponse) -> None:
    """Counts the body that came and the one that is about to go, when the answer starts."""
    resource = request.match_info.route.resource
    name = NAMES.get((request.method, resource.canonical if resource else ""), "other")
    up, down = request.get(RECEIVED, 0), response.content_length or 0
    request.app[AGGREGATOR].traffic.add(device_of(request), name, up, down)
