"""One adapter made of two, a device's own and the one that all share, by weights found on held-out examples (FDLoRA, Qi
et al. 2024, arXiv 2406.07925; LoraHub, Huang et al. 2023, arXiv 2307.13269).

Two ways to fuse. *Factor-wise*: A = w1 A_1 + w2 A_2 and B likewise, which needs equal ranks and nothing of the graph;
the product then has cross terms w1 w2 (B_1 A_2 + B_2 A_1), as LoraHub intends. *Concatenated*: w1 B_1 A_1 + w2 B_2 A_2
exactly, as [w1 B_1 | w2 B_2] [A_1 ; A_2], which takes the graph's second adapter.

The authors search with nevergrad and some 40 evaluations. Two weights in a box need no library: a coarse grid, then the
best point's neighbourhood at half the spacing, again and again. It costs as many forward passes, is the same each time,
and has the two adapters alone among its points, so the fused one is never worse on the search examples than the better
of the two. Forward passes only.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from covey_shared.errors import LayoutError
from covey_shared.factors import pairs, rest
from covey_shared.layout import Layout, Vector

BOX = 1.5  # weights lie in -BOX..BOX, LoraHub's box
BUDGET = 40  # evaluations, LoraHub's default
PENALTY = 0.05  # on the mean of |w1| and |w2|, LoraHub's


class Fusion(NamedTuple):
    """The weights of the shared and the personal adapter, the loss there in nats, and how often it was evaluated."""

    shared: float
    personal: float
    loss: float
    evaluations: int


def search(loss: Callable[[float, float], float], budget: int = BUDGET, penalty: float = PENALTY) -> Fusion:
    """The best weights found for `loss(w1, w2)`, within `budget` evaluations, at least 2.

    The penalty decides between near equals only: what is returned never has a higher loss than (1, 0) and (0, 1).
    """
    seen: dict[tuple[float, float], float] = {}
    for point in _points(lambda: _best(seen, penalty)):
        if len(seen) >= max(2, budget):
            break
        if point not in seen:
            seen[point] = loss(*point)
    bound = min(seen[1.0, 0.0], seen[0.0, 1.0])
    allowed = {point: value for point, value in seen.items() if value <= bound}
    best = _best(allowed, penalty)
    return Fusion(*best, seen[best], len(seen))


def _points(best: Callable[[], tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """The two adapters alone, a grid of 5 x 5, then rings around the best so far, each of half the spacing."""
    yield from ((1.0, 0.0), (0.0, 1.0))
    ticks = np.linspace(-BOX, BOX, 5)
    yield from sorted(((float(x), float(y)) for x in ticks for y in ticks), key=lambda p: abs(p[0] + p[1] - 1))
    spacing = BOX / 4
    while spacing > 1e-3:
        x, y = best()
        for dx, dy in ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, 1), (1, -1), (1, 1), (-1, -1)):
            at = (x + dx * spacing, y + dy * spacing)
            if max(map(abs, at)) <= BOX:
                yield at
        spacing /= 2


def _best(seen: dict[tuple[float, float], float], penalty: float) -> tuple[float, float]:
    return min(seen, key=lambda p: (seen[p] + penalty * (abs(p[0]) + abs(p[1])) / 2, p))


def factorwise(shared: Vector, personal: Vector, w1: float, w2: float) -> Vector:
    """w1 * shared + w2 * personal, entry by entry: float32 [n]."""
    return np.float32(w1) * shared + np.float32(w2) * personal


def concatenated(layout: Layout, second: Layout, shared: Vector, personal: Vector, w1: float, w2: float) -> (
    tuple[Vector, Vector]
):  # fmt: skip
    """The adapter and the second adapter whose sum of products is w1 * shared's + w2 * personal's.

    `second` has at least the rank of `layout` in every module. Entries that are no factors are mixed entry by entry.
    """
    adapter, beside = shared.copy(), np.zeros(second.size, np.float32)
    others = rest(layout)
    adapter[others] = factorwise(shared, personal, w1, w2)[others]
    seconds = {pair.module: pair for pair in pairs(second)}
    for pair in pairs(layout):
        other = seconds.get(pair.module)
        if other is None or other.rank < pair.rank:
            raise LayoutError(f"the second adapter cannot hold {pair.module!r} at rank {pair.rank}")
        a, b = pair.of(shared)
        pair.put(adapter, a, w1 * b)
        a, b = pair.of(personal)
        other.put(beside, a, w2 * pair.scale / other.scale * b)
    return adapter, beside
