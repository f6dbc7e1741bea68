"""Databases of every earlier schema are brought up to date with nothing lost; newer ones are refused."""

import hashlib
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from covey_server.blobs import StoreError
from covey_server.database import connect
from covey_server.schema import SCHEMA
from tests.helpers_server import ServerProcess, run_to_end, served, status_of, write_task

HERE = Path(__file__).parent / "databases"
EARLIER = sorted((path for path in HERE.iterdir() if int(path.name) < len(SCHEMA)), key=lambda path: int(path.name))
TASK = '[upload]\ncodec = "sign"\n'


def a_run_of(schema: Path, folder: Path) -> Path:
    """The task file of a run that an earlier server left; its bundle is the one that today's code makes."""
    task = write_task(folder, TASK)
    run = folder / "run"
    for part in ("blobs", "segments"):
        if (schema / part).exists():
            shutil.copytree(schema / part, run / part)
    db = sqlite3.connect(run / "covey.sqlite")
    db.executescript((schema / "covey.sql").read_text())
    digest = hashlib.sha256((folder / "bundle" / "manifest.json").read_bytes()).hexdigest()
    db.execute("UPDATE meta SET value = ? WHERE key = 'bundle'", (digest,))
    db.commit()
    db.close()
    return task


def shape(db: sqlite3.Connection) -> dict[str, list[tuple[str, ...]]]:
    """Tables and indexes with their columns."""
    names = [name for (name,) in db.execute("SELECT name FROM sqlite_schema WHERE type = 'table' ORDER BY name")]
    return {name: [row[1:4] for row in db.execute(f"PRAGMA table_info({name})")] for name in names}


def test_there_is_a_database_of_every_earlier_schema() -> None:
    assert [path.name for path in EARLIER] == [str(i) for i in range(1, len(SCHEMA))], (
        "a schema was added without keeping a run of the one before: see tests/server/make_database.py"
    )


@pytest.mark.parametrize("schema", EARLIER, ids=lambda p: p.name)
def test_an_earlier_database_becomes_what_a_new_one_is(schema: Path, tmp_path: Path) -> None:
    a_run_of(schema, tmp_path)
    old, new = connect(tmp_path / "run" / "covey.sqlite", SCHEMA), connect(tmp_path / "new.sqlite", SCHEMA)
    assert shape(old) == shape(new)
    assert old.execute("PRAGMA user_version").fetchone() == (len(SCHEMA),)
    old.close()
    new.close()


@pytest.mark.parametrize("schema", EARLIER, ids=lambda p: p.name)
def test_an_earlier_run_goes_on_with_what_it_had_accepted(schema: Path, tmp_path: Path) -> None:
    """Device a's update of round 2 was accepted by the earlier server; b's is still to come."""
    (tmp_path / "reference").mkdir()
    with served(write_task(tmp_path / "reference", TASK)) as server:
        run_to_end([server.device("a"), server.device("b")], server.start)
        expected = [row.digest for row in server.aggregator.versions]
    with served(a_run_of(schema, tmp_path)) as server:
        assert status_of(server.url)["round"]["accepted"] == ["a"]
        devices = [server.device("a"), server.device("b")]
        for device in devices:
            device.fetch(1, server.start)
        run_to_end(devices, server.start)
        assert [row.digest for row in server.aggregator.versions] == expected
        rows = server.aggregator.run.db.run(lambda c: c.execute("SELECT version, counted_in FROM updates").fetchall())
        assert all(counted_in == version + 1 for version, counted_in in rows)
        assert status_of(server.url)["clients"][0]["updates"] == 3


def test_a_server_killed_in_a_migration_begins_it_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = a_run_of(EARLIER[0], tmp_path)
    path = tmp_path / "run" / "covey.sqlite"
    monkeypatch.setenv("COVEY_FAILPOINT", "migrating")
    first = ServerProcess(task, "--data-dir", str(tmp_path / "run"))
    assert first.child.wait(20) == -signal.SIGKILL
    first.kill()
    monkeypatch.delenv("COVEY_FAILPOINT")
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (1,), "half a migration is none"
    assert "counted_in" not in str(shape(db)["updates"])
    db.close()
    with ServerProcess(task, "--data-dir", str(tmp_path / "run")) as second:
        assert status_of(second.url())["round"]["accepted"] == ["a"]
        assert second.stop()[0] == 0


def test_a_server_that_is_older_than_its_database_says_so_and_changes_nothing(tmp_path: Path) -> None:
    task = write_task(tmp_path)
    path = tmp_path / "run" / "covey.sqlite"
    (tmp_path / "run").mkdir()
    connect(path, [*SCHEMA, "CREATE TABLE later (x)"]).close()
    before = path.read_bytes()
    with pytest.raises(StoreError, match=r"written by a newer covey \(schema \d+, this one knows \d+\); update covey"):
        connect(path, SCHEMA)
    command = [sys.executable, "-m", "covey_shared.cli", "serve", str(task), "--port", "0"]
    ended = subprocess.run([*command, "--data-dir", str(tmp_path / "run")], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "written by a newer covey" in ended.stderr
    assert path.read_bytes() == before
