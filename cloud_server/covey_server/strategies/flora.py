"""FLoRA (Wang et al. 2024, arXiv 2409.05976): adapters are stacked and not averaged, so nothing is lost at any ranks.

Every round each device trains a fresh adapter of its own rank on top of what was learned so far; the sum of products
is exactly the stack of all factors. Here it goes into the second adapter, never into the base: a quantised base would
swallow small changes. The stack would grow each round, so it is recompressed to the second adapter's rank, keeping the
share `energy` of its squared singular values (FLoRIST, arXiv 2506.09199).

Choose it where devices differ in rank, and rounds are few and long. A fresh adapter has B = 0, so A does not move at
first and short rounds are spent on leaving zero: with many short rounds `florist`, which has a warm start, learns
faster.

Two departures from the authors' code: all devices of a round start from the same fresh A, drawn from the round's
number, so it need not be sent; and the weight p_k stands on A alone, with the LoRA scale folded in.
"""

import numpy as np

from covey_server.lowrank import align, compress, stack
from covey_server.strategies.base import Strategy
from covey_server.strategies.space import Gathered, Space, gather, product
from covey_shared.factors import rest
from covey_shared.layout import Vector
from covey_shared.messages import Sharing


def flora(space: Space, energy: float) -> Strategy:
    """The strategy; `energy` in (0, 1] is the share that recompression keeps, as far as the second rank suffices."""
    sharing = Sharing(fresh=("kind:lora_A", "kind:lora_B"), second=True, ranks=space.ranks)
    modules, seconds = space.modules("flora"), space.seconds("flora")
    others = np.flatnonzero(rest(space.layout))

    def finish(round_: Gathered) -> Vector:
        mean, new = round_.mean, round_.start.copy()
        for pair in modules:
            second = seconds[pair.module]
            held = product(second, round_.start)
            trained = [product(pair, device.trained(round_.start)) for device in round_.returned]
            whole = stack([held, *trained], [1.0, *round_.shares])
            best = align(compress(whole, second.rank, energy), held.a)
            second.put(new, best.a, best.b)
        new[others] += mean[others]  # heads and norms have no factors: their mean
        return new - round_.start

    return Strategy("flora", Gathered, gather, finish, weigh=float, sharing=sharing, whole=True)
