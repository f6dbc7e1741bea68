"""A flipped byte in each class of file that a run keeps: noticed by its digest, one sentence, never averaged."""

import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from covey_shared.bundle import Bundle
from covey_shared.layout import Vector
from tests.helpers_server import Device, ServerProcess, call, served, status_of, write_task

TASK = '[upload]\ncodec = "dense"\n'


def flip(path: Path, where: int = -9) -> None:
    """One bit of one byte."""
    data = bytearray(path.read_bytes())
    data[where] ^= 0x10
    path.write_bytes(data)


def column(run: Path, query: str) -> Any:
    with sqlite3.connect(run / "covey.sqlite") as db:
        found = db.execute(query).fetchone()[0]
    db.close()
    return found


def blob(run: Path, query: str) -> Path:
    digest = column(run, query)
    return Path(run, "blobs", digest[:2], digest)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped in its second round, with one of two updates accepted."""
    folder = tmp_path_factory.mktemp("stopped")
    with served(write_task(folder, TASK), folder / "run") as server:
        for name in ("a", "b"):
            server.device(name).take_part(server.start)
        server.wait_for_version(1)
        server.device("a").take_part(server.start)
    return folder


@pytest.fixture
def run(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it, to be damaged."""
    shutil.copytree(stopped, tmp_path / "copy")
    return tmp_path / "copy" / "run"


def start(run: Path) -> Vector:
    return Bundle.open(run.parent / "bundle").start(7)


def begin(server: ServerProcess, name: str) -> Device:
    return Device(server.url(), name)


def server_of(run: Path) -> ServerProcess:
    return ServerProcess(run.parent / "task.toml", "--data-dir", str(run))


STARTING: dict[str, Callable[[Path], Path]] = {
    "state": lambda run: blob(run, "SELECT state FROM versions WHERE version = 1"),
    "database": lambda run: run / "covey.sqlite",
    "bundle": lambda run: run.parent / "bundle" / "start.bin",
    "manifest": lambda run: run.parent / "bundle" / "manifest.json",
}


@pytest.mark.parametrize("kind", STARTING)
def test_what_a_server_needs_to_start(kind: str, run: Path) -> None:
    flip(STARTING[kind](run), 100 if kind == "database" else -9)
    with server_of(run) as server:
        code, _, errors = server.result()
    assert code == 1
    assert errors.count("\n") == 1, errors
    assert any(word in errors for word in ("damaged", "not a database", "digest", "belongs to", "not JSON")), errors


def test_an_accepted_update_that_was_changed(run: Path) -> None:
    """The round cannot be closed without it: the server says so and stops, and the head stays where it is."""
    flip(run / "segments" / "2.updates")
    with server_of(run) as server:
        begin(server, "b").take_part(start(run))
        code, _, errors = server.result()
    assert code == 1
    assert errors.strip().splitlines()[-1].endswith("is damaged; restore it from a backup")
    assert column(run, "SELECT max(version) FROM versions") == 1


@pytest.mark.parametrize("torn", [True, False])
def test_an_accepted_update_that_is_gone(torn: bool, run: Path) -> None:
    segment = run / "segments" / "2.updates"
    if torn:
        segment.write_bytes(segment.read_bytes()[:-40])
    else:
        segment.unlink()
    with server_of(run) as server:
        code, _, errors = server.result()
    assert code == 1
    assert errors.count("\n") == 1
    assert "were acknowledged; restore it from a backup" in errors


def test_a_step_on_its_way_to_devices(run: Path) -> None:
    flip(blob(run, "SELECT step FROM versions WHERE version = 1"))
    with server_of(run) as server:
        answer = call(server.url(), "GET", "/v1/adapter/1?held=0")
        assert answer.status == 500, "nothing is better than other bits than the version's"
        assert status_of(server.url())["version"] == 1
        _, _, errors = server.stop()
    assert "is damaged; restore the backup" in errors
