"""Real clients of different speeds and the real server over HTTP, asynchronously: nobody waits for the slowest."""

import asyncio
import hashlib
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from covey_edge import calls
from covey_edge.agent import Agent
from covey_edge.data import Batch, build_dataset
from covey_edge.device import Device, task_name
from covey_edge.events import Events
from covey_edge.identity import open_key
from covey_edge.plan import Wishes
from covey_edge.state import Client, new_client, open_folder
from covey_edge.texts import Document
from covey_edge.tokens import bytes_coder
from covey_edge.transport import Backoff, Traffic, connect
from covey_shared.bundle import Bundle
from covey_shared.layout import Vector, vector_digest
from covey_shared.manifest import File
from tests.helpers_edge import BYTES, BigramTrainer, manifest_of
from tests.helpers_edge_serving import serving
from tests.helpers_server import replay, status_of

TEXTS = {
    "fast": "the cat sat on the mat and the dog lay on the log; ",
    "steady": "a stitch in time saves nine and haste makes waste; ",
    "slow": "still waters run deep while the early bird gets the worm; ",
}
ASYNC = '[round]\nmode = "async"\nbuffer = 3\nmax_staleness = 30\nretry_s = 0.05\n'
STEP_S = {"fast": 0.0, "steady": 0.005, "slow": 0.04}


@dataclass
class Slow(BigramTrainer):
    """A device with a slower processor."""

    step_s: float = 0.0

    def loss_and_gradient(self, adapter: Vector, batch: Batch) -> tuple[float, Vector]:
        time.sleep(self.step_s)
        return super().loss_and_gradient(adapter, batch)


async def take_part(url: str, name: str, folder: Path, bundle: Bundle) -> tuple[Client, list[dict[str, Any]]]:
    """One device from its first check-in to the end."""
    log: list[dict[str, Any]] = []
    dataset = build_dataset((Document("d", TEXTS[name] * 20),), bytes_coder(BYTES), bundle.manifest, 0.2)
    with open_folder(folder / name) as state:
        async with connect(url, open_key(state.path), Traffic()) as transport:
            transport.backoff = Backoff(0.01, 0.05)
            assert await calls.enroll(transport, name, "") == name
            task = await calls.get_task(transport)
            device = Device(task, bundle, dataset, Slow(step_s=STEP_S[name]), "onnx", Wishes(0, False), 2, 1.0)
            record = new_client(name, task_name(task))
            return await Agent(device, transport, state, record, Events(log.append)).run(), log


def test_devices_of_different_speeds(tmp_path: Path) -> None:
    graph = {"onnx/train.onnx": File(sha256=hashlib.sha256(b"").hexdigest(), bytes=0)}
    manifest = manifest_of(files=graph)
    (tmp_path / "bundle" / "onnx").mkdir(parents=True)
    (tmp_path / "bundle" / "onnx" / "train.onnx").touch()
    (tmp_path / "bundle" / "manifest.json").write_bytes(manifest.to_bytes())
    bundle = Bundle.open(tmp_path / "bundle")
    with serving(bundle, tmp_path / "server", rounds=6, target=0, keep_updates=True, more=ASYNC) as server:

        async def everyone() -> list[tuple[Client, list[dict[str, Any]]]]:
            return await asyncio.gather(*(take_part(server.url, name, tmp_path, bundle) for name in TEXTS))

        ended = dict(zip(TEXTS, asyncio.run(everyone()), strict=True))
        status = status_of(server.url)
    data = tmp_path / "server" / "run"
    with sqlite3.connect(data / "covey.sqlite") as db:
        rows = db.execute("SELECT client, counted_in, counted_in - 1 - version FROM updates").fetchall()
    db.close()
    mine = {name: [row for row in rows if row[0] == name] for name in TEXTS}
    acknowledged = {name: record.rounds for name, (record, _) in ended.items()}
    assert {name: len(found) for name, found in mine.items()} == acknowledged, "each acknowledged update once"
    assert [sum(version == v for _, version, _ in rows) for v in range(1, 7)] == [3] * 6
    assert acknowledged["fast"] > acknowledged["slow"], "the fast one did not wait"
    assert max(stale for _, _, stale in rows) > 0
    assert [v["staleness_max"] for v in status["history"][1:]] == [
        max(stale for _, version, stale in rows if version == v) for v in range(1, 7)
    ]
    assert {vector_digest(record.version().adapter) for record, _ in ended.values()} == {
        status["history"][-1]["digest"]
    }
    assert [v["digest"] for v in status["history"]] == replay(tmp_path / "server" / "task.toml", data)
    for record, _ in ended.values():
        assert record.history[-1].loss < record.history[0].loss
    assert {e["staleness"] for e in ended["slow"][1] if e["event"] == "uploaded"} == {s for _, _, s in mine["slow"]}
