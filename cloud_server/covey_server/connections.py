"""How many connections somebody may hold open: looked at every second, and what is too many is closed, newest first.

A request is bounded by its policy, but a connection that asks for nothing is not a request. Connections of this machine
are a reverse proxy's and are not counted by address.
"""

import asyncio
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from aiohttp import web

from covey_server.guard import is_loopback
from covey_server.limits import network

LOOK_S = 1.0
MOST, MOST_OF_ONE = 10_000, 256


class Open(NamedTuple):
    """A connection and whom it belongs to."""

    who: str
    transport: asyncio.BaseTransport


def too_many(connections: Iterable[Open], most: int = MOST, most_of_one: int = MOST_OF_ONE) -> list[Open]:
    """Those to close, of a list that begins with the oldest. Who is "" counts only among all."""
    kept: Counter[str] = Counter()
    out = []
    for connection in connections:
        if kept.total() >= most or (connection.who and kept[connection.who] >= most_of_one):
            out.append(connection)
        else:
            kept[connection.who] += 1
    return out


def opened(server: web.Server, loopback_counts: bool = False) -> list[Open]:
    """The connections of a server, the oldest first."""
    out = []
    for handler in server.connections:
        transport = handler.transport
        if transport is not None:
            address = str((transport.get_extra_info("peername") or ("",))[0])
            out.append(Open("" if is_loopback(address) and not loopback_counts else network(address), transport))
    return out


async def watch(runner: web.AppRunner) -> None:
    """Close what is too many, until cancelled."""
    while True:
        await asyncio.sleep(LOOK_S)
        assert runner.server is not None
        for connection in too_many(opened(runner.server)):
            if isinstance(connection.transport, asyncio.Transport):
                connection.transport.abort()
