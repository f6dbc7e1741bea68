"""Order statistics over sparse updates, coordinate by coordinate, where absent is absent and not zero.

With per-device top-k most coordinates of an update were not sent. A median that takes these for zeros is zero almost
everywhere, so each statistic here is over the devices that sent the coordinate, times the share of devices that did.
With nothing trimmed that is exactly the mean that counts what is absent as no change, as FLASC has it.

With f attackers among K devices, a coordinate needs more than 2f contributors: then the f largest and the f smallest
values go, and what is left lies within the range of honest values, whatever the attackers sent and wherever they chose
to send it (Yin et al. 2018, arXiv 1803.01498, for the dense case). A coordinate with fewer contributors is not moved.

Unlike a mean, these hold every update of a round in memory: 4 bytes for each value and 4 for each index. Pure.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from covey_shared.entries import Entries
from covey_shared.layout import Vector

CHUNK_VALUES = 1 << 21  # values of one dense block: 8 MB, whatever the number of devices

Block = NDArray[np.float32]  # [devices, coordinates], NaN where absent
Statistic = Callable[[Block, NDArray[np.int64]], NDArray[np.float64]]


def trimmed_mean(updates: Sequence[Entries], attackers: int) -> Vector:
    """The mean without the `attackers` largest and smallest values of each coordinate, float32 [n].

    For [n] entries of each of K updates: `attackers` is f above. Raises ValueError where 2f >= K.
    """
    return _coordinatewise(updates, attackers, lambda block, present: _trimmed(block, present, attackers))


def median(updates: Sequence[Entries], attackers: int) -> Vector:
    """The middle value of each coordinate (the mean of the two middle ones), as `trimmed_mean` otherwise."""
    return _coordinatewise(updates, attackers, _middle)


def krum(updates: Sequence[Entries], attackers: int, keep: int = 1) -> tuple[int, ...]:
    """The places of the `keep` updates that have the closest neighbours, best first (Blanchard et al. 2017, eq. 4).

    The score of an update is the sum of squared distances to its K - f - 2 nearest others. Distances mean something
    only between updates with the same coordinates. Raises ValueError for different supports, and where K < 2f + 3.
    """
    count = len(updates)
    if count < 2 * attackers + 3:
        raise ValueError(
            f"Krum against {attackers} attackers needs at least {2 * attackers + 3} updates, there are {count}"
        )
    if not all(same_support(updates[0], other) for other in updates[1:]):
        raise ValueError("Krum compares updates that have the same coordinates; use a codec that sends all of them")
    distances = _squared_distances(np.stack([u.values for u in updates]))
    np.fill_diagonal(distances, np.inf)
    scores = np.sort(distances, axis=1)[:, : count - attackers - 2].sum(axis=1)
    return tuple(int(i) for i in np.argsort(scores, kind="stable")[:keep])


def same_support(a: Entries, b: Entries) -> bool:
    """Whether two updates carry the same coordinates."""
    if isinstance(a.where, slice) or isinstance(b.where, slice):
        return _range(a) == _range(b)
    return np.array_equal(a.where, b.where)


def _range(entries: Entries) -> tuple[int, int] | None:
    if not isinstance(entries.where, slice):
        return None
    return (entries.where.start or 0, (entries.where.start or 0) + entries.count)


def _squared_distances(values: Block) -> NDArray[np.float64]:
    """float64 [K, K]: by the Gram matrix in float64, block by block, so that near equals do not cancel in float32."""
    gram = np.zeros((len(values), len(values)))
    step = max(1, CHUNK_VALUES // (2 * len(values)))
    for at in range(0, values.shape[1], step):
        block = values[:, at : at + step].astype(np.float64)
        gram += block @ block.T
    squares = np.diag(gram)
    return np.maximum(squares[:, None] + squares[None, :] - 2 * gram, 0.0)


def _coordinatewise(updates: Sequence[Entries], attackers: int, statistic: Statistic) -> Vector:
    if 2 * attackers >= len(updates):
        raise ValueError(
            f"{attackers} attackers among {len(updates)} devices cannot be outvoted; they must be fewer than half"
        )
    out = np.zeros(updates[0].size, np.float32)
    for at, block in _blocks(updates):
        present = np.count_nonzero(~np.isnan(block), axis=0)
        enough = present > 2 * attackers
        if enough.any():
            block, present = block[:, enough], present[enough]
            block.sort(axis=0)  # NaN goes last
            out[at : at + len(enough)][enough] = statistic(block, present) * (present / len(updates))
    return out


def _blocks(updates: Sequence[Entries]) -> Iterator[tuple[int, Block]]:
    """(first coordinate, float32 [K, width]) over all coordinates."""
    size, width = updates[0].size, max(1, CHUNK_VALUES // len(updates))
    for at in range(0, size, width):
        block = np.full((len(updates), min(width, size - at)), np.nan, np.float32)
        for row, update in zip(block, updates, strict=True):
            where, values = _within(update, at, at + len(row))
            row[where] = values
        yield at, block


def _within(update: Entries, start: int, stop: int) -> tuple[slice | NDArray[np.int64], Vector]:
    """Where the update's entries from `start` to `stop` lie in a block that begins at `start`, and their values."""
    if isinstance(update.where, slice):
        first = update.where.start or 0
        a, b = max(first, start), min(first + update.count, stop)
        return slice(a - start, max(a, b) - start), update.values[max(a - first, 0) : max(b - first, a - first, 0)]
    a, b = np.searchsorted(update.where, (start, stop))
    return update.where[a:b].astype(np.int64) - start, update.values[a:b]


def _trimmed(block: Block, present: NDArray[np.int64], attackers: int) -> NDArray[np.float64]:
    """Mean of the sorted values from place f to present - f, down the columns; exact where nothing is trimmed."""
    rows = np.arange(len(block))[:, None]
    kept = (rows >= attackers) & (rows < present - attackers)
    total: NDArray[np.float64] = np.where(kept, block, 0).sum(axis=0, dtype=np.float64)
    return total / (present - 2 * attackers)


def _middle(block: Block, present: NDArray[np.int64]) -> NDArray[np.float64]:
    columns = np.arange(block.shape[1])
    low, high = block[(present - 1) // 2, columns], block[present // 2, columns]
    middle: NDArray[np.float64] = (low.astype(np.float64) + high) / 2
    return middle
