"""A device of a lower rank: the graph stays that of the largest rank, and the device's vector fills the first factors.

The factors that it lacks are zeros, in lora_A and in lora_B both, so the products B A are exactly those of a LoRA of
the lower rank with the same scale alpha / rank; the gradient is gathered where the device has entries. Bytes, optimiser
state and privacy are those of the lower rank; time and memory of a step are those of the graph.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covey_edge.data import Batch
from covey_edge.trainers import Score, Trainer
from covey_shared.errors import BundleError
from covey_shared.layout import Layout, Vector
from covey_shared.manifest import Manifest


@dataclass(frozen=True)
class RankedTrainer:
    """A trainer of `sub`, a part of `layout`, on a trainer of `layout`. `where` int64 [sub.size]."""

    whole: Trainer
    layout: Layout
    sub: Layout
    where: NDArray[np.int64]

    def loss_and_gradient(self, adapter: Vector, batch: Batch) -> tuple[float, Vector]:
        """Mean loss, and the gradient float32 [sub.size]."""
        loss, gradient = self.whole.loss_and_gradient(self._full(adapter), batch)
        return loss, gradient[self.where]

    def evaluate(self, adapter: Vector, batch: Batch) -> Score:
        """The sums over one batch."""
        return self.whole.evaluate(self._full(adapter), batch)

    def logits(self, adapter: Vector, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """As the whole trainer's."""
        return self.whole.logits(self._full(adapter), inputs)

    def _full(self, adapter: Vector) -> Vector:
        self.sub.check(adapter)
        full = np.zeros(self.layout.size, np.float32)
        full[self.where] = adapter
        return full


def at_rank(trainer: Trainer, manifest: Manifest, rank: int) -> Trainer:
    """The trainer of one of the bundle's ranks; its vectors are those of `manifest.layout.at_rank(rank)`."""
    if rank not in manifest.ranks:
        have = ", ".join(map(str, manifest.ranks)) or "none"
        raise BundleError(f"the bundle has no rank {rank}, it has {have}: export it with --ranks")
    if rank == manifest.rank:  # whatever ranks some modules have of their own
        return trainer
    sub = manifest.layout.at_rank(rank)
    return RankedTrainer(trainer, manifest.layout, sub, manifest.layout.positions(sub))
