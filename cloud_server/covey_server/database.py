"""SQLite as the server uses it: one file, one connection, one thread, and a commit that is on disk when it returns.

Work is a function of the connection. What waits in the queue when the thread gets to it shares one transaction, hence
one sync; each piece has its own savepoint, so that a piece that raises undoes itself alone. A future gets its result
only after the commit, and the event loop is woken once for all that shared it. WAL with synchronous=FULL: in NORMAL a
power cut may lose commits that were acknowledged.

Bytes that rows refer to may be written by the pieces of a transaction to a `Journal`: it is synced before each commit.

What this does not know: the tables.
"""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any, Concatenate, NamedTuple, ParamSpec, Protocol, TypeVar

from covey_server.blobs import StoreError
from covey_server.failpoints import failpoint

BATCH = 128  # pieces that share a commit; more would make the first wait
BUSY_MS = 5000
CHECKPOINT_BYTES = 4 * 2**20  # of the write-ahead log: SQLite's own habit, by our hand so that a test can kill in it
T = TypeVar("T")
P = ParamSpec("P")
Work = Callable[[sqlite3.Connection], Any]
Waiting = Future[Any] | asyncio.Future[Any]  # of a thread, or of an event loop


class Piece(NamedTuple):
    """A piece of work and who waits for it."""

    work: Work
    future: Waiting


class Outcome(NamedTuple):
    """What a piece came to: a result, or a failure."""

    future: Waiting
    result: Any
    failure: BaseException | None


class Journal(Protocol):
    """Files beside the database that the pieces of a transaction write to."""

    def sync(self) -> None:
        """Make what was written durable; raises OSError when the disk refuses."""

    def undo(self) -> None:
        """Forget what was written since the last `sync`."""


class Database:
    """A connection with its thread. `schema` is the list of statements that make version `len(schema)` from nothing,
    one migration an element: element i brings a file from version i to i + 1.
    """

    journal: Journal | None = None
    observe: Callable[[int, float], None] = staticmethod(lambda pieces, seconds: None)  # after each transaction

    def __init__(self, path: Path, schema: list[str]):
        self._log = path.with_name(path.name + "-wal")
        self._queue: SimpleQueue[list[Piece] | None] = SimpleQueue()
        self._fresh: list[Piece] = []  # of the event loop, until its turn ends
        opened: Future[None] = Future()
        self._thread = Thread(target=self._run, args=(path, schema, opened), name="covey-database", daemon=True)
        self._thread.start()
        opened.result()

    def submit(
        self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> "Future[T]":
        """Queue `work(connection, *args, **kwargs)`; the future gets its result once it is committed."""
        future: Future[T] = Future()
        self._queue.put([Piece(lambda connection: work(connection, *args, **kwargs), future)])
        return future

    def run(self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do it, waiting in this thread."""
        return self.submit(work, *args, **kwargs).result()

    async def do(self, work: Callable[Concatenate[sqlite3.Connection, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do it, waiting on the event loop, of which there is one.

        What is asked for in one turn of the loop is queued together: waking the thread costs more than a row.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        if not self._fresh:
            loop.call_soon(self._hand_over)
        self._fresh.append(Piece(lambda connection: work(connection, *args, **kwargs), future))
        return await future

    def _hand_over(self) -> None:
        self._queue.put(self._fresh)
        self._fresh = []

    def close(self) -> None:
        """Finish what is queued, checkpoint, close."""
        self._queue.put(None)
        self._thread.join()

    def _run(self, path: Path, schema: list[str], opened: "Future[None]") -> None:
        try:
            connection = connect(path, schema)
        except BaseException as error:
            opened.set_exception(error)
            return
        opened.set_result(None)
        while batch := self._next_batch():
            started = time.monotonic()
            commit_together(connection, batch, self.journal)
            self.observe(len(batch), time.monotonic() - started)
            self._checkpoint(connection)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.close()

    def _checkpoint(self, connection: sqlite3.Connection) -> None:
        """Move the log into the file when it has grown. What a full disk refuses is tried again after a batch."""
        with suppress(sqlite3.OperationalError, FileNotFoundError):
            if self._log.stat().st_size > CHECKPOINT_BYTES:
                failpoint("checkpoint")
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _next_batch(self) -> list[Piece]:
        """What is queued, at least one piece; nothing once the end has been asked for."""
        batch: list[Piece] = []
        item = self._queue.get()
        while item is not None:
            batch += item
            if len(batch) >= BATCH:
                break
            try:
                item = self._queue.get_nowait()
            except Empty:
                break
        if item is None and batch:
            self._queue.put(None)  # the end comes again after this batch
        return batch


def connect(path: Path, schema: list[str]) -> sqlite3.Connection:
    """Open or make the file, check it and bring it to the newest schema. Raises StoreError for a file it cannot use."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=BUSY_MS / 1000)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("PRAGMA foreign_keys=ON")
        _migrate(connection, path, schema)
        verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    except sqlite3.DatabaseError as error:
        connection.close()
        if isinstance(error, sqlite3.OperationalError):
            raise
        raise StoreError(f"{path} is not a database that can be read ({error}); restore it from a backup") from None
    except StoreError:
        connection.close()
        raise
    if verdict != "ok":
        connection.close()
        raise StoreError(f"the database {path} is damaged: {verdict}; restore it from a backup")
    return connection


def _migrate(connection: sqlite3.Connection, path: Path, schema: list[str]) -> None:
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(schema):
        raise StoreError(
            f"{path} was written by a newer covey (schema {version}, this one knows {len(schema)}); update covey"
        )
    for number, script in enumerate(schema[version:], version + 1):
        connection.executescript(f"BEGIN IMMEDIATE;\n{script};\nPRAGMA user_version={number};")
        failpoint("migrating")
        connection.execute("COMMIT")


def commit_together(connection: sqlite3.Connection, batch: list[Piece], journal: Journal | None) -> None:
    """Run the pieces in one transaction; if the journal's sync or the commit fails they all have failed."""
    done: list[Outcome] = []
    try:
        connection.execute("BEGIN IMMEDIATE")
        for work, future in batch:
            if _begins(future):  # who gave up waiting in the queue is not served
                done.append(Outcome(future, *_attempt(connection, work)))
        if journal is not None:
            journal.sync()
        failpoint("committing")
        connection.execute("COMMIT")
        failpoint("committed")
    except BaseException as error:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if journal is not None:
            journal.undo()
        done = [Outcome(future, None, error) for _, future in batch if _begins(future)]
    _tell(done)


def _begins(future: Waiting) -> bool:
    """Whether somebody waits still; from now on a thread does not give up."""
    if future.cancelled() or isinstance(future, asyncio.Future):
        return not future.cancelled()
    return future.running() or future.set_running_or_notify_cancel()


def _tell(outcomes: list[Outcome]) -> None:
    """Every future its outcome: those of a thread at once, those of an event loop by waking it once."""
    for loop, group in groupby(outcomes, lambda o: None if isinstance(o.future, Future) else o.future.get_loop()):
        if loop is None:
            _settle(list(group))
        else:
            with suppress(RuntimeError):  # the loop has been closed, and nobody waits
                loop.call_soon_threadsafe(_settle, list(group))


def _settle(outcomes: list[Outcome]) -> None:
    for future, result, failure in outcomes:
        if future.done():
            continue
        if failure is None:
            future.set_result(result)
        else:
            future.set_exception(failure)


def _attempt(connection: sqlite3.Connection, work: Work) -> tuple[Any, BaseException | None]:
    """One piece inside its savepoint. SQLite's own errors, a full disk say, end the whole transaction."""
    connection.execute("SAVEPOINT piece")
    try:
        result = work(connection)
    except sqlite3.Error:
        raise
    except Exception as error:
        connection.execute("ROLLBACK TO piece")
        connection.execute("RELEASE piece")
        return None, error
    connection.execute("RELEASE piece")
    return result, None
