from dataclasses import replace

import numpy as np
import pytest

from covey_edge.data import Dataset, build_dataset
from covey_edge.local import TrainingError, batch_seed, begin, train
from covey_edge.state import training_of
from covey_edge.texts import Document
from covey_edge.tokens import bytes_coder
from covey_edge.trainers import Score
from covey_shared.messages import LocalConfig
from tests.helpers_edge import BYTES, LAYOUT, LOCAL, BigramTrainer, manifest_of

TEXT = "the cat sat on the mat and the dog lay on the log; " * 20
SGD = replace(LOCAL, optimizer="sgd", learning_rate=1.0, momentum=0.9, clip_norm=0.5)
CONFIGS = {"adamw": LOCAL, "sgd": SGD}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return build_dataset((Document("d", TEXT),), bytes_coder(BYTES), manifest_of(), 0.2)


@pytest.mark.parametrize("name", CONFIGS)
def test_learns(name: str, dataset: Dataset) -> None:
    config = replace(CONFIGS[name], steps=120)
    start = LAYOUT.start(1)
    steps = list(train(BigramTrainer(), dataset.train, 4, config, 5, begin(start, config)))
    last = steps[-1]
    assert [p.step for p in steps] == list(range(1, 121))
    assert (len(last.first), len(last.last)) == (5, 5)
    assert last.loss_before == pytest.approx(np.log(259), abs=0.3)
    assert last.loss_after < last.loss_before - 1
    assert last.seconds > 0
    np.testing.assert_array_equal(start, LAYOUT.start(1))


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("killed_after", [0, 1, 3, 5])
def test_resumed_equals_unkilled_bit_for_bit(name: str, killed_after: int, dataset: Dataset) -> None:
    config, start, trainer = CONFIGS[name], LAYOUT.start(1), BigramTrainer()
    whole = list(train(trainer, dataset.train, 4, config, 5, begin(start, config)))[-1]
    stopped = begin(start, config)
    for progress in train(trainer, dataset.train, 4, config, 5, stopped):
        if progress.step > killed_after:
            break
        stopped = progress
    record = training_of("task", 1, 1, 0, stopped)
    reread = type(record).from_bytes(record.to_bytes()).progress()
    resumed = list(train(trainer, dataset.train, 4, config, 5, reread))[-1]
    np.testing.assert_array_equal(resumed.adapter, whole.adapter)
    assert (resumed.first, resumed.last, resumed.step) == (whole.first, whole.last, whole.step)


def test_rounds_and_clients_see_other_batches() -> None:
    seeds = {batch_seed(s, r, c) for s in (1, 2) for r in (1, 2) for c in ("a", "b")}
    assert len(seeds) == 8


@pytest.mark.parametrize("steps", [1, 2, 3, 11])
def test_loss_windows(steps: int, dataset: Dataset) -> None:
    config = replace(LOCAL, steps=steps)
    last = list(train(BigramTrainer(), dataset.train, 4, config, 5, begin(LAYOUT.start(1), config)))[-1]
    assert len(last.first) == len(last.last) == max(1, min(5, steps // 2))


def test_nan_loss_stops(dataset: Dataset) -> None:
    steps = train(BigramTrainer(poison_at=3), dataset.train, 4, LOCAL, 5, begin(LAYOUT.start(1), LOCAL))
    assert [next(steps).step, next(steps).step] == [1, 2]
    with pytest.raises(TrainingError, match="the training loss became nan at step 3 of 6; nothing of this round is up"):
        next(steps)


def test_exploding_gradient_stops(dataset: Dataset) -> None:
    """A finite loss with an infinite gradient must not reach the adapter either."""

    class Explodes(BigramTrainer):
        def loss_and_gradient(self, adapter, batch):  # type: ignore[no-untyped-def]
            return 1.0, np.full_like(adapter, np.inf)

    config: LocalConfig = replace(LOCAL, clip_norm=0.0)
    with pytest.raises(TrainingError):
        next(train(Explodes(), dataset.train, 4, config, 5, begin(LAYOUT.start(1), config)))


def test_gradient_of_the_little_model(dataset: Dataset) -> None:
    """What the other tests learn with is itself checked, by central differences."""
    trainer, adapter = BigramTrainer(), LAYOUT.start(3)
    adapter += np.float32(0.1) * np.cos(np.arange(LAYOUT.size, dtype=np.float32))
    from covey_edge.data import training_batch

    batch = training_batch(dataset.train, 4, 0, 0)
    _, gradient = trainer.loss_and_gradient(adapter, batch)
    direction = np.sin(np.arange(LAYOUT.size, dtype=np.float32) * np.float32(1.7))
    up = trainer.loss_and_gradient(adapter + np.float32(1e-2) * direction, batch)[0]
    down = trainer.loss_and_gradient(adapter - np.float32(1e-2) * direction, batch)[0]
    assert (up - down) / 2e-2 == pytest.approx(float(gradient @ direction), rel=0.02)
    score = trainer.evaluate(adapter, batch)
    assert isinstance(score, Score)
    assert score.loss_sum / score.tokens == pytest.approx(trainer.loss_and_gradient(adapter, batch)[0], rel=1e-5)
