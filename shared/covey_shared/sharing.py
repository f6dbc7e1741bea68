"""Which entries of an adapter travel: the layouts of what is published, uploaded, trained and kept. Pure.

Every tensor of the adapter has one label. `shared` tensors travel both ways and are aggregated. `personal` ones are
trained on the device and never leave it. `fixed` ones keep the start that the seed gives them. `fresh` ones start anew
each round, so only their change travels, upwards. `cohort` ones are shared among like devices: there is a copy for each
cohort, and a device downloads and sends that of its own.

Labels are patterns on names, so a personalisation policy is data: FedSA-LoRA is personal = ("kind:lora_B",), FedPer
("kind:head",), FFA-LoRA fixed = ("kind:lora_A",).

All vectors are parts of one *space*: the adapter at the task's largest rank, the cohorts' copies (`cohort0.` and so on
before the names), and the second adapter (`second.`). `space.positions(layout)` says which part. A task whose largest
rank is below the bundle's has nothing of the other factors: they are zeros on every device, and never travel.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from covey_shared.errors import LayoutError
from covey_shared.layout import Layout, Tensor, Vector
from covey_shared.messages import Sharing
from covey_shared.prng import derive

SECOND = "second."
SHARED, PERSONAL, FIXED, FRESH, COHORT = "shared", "personal", "fixed", "fresh", "cohort"


def matches(tensor: Tensor, patterns: Iterable[str]) -> bool:
    """Whether one of the patterns names the tensor: a shell pattern of its name, or `kind:` and its kind.

    >>> tensor = Tensor(name="h.0.q.lora_B.weight", shape=(2,), kind="lora_B", init="zeros")
    >>> [matches(tensor, [p]) for p in ("kind:lora_B", "h.0.*", "*.lora_B.*", "h.1.*")]
    [True, True, True, False]
    """
    return any(
        tensor.kind == pattern[5:] if pattern.startswith("kind:") else fnmatchcase(tensor.name, pattern)
        for pattern in patterns
    )


@dataclass(frozen=True)
class Division:
    """A bundle's adapter (at its largest rank) and its second adapter, divided as a task says.

    Raises LayoutError where a pattern matches nothing, two labels meet in a tensor, or nothing would be shared.
    """

    adapter: Layout
    second: Layout | None
    sharing: Sharing

    def __post_init__(self) -> None:
        sharing, tensors = self.sharing, self.adapter.tensors
        phased = (pattern for phase in sharing.phases for pattern in phase)
        for pattern in (*sharing.personal, *sharing.fixed, *sharing.cohort, *phased):
            if not any(matches(t, [pattern]) for t in tensors) and not pattern.startswith("kind:"):
                raise LayoutError(f"the pattern {pattern!r} matches no tensor of the adapter")
        if sharing.personal and not any(matches(t, sharing.personal) for t in tensors):
            raise LayoutError(f"nothing of the adapter is personal: {', '.join(sharing.personal)} matches no tensor")
        if sharing.cohort and not any(matches(t, sharing.cohort) for t in tensors):
            raise LayoutError(f"cohorts would share nothing: {', '.join(sharing.cohort)} matches no tensor")
        for tensor in tensors:
            labels = [label for label, patterns in self._labelled() if matches(tensor, patterns)]
            if len(labels) > 1:
                raise LayoutError(f"the tensor {tensor.name!r} is {' and '.join(labels)}; it can be one of these")
        if not any(self.label(t) not in (PERSONAL, FIXED) for t in tensors):
            raise LayoutError("every tensor would be personal or fixed, so nothing would be learned together")
        if sharing.fusion and sharing.personal:
            raise LayoutError("devices that fuse two adapters keep a whole one to themselves, so no tensors besides")
        if (sharing.second or sharing.fusion == "concatenated") and self.second is None:
            raise LayoutError("the bundle takes no second adapter: export it with --frozen-rank")

    def _labelled(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        sharing = self.sharing
        return (PERSONAL, sharing.personal), (FIXED, sharing.fixed), (FRESH, sharing.fresh), (COHORT, sharing.cohort)

    def label(self, tensor: Tensor) -> str:
        """One of shared, personal, fixed, fresh, cohort."""
        return next((label for label, patterns in self._labelled() if matches(tensor, patterns)), SHARED)

    def described(self) -> dict[str, list[str]]:
        """The names of the tensors under each label that occurs, for people."""
        out: dict[str, list[str]] = {}
        for tensor in self.adapter.tensors:
            out.setdefault(self.label(tensor), []).append(tensor.name)
        return out

    @cached_property
    def top(self) -> Layout:
        """The adapter at the task's largest rank: what the task has of it."""
        return self.adapter.at_rank(max(self.sharing.ranks)) if self.sharing.ranks else self.adapter

    @cached_property
    def space(self) -> Layout:
        """Everything: the adapter, then the cohorts' copies, then the second adapter."""
        beside = self.second.tensors if self.second and self.sharing.second else ()
        copied = [t for t in self.top.tensors if self.label(t) == COHORT]
        copies = (_named(f"{COHORT}{c}.", t) for c in range(self.sharing.cohorts) for t in copied)
        return Layout((*self.top.tensors, *copies, *(_named(SECOND, t) for t in beside)))

    @cached_property
    def published(self) -> Layout:
        """What the server publishes: shared tensors, the cohorts' copies and the second adapter."""
        own, count = self.space.tensors, len(self.top.tensors)
        return Layout((*(t for t in own[:count] if self.label(t) == SHARED), *own[count:]))

    @cached_property
    def common(self) -> Layout | None:
        """Of what is published, what all devices download: all without cohorts, None where they have all."""
        copies = {t.name for cohort in range(self.sharing.cohorts) for t in self.copy(cohort).tensors}
        tensors = tuple(t for t in self.published.tensors if t.name not in copies)
        return Layout(tensors) if tensors else None

    def copy(self, cohort: int) -> Layout:
        """The copies of one cohort."""
        return Layout(tuple(_named(f"{COHORT}{cohort}.", t) for t in self.top.tensors if self.label(t) == COHORT))

    def downloads(self, cohort: int) -> tuple[tuple[Layout, int | None], ...]:
        """What a device of this cohort downloads, one after the other: layouts, with the cohort where it is a copy."""
        common: list[tuple[Layout, int | None]] = [(self.common, None)] if self.common else []
        return (*common, (self.copy(cohort), cohort)) if self.sharing.cohorts else tuple(common)

    def downloaded(self, cohort: int) -> Layout:
        """What a device of this cohort holds of a version: what all have, then its cohort's copies."""
        return Layout(tuple(t for layout, _ in self.downloads(cohort) for t in layout.tensors))

    def spread(self, adapter: Vector, downloaded: Vector, cohort: int) -> Vector:
        """What a device holds as a whole published vector, float32; other cohorts' copies are at their start."""
        if not self.sharing.cohorts:
            return downloaded
        out = self.start(adapter)
        out[self.published.positions(self.downloaded(cohort))] = downloaded
        return out

    @cached_property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that devices may have, ascending."""
        return self.sharing.ranks or (self.adapter.rank,)

    @property
    def mixed(self) -> bool:
        """Whether devices may differ in rank."""
        return len(self.ranks) > 1

    def held(self, rank: int = 0) -> Layout:
        """The adapter of a device of this rank; 0 is the largest."""
        return self.top.at_rank(rank) if rank and self.adapter.rank else self.top

    def trained(self, round_: int, rank: int = 0) -> Layout:
        """What such a device trains in a round: the phase's tensors and its personal ones."""
        return Layout(tuple(t for t in self.held(rank).tensors if self._moves(t, round_)))

    def uploaded(self, round_: int, rank: int = 0) -> Layout:
        """What such a device sends of a round's change: what it trained but for personal tensors."""
        return Layout(tuple(t for t in self.trained(round_, rank).tensors if self.label(t) != PERSONAL))

    def personal(self, rank: int = 0) -> Layout | None:
        """What such a device keeps to itself; None where that is nothing."""
        tensors = tuple(t for t in self.held(rank).tensors if self.label(t) == PERSONAL)
        return Layout(tensors) if tensors else None

    @property
    def keeps(self) -> bool:
        """Whether devices have a model of their own besides the one that all get."""
        return bool(self.sharing.personal or self.sharing.fusion)

    def _moves(self, tensor: Tensor, round_: int) -> bool:
        phases = self.sharing.phases
        if self.label(tensor) == PERSONAL:
            return True
        here = not phases or matches(tensor, phases[(round_ - 1) % len(phases)])
        return here and self.label(tensor) != FIXED

    def uploads(self) -> dict[str, Layout]:
        """Every layout that an update may have, by digest."""
        rounds = range(1, max(1, len(self.sharing.phases)) + 1)
        layouts = (self.uploaded(round_, rank) for round_ in rounds for rank in self.ranks)
        return {layout.digest: layout for layout in layouts}

    def placed(self, layout: Layout, cohort: int) -> NDArray[np.int64]:
        """Where the entries of an uploaded layout stand in the space: those of a cohort in its copy."""
        renamed = (_named(f"{COHORT}{cohort}.", t) if self.label(t) == COHORT else t for t in layout.tensors)
        return self.space.positions(Layout(tuple(renamed)))

    def start(self, adapter: Vector) -> Vector:
        """Version 0 of what is published, from the whole adapter's start; the second adapter begins as zeros."""
        return self._all(adapter)[self.space.positions(self.published)]

    def at(self, adapter: Vector, published: Vector, cohort: int = 0, fresh: Vector | None = None) -> Vector:
        """The whole space, float32: a version of what is published laid over the whole adapter's start.

        Of the cohorts' copies that of `cohort` stands in the adapter. `fresh` is the start of the tensors that begin
        anew in the round; without it they are as at the start, where B is zero, so they do nothing.
        """
        out = self._all(adapter)
        out[self.space.positions(self.published)] = published
        for tensor, where in self.top.slices():
            if self.label(tensor) == FRESH and fresh is not None:
                out[where] = fresh[self._kept][where]
            elif self.label(tensor) == COHORT:
                out[where] = out[self.placed(Layout((tensor,)), cohort)]
        return out

    def _all(self, adapter: Vector) -> Vector:
        """The start of everything, from the adapter's."""
        out = np.zeros(self.space.size, np.float32)
        out[: self.top.size] = top = adapter[self._kept]
        for cohort in range(self.sharing.cohorts):
            for tensor, where in self.top.slices():
                if self.label(tensor) == COHORT:
                    out[self.placed(Layout((tensor,)), cohort)] = top[where]
        return out

    @cached_property
    def _kept(self) -> NDArray[np.int64] | slice:
        """Which entries of the bundle's adapter the task has."""
        return slice(None) if self.top is self.adapter else self.adapter.positions(self.top)

    def second_at(self, space: Vector) -> Vector | None:
        """The second adapter's part of a whole space; None where the task has none."""
        return space[-self.second.size :] if self.second and self.sharing.second else None


def _named(prefix: str, tensor: Tensor) -> Tensor:
    return replace(tensor, name=prefix + tensor.name)


def fresh_seed(seed: int, round_: int) -> int:
    """The seed of the tensors that start anew in a round: the same for all its devices, so nobody need send it."""
    return derive(seed, "fresh", round_)
