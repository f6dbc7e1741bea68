"""Local training of one round, step by step: what a device does between download and upload.

`train` yields a Progress after each step. A Progress is all there is: saved after any step and given back to `train`,
it leads to the same bits as if nothing had happened in between, since batches depend on the step's number alone.
"""

import math
import time
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from covey_edge.data import Examples, training_batch
from covey_edge.optim import OptimizerState, clip, from_config
from covey_edge.trainers import Trainer
from covey_shared.errors import CoveyError
from covey_shared.layout import Vector
from covey_shared.messages import LocalConfig
from covey_shared.prng import derive

WINDOW = 5  # steps at each end whose losses are averaged: one batch's loss says little


class TrainingError(CoveyError):
    """Training cannot go on; nothing of the round may be uploaded."""


class Progress(NamedTuple):
    """Where a round stands. `adapter` float32 [n]; `first` and `last` hold up to five losses each, in nats."""

    adapter: Vector
    optimizer: OptimizerState
    first: tuple[float, ...] = ()
    last: tuple[float, ...] = ()
    seconds: float = 0.0

    @property
    def step(self) -> int:
        """Steps done."""
        return self.optimizer.step

    @property
    def loss_before(self) -> float:
        """Mean training loss of the first steps."""
        return math.fsum(self.first) / len(self.first)

    @property
    def loss_after(self) -> float:
        """Mean training loss of the last steps."""
        return math.fsum(self.last) / len(self.last)


def begin(adapter: Vector, config: LocalConfig) -> Progress:
    """A round's state before its first step."""
    return Progress(adapter, from_config(config).init(len(adapter)))


def batch_seed(task_seed: int, round_: int, client: str) -> int:
    """The stream that orders one device's examples in one round: any round can be replayed alone."""
    return derive(task_seed, "batches", round_, client)


def train(
    trainer: Trainer, examples: Examples, batch_size: int, config: LocalConfig, seed: int, progress: Progress
) -> Iterator[Progress]:
    """The remaining steps of a round. Raises TrainingError when loss or gradient stop being numbers."""
    optimizer = from_config(config)
    window = max(1, min(WINDOW, config.steps // 2))
    while progress.step < config.steps:
        started = time.perf_counter()
        batch = training_batch(examples, batch_size, seed, progress.step)
        loss, gradient = trainer.loss_and_gradient(progress.adapter, batch)
        if not math.isfinite(loss) or not np.isfinite(gradient).all():
            raise TrainingError(
                f"the training loss became {loss} at step {progress.step + 1} of {config.steps}; nothing of this round "
                "is uploaded: the task needs a smaller learning_rate or a clip_norm"
            )
        adapter, state = optimizer.update(progress.adapter, clip(gradient, config.clip_norm), progress.optimizer)
        seconds = progress.seconds + time.perf_counter() - started
        first = (*progress.first, loss)[:window]
        progress = Progress(adapter, state, first, (*progress.last, loss)[-window:], seconds)
        yield progress
