"""Groups of like devices, found from their updates (clustered FL, Sattler et al. 2019, arXiv 1910.01991). Pure.

Two devices are alike where their changes point the same way: the cosine of the angle between them. The first centres
are spread apart (each the one least like those before), then devices and centres settle as in spherical k-means.

Groups that flicker help nobody, so a device moves only where another centre is nearer by `margin`, and a group below
`smallest` is given up, its devices going to the next best. Group numbers are kept: a new centre takes the number of the
old one that it is most like. A device that is `pinned` stays where it is pinned, and still counts for its centre.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
ROUNDS = 20  # of settling; in practice a handful do
NOWHERE = -2.0  # below every cosine: the likeness to a group that nobody is in


class Cohorts(NamedTuple):
    """Who is where: device name to group 0..count - 1, and the groups' centres, unit vectors float64 [count, n].

    A group that nobody is in has the centre 0.
    """

    member: dict[str, int]
    centres: Matrix


def cluster(
    names: Sequence[str],
    changes: Matrix,
    count: int,
    before: Cohorts | None = None,
    *,
    margin: float = 0.05,
    smallest: int = 2,
    pinned: Mapping[str, int] | None = None,
) -> Cohorts:
    """Groups of the devices `names`, whose changes are the rows of float64 [K, n].

    `before` gives the numbers and the hysteresis. The order of devices does not matter where no two are the same.
    """
    order = np.argsort(np.asarray(names), kind="stable")
    ordered, unit = [names[i] for i in order], _units(changes[order])
    fixed = {name: group for name, group in (pinned or {}).items() if name in ordered}
    centres = _centres(unit, count) if before is None else _filled(before.centres, unit, count)
    held = np.array([(before.member if before else {}).get(name, -1) for name in ordered])
    member = np.zeros(len(ordered), np.int64)
    for _ in range(ROUNDS):
        member = _assign(unit, centres, held, margin, ordered, fixed)
        moved = _means(unit, member, count)
        if np.allclose(moved, centres):
            break
        centres = moved
    member = _dissolved(unit, member, count, smallest, ordered, fixed)
    member, centres = _numbered(member, _means(unit, member, count), before, fixed)
    kept = dict(before.member) if before else {}
    return Cohorts({**kept, **{name: int(g) for name, g in zip(ordered, member, strict=True)}}, centres)


def similarity(changes: Matrix) -> Matrix:
    """The cosines between all pairs of rows, float64 [K, K]; 0 with a row of zeros."""
    unit = _units(changes)
    out: Matrix = unit @ unit.T
    return out


def _units(rows: Matrix) -> Matrix:
    sizes = np.linalg.norm(rows, axis=1, keepdims=True)
    out: Matrix = np.divide(rows, sizes, out=np.zeros_like(rows, dtype=np.float64), where=sizes > 0)
    return out


def _centres(unit: Matrix, count: int) -> Matrix:
    """The row most like the mean, then each time the row least like all centres so far."""
    chosen = [int(np.argmax(unit @ unit.sum(axis=0)))]
    if count > 1:  # the mean's neighbour would be the middle of nowhere: begin at one end instead
        chosen = [int(np.argmin(unit @ unit[chosen[0]]))]
    while len(chosen) < min(count, len(unit)):
        chosen.append(int(np.argmin((unit @ unit[chosen].T).max(axis=1))))
    out = np.zeros((count, unit.shape[1]))
    out[: len(chosen)] = unit[chosen]
    return out


def _filled(centres: Matrix, unit: Matrix, count: int) -> Matrix:
    """The old centres, an empty one replaced by the device that is least like all others."""
    out = np.zeros((count, unit.shape[1]))
    out[: len(centres)] = centres[:count]
    for empty in np.flatnonzero(~out.any(axis=1)):
        out[empty] = unit[int(np.argmin((unit @ out[out.any(axis=1)].T).max(axis=1, initial=NOWHERE)))]
    return out


def _assign(
    unit: Matrix, centres: Matrix, held: NDArray[np.int64], margin: float, names: list[str], fixed: Mapping[str, int]
) -> NDArray[np.int64]:
    """The nearest centre, or the one held where that is not worse by more than `margin`."""
    cosines = np.where(centres.any(axis=1), unit @ centres.T, NOWHERE)
    best = cosines.argmax(axis=1)
    at_hand = cosines[np.arange(len(unit)), np.maximum(held, 0)]
    stay = (held >= 0) & (cosines.max(axis=1) - at_hand <= margin)
    out = np.where(stay, held, best)
    return np.array([fixed.get(name, int(g)) for name, g in zip(names, out, strict=True)], np.int64)


def _means(unit: Matrix, member: NDArray[np.int64], count: int) -> Matrix:
    return _units(np.stack([unit[member == g].sum(axis=0) for g in range(count)]))


def _dissolved(
    unit: Matrix, member: NDArray[np.int64], count: int, smallest: int, names: list[str], fixed: Mapping[str, int]
) -> NDArray[np.int64]:
    """Without groups below `smallest`, the smallest first; pinned devices stay, and so may a small group of them."""
    while True:
        sizes = np.bincount(member, minlength=count)
        small = [g for g in range(count) if 0 < sizes[g] < smallest and not _all_pinned(g, member, names, fixed)]
        if not small or np.count_nonzero(sizes) == 1:
            return member
        gone = min(small, key=lambda g: int(sizes[g]))
        centres = _means(unit, member, count)
        centres[gone] = 0
        free = np.array([name not in fixed for name in names]) & (member == gone)
        member = np.where(free, _assign(unit, centres, np.full(len(unit), -1), 0.0, names, fixed), member)


def _all_pinned(group: int, member: NDArray[np.int64], names: list[str], fixed: Mapping[str, int]) -> bool:
    return all(name in fixed for name, g in zip(names, member, strict=True) if g == group)


def _numbered(
    member: NDArray[np.int64], centres: Matrix, before: Cohorts | None, fixed: Mapping[str, int]
) -> tuple[NDArray[np.int64], Matrix]:
    """Numbers as before where the centres are alike: the most alike pair first. Pins fix their numbers."""
    if before is None or fixed:
        return member, centres
    cosines = centres @ before.centres[: len(centres)].T
    number: dict[int, int] = {}
    for flat in np.argsort(-cosines, axis=None, kind="stable"):
        new, old = divmod(int(flat), cosines.shape[1])
        if new not in number and old not in number.values():
            number[new] = old
    order = np.array([number[g] for g in range(len(centres))])
    renamed = np.zeros_like(centres)
    renamed[order] = centres
    return order[member], renamed
