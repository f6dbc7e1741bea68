"""What the server remembers: tables and the questions asked of them. Every function is one piece of a transaction.

    meta         the task as resolved, the bundle, the layout
    rounds       state: open, frozen (its set of updates is final), published
    assignments  who was asked, so that a restart knows whose update is welcome
    updates      one row for each (round, client), kept after its blob is gone: a retry is answered from it
    versions     each published adapter: its coded step, and for the head the server's whole state
    evaluations  held-out losses, one for each (version, client)
    clients      what devices said about themselves
    traffic      bodies in bytes, by device and route

Blobs are referred to by digest and written before the row that names them.
"""

import sqlite3
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from covey_server import access
from covey_server.blobs import StoreError
from covey_server.engine import Saved

SCHEMA = [
    """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;
CREATE TABLE rounds (round INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, state TEXT NOT NULL) STRICT;
CREATE TABLE assignments (
    round INTEGER NOT NULL, client TEXT NOT NULL, attempt INTEGER NOT NULL, PRIMARY KEY (round, client)
) STRICT;
CREATE TABLE updates (
    round INTEGER NOT NULL, client TEXT NOT NULL, sha256 TEXT NOT NULL, bytes INTEGER NOT NULL,
    examples INTEGER NOT NULL, steps INTEGER NOT NULL, loss_before REAL NOT NULL, loss_after REAL NOT NULL,
    seconds REAL NOT NULL, stored INTEGER NOT NULL, PRIMARY KEY (round, client)
) STRICT;
CREATE TABLE versions (
    version INTEGER PRIMARY KEY, parent INTEGER UNIQUE, base INTEGER NOT NULL, step TEXT, step_bytes INTEGER NOT NULL,
    state TEXT, digest TEXT NOT NULL, updates INTEGER NOT NULL, created REAL NOT NULL
) STRICT;
CREATE TABLE evaluations (
    version INTEGER NOT NULL, client TEXT NOT NULL, loss_sum REAL NOT NULL, tokens INTEGER NOT NULL,
    correct INTEGER NOT NULL, PRIMARY KEY (version, client)
) STRICT;
CREATE TABLE clients (
    client TEXT PRIMARY KEY, runtime TEXT NOT NULL, examples INTEGER NOT NULL, seen REAL NOT NULL
) STRICT;
CREATE TABLE traffic (
    client TEXT NOT NULL, route TEXT NOT NULL, up INTEGER NOT NULL, down INTEGER NOT NULL, PRIMARY KEY (client, route)
) STRICT;
""",
    access.SCHEMA,
]


class UpdateRow(NamedTuple):
    """An accepted update: `sha256` and `bytes` of the request's body; losses in nats."""

    round: int
    client: str
    sha256: str
    bytes: int
    examples: int
    steps: int
    loss_before: float
    loss_after: float
    seconds: float


class VersionRow(NamedTuple):
    """A published version. `base` is the version that its step is added to, or -1 for the zero vector; `step` and
    `state` are blobs; `digest` is the adapter's; `updates` how many were averaged; `created` Unix seconds.
    """

    version: int
    parent: int | None
    base: int
    step: str | None
    step_bytes: int
    state: str | None
    digest: str
    updates: int
    created: float


class Verdict(NamedTuple):
    """What became of an update: `accepted`, `duplicate`, `conflict` or `late`; `sha256` is what is stored."""

    kind: str
    sha256: str


class TrafficRow(NamedTuple):
    """Bytes of bodies received (`up`) and sent (`down`) for one device and route."""

    client: str
    route: str
    up: int
    down: int


def get_meta(db: sqlite3.Connection) -> dict[str, str]:
    """Everything in `meta`; empty in a new file."""
    return dict(db.execute("SELECT key, value FROM meta"))


def set_meta(db: sqlite3.Connection, values: Mapping[str, str]) -> None:
    """Set some keys."""
    db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())


def begin(db: sqlite3.Connection, meta: Mapping[str, str], version: VersionRow) -> None:
    """A new run: its identity and version 0, in one transaction."""
    set_meta(db, meta)
    db.execute(f"INSERT INTO versions VALUES ({_marks(VersionRow)})", version)
    _open_round(db, version.version + 1)


def assign(
    db: sqlite3.Connection, round_: int, attempt: int, client: str, runtime: str, examples: int, now: float
) -> None:
    """Remember who was asked, and what it says of itself. Asking twice is once."""
    db.execute("INSERT OR REPLACE INTO assignments VALUES (?, ?, ?)", (round_, client, attempt))
    db.execute("INSERT OR REPLACE INTO clients VALUES (?, ?, ?, ?)", (client, runtime, examples, now))


def find_update(db: sqlite3.Connection, round_: int, client: str) -> str | None:
    """The digest of the update of this device in this round."""
    row = db.execute("SELECT sha256 FROM updates WHERE round = ? AND client = ?", (round_, client)).fetchone()
    return row[0] if row else None


def accept(db: sqlite3.Connection, row: UpdateRow) -> Verdict:
    """Count an update, at most once, and never after its round was frozen."""
    stored = find_update(db, row.round, row.client)
    if stored is not None:
        return Verdict("duplicate" if stored == row.sha256 else "conflict", stored)
    if _round_state(db, row.round) != "open":
        return Verdict("late", "")
    db.execute(f"INSERT INTO updates VALUES ({_marks(UpdateRow)}, 1)", row)
    return Verdict("accepted", row.sha256)


def reopen(db: sqlite3.Connection, round_: int, attempt: int) -> None:
    """The round's next attempt."""
    db.execute("UPDATE rounds SET attempt = ? WHERE round = ?", (attempt, round_))


def freeze(db: sqlite3.Connection, round_: int) -> list[UpdateRow]:
    """Make the round's set of updates final; returns it in the order in which it is folded. May be repeated."""
    db.execute("UPDATE rounds SET state = 'frozen' WHERE round = ? AND state = 'open'", (round_,))
    return updates_of(db, round_)


def updates_of(db: sqlite3.Connection, round_: int) -> list[UpdateRow]:
    """A round's updates, sorted by device in byte order."""
    columns = ", ".join(UpdateRow._fields)
    rows = db.execute(f"SELECT {columns} FROM updates WHERE round = ? ORDER BY client", (round_,))
    return [UpdateRow(*row) for row in rows]


def publish(db: sqlite3.Connection, row: VersionRow, *, keep_updates: bool) -> list[str]:
    """Make a version the head, if its parent is the head, and open the next round. Returns blobs no longer needed."""
    head = head_version(db)
    if head != row.parent:
        raise StoreError(f"version {row.version} follows {row.parent}, but the head is {head}; nothing was published")
    stale = [digest for (digest,) in db.execute("SELECT state FROM versions WHERE state IS NOT NULL")]
    db.execute("UPDATE versions SET state = NULL")
    db.execute(f"INSERT INTO versions VALUES ({_marks(VersionRow)})", row)
    db.execute("UPDATE rounds SET state = 'published' WHERE round = ?", (row.version,))
    _open_round(db, row.version + 1)
    if not keep_updates:
        stale += [u.sha256 for u in updates_of(db, row.version)]
        db.execute("UPDATE updates SET stored = 0 WHERE round = ?", (row.version,))
    return stale


def head_version(db: sqlite3.Connection) -> int:
    """The newest version."""
    return int(db.execute("SELECT max(version) FROM versions").fetchone()[0])


def versions(db: sqlite3.Connection) -> list[VersionRow]:
    """All versions in order."""
    return [VersionRow(*row) for row in db.execute("SELECT * FROM versions ORDER BY version")]


def saved(db: sqlite3.Connection) -> Saved:
    """Where the run stands, for the engine."""
    head = head_version(db)
    attempt, state = db.execute("SELECT attempt, state FROM rounds WHERE round = ?", (head + 1,)).fetchone()
    asked = dict(db.execute("SELECT client, attempt FROM assignments WHERE round = ?", (head + 1,)))
    return Saved(
        round=head + 1,
        attempt=attempt,
        version=head,
        frozen=state == "frozen",
        assigned=frozenset(asked),
        cohort=frozenset(client for client, at in asked.items() if at == attempt),
        accepted=frozenset(u.client for u in updates_of(db, head + 1)),
    )


def referenced(db: sqlite3.Connection) -> set[str]:
    """Every blob that a row names."""
    rows = db.execute(
        "SELECT sha256 FROM updates WHERE stored UNION SELECT step FROM versions WHERE step IS NOT NULL"
        " UNION SELECT state FROM versions WHERE state IS NOT NULL"
    )
    return {digest for (digest,) in rows}


def evaluate(db: sqlite3.Connection, version: int, client: str, loss_sum: float, tokens: int, correct: int) -> None:
    """A device's held-out loss of a version; said again, the last one counts."""
    row = (version, client, loss_sum, tokens, correct)
    db.execute("INSERT OR REPLACE INTO evaluations VALUES (?, ?, ?, ?, ?)", row)


def held_out_loss(db: sqlite3.Connection, version: int) -> float | None:
    """Mean held-out loss of a version over all devices, every token counting once, in nats; None if nobody said."""
    query = "SELECT sum(loss_sum) / sum(tokens) FROM evaluations WHERE version = ?"
    loss: float | None = db.execute(query, (version,)).fetchone()[0]
    return loss


def devices(db: sqlite3.Connection) -> list[str]:
    """Everyone who was ever assigned."""
    return [client for (client,) in db.execute("SELECT client FROM clients ORDER BY client")]


def evaluators(db: sqlite3.Connection, version: int) -> set[str]:
    """The devices that have evaluated a version."""
    return {client for (client,) in db.execute("SELECT client FROM evaluations WHERE version = ?", (version,))}


def add_traffic(db: sqlite3.Connection, rows: Iterable[TrafficRow]) -> None:
    """Add to the counters."""
    db.executemany(
        "INSERT INTO traffic VALUES (?, ?, ?, ?)"
        " ON CONFLICT DO UPDATE SET up = up + excluded.up, down = down + excluded.down",
        rows,
    )


def traffic(db: sqlite3.Connection) -> list[TrafficRow]:
    """All counters."""
    return [TrafficRow(*row) for row in db.execute("SELECT * FROM traffic ORDER BY client, route")]


def _open_round(db: sqlite3.Connection, round_: int) -> None:
    db.execute("INSERT INTO rounds VALUES (?, 0, 'open')", (round_,))


def _round_state(db: sqlite3.Connection, round_: int) -> str | None:
    row = db.execute("SELECT state FROM rounds WHERE round = ?", (round_,)).fetchone()
    return row[0] if row else None


def _marks(row: type) -> str:
    """One question mark a field."""
    fields: Collection[str] = row._fields  # type: ignore[attr-defined]
    return ", ".join("?" for _ in fields)
