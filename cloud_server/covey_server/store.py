"""What the server remembers: the questions asked of its tables. Every function is one piece of a transaction.

The tables themselves are in schema.py. Blobs are referred to by digest and written before the row that names them;
updates lie in the segment of the version that counts them, which is synced before the commit.
"""

import sqlite3
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from covey_server import buffers, rounds
from covey_server.blobs import StoreError
from covey_server.failpoints import failpoint
from covey_server.segments import Segments

EVALUATIONS = {"global": "evaluations", "personal": "personal_evaluations"}  # tables by the kind of a message


class UpdateRow(NamedTuple):
    """An accepted update: `sha256` and `bytes` of the request's body; losses in nats.

    `round` is the assignment's number, `version` what the device trained from, `counted_in` the version that the update
    is part of. `segment` and `position` say where its bytes lie; without a segment they are a blob of their own.
    """

    round: int
    client: str
    sha256: str
    bytes: int
    examples: int
    steps: int
    loss_before: float
    loss_after: float
    seconds: float
    version: int = -1
    counted_in: int = -1
    segment: int | None = None
    position: int = 0

    @property
    def staleness(self) -> int:
        """Versions that were published between the one trained from and the one before that which counts it."""
        return self.counted_in - 1 - self.version


class VersionRow(NamedTuple):
    """A published version. `base` is the version that its step is added to, or -1 for the zero vector; `step` and
    `state` are blobs; `digest` is the adapter's; `updates` how many were averaged; `created` Unix seconds; `sections`
    says of each section what sections.py has to know, empty where there is only one.
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
    sections: str = ""


class Verdict(NamedTuple):
    """What became of an update: `accepted`, `duplicate`, `conflict`, `late` or `stale`; `row` is what is stored."""

    kind: str
    row: UpdateRow | None = None


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
    db: sqlite3.Connection, round_: int, attempt: int, client: str, version: int, runtime: str, examples: int,
    now: float,
) -> None:  # fmt: skip
    """Remember who was asked to train what, and what it says of itself. Asking twice is once."""
    db.execute("INSERT OR REPLACE INTO assignments VALUES (?, ?, ?, ?)", (round_, client, attempt, version))
    db.execute("INSERT OR REPLACE INTO clients VALUES (?, ?, ?, ?)", (client, runtime, examples, now))
    failpoint("assigned")


def find_update(db: sqlite3.Connection, round_: int, client: str) -> UpdateRow | None:
    """The update of this device for this assignment."""
    rows = _updates(db, "round = ? AND client = ?", round_, client)
    return rows[0] if rows else None


def known(db: sqlite3.Connection, row: UpdateRow) -> Verdict | None:
    """The verdict on an update whose place is taken, by itself or by other bytes."""
    stored = find_update(db, row.round, row.client)
    if stored is None:
        return None
    return Verdict("duplicate" if stored.sha256 == row.sha256 else "conflict", stored)


def accept(
    db: sqlite3.Connection, row: UpdateRow, body: bytes, segments: Segments, rules: buffers.Rules | None
) -> Verdict:
    """Count an update, at most once. Without `rules`, of buffers, it belongs to its round, until that was frozen."""
    taken = known(db, row)
    if taken is not None:
        return taken
    version = row.round if rules is None else _buffer_with_room(db, rules.buffer)
    if rules is None and _round_state(db, row.round) != "open":
        return Verdict("late")
    if rules is not None and version > rules.rounds:
        return Verdict("late")
    if rules is not None and version - 1 - row.version > rules.max_staleness:
        return Verdict("stale")
    position = segments.append(version, body)
    row = row._replace(counted_in=version, segment=version, position=position)
    db.execute(f"INSERT INTO updates ({_columns(row)}, stored) VALUES ({_marks(UpdateRow)}, 1)", row)
    return Verdict("accepted", row)


def _buffer_with_room(db: sqlite3.Connection, size: int) -> int:
    """The first version that is not frozen and has fewer than `size` updates."""
    version = head_version(db) + 1
    if _round_state(db, version) != "open":
        version += 1
    while count_of(db, version) >= size:
        version += 1
    return version


def count_of(db: sqlite3.Connection, version: int) -> int:
    """How many updates a version counts."""
    return int(db.execute("SELECT count(*) FROM updates WHERE counted_in = ?", (version,)).fetchone()[0])


def reopen(db: sqlite3.Connection, round_: int, attempt: int) -> None:
    """The round's next attempt."""
    db.execute("UPDATE rounds SET attempt = ? WHERE round = ?", (attempt, round_))


def freeze(db: sqlite3.Connection, version: int) -> list[UpdateRow]:
    """Make a version's set of updates final; returns it in the order in which it is folded. May be repeated."""
    db.execute("UPDATE rounds SET state = 'frozen' WHERE round = ? AND state = 'open'", (version,))
    return updates_of(db, version)


def updates_of(db: sqlite3.Connection, version: int) -> list[UpdateRow]:
    """A version's updates, sorted by device in byte order and then by assignment: never by time of arrival."""
    return _updates(db, "counted_in = ? ORDER BY client, round", version)


def stored_updates(db: sqlite3.Connection) -> list[UpdateRow]:
    """All updates whose bytes are kept."""
    return _updates(db, "stored ORDER BY counted_in, client, round")


def _updates(db: sqlite3.Connection, where: str, *values: object) -> list[UpdateRow]:
    columns = ", ".join(UpdateRow._fields)
    return [UpdateRow(*row) for row in db.execute(f"SELECT {columns} FROM updates WHERE {where}", values)]


def publish(db: sqlite3.Connection, row: VersionRow, *, keep_updates: bool) -> list[str]:
    """Make a version the head, if its parent is the head, and open the next. Returns blobs no longer needed."""
    head = head_version(db)
    if head != row.parent:
        raise StoreError(f"version {row.version} follows {row.parent}, but the head is {head}; nothing was published")
    stale = [digest for (digest,) in db.execute("SELECT state FROM versions WHERE state IS NOT NULL")]
    db.execute("UPDATE versions SET state = NULL")
    db.execute(f"INSERT INTO versions VALUES ({_marks(VersionRow)})", row)
    db.execute("UPDATE rounds SET state = 'published' WHERE round = ?", (row.version,))
    _open_round(db, row.version + 1)
    if not keep_updates:
        stale += [u.sha256 for u in updates_of(db, row.version) if u.segment is None]
        db.execute("UPDATE updates SET stored = 0 WHERE counted_in = ?", (row.version,))
    failpoint("publishing")
    return stale


def head_version(db: sqlite3.Connection) -> int:
    """The newest version."""
    return int(db.execute("SELECT max(version) FROM versions").fetchone()[0])


def versions(db: sqlite3.Connection) -> list[VersionRow]:
    """All versions in order."""
    return [VersionRow(*row) for row in db.execute("SELECT * FROM versions ORDER BY version")]


def saved_round(db: sqlite3.Connection) -> rounds.Saved:
    """Where a synchronous run stands, for the engine."""
    head = head_version(db)
    attempt, state = db.execute("SELECT attempt, state FROM rounds WHERE round = ?", (head + 1,)).fetchone()
    asked = dict(db.execute("SELECT client, attempt FROM assignments WHERE round = ?", (head + 1,)))
    return rounds.Saved(
        round=head + 1,
        attempt=attempt,
        version=head,
        frozen=state == "frozen",
        assigned=frozenset(asked),
        cohort=frozenset(client for client, at in asked.items() if at == attempt),
        accepted=frozenset(u.client for u in updates_of(db, head + 1)),
    )


def saved_buffer(db: sqlite3.Connection, max_staleness: int) -> buffers.Saved:
    """Where an asynchronous run stands, for the engine."""
    head = head_version(db)
    counts = dict(db.execute("SELECT counted_in, count(*) FROM updates WHERE counted_in > ? GROUP BY 1", (head,)))
    out = db.execute(_IN_FLIGHT, (head - max_staleness,))
    return buffers.Saved(
        version=head,
        counts=tuple(counts.get(v, 0) for v in range(head + 1, max(counts, default=head) + 1)),
        frozen=_round_state(db, head + 1) == "frozen",
        flights={client: buffers.Flight(round_, version) for client, round_, version in out},
        issued=db.execute("SELECT coalesce(max(round), 0) FROM assignments").fetchone()[0],
    )


# The newest assignment of each device, if its update has not come.
_IN_FLIGHT = """
SELECT client, round, version FROM assignments AS a
WHERE version >= ? AND round = (SELECT max(round) FROM assignments WHERE client = a.client)
AND NOT EXISTS (SELECT 1 FROM updates WHERE round = a.round AND client = a.client)
"""


def blobs_in_use(db: sqlite3.Connection) -> set[str]:
    """Every blob that a row names."""
    rows = db.execute(
        "SELECT sha256 FROM updates WHERE stored AND segment IS NULL"
        " UNION SELECT step FROM versions WHERE step IS NOT NULL"
        " UNION SELECT state FROM versions WHERE state IS NOT NULL"
    )
    return {digest for (digest,) in rows}


def segments_in_use(db: sqlite3.Connection) -> dict[int, int]:
    """Every segment that a row names, with its end in bytes."""
    query = "SELECT segment, max(position + bytes) FROM updates WHERE stored AND segment IS NOT NULL GROUP BY 1"
    return dict(db.execute(query))


def evaluate(
    db: sqlite3.Connection, version: int, client: str, loss_sum: float, tokens: int, correct: int, kind: str = "global"
) -> None:
    """A device's held-out loss of a version, of the model that all get or of its own; the last one said counts."""
    row = (version, client, loss_sum, tokens, correct)
    db.execute(f"INSERT OR REPLACE INTO {EVALUATIONS[kind]} VALUES (?, ?, ?, ?, ?)", row)


def held_out_losses(db: sqlite3.Connection, version: int) -> dict[str, float]:
    """Mean held-out losses of a version by kind, `global` and `personal`, in nats, every token counting once.

    A kind that nobody reported is absent.
    """
    query = "SELECT sum(loss_sum) / sum(tokens) FROM {} WHERE version = ?"
    found = {kind: db.execute(query.format(table), (version,)).fetchone()[0] for kind, table in EVALUATIONS.items()}
    return {kind: loss for kind, loss in found.items() if loss is not None}


def devices(db: sqlite3.Connection) -> list[str]:
    """Everyone who was ever assigned."""
    return [client for (client,) in db.execute("SELECT client FROM clients ORDER BY client")]


def evaluators(db: sqlite3.Connection, version: int, kind: str = "global") -> set[str]:
    """The devices that have evaluated a version, as all get it or with what they keep to themselves."""
    rows = db.execute(f"SELECT client FROM {EVALUATIONS[kind]} WHERE version = ?", (version,))
    return {client for (client,) in rows}


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


def _columns(row: UpdateRow) -> str:
    return ", ".join(row._fields)


def _marks(row: type) -> str:
    """One question mark a field."""
    fields: Collection[str] = row._fields  # type: ignore[attr-defined]
    return ", ".join("?" for _ in fields)
