"""A proxy that is a bad link, in Toxiproxy's words: latency, jitter, bandwidth, slicer, limit_data, reset, timeout,
slow close. It sits between a client and a server on loopback; each direction has its own toxics, changed at any time.
"""

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from math import inf
from urllib.parse import urlsplit


@dataclass(frozen=True, kw_only=True)
class Toxics:
    """What happens to one direction of each connection. Sizes in bytes, counted from the connection's beginning.

    `latency_s` and up to `jitter_s` more before each piece; `bandwidth` bytes a second; pieces of at most `slicer`
    bytes; after `limit_data` the connection is closed in order, after `reset` with RST, after `timeout` nothing more
    arrives, though nobody is told. `slow_close_s` is how long the end of a stream is kept back.
    """

    latency_s: float = 0.0
    jitter_s: float = 0.0
    bandwidth: float = inf
    slicer: int = 1 << 16
    limit_data: float = inf
    reset: float = inf
    timeout: float = inf
    slow_close_s: float = 0.0

    @property
    def end(self) -> float:
        """The byte at which something ends."""
        return min(self.limit_data, self.reset, self.timeout)


GOOD = Toxics()


@dataclass
class Link:
    """The proxy, running. `up` is from client to server. `times`: so many connections are bad, the rest are good."""

    url: str = ""
    up: Toxics = GOOD
    down: Toxics = GOOD
    times: float = inf
    connections: int = 0
    rng: random.Random = field(default_factory=lambda: random.Random(1))
    tasks: set["asyncio.Task[None]"] = field(default_factory=set)
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    def break_once(self, **toxics: float) -> None:
        """The next connection's way up has these toxics."""
        self.up, self.times = replace(GOOD, **toxics), 1  # type: ignore[arg-type]

    def next(self) -> tuple[Toxics, Toxics]:
        """The toxics of a new connection."""
        self.connections += 1
        self.times -= 1
        return (self.up, self.down) if self.times >= 0 else (GOOD, GOOD)


@asynccontextmanager
async def bad_link(target: str, up: Toxics = GOOD, down: Toxics = GOOD) -> AsyncIterator[Link]:
    """A proxy before the server at `target`; `Link.url` is where clients go."""
    parts = urlsplit(target)
    link = Link(up=up, down=down)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        link.tasks.add(task)
        try:
            await _relay(link, reader, writer, parts.hostname or "", parts.port or 80)
        finally:
            link.tasks.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    link.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield link
    finally:
        server.close()
        await server.wait_closed()
        while link.tasks:  # also those whose connection was accepted in the last moment
            for task in list(link.tasks):
                task.cancel()
            await asyncio.gather(*link.tasks, return_exceptions=True)
            await asyncio.sleep(0)
        for writer in link.writers:  # one that closes in order may still have something to say to a side that is gone
            writer.transport.abort()
        await asyncio.sleep(0.01)  # transports that were closed say so to the loop


async def _relay(link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
    """One connection, both ways, until one of them breaks or both have ended."""
    up, down = link.next()
    try:
        far_reader, far_writer = await asyncio.open_connection(host, port)
    except (OSError, asyncio.CancelledError):
        writer.transport.abort()
        return
    link.writers += [writer, far_writer]
    ways = [
        asyncio.create_task(_pump(reader, far_writer, up, link.rng)),
        asyncio.create_task(_pump(far_reader, writer, down, link.rng)),
    ]
    reset = True
    try:
        done, _ = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        if not any(task.result() for task in done):  # one side has said all: let the other finish
            await asyncio.wait(ways, timeout=5)
        reset = any(task.done() and task.result() == "reset" for task in ways)
    finally:
        for task in ways:
            task.cancel()
        for one in (writer, far_writer):
            _close(one, reset=reset)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, how: Toxics, rng: random.Random) -> str:
    """Moves bytes until the end; returns how it was broken, empty for a natural end."""
    moved = 0
    with suppress(OSError, RuntimeError):  # broken from the other side, or closed under our hands
        while data := await reader.read(min(how.slicer, 1 << 16)):
            data = data[: int(how.end - moved)] if how.end < inf else data
            if how.latency_s or how.jitter_s:
                await asyncio.sleep(how.latency_s + rng.random() * how.jitter_s)
            if how.bandwidth < inf:
                await asyncio.sleep(len(data) / how.bandwidth)
            writer.write(data)
            await writer.drain()
            moved += len(data)
            if moved >= how.timeout:
                await asyncio.sleep(3600)
            if moved >= how.end:
                return "reset" if moved >= how.reset else "closed"
        await asyncio.sleep(how.slow_close_s)
        if writer.can_write_eof():
            writer.write_eof()
    return ""


def _close(writer: asyncio.StreamWriter, *, reset: bool) -> None:
    """Close in order, or with RST: a lingering time of zero throws away what is unsent."""
    connection = writer.get_extra_info("socket")
    if reset and connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    else:
        writer.close()
