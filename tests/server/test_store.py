"""Blobs, the database's thread and commits, and what the tables promise."""

import hashlib
import sqlite3
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

from covey_server import buffers, store
from covey_server.blobs import Blobs, StoreError
from covey_server.database import Database, connect
from covey_server.rounds import Saved
from covey_server.schema import SCHEMA
from covey_server.segments import Segments
from covey_server.store import TrafficRow, UpdateRow, VersionRow


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def update(client: str, round_: int = 1, body: str = "", version: int | None = None) -> UpdateRow:
    data = body or client
    base = round_ - 1 if version is None else version
    return UpdateRow(round_, client, digest(data), len(data), 9, 10, 2.0, 1.0, 3.0, base)


def version(number: int) -> VersionRow:
    parent = number - 1 if number else None
    return VersionRow(number, parent, max(number - 1, 0), digest(f"step{number}") if number else None, 40,
                      digest(f"state{number}"), digest(f"v{number}"), 2, 0.0)  # fmt: skip


@pytest.fixture
def db(tmp_path: Path) -> "sqlite3.Connection":
    connection = connect(tmp_path / "covey.sqlite", SCHEMA)
    store.begin(connection, {"task": "{}"}, version(0))
    return connection


@pytest.fixture
def accept(db: sqlite3.Connection, tmp_path: Path) -> "Callable[..., store.Verdict]":
    """Accept an update whose body is its digest's text, into real segments."""
    segments = Segments(tmp_path / "segments", {})

    def accept(row: UpdateRow, rules: buffers.Rules | None = None) -> store.Verdict:
        return store.accept(db, row, bytes(row.bytes), segments, rules)

    return accept


class TestBlobs:
    def test_put_and_get(self, tmp_path: Path) -> None:
        blobs = Blobs(tmp_path / "blobs")
        assert blobs.put(b"hello") == blobs.put(b"hello") == hashlib.sha256(b"hello").hexdigest()
        assert blobs.get(digest("hello")) == b"hello"

    def test_damage_is_noticed(self, tmp_path: Path) -> None:
        blobs = Blobs(tmp_path)
        name = blobs.put(b"hello")
        path = tmp_path / name[:2] / name
        path.write_bytes(b"hellO")
        with pytest.raises(StoreError, match="is damaged"):
            blobs.get(name)
        path.unlink()
        with pytest.raises(StoreError, match="is missing"):
            blobs.get(name)

    def test_sweep_removes_what_no_row_names_and_half_written_files(self, tmp_path: Path) -> None:
        blobs = Blobs(tmp_path)
        kept, stale = blobs.put(b"kept"), blobs.put(b"stale")
        (tmp_path / stale[:2] / ".tmp-1-1").write_bytes(b"half")
        assert blobs.sweep({kept}) == 2
        assert blobs.get(kept) == b"kept"
        blobs.delete([kept, stale])
        assert not any(p.is_file() for p in tmp_path.rglob("*"))


class TestDatabase:
    def test_durable_pragmas(self, tmp_path: Path) -> None:
        db = Database(tmp_path / "d", ["CREATE TABLE t (x)"])
        ask = lambda c, name: c.execute(f"PRAGMA {name}").fetchone()[0]  # noqa: E731
        assert (db.run(ask, "journal_mode"), db.run(ask, "synchronous"), db.run(ask, "busy_timeout")) == (
            "wal",
            2,
            5000,
        )
        db.close()

    def test_a_piece_that_raises_undoes_itself_alone(self, tmp_path: Path) -> None:
        db = Database(tmp_path / "d", ["CREATE TABLE t (x)"])
        gate = Event()
        db.submit(lambda c: gate.wait())  # so that the next three share a transaction

        def insert(connection: sqlite3.Connection, value: int, fail: bool = False) -> int:
            connection.execute("INSERT INTO t VALUES (?)", (value,))
            if fail:
                raise KeyError(value)
            return value

        futures = [db.submit(insert, 1), db.submit(insert, 2, fail=True), db.submit(insert, 3)]
        gate.set()
        assert futures[0].result() == 1
        with pytest.raises(KeyError):
            futures[1].result()
        assert futures[2].result() == 3
        assert db.run(lambda c: c.execute("SELECT x FROM t").fetchall()) == [(1,), (3,)]
        db.close()

    def test_when_the_commit_fails_nobody_is_told_otherwise(self, tmp_path: Path) -> None:
        db = Database(tmp_path / "d", ["CREATE TABLE t (x NOT NULL)"])
        gate = Event()
        db.submit(lambda c: gate.wait())
        good = db.submit(lambda c: c.execute("INSERT INTO t VALUES (1)") and None)
        bad = db.submit(lambda c: c.execute("INSERT INTO t VALUES (NULL)") and None)
        gate.set()
        for future in (good, bad):
            with pytest.raises(sqlite3.IntegrityError):
                future.result()
        assert db.run(lambda c: c.execute("SELECT count(*) FROM t").fetchone()) == (0,)
        db.close()

    def test_who_gave_up_in_the_queue_is_not_served(self, tmp_path: Path) -> None:
        db = Database(tmp_path / "d", ["CREATE TABLE t (x)"])
        gate = Event()
        db.submit(lambda c: gate.wait())
        given_up = db.submit(lambda c: c.execute("INSERT INTO t VALUES (1)") and None)
        assert given_up.cancel()
        gate.set()
        assert db.run(lambda c: c.execute("SELECT count(*) FROM t").fetchone()) == (0,)
        db.close()

    def test_closing_finishes_what_is_queued(self, tmp_path: Path) -> None:
        db = Database(tmp_path / "d", ["CREATE TABLE t (x)"])

        def insert(connection: sqlite3.Connection, value: int) -> int:
            connection.execute("INSERT INTO t VALUES (?)", (value,))
            return value

        futures = [db.submit(insert, i) for i in range(500)]
        db.close()
        assert [f.result() for f in futures] == list(range(500))
        with sqlite3.connect(tmp_path / "d") as connection:
            assert connection.execute("SELECT count(*) FROM t").fetchone() == (500,)
        connection.close()
        assert not (tmp_path / "d-wal").exists()

    def test_a_newer_schema_is_refused(self, tmp_path: Path) -> None:
        connect(tmp_path / "d", ["CREATE TABLE t (x)", "CREATE TABLE u (x)"]).close()
        with pytest.raises(StoreError, match=r"written by a newer covey \(schema 2, this one knows 1\)"):
            Database(tmp_path / "d", ["CREATE TABLE t (x)"])

    def test_an_older_schema_is_brought_up(self, tmp_path: Path) -> None:
        connection = connect(tmp_path / "d", ["CREATE TABLE t (x);"])
        connection.execute("INSERT INTO t VALUES (5)")
        connection.close()
        connection = connect(tmp_path / "d", ["CREATE TABLE t (x);", "ALTER TABLE t ADD y INTEGER DEFAULT 7;"])
        assert connection.execute("SELECT * FROM t").fetchall() == [(5, 7)]
        connection.close()

    def test_a_file_that_is_no_database(self, tmp_path: Path) -> None:
        (tmp_path / "d").write_bytes(b"certainly not a database file" * 100)
        with pytest.raises(StoreError, match="not a database that can be read"):
            Database(tmp_path / "d", SCHEMA)


class TestTables:
    def test_an_update_counts_once(self, db: sqlite3.Connection, accept: Callable[..., store.Verdict]) -> None:
        assert accept(update("a")).kind == "accepted"
        assert accept(update("a")).kind == "duplicate"
        assert accept(update("a", body="other")).kind == "conflict"
        assert len(store.updates_of(db, 1)) == 1

    def test_a_frozen_round_takes_nothing_and_still_knows_duplicates(
        self, db: sqlite3.Connection, accept: Callable[..., store.Verdict]
    ) -> None:
        accept(update("a"))
        assert [u.client for u in store.freeze(db, 1)] == ["a"]
        assert accept(update("b")).kind == "late"
        assert accept(update("a")).kind == "duplicate"
        assert accept(update("a", round_=7)).kind == "late"
        assert store.freeze(db, 1) == store.freeze(db, 1)

    def test_updates_are_folded_in_byte_order(
        self, db: sqlite3.Connection, accept: Callable[..., store.Verdict]
    ) -> None:
        for client in ("b", "B", "a-1", "a.1", "10", "9", "a"):
            accept(update(client))
        assert [u.client for u in store.freeze(db, 1)] == sorted(["b", "B", "a-1", "a.1", "10", "9", "a"])

    def test_publishing_moves_the_head_once(self, db: sqlite3.Connection, accept: Callable[..., store.Verdict]) -> None:
        accept(update("a"))
        store.freeze(db, 1)
        assert store.publish(db, version(1), keep_updates=False) == [digest("state0")]
        with pytest.raises(StoreError, match="the head is 1; nothing was published"):
            store.publish(db, version(1), keep_updates=False)
        assert store.head_version(db) == 1
        assert store.blobs_in_use(db) == {digest("step1"), digest("state1")}
        assert store.segments_in_use(db) == {}
        assert accept(update("a")).kind == "duplicate", "after its blob is gone a retry is still known"
        assert [v.state is None for v in store.versions(db)] == [True, False]

    def test_updates_may_be_kept(self, db: sqlite3.Connection, accept: Callable[..., store.Verdict]) -> None:
        accept(update("a"))
        store.freeze(db, 1)
        assert store.publish(db, version(1), keep_updates=True) == [digest("state0")]
        assert store.segments_in_use(db) == {1: 1}

    def test_what_a_restart_finds(self, db: sqlite3.Connection, accept: Callable[..., store.Verdict]) -> None:
        for client in "ab":
            store.assign(db, 1, 0, client, 0, "onnx", 5, 1.0)
        store.reopen(db, 1, 1)
        store.assign(db, 1, 1, "c", 0, "onnx", 5, 1.0)
        accept(update("a"))
        assert store.saved_round(db) == Saved(1, 1, 0, False, frozenset("abc"), frozenset("c"), frozenset("a"))
        store.freeze(db, 1)
        assert store.saved_round(db).frozen
        store.publish(db, version(1), keep_updates=False)
        assert store.saved_round(db) == Saved(2, 0, 1, False, frozenset(), frozenset(), frozenset())

    def test_traffic_adds_up(self, db: sqlite3.Connection) -> None:
        for _ in range(2):
            store.add_traffic(db, [TrafficRow("a", "update", 10, 1), TrafficRow("", "task", 0, 5)])
        assert store.traffic(db) == [("", "task", 0, 10), ("a", "update", 20, 2)]

    def test_the_last_evaluation_counts(self, db: sqlite3.Connection) -> None:
        store.evaluate(db, 0, "a", 10.0, 5, 1)
        store.evaluate(db, 0, "a", 8.0, 5, 1)
        assert db.execute("SELECT loss_sum FROM evaluations").fetchall() == [(8.0,)]
        assert store.evaluators(db, 0) == {"a"}
        assert store.evaluators(db, 1) == set()
