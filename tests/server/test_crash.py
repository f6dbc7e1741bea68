"""SIGKILL: at every step that matters, then at random. What was acknowledged counts once; the adapter is the same bits.

Devices keep their bytes and repeat them until a receipt comes, as the protocol asks. Every device takes part in every
round, so the set of updates is the same with and without kills, and so must be every version.
"""

import http.client
import random
import sqlite3
import threading
import time
from pathlib import Path

import pytest

from covey_shared.bundle import Bundle
from covey_shared.layout import Vector
from covey_shared.messages import Receipt
from tests.helpers_server import Device, ServerProcess, served, status_of, write_task

ROUNDS = 3
TASK = '[server]\noptimizer = "adamw"\nlearning_rate = 0.01\n'  # momentum: a lost or doubled update shows for ever

# Kills the process with SIGKILL before or after the n-th call of a function.
ARMED = """
import importlib, os, signal, sys
path, when, hit = {point!r}, {when!r}, {hit}
parts = path.split(".")
owner = importlib.import_module(".".join(parts[:2]))
for part in parts[2:-1]:
    owner = getattr(owner, part)
original = getattr(owner, parts[-1])
calls = 0
def armed(*args, **kwargs):
    global calls
    calls += 1
    mine = calls
    if mine == hit and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*args, **kwargs)
    if mine == hit and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return result
setattr(owner, parts[-1], armed)
from covey_shared.cli import main
sys.exit(main())
"""

POINTS = [
    ("covey_server.run._begin", "after", 1),  # a run that has just begun
    ("covey_server.store.assign", "after", 2),  # an assignment in a transaction that is not committed
    ("covey_server.segments.Segments.append", "after", 1),  # the bytes are in the segment, its row is not
    ("covey_server.segments.Segments.sync", "after", 8),
    ("covey_server.blobs.write_durably", "before", 4),  # (one blob belongs to version 0; two files are for URLs)
    ("covey_server.store.accept", "before", 2),
    ("covey_server.store.accept", "after", 2),  # the row is in a transaction that is not committed
    ("covey_server.engine.UpdateAccepted", "before", 2),  # committed, not yet acknowledged
    ("covey_server.store.freeze", "after", 1),
    ("covey_server.recipe.advance", "after", 2),
    ("covey_server.aggregator.store_version", "after", 1),  # the version's blobs are there, its row is not
    ("covey_server.store.publish", "after", 2),  # the head has moved in a transaction that is not committed
    ("covey_server.engine.Published", "before", 1),  # committed, nobody knows
    ("covey_server.blobs.Blobs.delete", "after", 1),
    ("covey_server.publish._write_folder", "before", 2),
    ("covey_server.publish._point", "before", 2),
]


def persist(device: Device, start: Vector) -> None:
    """Take part to the end, whatever becomes of the server meanwhile."""
    deadline = time.monotonic() + 60
    pending: tuple[int, bytes] | None = None
    while time.monotonic() < deadline:
        try:
            if pending is not None:
                answer = device.upload(*pending)
                if answer.status == 200:
                    assert Receipt.from_bytes(answer.body).status in ("accepted", "duplicate")
                    pending = None
                else:
                    assert answer.status >= 500, answer
                continue
            assignment = device.check_in()
            if assignment.action == "done":
                return
            if assignment.action == "train":
                device.fetch(assignment.version, start)
                pending = (assignment.round, device.update(device.task(), assignment))
            else:
                time.sleep(0.01)
        except (OSError, http.client.HTTPException):
            time.sleep(0.02)
    raise AssertionError("the task did not end")


def reference(folder: Path, names: list[str]) -> list[str]:
    """The digests of all versions of a run that nobody disturbs."""
    with served(write_task(folder, TASK, rounds=ROUNDS, target=len(names))) as server:
        devices = [server.device(name) for name in names]
        run(devices, server.start)
        return [row.digest for row in server.aggregator.versions]


def run(devices: list[Device], start: Vector) -> None:
    """All devices at once, each in its thread."""
    threads = [threading.Thread(target=persist, args=(device, start)) for device in devices]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def check(data: Path, names: list[str], expected: list[str]) -> None:
    """The oracle: each update once, no version without its blobs, the head where it should be, the same bits."""
    with sqlite3.connect(data / "covey.sqlite") as db:
        versions = db.execute("SELECT version, digest, step, state FROM versions ORDER BY version").fetchall()
        updates = db.execute("SELECT round, client FROM updates ORDER BY round, client").fetchall()
        integrity = db.execute("PRAGMA integrity_check").fetchone()
    db.close()
    assert integrity == ("ok",)
    assert [digest for _, digest, _, _ in versions] == expected
    assert updates == [(round_, name) for round_ in range(1, ROUNDS + 1) for name in sorted(names)]
    blobs = {path.name for path in (data / "blobs").rglob("*") if path.is_file()}
    assert blobs >= {blob for row in versions for blob in row[2:] if blob}
    latest = data / "adapters" / "latest" / "adapter_model.safetensors"
    assert latest.stat().st_size > 0
    assert sorted(p.name for p in (data / "adapters").iterdir() if p.name[0] != ".") == ["latest", "v1", "v2", "v3"]


@pytest.fixture(scope="module")
def two_devices(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return reference(tmp_path_factory.mktemp("reference"), ["a", "b"])


@pytest.mark.parametrize(("point", "when", "hit"), POINTS, ids=[f"{p.split('.', 1)[1]}-{w}-{h}" for p, w, h in POINTS])
def test_killed_at_a_step(tmp_path: Path, two_devices: list[str], point: str, when: str, hit: int) -> None:
    task = write_task(tmp_path, TASK, rounds=ROUNDS, target=2)
    start = Bundle.open(tmp_path / "bundle").start(7)
    devices = [Device("http://127.0.0.1:1", name) for name in ("a", "b")]
    threads = [threading.Thread(target=persist, args=(device, start)) for device in devices]
    with ServerProcess(task, "--data-dir", str(tmp_path / "run"), code=ARMED.format(**locals())) as first:
        if point != "covey_server.run._begin":
            for device in devices:
                device.url = first.url()
        for thread in threads:
            thread.start()
        assert first.child.wait(20) == -9, "the armed step was never reached"
    with ServerProcess(task, "--data-dir", str(tmp_path / "run")) as second:
        url = second.url()
        for device in devices:
            device.url = url
        for thread in threads:
            thread.join()
        assert status_of(url)["state"] == "done"
        code, _, errors = second.stop()
        assert (code, errors) == (0, "")
    check(tmp_path / "run", ["a", "b"], two_devices)


def test_killed_at_random(tmp_path: Path) -> None:
    names = ["a", "b", "c"]
    (tmp_path / "reference").mkdir()
    expected = reference(tmp_path / "reference", names)
    task = write_task(tmp_path, TASK, rounds=ROUNDS, target=3)
    start = Bundle.open(tmp_path / "bundle").start(7)
    devices = [Device("http://127.0.0.1:1", name) for name in names]
    threads = [threading.Thread(target=persist, args=(device, start)) for device in devices]
    rng = random.Random(20240611)
    for thread in threads:
        thread.start()
    for _ in range(6):
        with ServerProcess(task, "--data-dir", str(tmp_path / "run")) as server:
            url = server.url()
            for device in devices:
                device.url = url
            time.sleep(rng.random() * 0.12)
            server.kill()
    with ServerProcess(task, "--data-dir", str(tmp_path / "run")) as server:
        url = server.url()
        for device in devices:
            device.url = url
        for thread in threads:
            thread.join()
        assert server.stop()[0] == 0
    check(tmp_path / "run", names, expected)
