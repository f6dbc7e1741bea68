"""RBLA (Tavallaie et al. 2024, arXiv 2408.08699): ranks that differ, each coordinate averaged over those who have it.

Like HetLoRA each device trains the first factors of the global adapter. Where HetLoRA counts a missing factor as zero,
here it is missing: the mean of a coordinate is over the devices that have it. So nothing is diluted, and the few
devices of high rank decide their factors alone.

It remains a mean of factors, which is not the mean of the products; `florist` averages products.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from covey_server.strategies.base import Strategy
from covey_server.strategies.space import Space
from covey_shared.entries import Entries
from covey_shared.layout import Vector
from covey_shared.messages import Sharing


class Owned(NamedTuple):
    """Sums by coordinate, float64 [n]: of the weighted changes, and of the weights of those who have it."""

    total: NDArray[np.float64]
    weight: NDArray[np.float64]


def rbla(space: Space) -> Strategy:
    """The strategy. With one rank for all it is the weighted mean."""

    def init(start: Vector) -> Owned:
        return Owned(np.zeros(len(start), np.float64), np.zeros(len(start), np.float64))

    def add(owned: Owned, entries: Entries, weight: float) -> Owned:
        owned.total[entries.where] += weight * entries.values.astype(np.float64)
        owned.weight[entries.where if space.mixed else slice(None)] += weight
        return owned

    def finish(owned: Owned) -> Vector:
        mean = np.divide(owned.total, owned.weight, out=np.zeros_like(owned.total), where=owned.weight > 0)
        return mean.astype(np.float32)

    return Strategy("rbla", init, add, finish, weigh=float, sharing=Sharing(ranks=space.ranks))
