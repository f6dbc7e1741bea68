"""LoRA-FAIR (Bian, Wang, Zhang, Xu 2025, arXiv 2411.14961): the mean of the factors, with B corrected towards the mean
product.

With A' and B' the mean factors and W the mean of the products B_k A_k, B' + D is sent in place of B', where D makes
(B' + D) A' near to W. The authors find D by gradient descent on a cosine; a ridge in the Frobenius norm has a closed
form, which is cheaper and gives the same bits every time:

    D = (W - B' A') A'^T (A' A'^T + ridge I)^-1

and W - B' A' = sum p_k dB_k dA_k - dB' dA' in terms of what devices changed. The traffic is that of `fedavg` and the
start is warm; what lies outside the span of A' is lost, where `fedex` keeps it. All devices have one rank.
"""

import numpy as np

from covey_server.lowrank import Product
from covey_server.strategies.base import Strategy
from covey_server.strategies.space import Gathered, Space, gather
from covey_shared.factors import Matrix
from covey_shared.layout import Vector


def lora_fair(space: Space, ridge: float) -> Strategy:
    """The strategy; `ridge` keeps the correction small, as a share of the mean squared norm of the rows of A'."""
    modules = space.modules("lora-fair")

    def finish(round_: Gathered) -> Vector:
        mean = round_.mean
        new = round_.start + mean
        changes = [device.entries.dense() for device in round_.returned]
        for pair in modules:
            a, b = pair.of(new)
            missed = [Product(*pair.of(change)) for change in (*changes, mean)]
            pair.put(new, a, b + correction(a, missed, [*round_.shares, -1.0], ridge))
        return new - round_.start

    return Strategy("lora-fair", Gathered, gather, finish, weigh=float, whole=True)


def correction(a: Matrix, missed: list[Product], weights: list[float], ridge: float) -> Matrix:
    """The D, float64 [m, r], that minimises |sum of weighted products - D a|^2 + ridge * mean(|row of a|^2) |D|^2."""
    gram = a @ a.T
    onto_a = sum((w * p.b @ (p.a @ a.T) for w, p in zip(weights, missed, strict=True)), np.zeros((1, 1)))
    damped = gram + ridge * max(np.trace(gram) / len(a), np.finfo(np.float64).tiny) * np.eye(len(a))
    solved: Matrix = np.linalg.solve(damped, onto_a.T).T
    return solved
