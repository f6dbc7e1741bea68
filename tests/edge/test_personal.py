"""Personal tensors and the strategies that share less than everything, with real clients and the real server."""

import asyncio
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from covey_edge.parts import check_share
from covey_edge.state import vector_of
from covey_shared.codec import codec_from_spec
from covey_shared.errors import BundleError, TaskFileError
from covey_shared.layout import Layout, vector_digest
from covey_shared.messages import Refusal, Task, Update
from covey_shared.sharing import Division
from tests.helpers_edge import LAYOUT
from tests.helpers_edge_serving import serving
from tests.helpers_fleet import bigram_bundle, fleet, take_part
from tests.helpers_server import MSGPACK, call, send, status_of

FEDSA = '[personal]\npolicy = "fedsa"\n'


def test_personal_layers(tmp_path: Path) -> None:
    """FedSA-LoRA: lora_B stays at home, and with it each device does better than everybody's model."""
    bundle = bigram_bundle(tmp_path / "bundle")
    with serving(bundle, tmp_path / "server", rounds=4, target=3, more=FEDSA) as server:
        ended = fleet(server.url, tmp_path, bundle)
        history, sharing = status_of(server.url)["history"], status_of(server.url)["sharing"]
    assert sharing == {"shared": ["a"], "personal": ["b"]}
    size = LAYOUT.tensors[0].size
    assert {record.version().adapter.size for record, _ in ended.values()} == {size}, "B is never downloaded"
    assert {vector_digest(record.version().adapter) for record, _ in ended.values()} == {history[-1]["digest"]}
    own = {name: vector_of(record.own) for name, (record, _) in ended.items()}
    assert all(v.size == LAYOUT.tensors[1].size and v.any() for v in own.values())
    assert not np.array_equal(own["ann"], own["bob"])
    for record, _ in ended.values():
        assert record.own_history[-1].loss < record.history[-1].loss - 0.1
        assert record.own_history[0].loss == record.history[0].loss, "a new device starts as the seed says"
    assert history[-1]["personal_loss"] < history[-1]["loss"] - 0.1
    assert history[0]["personal_loss"] == pytest.approx(history[0]["loss"])
    for _, log in ended.values():
        dense = 4 * size
        assert all(e["bytes"] < dense / 8 + 1000 for e in log if e["event"] == "uploaded")


def test_the_operator_sees_both_results_side_by_side(tmp_path: Path) -> None:
    """The page, the counters and the terminal's lines have what all get and what devices keep, and only then."""
    bundle = bigram_bundle(tmp_path / "bundle")
    for name, more in (("plain", ""), ("personal", FEDSA)):
        with serving(bundle, tmp_path / name, rounds=3, target=3, more=more) as server:
            fleet(server.url, tmp_path / name, bundle)
            status = status_of(server.url)
            page, metrics = (send(server.admin, "GET", path).body.decode() for path in ("/", "/metrics"))
        last, line = status["history"][-1], server.lines[-1]
        shown = [f"{last[key]:.4f}" for key in ("loss", "personal_loss", "personal_accuracy") if last[key] is not None]
        assert all(f"<td>{number}" in page for number in shown)
        kinds = dict(re.findall(r'covey_held_out_loss_nats\{kind="(\w+)"\} (\S+)', metrics))
        assert float(kinds["global"]) == pytest.approx(last["loss"])
        kept = name == "personal"
        assert len(shown) == (3 if kept else 1)
        assert ("own loss" in page) == ("own accuracy" in page) == ("with devices' own" in line) == kept
        assert (float(kinds["personal"]) == pytest.approx(last["personal_loss"])) if kept else "personal" not in kinds
        assert [bool(c["personal_evaluation"]) for c in status["clients"]] == [kept] * 3
        assert last["personal_evaluated_by"] == (3 if kept else 0)
    before = status["history"][-2]
    assert f"held-out loss {before['loss']:.4f} ({before['personal_loss']:.4f} with devices' own)" in line


def an_update(task: Task, layout: Layout, attempt: int) -> bytes:
    """Eve's, all ones."""
    codec = codec_from_spec(task.upload_codec, layout)
    parts, _ = codec.encode(np.ones(layout.size, np.float32), codec.init(0))
    return Update(
        client="eve", layout=layout.digest, round=1, attempt=attempt, version=0, codec=task.upload_codec, parts=parts,
        examples=9, steps=1, loss_before=2.0, loss_after=1.0, seconds=0.1,
    ).to_bytes()  # fmt: skip


def test_a_rank_that_no_bundle_offers(tmp_path: Path) -> None:
    """Refused on the device, and at the server's door."""
    bundle = bigram_bundle(tmp_path / "bundle", ranks=(1, 2, 4))
    with serving(bundle, tmp_path / "server", more='[strategy]\nname = "hetlora"\n') as server:
        task = Task.from_bytes(call(server.url, "GET", "/v1/task").body)
        with pytest.raises(BundleError, match="the task has no rank 3, it has 1, 2, 4: join with --rank"):
            check_share(bundle.manifest, task.sharing, 3)
        eve = server.device("eve")
        eve.layout = bundle.manifest.layout
        attempt = eve.check_in().attempt
        for rank, status in ((3, 409), (2, 200)):
            body = an_update(task, bundle.manifest.layout.at_rank(rank), attempt)
            assert call(server.url, "PUT", "/v1/updates/1/eve", body, MSGPACK).status == status


def test_an_update_of_personal_tensors_is_refused(tmp_path: Path) -> None:
    bundle = bigram_bundle(tmp_path / "bundle")
    with serving(bundle, tmp_path / "server", rounds=4, target=3, more=FEDSA) as server:
        device = server.device("eve")
        device.layout = bundle.manifest.layout
        assignment = device.check_in()
        task = Task.from_bytes(call(server.url, "GET", "/v1/task").body)
        body = an_update(task, LAYOUT, assignment.attempt)
        answer = call(server.url, "PUT", "/v1/updates/1/eve", body, MSGPACK)
        refusal = Refusal.from_bytes(answer.body)
        shared = Division(LAYOUT, None, task.sharing).uploaded(1)
        assert (answer.status, refusal.code) == (409, "wrong_layout")
        assert "nothing of what is personal" in refusal.message
        assert shared.digest[:12] in refusal.message
        longer = replace(Update.from_bytes(body), layout=shared.digest).to_bytes()
        damaged = call(server.url, "PUT", "/v1/updates/1/eve", longer, MSGPACK)
        assert damaged.status in (400, 413), "entries beyond what is shared are no valid payload"


@pytest.mark.parametrize(
    ("name", "shared"),
    [("ffa-lora", ["b"]), ("rolora", ["a", "b"]), ("lora-fair", ["a", "b"]), ("florist", ["a", "b"])],
)
def test_strategies_of_one_rank(name: str, shared: list[str], tmp_path: Path) -> None:
    bundle = bigram_bundle(tmp_path / "bundle")
    strategy = f'[strategy]\nname = "{name}"\n'
    with serving(bundle, tmp_path / "server", rounds=4, target=3, more=strategy) as server:
        ended = fleet(server.url, tmp_path, bundle)
        history, sharing = status_of(server.url)["history"], status_of(server.url)["sharing"]
    assert sharing["shared"] == shared
    assert history[-1]["loss"] < history[0]["loss"] - 0.01
    assert history[-1]["personal_loss"] is None
    assert {vector_digest(record.version().adapter) for record, _ in ended.values()} == {history[-1]["digest"]}


def test_rolora_sends_one_half_at_a_time(tmp_path: Path) -> None:
    bundle = bigram_bundle(tmp_path / "bundle")
    more = '[strategy]\nname = "rolora"\n[upload]\ncodec = "dense"\n'
    with serving(bundle, tmp_path / "server", rounds=4, target=3, more=more) as server:
        ended = fleet(server.url, tmp_path, bundle)
    for record, log in ended.values():
        halves = [e["bytes"] for e in log if e["event"] == "uploaded"]
        assert len(halves) == 4
        assert all(size < 4 * LAYOUT.size * 0.6 for size in halves)
        assert len(record.codecs) == 2, "each half has what its codec held back"


def test_mixed_ranks(tmp_path: Path) -> None:
    """Three devices of ranks 1, 2 and 4."""
    for name in ("hetlora", "rbla", "florist"):
        folder = tmp_path / name
        bundle = bigram_bundle(folder / "bundle", ranks=(1, 2, 4))
        more = f'[strategy]\nname = "{name}"\n'
        with serving(bundle, folder / "server", rounds=4, target=3, more=more) as server:
            ended = fleet(server.url, folder, bundle, {"ann": 1, "bob": 2, "cid": 4})
            history = status_of(server.url)["history"]
        assert history[-1]["loss"] < history[0]["loss"] - 0.01, name
        sizes = {n: next(e["bytes"] for e in log if e["event"] == "uploaded") for n, (_, log) in ended.items()}
        assert sizes["ann"] < sizes["bob"] < sizes["cid"], "a lower rank sends less"


def test_a_killed_device_ends_with_the_same_personal_layers(tmp_path: Path) -> None:
    """One after another: a device that stops after each update, and one that does not."""
    bundle = bigram_bundle(tmp_path / "bundle")
    ended = {}
    for how in ("at once", "in pieces"):
        folder = tmp_path / how
        folder.mkdir()
        with serving(bundle, folder / "server", rounds=3, target=1, more=FEDSA) as server:
            for _ in range(1 if how == "at once" else 3):
                asyncio.run(take_part(server.url, "ann", folder, bundle, once=how != "at once"))
            ended[how] = asyncio.run(take_part(server.url, "ann", folder, bundle)).record
    assert ended["at once"].own == ended["in pieces"].own != b""
    assert ended["at once"].adapter == ended["in pieces"].adapter


def test_fdlora_with_one_device_and_a_plain_outer_step(tmp_path: Path) -> None:
    """eta = 1 and mu = 0 is averaging, with sync_every = 1 what is kept is what was trained: all is one adapter."""
    bundle = bigram_bundle(tmp_path / "bundle")
    dense = '[upload]\ncodec = "dense"\n[download]\ncodec = "dense"\n'
    plain = '[strategy]\nname = "fdlora"\nsync_every = 1\n[server]\noptimizer = "nesterov"\nmomentum = 0.0\n'
    with serving(bundle, tmp_path / "server", rounds=3, more=plain + dense) as server:
        record = asyncio.run(take_part(server.url, "ann", tmp_path, bundle)).record
    assert np.allclose(vector_of(record.own), vector_of(record.adapter), atol=1e-6)


def test_fdlora(tmp_path: Path) -> None:
    """Fused with what each device kept, the model is better than everybody's, and never worse on what was searched."""
    bundle = bigram_bundle(tmp_path / "bundle")
    more = '[strategy]\nname = "fdlora"\nsync_every = 2\n'
    with serving(bundle, tmp_path / "server", rounds=4, target=3, more=more) as server:
        ended = fleet(server.url, tmp_path, bundle)
        history = status_of(server.url)["history"]
    assert history[-1]["personal_loss"] < history[-1]["loss"]
    for record, log in ended.values():
        assert vector_of(record.own).size == LAYOUT.size
        fused = [e for e in log if e["event"] == "fused"]
        assert [e["version"] for e in fused] == [1, 2, 3, 4], "at version 0 there is nothing to fuse"
        assert all(e["evaluations"] <= 40 for e in fused)
        assert record.own_history[-1].loss < record.history[-1].loss


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ('[strategy]\nname = "cohorts"\ntensors = "kind:head"\n', "cohorts would share nothing"),
        ('[personal]\npolicy = "tensors"\ntensors = "*"\n', "nothing would be learned together"),
        ('[personal]\npolicy = "fedper"\n', "nothing of the adapter is personal"),
        ('[personal]\npolicy = "last-blocks"\n', "no numbered blocks"),
        ('[personal]\npolicy = "tensors"\n', "come together"),
        ('[personal]\npolicy = "fedas"\n', "policy"),
        ('[personal]\npolicy = "fedsa"\n[strategy]\nname = "lora-fair"\n', "needs both LoRA factors"),
        ('[strategy]\nname = "flora"\n', "--frozen-rank"),
        ('[strategy]\nname = "fedex"\n', "--frozen-rank"),
        ('[strategy]\nname = "fdlora"\nfusion = "concatenated"\n', "--frozen-rank"),
        ('[strategy]\nname = "fdlora"\nfusion = "glued"\n', "fusion"),
        ('[strategy]\nname = "fdlora"\n[personal]\npolicy = "fedsa"\n', "keep a whole one"),
        ('[strategy]\nname = "florist"\n[server]\noptimizer = "adamw"\n', "says itself what the next adapter is"),
        ('[strategy]\nname = "ffa-lora"\n[upload]\ncodec = "important"\n', "importance cannot weigh this adapter"),
    ],
)
def test_what_a_task_cannot_ask_for(more: str, sentence: str, tmp_path: Path) -> None:
    bundle = bigram_bundle(tmp_path / "bundle")
    with pytest.raises(TaskFileError, match=sentence), serving(bundle, tmp_path / "server", more=more):
        pass


def test_whole_rounds_are_synchronous(tmp_path: Path) -> None:
    bundle = bigram_bundle(tmp_path / "bundle")
    more = '[strategy]\nname = "rolora"\n[round]\nmode = "async"\n'
    with (
        pytest.raises(TaskFileError, match="mode 'sync'"),
        serving(bundle, tmp_path / "server", target=0, more=more),
    ):
        pass
