"""Every personalisation policy with real clients and the real server, on a model of two blocks and a head."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from covey_edge.data import Batch
from covey_edge.state import vector_of
from covey_edge.trainers import Score
from covey_server.policies import patterns_of
from covey_shared.errors import LayoutError
from covey_shared.layout import Layout, Tensor, Vector, vector_digest
from tests.helpers_edge import RANK, VOCABULARY, BigramTrainer
from tests.helpers_edge_serving import serving
from tests.helpers_fleet import TEXTS, bigram_bundle, fleet
from tests.helpers_server import status_of


def block(number: int) -> tuple[Tensor, Tensor]:
    a = Tensor(name=f"layers.{number}.a", shape=(RANK, VOCABULARY), kind="lora_A", init="kaiming_uniform",
               module=f"layers.{number}", rank=RANK)  # fmt: skip
    b = Tensor(name=f"layers.{number}.b", shape=(VOCABULARY, RANK), kind="lora_B", init="zeros",
               module=f"layers.{number}", rank=RANK)  # fmt: skip
    return a, b


DEEP = Layout((*block(0), *block(1), Tensor(name="head", shape=(VOCABULARY,), kind="head", init="zeros")))


@dataclass
class DeepTrainer(BigramTrainer):
    """Logits of the next byte = sum of B A[:, byte] over two blocks, plus a bias, the head."""

    def loss_and_gradient(self, adapter: Vector, batch: Batch) -> tuple[float, Vector]:
        t = DEEP.split(adapter)
        here, there = self._pairs(batch)
        p = self._after(t, here)
        loss = -np.log(p[np.arange(len(here)), there]).mean()
        p[np.arange(len(here)), there] -= 1
        p /= len(here)
        out = {"head": p.sum(0)}
        for i in (0, 1):
            grad = np.zeros_like(t[f"layers.{i}.a"])
            np.add.at(grad.T, here, p @ t[f"layers.{i}.b"])
            out |= {f"layers.{i}.a": grad, f"layers.{i}.b": p.T @ t[f"layers.{i}.a"][:, here].T}
        return float(loss), DEEP.join(out)

    def evaluate(self, adapter: Vector, batch: Batch) -> Score:
        here, there = self._pairs(batch)
        p = self._after(DEEP.split(adapter), here)
        losses = -np.log(p[np.arange(len(here)), there])
        return Score(float(losses.sum()), len(here), int((p.argmax(1) == there).sum()))

    @staticmethod
    def _after(t: dict[str, Vector], here: np.ndarray) -> Vector:
        z = sum((t[f"layers.{i}.a"][:, here].T @ t[f"layers.{i}.b"].T for i in (0, 1)), t["head"])
        e = np.exp(z - z.max(1, keepdims=True))
        return np.asarray(e / e.sum(1, keepdims=True), np.float32)


POLICIES = {
    "fedsa": ('policy = "fedsa"\n', ["layers.0.b", "layers.1.b"]),
    "fedper": ('policy = "fedper"\n', ["head"]),
    "last-blocks": ('policy = "last-blocks"\nblocks = 1\n', ["layers.1.a", "layers.1.b"]),
    "lg": ('policy = "lg"\nblocks = 1\n', ["layers.0.a", "layers.0.b"]),
    "tensors": ('policy = "tensors"\ntensors = "kind:lora_B head"\n', ["layers.0.b", "layers.1.b", "head"]),
}


@pytest.mark.parametrize("name", POLICIES)
def test_policy(name: str, tmp_path: Path) -> None:
    text, personal = POLICIES[name]
    bundle = bigram_bundle(tmp_path / "bundle", layout=DEEP)
    more = f"[personal]\n{text}"
    with serving(bundle, tmp_path / "server", rounds=3, target=3, more=more) as server:
        ended = fleet(server.url, tmp_path, bundle, trainer=DeepTrainer)
        status = status_of(server.url)
    assert status["sharing"]["personal"] == personal
    size = sum(t.size for t in DEEP.tensors if t.name in personal)
    for record, _ in ended.values():
        assert vector_of(record.own).size == size
        assert record.version().adapter.size == DEEP.size - size
        assert vector_digest(record.version().adapter) == status["history"][-1]["digest"]
        assert record.own_history[-1].loss < record.own_history[0].loss
    assert status["history"][-1]["personal_loss"] < status["history"][-1]["loss"]
    assert len({record.own for record, _ in ended.values()}) == len(TEXTS), "what is personal differs"


def test_blocks_are_those_of_the_longest_list() -> None:
    names = [f"model.layers.{i}.q" for i in range(12)] + ["experts.0.q", "experts.1.q", "head"]
    layout = Layout(tuple(Tensor(name=n, shape=(1,), kind="block", init="zeros") for n in names))
    assert patterns_of("last-blocks", layout, 2, "") == ("model.layers.10.*", "model.layers.11.*")
    assert patterns_of("lg", layout, 1, "") == ("model.layers.0.*",)
    for blocks in (0, 12):
        with pytest.raises(LayoutError, match="of 12 blocks 1 to 11 can be personal"):
            patterns_of("lg", layout, blocks, "")
