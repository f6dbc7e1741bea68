"""What a strategy is: how a round's updates become one mean change, and what is then published.

A strategy is a fold over decoded updates, so the server holds one running sum, whatever the number of devices. It sees
entries and weights; it knows nothing of HTTP, storage, codecs and other strategies.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from covey_shared.entries import Entries
from covey_shared.layout import Vector
from covey_shared.messages import PLAIN, Sharing

BLOCK = 1 << 15  # entries that stay in the cache between two passes
# The last sum's memory. At ten million entries asking the system for it, page by page, takes longer than the sum.
_spare: list[NDArray[np.float64]] = []


class Sum(NamedTuple):
    """A running weighted sum: float64 [n], and the weights added up."""

    total: NDArray[np.float64]
    weight: float


class Strategy(NamedTuple):
    """A strategy: a fold, and what travels down.

    `init(start)` starts the fold, from the vector float32 [n] that devices trained from. `add(sum, entries, weight)`
    adds one device's change (trained minus started) and may reuse the sum's memory, so the one passed in is gone.
    `finish(sum)` is the mean change, float32 [n]; the sum is gone after it, too. `weigh` is what a device with so many
    examples weighs; the task's caps come after it. With `absolute` a version is published as weights from zero, else as
    the difference from the version before. `sharing` is what of the adapter travels. A strategy of `whole` factors
    reckons with what devices end with, so all of an adapter's LoRA is shared and all updates of a version start from
    the same one.
    """

    name: str
    init: Callable[[Vector], Any]
    add: Callable[[Any, Entries, float], Any]
    finish: Callable[[Any], Vector]
    absolute: bool = False
    weigh: Callable[[int], float] = lambda examples: 1.0
    sharing: Sharing = PLAIN
    whole: bool = False


def empty(start: Vector) -> Sum:
    """The sum of nothing."""
    spare = _spare.pop() if _spare else None
    if spare is None or len(spare) != len(start):
        spare = np.zeros(len(start), np.float64)
    return Sum(spare, 0.0)


def add_weighted(sum_: Sum, entries: Entries, weight: float) -> Sum:
    """Adds weight * values where there are values; what a device did not send counts as zero in the mean.

    float64, in the order of the calls: the caller's order decides the bits.
    """
    values = np.multiply(entries.values, weight, dtype=np.float64)
    if isinstance(entries.where, slice):
        sum_.total[entries.where] += values
    else:  # one pass over places that lie far apart, where indexing takes two
        np.add.at(sum_.total, entries.where.astype(np.intp), values)
    return Sum(sum_.total, sum_.weight + weight)


def mean(sum_: Sum) -> Vector:
    """The weighted mean, float32 [n]. The sum is gone: its memory, zeros again, is that of the next one."""
    out = np.empty(len(sum_.total), np.float32)
    for at in range(0, len(out), BLOCK):
        block = sum_.total[at : at + BLOCK]
        block /= sum_.weight
        out[at : at + BLOCK] = block
        block[:] = 0
    _spare[:] = [sum_.total]
    return out
