"""A TCP relay that counts bytes: what really crosses the socket, headers and all, whatever the protocol."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass
class Counter:
    """A running relay: listen on `port`; bytes from the clients and to them."""

    port: int = 0
    up: int = 0
    down: int = 0
    connections: int = 0


@contextlib.contextmanager
def counting(port: int, host: str = "127.0.0.1") -> Iterator[Counter]:
    """Relay a free port of this machine to `port`, in a thread of its own, until the block ends."""
    counter, loop, ready = Counter(), asyncio.new_event_loop(), threading.Event()

    async def serve() -> None:
        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            counter.connections += 1
            try:
                there = await asyncio.open_connection(host, port)
            except OSError:
                writer.close()
                return
            await asyncio.gather(_pump(reader, there[1], counter, "up"), _pump(there[0], writer, counter, "down"))

        server = await asyncio.start_server(handle, host, 0)
        counter.port = server.sockets[0].getsockname()[1]
        ready.set()

    loop.create_task(serve())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield counter
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counter: Counter, way: str) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            setattr(counter, way, getattr(counter, way) + len(data))
            writer.write(data)
            await writer.drain()
    with contextlib.suppress(ConnectionError, RuntimeError):
        writer.close()
