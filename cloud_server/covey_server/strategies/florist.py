"""Products averaged and cut back to the adapter's rank, with a warm start: FLoRIST (Ramesh and Dass 2026, arXiv
2506.09199) as the next round's start, FlexLoRA (Bai et al. 2024, arXiv 2402.11505) with an energy threshold.

The mean of the devices' products B_k A_k, not of their factors, is formed as a stack and brought back to the adapter's
rank by its singular values; devices go on from there, each with as many leading factors as its rank has. So it costs no
more to send than averaging, needs no second adapter, and is exact up to what the rank cannot hold.

FlexLoRA averages whole products. A device of low rank then returns nothing for the factors that it lacks, and these
fade by a constant share each round, whatever is learned (rank collapse, arXiv 2602.13486). Here what is averaged is
each device's *change* of the product that it was given, so what a device lacks, it leaves alone.
"""

import numpy as np

from covey_server.lowrank import align, compress, stack
from covey_server.strategies.base import Strategy
from covey_server.strategies.space import Gathered, Space, gather, product
from covey_shared.factors import rest
from covey_shared.layout import Vector
from covey_shared.messages import Sharing


def florist(space: Space, energy: float) -> Strategy:
    """The strategy; `energy` in (0, 1] is the share of squared singular values that is kept."""
    modules, others = space.modules("florist"), np.flatnonzero(rest(space.layout))

    def finish(round_: Gathered) -> Vector:
        start, mean = round_.start, round_.mean
        given = [device.given(start) if space.mixed else start for device in round_.returned]
        trained = [before + device.entries.dense() for before, device in zip(given, round_.returned, strict=True)]
        signs = [1.0, *round_.shares, *(-share for share in round_.shares)]
        new = start.copy()
        for pair in modules:
            held = product(pair, start)
            whole = stack([held, *(product(pair, vector) for vector in (*trained, *given))], signs)
            best = align(compress(whole, pair.rank, energy), held.a, space.ranks)
            pair.put(new, best.a / pair.scale, best.b)
        new[others] += mean[others]
        return new - start

    return Strategy("florist", Gathered, gather, finish, weigh=float, sharing=Sharing(ranks=space.ranks), whole=True)
