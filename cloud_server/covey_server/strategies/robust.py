"""Trimmed mean, median (Yin et al. 2018, arXiv 1803.01498) and Krum (Blanchard et al. 2017) as strategies.

Choose one when some devices may be hostile and clipping is not enough. Each assumes that at most the share `attackers`
of a round's devices is; all weigh devices alike, since a stated number of examples can be a lie. Each keeps a round's
decoded updates in memory until it closes.

The coordinatewise two need a coordinate from more than twice as many devices as may be hostile, so they belong with
codecs that send all coordinates (sign, levels, dense) or many; see `covey_server.robust` for what absent means.
Krum compares whole updates and needs the same coordinates in all.
"""

import math
from collections.abc import Callable

import numpy as np

from covey_server import robust
from covey_server.strategies.base import Strategy, Sum, add_weighted, mean
from covey_server.strategies.space import Gathered, gather
from covey_shared.entries import Entries
from covey_shared.layout import Vector

Rule = Callable[[list[Entries], int], Vector]


def trimmed_mean(attackers: float) -> Strategy:
    """The mean of what is left when the largest and smallest values of each coordinate are gone."""
    return _strategy("trimmed-mean", attackers, robust.trimmed_mean)


def median(attackers: float) -> Strategy:
    """The middle value of each coordinate: stronger than the trimmed mean, and slower to learn from skewed devices."""
    return _strategy("median", attackers, robust.median)


def krum(attackers: float) -> Strategy:
    """The mean of the updates with the closest neighbours, all but the suspected ones (multi-Krum)."""

    def rule(updates: list[Entries], hostile: int) -> Vector:
        hostile = min(hostile, max(0, (len(updates) - 3) // 2))  # what Krum needs to outvote them
        chosen = robust.krum(updates, hostile, keep=len(updates) - hostile) if hostile else range(len(updates))
        total = Sum(np.zeros(updates[0].size, np.float64), 0.0)
        for i in sorted(chosen):
            total = add_weighted(total, updates[i], 1.0)
        return mean(total)

    return _strategy("krum", attackers, rule)


def hostile_of(devices: int, attackers: float) -> int:
    """How many of a round's devices may be hostile: the share, rounded up, but never more than can be outvoted."""
    return min(math.ceil(attackers * devices - 1e-9), (devices - 1) // 2)


def _strategy(name: str, attackers: float, rule: Rule) -> Strategy:
    def finish(round_: Gathered) -> Vector:
        updates = [device.entries for device in round_.returned]
        return rule(updates, hostile_of(len(updates), attackers))

    return Strategy(name, Gathered, gather, finish)
