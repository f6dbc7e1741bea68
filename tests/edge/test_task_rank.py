"""`[task] rank`: a task below the bundle's largest rank, with real clients and the real server."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from covey_edge.parts import share
from covey_edge.state import vector_of
from covey_server import task_file, task_sections
from covey_server.prepare import prepare
from covey_shared.errors import TaskFileError
from covey_shared.layout import vector_digest
from covey_shared.messages import Sharing
from tests.helpers_edge import LAYOUT, RANK, VOCABULARY
from tests.helpers_edge_serving import serving
from tests.helpers_fleet import bigram_bundle, fleet
from tests.helpers_server import status_of

LOW = LAYOUT.at_rank(2)
STRATEGIES = {
    "fedavg": "",
    "flasc": "",
    "krum": "",
    "ffa-lora": "",
    "rolora": "",
    "hetlora": "",
    "rbla": "",
    "florist": "",
    "fdlora": "sync_every = 1\n",
    "cohorts": 'tensors = "kind:lora_B"\n',
}


def task_at(rank: int, more: str = "") -> task_sections.TaskFile:
    return task_file.parse(f'[task]\nbundle = "b"\nrank = {rank}\n{more}')


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_at_a_lower_rank(name: str, tmp_path: Path) -> None:
    """Every strategy learns at rank 2 of 4, and nothing of the other factors is on the wire."""
    bundle = bigram_bundle(tmp_path / "bundle", ranks=(1, 2, 4))
    more = f'[strategy]\nname = "{name}"\n{STRATEGIES[name]}'
    prepared = prepare(task_at(2, more), bundle)
    with serving(bundle, tmp_path / "server", rounds=3, target=3, rank=2, more=more) as server:
        ended = fleet(server.url, tmp_path, bundle)
        status = status_of(server.url)
    history = status["history"]
    key = "personal_loss" if name == "fdlora" else "loss"
    assert history[-1][key] < history[0]["loss"]
    assert status["entries"] == LOW.size
    assert max(layout.rank for layout in prepared.divided.layouts.values()) == 2
    division = prepared.divided.division
    held = division.downloaded(0) if division.sharing.cohorts else division.published
    for record, log in ended.values():
        assert record.version().adapter.size == held.size
        if held is division.published:  # of cohorts each has its own copies and not the whole
            assert vector_digest(record.version().adapter) == history[-1]["digest"]
        sent = [e["bytes"] for e in log if e["event"] == "uploaded"]
        assert max(sent) < 4 * LOW.size + 1000


def test_fewer_bytes_and_the_same_model_as_a_bundle_of_that_rank(tmp_path: Path) -> None:
    """A task of rank 2 on a bundle of rank 4 is, bit for bit, the task of a device that joins at rank 2."""
    bundle = bigram_bundle(tmp_path / "bundle", ranks=(1, 2, 4))
    prepared = prepare(task_at(2), bundle)
    assert prepared.divided.division.sharing == Sharing(ranks=(2,))
    assert prepared.divided.published.digest == LOW.digest
    assert prepared.divided.begin().tobytes() == bundle.start(0, 2).tobytes()
    mine = share(bundle, Sharing(ranks=(2,)), 0, 0)
    version = np.random.default_rng(0).standard_normal(LOW.size).astype(np.float32)
    full, second = mine.whole(version, np.empty(0, np.float32))
    where = LAYOUT.positions(LOW)
    assert second is None
    assert full[where].tobytes() == version.tobytes()
    assert not np.delete(full, where).any()
    assert mine.trained(1).tolist() == where.tolist()


def test_the_whole_rank_is_the_plain_task(tmp_path: Path) -> None:
    bundle = bigram_bundle(tmp_path / "bundle", ranks=(1, 2, 4))
    assert prepare(task_at(4), bundle).divided.plain
    assert prepare(task_at(0), bundle).divided.plain


def test_ranks_of_devices_end_at_the_tasks(tmp_path: Path) -> None:
    bundle = bigram_bundle(tmp_path / "bundle", ranks=(1, 2, 4))
    mixed = prepare(task_at(2, '[strategy]\nname = "rbla"\n'), bundle).divided.division
    assert mixed.ranks == (1, 2)
    assert mixed.published.digest == LOW.digest


def test_a_rank_that_the_bundle_lacks_is_refused(tmp_path: Path) -> None:
    bundle = bigram_bundle(tmp_path / "bundle", ranks=(1, 2, 4))
    with pytest.raises(TaskFileError, match=r"rank = 3: the bundle was exported with 1, 2, 4"):
        prepare(task_at(3), bundle)
    with pytest.raises(TaskFileError, match=r"\[task\] rank"):
        task_at(-1)


def test_what_is_published_has_the_rank(tmp_path: Path) -> None:
    """PEFT's folder: r and alpha of the lower rank, and the very numbers that devices hold."""
    config = json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": 8}).encode()
    bundle = bigram_bundle(tmp_path / "bundle", {"peft/adapter_config.json": config}, ranks=(1, 2, 4))
    out = tmp_path / "adapters"
    with serving(bundle, tmp_path / "server", rounds=1, target=3, rank=2, publish=out) as server:
        ended = fleet(server.url, tmp_path, bundle)
        status_of(server.url)
    tensors = load_file(out / "latest" / "adapter_model.safetensors")
    assert {k: v.shape for k, v in tensors.items()} == {"a": (2, VOCABULARY), "b": (VOCABULARY, 2)}
    assert LOW.join(tensors).tobytes() == vector_of(ended["ann"].record.adapter).tobytes()
    made = json.loads((out / "latest" / "adapter_config.json").read_text())
    assert (made["r"], made["lora_alpha"]) == (2, 4)
