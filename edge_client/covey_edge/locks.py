"""One process at a time in a folder: an advisory lock that the kernel drops with the process, however it ends."""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

POLL_S = 0.1


class Taken(Exception):
    """Another process holds the lock; `holder` is its number, or empty."""

    def __init__(self, holder: str):
        super().__init__(holder)
        self.holder = holder


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file; raises Taken at once when another process does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Taken(os.pread(descriptor, 20, 0).decode(errors="replace").strip()) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)


@asynccontextmanager
async def locked_when_free(path: Path) -> AsyncIterator[None]:
    """Hold the lock file, waiting for it without blocking the event loop."""
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(locked(path))
                break
            except Taken:
                await asyncio.sleep(POLL_S)
        yield
