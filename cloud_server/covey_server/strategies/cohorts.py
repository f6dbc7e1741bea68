"""Personal layers shared among like devices: a copy of some tensors for each cohort, the rest for all.

The server groups devices by the cosine of their changes every few rounds (`covey_server.cohorts`); a device trains and
sends the copy of its cohort. The mean of a coordinate is over those who have it: of the shared tensors everybody, of a
copy its cohort. A cohort that begins goes on from the copy that most of its devices had.

A device downloads its own cohort's copy alone (`covey_server.sections`), so their number costs the server, not it.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from covey_server.strategies.base import Strategy
from covey_shared.entries import Entries
from covey_shared.layout import Vector
from covey_shared.messages import Sharing


class Owned(NamedTuple):
    """Sums by coordinate, float64 [n]: of the weighted changes, and of the weights of those who have it."""

    total: NDArray[np.float64]
    weight: NDArray[np.float64]


def cohorts(count: int, tensors: str) -> Strategy:
    """The strategy; `tensors` are the patterns, separated by spaces, of what each of `count` cohorts has a copy of."""

    def init(start: Vector) -> Owned:
        return Owned(np.zeros(len(start), np.float64), np.zeros(len(start), np.float64))

    def add(owned: Owned, entries: Entries, weight: float) -> Owned:
        owned.total[entries.where] += weight * entries.values.astype(np.float64)
        owned.weight[entries.where] += weight
        return owned

    def finish(owned: Owned) -> Vector:
        mean = np.divide(owned.total, owned.weight, out=np.zeros_like(owned.total), where=owned.weight > 0)
        return mean.astype(np.float32)

    sharing = Sharing(cohort=tuple(tensors.split()), cohorts=count)
    return Strategy("cohorts", init, add, finish, weigh=float, sharing=sharing)
