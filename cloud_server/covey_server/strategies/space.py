"""Where a strategy for LoRA finds its factors: in the vector [adapter | second adapter] that devices train from.

The second adapter is added on the devices and not trained; only some strategies have one. It has a pair of factors for
each module of the first, of a rank of its own, and scale 1.

Where devices differ in rank, an update has an entry for each coordinate that its device has: what is absent the device
does not have, and what it merely did not send is there as zero.
"""

from typing import NamedTuple

import numpy as np

from covey_server.lowrank import Product
from covey_shared.entries import Entries
from covey_shared.errors import TaskFileError
from covey_shared.factors import Pair, pairs
from covey_shared.layout import Layout, Vector


class Space(NamedTuple):
    """The layout of the adapter at its largest rank, that of the second adapter, and the ranks of devices."""

    layout: Layout
    second: Layout | None = None
    ranks: tuple[int, ...] = ()

    @property
    def mixed(self) -> bool:
        """Whether devices may differ in rank."""
        return len(self.ranks) > 1

    @property
    def alone(self) -> "Space":
        """The same without a second adapter, for a strategy that has no use for one."""
        return self._replace(second=None)

    @property
    def size(self) -> int:
        """Length of the whole vector."""
        return self.layout.size + (self.second.size if self.second else 0)

    def modules(self, strategy: str) -> tuple[Pair, ...]:
        """The adapter's pairs of factors; refuses an adapter without any."""
        found = pairs(self.layout)
        if not found:
            raise TaskFileError(f"strategy {strategy!r} is about LoRA, of which the bundle has none; use 'fedavg'")
        return found

    def seconds(self, strategy: str) -> dict[str, Pair]:
        """The second adapter's pairs by module, placed in the whole vector; refuses a bundle without them."""
        first = self.modules(strategy)
        found = {pair.module: pair for pair in (pairs(self.second) if self.second else ())}
        if found.keys() != {pair.module for pair in first}:
            raise TaskFileError(
                f"strategy {strategy!r} needs a second adapter on every module; export the bundle with --frozen-rank"
            )
        return {module: _moved(pair, self.layout.size) for module, pair in found.items()}


class Returned(NamedTuple):
    """One device's part of a round: its weight, and what it changed."""

    weight: float
    entries: Entries

    def trained(self, start: Vector) -> Vector:
        """What the device ended with."""
        return start + self.entries.dense()

    def given(self, start: Vector) -> Vector:
        """What the device began with: the start where it has coordinates, zeros elsewhere."""
        out = np.zeros_like(start)
        out[self.entries.where] = start[self.entries.where]
        return out


class Gathered(NamedTuple):
    """A fold that keeps every update of the round: `start` is the whole vector that devices trained from."""

    start: Vector
    returned: tuple[Returned, ...] = ()

    @property
    def shares(self) -> list[float]:
        """Each device's share p_k of the round; they add up to 1."""
        total = sum(device.weight for device in self.returned)
        return [device.weight / total for device in self.returned]

    @property
    def mean(self) -> Vector:
        """The weighted mean change, float32 [n]."""
        total = np.zeros(len(self.start), np.float64)
        for share, device in zip(self.shares, self.returned, strict=True):
            total[device.entries.where] += share * device.entries.values
        return total.astype(np.float32)


def gather(gathered: Gathered, entries: Entries, weight: float) -> Gathered:
    """The fold's step: memory grows with the number of devices."""
    return gathered._replace(returned=(*gathered.returned, Returned(weight, entries)))


def product(pair: Pair, vector: Vector) -> Product:
    """A module's factors in a vector, with its scale on A."""
    a, b = pair.of(vector)
    return Product(pair.scale * a, b)


def _moved(pair: Pair, by: int) -> Pair:
    a, b = (slice(where.start + by, where.stop + by) for where in (pair.a, pair.b))
    return pair._replace(a=a, b=b)
