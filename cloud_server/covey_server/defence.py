"""What one device can do to a round: bounds on the size and on the weight of its update. Pure.

Norm clipping and a cap on shares cost nothing where nobody attacks and stop the attacks that are cheap to make; with
real fleets they are most of what is needed (Shejwalkar et al. 2022, arXiv 2108.10241).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from covey_server.task_sections import DefenceSection
from covey_shared.entries import Entries

Floats = NDArray[np.float64]


def guarded(
    defence: DefenceSection,
    updates: Callable[[], Iterable[Entries]],
    weights: Sequence[float],
    devices: Sequence[str],
    issuers: Sequence[str],
) -> Iterator[tuple[Entries, float]]:
    """The updates of a round, clipped, each with its bounded weight: what a strategy folds.

    `updates` is called twice when norms are needed, so that no more than one decoded update is held.
    """
    shares = capped(capped(weights, devices, defence.device_share), issuers, defence.issuer_share)
    factors = np.ones(len(shares))
    if defence.clip == "adaptive":
        factors = clip_factors([norm(u) for u in updates()], defence.quantile)
    for update, factor, share in zip(updates(), factors, shares, strict=True):
        yield scaled(update, factor), float(share)


def norm(entries: Entries) -> float:
    """The L2 norm of an update."""
    return float(np.sqrt(np.square(entries.values, dtype=np.float64).sum()))


def scaled(entries: Entries, factor: float) -> Entries:
    """An update times a number; by 1, the update itself."""
    if factor == 1.0:
        return entries
    return Entries(entries.size, entries.where, entries.values * np.float32(factor))


def clip_factors(norms: Sequence[float], quantile: float) -> Floats:
    """What each update is multiplied with, float64 [K] in (0, 1]: none keeps more than the round's quantile of norms.

    `norms` are L2 norms. The bound follows the devices, as in Andrew et al. 2021 (arXiv 1905.03871), but is taken from
    the round itself: nothing is private here, so the exact quantile is to be had, and a restart has no state to lose.
    The lower of two neighbouring norms is taken, so that an attacker's norm never enters by interpolation.
    """
    sizes = np.asarray(norms, np.float64)
    bound = np.quantile(sizes, quantile, method="lower") if len(sizes) else 0.0
    return np.divide(bound, sizes, out=np.ones_like(sizes), where=sizes > bound)


def capped(weights: Sequence[float] | Floats, groups: Sequence[str], cap: float) -> Floats:
    """Weights, float64 [K], lowered until no group has more than the share `cap` of their sum.

    Members of a group keep their proportions. Where so few groups came that not all can be below the cap, all groups
    get the same. A cap of 1 changes nothing.
    """
    out = np.asarray(weights, np.float64)
    names, member = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    totals = np.zeros(len(names))
    np.add.at(totals, member, out)
    lowered: Floats = out * (_level(totals, cap) / totals)[member]
    return lowered


def _level(totals: Floats, cap: float) -> Floats:
    """min(totals, level) for the highest level at which no total is above cap * sum.

    With the h largest at the level L and a rest r: L = cap * (h L + r), so L = cap r / (1 - h cap).
    """
    if cap * len(totals) <= 1:
        return np.full_like(totals, totals.min())
    order = np.sort(totals)[::-1]
    for high in range(len(order)):
        rest = order[high:].sum()
        level = cap * rest / (1 - high * cap) if high * cap < 1 else np.inf
        if order[high] <= level:
            return np.minimum(totals, level) if high else totals
    return np.full_like(totals, totals.min())
