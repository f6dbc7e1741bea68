"""FedEx-LoRA (Singhal, Ponkshe, Vepakomma 2025, arXiv 2410.09432): average the factors, and send what that misses.

Averaging A and B apart gives B' A', not the mean of the products B_k A_k. With B_k = B + dB_k and A_k = A + dA_k the
difference is sum p_k dB_k dA_k - dB' dA' (primes for means), a matrix of rank at most K r that needs no more than the
updates. The authors add it to the base's weights; here it goes into the second adapter, as factors, so a quantised base
stays as it is. While the second adapter's rank holds all differences so far, the model that devices get is exactly the
mean model; beyond that it is the nearest one, the rest is dropped.

Choose it over `fedavg` where devices move A and B far in a round. All devices have one rank.
"""

from covey_server.lowrank import align, compress, stack
from covey_server.strategies.base import Strategy
from covey_server.strategies.space import Gathered, Space, gather, product
from covey_shared.layout import Vector
from covey_shared.messages import Sharing


def fedex(space: Space) -> Strategy:
    """The strategy."""
    modules, seconds = space.modules("fedex"), space.seconds("fedex")

    def finish(round_: Gathered) -> Vector:
        mean = round_.mean
        new = round_.start + mean
        changes = [device.entries.dense() for device in round_.returned]
        for pair in modules:
            second = seconds[pair.module]
            held = product(second, round_.start)
            missed = [product(pair, change) for change in (*changes, mean)]
            whole = stack([held, *missed], [1.0, *round_.shares, -1.0])
            best = align(compress(whole, second.rank), held.a)
            second.put(new, best.a, best.b)
        return new - round_.start

    return Strategy("fedex", Gathered, gather, finish, weigh=float, sharing=Sharing(second=True), whole=True)
