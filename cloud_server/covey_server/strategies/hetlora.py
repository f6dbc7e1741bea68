"""HetLoRA (Cho, Liu, Xu, Fahrezi, Joshi 2024, arXiv 2401.06432): ranks that differ, padded with zeros and averaged.

Each device trains the first factors of the global adapter, as many as its rank has. The server pads every device's
factors with zeros to the largest rank and averages A and B, weighted by the size |B_k A_k| of each device's whole
product: one with more to say counts more. Rank pruning on the device is not part of this.

It is here to compare with. The padding pulls the factors that few devices have towards zero, and a mean of factors is
not the mean of the products; `rbla` repairs the first, `florist` both. A device can also make its weight as large as
it likes, so keep norms bounded with [round] max_norm.
"""

import numpy as np

from covey_server.lowrank import frobenius
from covey_server.strategies.base import Strategy, Sum, empty
from covey_server.strategies.space import Returned, Space, product
from covey_shared.entries import Entries
from covey_shared.factors import rest
from covey_shared.layout import Vector
from covey_shared.messages import Sharing


def hetlora(space: Space) -> Strategy:
    """The strategy."""
    modules, others = space.modules("hetlora"), rest(space.layout)
    others = np.append(others, np.zeros(space.size - len(others), np.bool_))

    def init(start: Vector) -> tuple[Vector, Sum, Sum]:
        return start, empty(start), empty(start)

    def add(state: tuple[Vector, Sum, Sum], entries: Entries, weight: float) -> tuple[Vector, Sum, Sum]:
        start, factors, plain = state
        given = Returned(weight, entries).given(start) if space.mixed else start
        trained = given + entries.dense()
        size = weight * np.sqrt(sum(frobenius(product(pair, trained)) ** 2 for pair in modules))
        factors.total[:] += size * trained
        plain.total[entries.where] += weight * entries.values
        return start, Sum(factors.total, factors.weight + size), Sum(plain.total, plain.weight + weight)

    def finish(state: tuple[Vector, Sum, Sum]) -> Vector:
        start, factors, plain = state
        mean = plain.total / plain.weight
        padded = factors.total / factors.weight - start if factors.weight else mean
        return np.where(others, mean, padded).astype(np.float32)

    return Strategy("hetlora", init, add, finish, sharing=Sharing(ranks=space.ranks), whole=True)
