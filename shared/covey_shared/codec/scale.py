"""One scale a tensor: the mean magnitude of its entries, as bfloat16.

Two bytes a tensor, and the exponents of float32: float16 would underflow for updates of 1e-6. The mean magnitude is
the scale with which a sign loses least.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from covey_shared.entries import Entries
from covey_shared.layout import Layout, Vector


def lengths_in(entries: Entries, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of the entries lie in each tensor, int64 [tensors]."""
    edges = np.append(starts, entries.size)
    if isinstance(entries.where, slice):
        reached = np.clip(edges, entries.where.start, entries.where.stop)
    else:
        reached = np.searchsorted(entries.where, edges.astype(np.uint32))
    lengths: NDArray[np.int64] = np.diff(reached)
    return lengths


def fill_zero_tensors(entries: Entries, layout: Layout) -> Entries:
    """Ones where a tensor is all zeros. Its scale is 0, so it decodes to zeros all the same.

    As zeros they would pull down the mean magnitude that all signs of their frame share.
    """
    lengths = lengths_in(entries, np.array(layout.offsets, np.int64))
    empty = means(entries.values, lengths) == 0
    if not lengths[empty].any():
        return entries
    return replace(entries, values=np.where(np.repeat(empty, lengths), np.float32(1), entries.values))


def means(values: Vector, lengths: NDArray[np.int64]) -> Vector:
    """The mean magnitude of each of the consecutive groups of values, 0 for an empty one."""
    ends = np.cumsum(lengths)
    present = np.flatnonzero(lengths)
    out = np.zeros(len(lengths), np.float32)
    if len(present):
        sums = np.add.reduceat(np.abs(values), (ends - lengths)[present], dtype=np.float64)
        out[present] = sums / lengths[present]
    return out


def to_bfloat16(x: Vector) -> NDArray[np.uint16]:
    """The upper half of each float32 >= 0, rounded to nearest; what is not zero stays so, and finite."""
    bits = x.view(np.uint32).astype(np.int64)
    rounded: NDArray[np.int64] = np.clip((bits + 0x8000) >> 16, (bits > 0).astype(np.int64), 0x7F7F)
    return rounded.astype(np.uint16)


def from_bfloat16(bits: NDArray[np.uint16]) -> Vector:
    """What the bits stand for, float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
