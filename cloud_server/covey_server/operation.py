"""What an operator's machines ask: is it alive, is it ready, and how is it doing."""

from aiohttp import web

from covey_server.access import VIEWER
from covey_server.handlers import AGGREGATOR
from covey_server.limits import Rate
from covey_server.policy import ANYONE, SAFE, Policy, Route

ALWAYS = frozenset({"health", "ready", "metrics"})  # routes that are answered while the server is being stopped
STOPPING = web.AppKey("stopping", list)  # holds one item once it is


async def get_health(request: web.Request) -> web.Response:
    """The process answers. Nothing else is asked, so that a slow disk does not get it killed."""
    return web.Response(text="alive\n")


async def get_ready(request: web.Request) -> web.Response:
    """Whether work can be sent here: the database answers, nothing has failed, and nobody has said stop."""
    aggregator = request.app[AGGREGATOR]
    if request.app[STOPPING]:
        return web.Response(status=503, text="stopping\n")
    if aggregator.failure.done():
        return web.Response(status=503, text="failed\n")
    await aggregator.run.db.do(lambda connection: None)
    return web.Response(text="ready\n")


async def get_metrics(request: web.Request) -> web.Response:
    """The counters."""
    aggregator = request.app[AGGREGATOR]
    metrics, state = aggregator.metrics, aggregator.state
    metrics.version.set(state.version)
    metrics.gathered.set(aggregator.facts()["gathered"])
    for kind, loss in (await aggregator.held_out())[1].items():
        metrics.held_out.labels(kind).set(loss)
    body, content_type = metrics.render(request.headers.get("Accept", ""))
    return web.Response(body=body, headers={"Content-Type": content_type})


PROBE = Rate(10.0, 100)
HEALTH = (  # on both sides: a load balancer asks where devices do
    Route("GET", "/healthz", "health", get_health, Policy(ANYONE, 0, PROBE, SAFE)),
    Route("GET", "/readyz", "ready", get_ready, Policy(ANYONE, 0, PROBE, SAFE)),
)
ROUTES = (*HEALTH, Route("GET", "/metrics", "metrics", get_metrics, Policy(VIEWER, 0, PROBE, SAFE)))
