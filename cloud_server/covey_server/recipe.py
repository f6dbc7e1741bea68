"""One round's arithmetic: updates to mean change, mean change to weights, weights to the step that devices download.

Two vectors stand for the adapter. `w` is the server's, dense and exact. `view` is what every device holds, bit for
bit: the seeded start plus every published step. A step is coded lossily from w - view, so what the codec dropped stays
in that difference and is sent later: the server carries the error of its own broadcast. Where devices come by once in
many rounds, a task has every version coded from the seeded start instead, so that one step leads there from anywhere.
A strategy that publishes absolute weights codes w itself, added to zero.

Pure, apart from the vectors that a fold may reuse. What this does not know: rounds, files, devices.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from covey_server import optimizers
from covey_server.defence import scaled
from covey_server.optimizers import Optimizer
from covey_server.sections import Section
from covey_server.strategies import Strategy
from covey_shared.codec import Codec, dump_state, load_state
from covey_shared.entries import Entries
from covey_shared.layout import Vector
from covey_shared.messages import Step


class Recipe(NamedTuple):
    """What a task prescribes: how updates are averaged, how the server steps, how its steps are coded.

    `origin` float32 [n] is what each version is coded from, None for the version before. `sections` are the parts of a
    version that devices download apart.
    """

    strategy: Strategy
    optimizer: Optimizer
    codec: Codec
    origin: Vector | None = None
    sections: tuple[Section, ...] = ()

    def base(self, version: int) -> int:
        """The version that a version's step is added to; 0 is the seeded start, -1 the zero vector."""
        if self.strategy.absolute:
            return -1
        return max(version - 1, 0) if self.origin is None else 0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ServerState:
    """Everything that the next version depends on, float32 [n] vectors and plain data."""

    version: int
    w: Vector
    view: Vector
    optimizer: optimizers.State
    codec: Any
    cohorts: Any = None  # who is in which cohort, where the task has any: see regroup.py

    def to_bytes(self) -> bytes:
        """The form that is stored with a version, so that a restart goes on bit for bit."""
        return dump_state({name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def from_bytes(cls, data: bytes) -> "ServerState":
        """The inverse of `to_bytes`."""
        return cls(**load_state(data))


def first(recipe: Recipe, start: Vector, seed: int) -> tuple[ServerState, Step | None]:
    """Version 0: the seeded start, which needs no step, or what an absolute strategy sends of it."""
    n = len(start)
    state = ServerState(
        version=0, w=start, view=start, optimizer=recipe.optimizer.init(n), codec=recipe.codec.init(seed)
    )
    return _published(recipe, state) if recipe.strategy.absolute else (state, None)


def fold(strategy: Strategy, size: int, updates: Iterable[tuple[Entries, int]]) -> Vector:
    """The mean change of (entries, examples) in the order given, float32 [size], without defences."""
    start = np.zeros(size, np.float32)
    return fold_weighted(strategy, start, ((entries, strategy.weigh(examples)) for entries, examples in updates))


def fold_weighted(strategy: Strategy, start: Vector, updates: Iterable[tuple[Entries, float]]) -> Vector:
    """The mean change of (entries, weight) in the order given, float32 [n]; `start` is what devices trained from."""
    total = strategy.init(start)
    for entries, weight in updates:
        total = strategy.add(total, entries, weight)
    return strategy.finish(total)


def aged(entries: Entries, weight: float) -> Entries:
    """An update whose staleness weighs `weight`. Its share of the mean's divisor stays whole, as in FedBuff, which
    divides by the buffer's size: a version that is made of stale updates alone is a smaller step.
    """
    return scaled(entries, weight)


def staleness_weight(kind: str, power: float, factor: float, staleness: int) -> float:
    """What an update that is `staleness` versions old is multiplied with, 1 for a fresh one.

    `polynomial` is (1 + s)^-power (FedAsync, Xie et al. 2019, arXiv 1903.03934; FedBuff has power 1/2), `constant` is
    `factor` for whatever is stale, `none` treats all alike.
    """
    if kind == "none" or staleness <= 0:
        return 1.0
    return factor if kind == "constant" else float((1 + staleness) ** -power)


def advance(recipe: Recipe, state: ServerState, change: Vector) -> tuple[ServerState, Step]:
    """The next version, and the step that brings devices to it. Raises CodecError when the weights are not finite."""
    with np.errstate(over="ignore", invalid="ignore"):  # the codec refuses what is not finite
        optimizer, w = recipe.optimizer.step(state.optimizer, state.w, change)
    return _published(recipe, replace(state, version=state.version + 1, w=w, optimizer=optimizer))


def _published(recipe: Recipe, state: ServerState) -> tuple[ServerState, Step]:
    """The state with its view moved by what its step decodes to."""
    base = state.view if recipe.origin is None else recipe.origin
    base = np.zeros_like(state.w) if recipe.strategy.absolute else base
    parts, codec = recipe.codec.encode(state.w - base, state.codec)
    step = Step(version=state.version, codec=recipe.codec.spec, parts=parts)
    view = apply_step(base, recipe.codec, step)
    return replace(state, view=view, codec=codec), step


def apply_step(base: Vector, codec: Codec, step: Step) -> Vector:
    """The adapter after a step: `base` plus the decoded change, one float32 addition an entry. Devices do the same."""
    entries = codec.decode(step.parts)
    view = base.copy()
    view[entries.where] += entries.values
    return view


def whole(view: Vector, version: int, exact: Codec) -> Step | None:
    """A step from the zero vector to `view`, for devices that are far behind; None where it is not the same bits.

    -0.0 is the one value that 0 + x does not give back, and it can only come from a bundle's stored start.
    """
    parts, _ = exact.encode(view, exact.init(0))
    step = Step(version=version, codec=exact.spec, parts=parts)
    same = apply_step(np.zeros_like(view), exact, step).tobytes() == view.tobytes()
    return step if same else None
