"""Entries: some coordinates of a vector and their values, which is what a decoded update is."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from covey_shared.layout import Vector


@dataclass(frozen=True, slots=True, eq=False)
class Entries:
    """Values at coordinates of a vector of `size` entries; what is absent is not zero, it was not sent.

    `where` is a slice for a contiguous run, else uint32 [k] in strictly ascending order; `values` is float32 [k]. Both
    index a vector directly: `vector[entries.where] += entries.values`.
    """

    size: int
    where: slice | NDArray[np.uint32]
    values: Vector

    @property
    def count(self) -> int:
        """Number of entries present."""
        return len(self.values)

    def dense(self) -> Vector:
        """The whole vector, float32 [size], with zeros where nothing was sent."""
        out = np.zeros(self.size, np.float32)
        out[self.where] = self.values
        return out
