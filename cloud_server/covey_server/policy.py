"""What each route allows: who may ask, how long a body, how often, and what asking twice does.

The table of routes is the only way to the handlers, and `check_routes` compares it with what the application really
serves: a route without a whole policy keeps the server from starting.
"""

from collections.abc import Awaitable, Callable, Iterable
from typing import NamedTuple

from aiohttp import web

from covey_server.access import ROLES
from covey_server.limits import Rate
from covey_server.refusals import MEDIA_TYPE
from covey_shared.errors import UsageError

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

ANYONE, KEY, DEVICE = "anyone", "key", "device"  # not signed; signed by any key; signed by an enrolled device
WHO = (ANYONE, KEY, DEVICE, *ROLES)
UPLOAD = -1  # a body as long as an honest update of the task
SAFE, SAME, NEW = "safe", "same", "new"  # changes nothing; asked twice is asked once; each time counts


class Policy(NamedTuple):
    """`who` may ask, `max_body` in bytes (0: none), `rate` of one device or stranger, `repeat`: what asking twice does.

    `media` is the type of its body.
    """

    who: str
    max_body: int
    rate: Rate
    repeat: str
    media: str = MEDIA_TYPE


class Route(NamedTuple):
    """A route: its name in the traffic counters, who answers it, and what it allows."""

    method: str
    path: str
    name: str
    handler: Handler
    policy: Policy


def check_routes(app: web.Application, table: Iterable[Route]) -> dict[tuple[str, str], Route]:
    """The table by method and path. Raises UsageError unless every route that the application has is declared in it."""
    routes = {(route.method, route.path): route for route in table}
    for served in app.router.routes():
        path = served.resource.canonical if served.resource else ""
        found = routes.get((served.method, path))
        if found is None or not _is_whole(found.policy):
            raise UsageError(
                f"the route {served.method} {path} has no policy; declare who may ask, the longest body, the rate and "
                "what asking twice does, beside the others in the table of routes"
            )
    return routes


def _is_whole(policy: object) -> bool:
    """Whether every part of a policy is there and means something."""
    return (
        isinstance(policy, Policy)
        and policy.who in WHO
        and isinstance(policy.max_body, int)
        and policy.max_body >= UPLOAD
        and isinstance(policy.rate, Rate)
        and policy.rate.per_s > 0
        and policy.rate.burst >= 1
        and policy.repeat in (SAFE, SAME, NEW)
        and bool(policy.media)
    )
