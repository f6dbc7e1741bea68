"""The LoRA factors inside an adapter vector: of each module A float64 [r, n] and B float64 [m, r].

A module's weight changes by scale * B @ A. A convolution's A of shape [r, in, k, k] is read as [r, in * k * k] and its
B of shape [m, r, 1, 1] as [m, r]: the product is the same. Rows of A and columns of B are the *factors* of the module.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from covey_shared.errors import LayoutError
from covey_shared.layout import Layout, Tensor, Vector

Matrix = NDArray[np.float64]


class Pair(NamedTuple):
    """One module's factors: where A and B lie in a vector, the rank, and the scale alpha / rank."""

    module: str
    a: slice
    b: slice
    rank: int
    scale: float

    def of(self, vector: Vector) -> tuple[Matrix, Matrix]:
        """A [r, n] and B [m, r], float64 copies."""
        a, b = vector[self.a].astype(np.float64), vector[self.b].astype(np.float64)
        return a.reshape(self.rank, -1), b.reshape(-1, self.rank)

    def put(self, vector: Vector, a: Matrix, b: Matrix) -> None:
        """Writes factors into a vector; of fewer than `rank` the rest become zeros."""
        whole_a = np.zeros((self.rank, (self.a.stop - self.a.start) // self.rank))
        whole_b = np.zeros(((self.b.stop - self.b.start) // self.rank, self.rank))
        whole_a[: len(a)], whole_b[:, : b.shape[1]] = a, b
        vector[self.a], vector[self.b] = whole_a.reshape(-1), whole_b.reshape(-1)


def pairs(layout: Layout) -> tuple[Pair, ...]:
    """The modules that have both factors, in the layout's order. Raises LayoutError where one factor lacks the other.

    >>> from covey_shared.layout import Tensor
    >>> a = Tensor(name="q.A", shape=(2, 5), kind="lora_A", init="zeros", module="q", rank=2, scale=4.0)
    >>> b = Tensor(name="q.B", shape=(3, 2), kind="lora_B", init="zeros", module="q", rank=2, scale=4.0)
    >>> pairs(Layout((a, b)))
    (Pair(module='q', a=slice(0, 10, None), b=slice(10, 16, None), rank=2, scale=4.0),)
    """
    found: dict[str, dict[str, tuple[Tensor, slice]]] = {}
    for tensor, where in layout.slices():
        if tensor.kind in ("lora_A", "lora_B"):
            found.setdefault(tensor.module, {})[tensor.kind] = (tensor, where)
    return tuple(_pair(module, halves) for module, halves in found.items())


def _pair(module: str, halves: dict[str, tuple[Tensor, slice]]) -> Pair:
    if len(halves) != 2:
        raise LayoutError(f"the module {module!r} has only {' and '.join(halves)}; both factors are needed here")
    (a, at), (b, bt) = halves["lora_A"], halves["lora_B"]
    if a.shape[0] != a.rank or b.shape[1] != a.rank or b.size != b.shape[0] * a.rank or a.rank != b.rank:
        raise LayoutError(f"the factors of {module!r} have shapes {a.shape} and {b.shape} at rank {a.rank}")
    return Pair(module, at, bt, a.rank, a.scale)


def rest(layout: Layout) -> NDArray[np.bool_]:
    """Which entries are no LoRA factor (heads, norms, blocks), bool [n]."""
    out = np.ones(layout.size, np.bool_)
    for pair in pairs(layout):
        out[pair.a] = out[pair.b] = False
    return out


def products(layout: Layout, vector: Vector) -> Iterator[tuple[Pair, Matrix]]:
    """Each module's whole change scale * B @ A, float64 [m, n]: for tests, since it takes the memory of the weight."""
    for pair in pairs(layout):
        a, b = pair.of(vector)
        yield pair, pair.scale * b @ a
