"""One scale a tensor, or a long row of one: the mean magnitude of its entries, as bfloat16.

Two bytes a scale, and the exponents of float32: float16 would underflow for updates of 1e-6. The mean magnitude is
the scale with which a sign loses least.
"""

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from covey_shared.entries import Entries
from covey_shared.layout import Layout, Vector


def groups(layout: Layout, rows: int) -> NDArray[np.int64]:
    """Where each group of entries with a scale of its own begins, int64 [groups].

    A group is a tensor. With `rows` above 0 it is a row where a tensor's rows have at least so many entries; a row is
    everything that has one index of the first dimension.
    """
    starts = []
    for offset, tensor in zip(layout.offsets, layout.tensors, strict=True):
        width = tensor.size // tensor.shape[0] if len(tensor.shape) > 1 else 0
        step = width if 0 < rows <= width else tensor.size
        starts.append(np.arange(offset, offset + tensor.size, step, dtype=np.int64))
    return np.concatenate(starts)


def lengths_in(entries: Entries, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many of the entries lie in each group, int64 [groups]."""
    edges = np.append(starts, entries.size)
    if isinstance(entries.where, slice):
        reached = np.clip(edges, entries.where.start, entries.where.stop)
    else:
        reached = np.searchsorted(entries.where, edges.astype(np.uint32))
    lengths: NDArray[np.int64] = np.diff(reached)
    return lengths


def fill_zero_groups(entries: Entries, starts: NDArray[np.int64]) -> Entries:
    """Ones where a group is all zeros. Its scale is 0, so it decodes to zeros all the same.

    As zeros they would pull down the mean magnitude that all signs of their frame share.
    """
    lengths = lengths_in(entries, starts)
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
