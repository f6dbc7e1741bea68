"""A disk that takes no more: 507, nothing half-changed, reads still served, and on it goes when there is room again."""

import errno
import os
import resource
import sqlite3
import sys
import time
from pathlib import Path

import pytest

from covey_server import segments
from covey_shared.bundle import Bundle
from covey_shared.layout import Layout, Tensor
from covey_shared.messages import Receipt, Refusal
from tests.helpers_server import Device, ServerProcess, call, served, status_of, write_task

BIG = Layout((Tensor(name="b", shape=(400, 500), kind="block", init="zeros"),))  # 800 kB
HASTY = "import sys; from covey_server import aggregator; aggregator.RETRY_S = 0.1; from covey_shared.cli import main; sys.exit(main())"  # noqa: E501
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resource.prlimit is Linux's")


def limit(server: ServerProcess, size: int) -> None:
    """No file may grow beyond `size` bytes, as if the disk ended there."""
    _, hard = resource.prlimit(server.child.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(server.child.pid, resource.RLIMIT_FSIZE, (size, hard))


def files(folder: Path) -> list[str]:
    """Blobs, and the rows that say what a segment holds: bytes beyond the last row's end are as good as none."""
    with sqlite3.connect(folder / "covey.sqlite") as connection:
        rows = connection.execute("SELECT client, segment, position, bytes FROM updates ORDER BY client").fetchall()
    connection.close()
    return sorted(str(p) for p in (folder / "blobs").rglob("*") if p.is_file()) + [str(row) for row in rows]


@linux
def test_an_upload_to_a_full_disk_is_not_acknowledged_and_succeeds_later(tmp_path: Path) -> None:
    task = write_task(tmp_path, '[upload]\ncodec = "dense"\n', rounds=1, target=1, layout=BIG)
    with ServerProcess(task, "--data-dir", str(tmp_path / "run"), code=HASTY) as server:
        url = server.url()
        device = Device(url, "a", BIG)
        start = Bundle.open(tmp_path / "bundle").start(7)
        device.fetch(0, start)
        body = device.update(device.task(), device.check_in())
        before = files(tmp_path / "run")
        limit(server, 500_000)
        for _ in range(3):
            answer = device.upload(1, body)
            refusal = Refusal.from_bytes(answer.body)
            assert (answer.status, refusal.code, answer.headers["Retry-After"]) == (507, "disk_full", "30")
        assert files(tmp_path / "run") == before, "nothing half-written is left"
        assert status_of(url)["round"]["accepted"] == []
        assert call(url, "GET", "/v1/adapter/0").status == 200
        limit(server, resource.RLIM_INFINITY)
        assert Receipt.from_bytes(device.upload(1, body).body).status == "accepted"
        while status_of(url)["version"] == 0:
            time.sleep(0.02)
        assert server.stop()[0] == 0


def until_said(server: ServerProcess, words: str) -> str:
    """What the server writes to standard error until these words are there."""
    assert server.child.stderr is not None
    said = ""
    while words not in said:
        piece = os.read(server.child.stderr.fileno(), 65536)
        assert piece, said
        said += piece.decode()
    return said


@linux
def test_a_round_that_cannot_be_published_waits_for_room(tmp_path: Path) -> None:
    task = write_task(tmp_path, '[upload]\ncodec = "sign"\n', rounds=1, target=1, layout=BIG)
    with ServerProcess(task, "--data-dir", str(tmp_path / "run"), code=HASTY) as server:
        url = server.url()
        device = Device(url, "a", BIG)
        limit(server, 500_000)  # room for the update of 25 kB, none for the server's state of 1.6 MB
        assert device.take_part(Bundle.open(tmp_path / "bundle").start(7)) == "train"
        said = until_said(server, "round 1 could not be published")
        status = status_of(url)
        assert (status["version"], status["round"]["phase"]) == (0, "closing")
        assert device.check_in().action == "wait"
        limit(server, resource.RLIM_INFINITY)
        deadline = time.monotonic() + 60
        while status_of(url)["version"] == 0:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        code, _, errors = server.stop()
        assert code == 0
        assert "Traceback" not in said + errors


def test_a_database_without_room_refuses_and_forgets_nothing(tmp_path: Path) -> None:
    with served(write_task(tmp_path)) as server:
        device = server.device("a")
        device.fetch(0, server.start)
        body = device.update(device.task(), device.check_in())
        db = server.aggregator.run.db

        def fill(connection: sqlite3.Connection, number: int) -> None:
            pages = connection.execute("PRAGMA page_count").fetchone()[0]
            connection.execute(f"PRAGMA max_page_count = {pages}")
            row = (99, f"{number:09}", "", 0, 0, 0, 0.0, 0.0, 0.0, 0, 0, 99, None, 0)
            connection.execute(f"INSERT INTO updates VALUES ({', '.join('?' * len(row))})", row)

        def fill_up() -> None:
            for number in range(100_000):
                db.run(fill, number)

        with pytest.raises(sqlite3.OperationalError, match="full"):
            fill_up()
        answer = device.upload(1, body)
        assert (answer.status, Refusal.from_bytes(answer.body).code) == (507, "disk_full")
        assert status_of(server.url)["round"]["accepted"] == []
        db.run(lambda connection: connection.execute("PRAGMA max_page_count = 1000000") and None)
        assert device.upload(1, body).status == 200
        assert status_of(server.url)["round"]["accepted"] == ["a"]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_sync_that_fails_is_no_acknowledgement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    with served(write_task(tmp_path)) as server:
        device = server.device("a")
        device.fetch(0, server.start)
        body = device.update(device.task(), device.check_in())
        before = files(tmp_path / "run")

        def refuse(descriptor: int) -> None:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(segments, "sync_file", refuse)
            answer = device.upload(1, body)
            assert (answer.status, Refusal.from_bytes(answer.body).code) == (507, "disk_full")
            assert files(tmp_path / "run") == before
            assert status_of(server.url)["round"]["accepted"] == []
        assert device.upload(1, body).status == 200
