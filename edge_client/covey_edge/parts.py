"""What this device holds, trains, sends and keeps of an adapter, as the task divides it (`covey_shared.sharing`). Pure.

The graphs take whole adapters. A device trains a part of one: its rank's factors, the tensors whose turn it is, and its
own. So training, clipping and the optimiser's state are over the part, and `PartTrainer` puts it into the whole.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from covey_edge.data import Batch
from covey_edge.trainers import Score, Trainer
from covey_shared.bundle import Bundle
from covey_shared.errors import BundleError, LayoutError
from covey_shared.layout import Layout, Vector
from covey_shared.manifest import Manifest
from covey_shared.messages import PLAIN, Sharing
from covey_shared.sharing import Division, fresh_seed


@dataclass(frozen=True)
class PartTrainer:
    """A trainer of the entries `where` of a whole adapter, int64 [k]; the others stand still at `base`, float32 [n]."""

    whole: Trainer
    base: Vector
    where: NDArray[np.int64]

    def loss_and_gradient(self, adapter: Vector, batch: Batch) -> tuple[float, Vector]:
        """Mean loss, and the gradient float32 [k]."""
        loss, gradient = self.whole.loss_and_gradient(self.full(adapter), batch)
        return loss, gradient[self.where]

    def evaluate(self, adapter: Vector, batch: Batch) -> Score:
        """The sums over one batch."""
        return self.whole.evaluate(self.full(adapter), batch)

    def logits(self, adapter: Vector, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """As the whole trainer's."""
        return self.whole.logits(self.full(adapter), inputs)

    def full(self, part: Vector) -> Vector:
        """The whole adapter with the part in its place."""
        out = self.base.copy()
        out[self.where] = part
        return out


@dataclass(frozen=True, eq=False)
class Share:
    """This device's share of a task: the division, its rank, and the bundle that gives every start."""

    division: Division
    bundle: Bundle
    seed: int
    rank: int = 0

    def start(self) -> Vector:
        """Version 0 of what is published."""
        return self.division.start(self.bundle.start(self.seed))

    def start_of(self, layout: Layout) -> Vector:
        """Version 0 of a part of what is published."""
        return self.start()[self.division.published.positions(layout)]

    def own_start(self) -> Vector:
        """The personal tensors of a device that has just come: their seeded or stored start, as all devices have it."""
        return self._of(self.bundle.start(self.seed), self.division.personal(self.rank))

    def whole(self, downloaded: Vector, own: Vector, round_: int = 0, cohort: int = 0) -> tuple[Vector, Vector | None]:
        """(adapter, second adapter) of this device: a downloaded version and its personal tensors in their places.

        `round_` is the one that is trained, 0 for evaluation; an empty `own` means the documented start. Factors
        beyond this device's rank are zeros.
        """
        division = self.division
        if division.sharing == PLAIN and not self.rank:
            return downloaded, None
        anew = bool(round_ and division.sharing.fresh)
        fresh = self.bundle.start(fresh_seed(self.seed, round_)) if anew else None
        start = self.bundle.start(self.seed)
        space = division.at(start, division.spread(start, downloaded, cohort), cohort, fresh)
        full = space[: division.top.size]
        personal = division.personal(self.rank)
        if personal is not None and len(own):
            full[division.top.positions(personal)] = own
        held = division.held(self.rank)
        if held is not division.adapter:
            cut = np.zeros(division.adapter.size, np.float32)
            cut[division.adapter.positions(held)] = full[division.top.positions(held)]
            full = cut
        return full, division.second_at(space)

    def trained(self, round_: int) -> NDArray[np.int64]:
        """Which entries of the whole adapter a round trains."""
        return self.division.adapter.positions(self.division.trained(round_, self.rank))

    def sent(self, part: Vector, round_: int) -> Vector:
        """Of a vector over what a round trains, what is uploaded."""
        trained = self.division.trained(round_, self.rank)
        return part[trained.positions(self.division.uploaded(round_, self.rank))]

    def kept(self, part: Vector, round_: int) -> Vector:
        """Of a vector over what a round trains, the personal tensors."""
        personal = self.division.personal(self.rank)
        trained = self.division.trained(round_, self.rank)
        return part[trained.positions(personal)] if personal else np.empty(0, np.float32)

    def _of(self, adapter: Vector, layout: Layout | None) -> Vector:
        return adapter[self.division.adapter.positions(layout)] if layout else np.empty(0, np.float32)


def share(bundle: Bundle, sharing: Sharing, seed: int, rank: int) -> Share:
    """This device's share; `rank` 0 is the largest that the task allows. Raises BundleError for another rank."""
    return Share(check_share(bundle.manifest, sharing, rank), bundle, seed, rank)


def check_share(manifest: Manifest, sharing: Sharing, rank: int) -> Division:
    """How the task divides the bundle's adapter. Raises BundleError where it cannot, or for a rank that it lacks."""
    try:
        division = Division(manifest.layout, manifest.frozen, sharing)
    except LayoutError as error:
        raise BundleError(f"the task does not fit the bundle: {error}") from None
    if rank and rank not in division.ranks:
        have = ", ".join(map(str, division.ranks))
        raise BundleError(f"the task has no rank {rank}, it has {have}: join with --rank and one of these")
    return division
