"""What a task shares of its adapter, made ready for the server: codecs for every upload, and the way into the fold.

Strategies fold vectors of the whole *space* (see `covey_shared.sharing`). Devices send parts of it, each part with a
layout of its own, and download another part. This is where one becomes the other. Pure, but for the bundle's start.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from covey_server.policies import patterns_of
from covey_server.strategies import Space, Strategy
from covey_server.task_sections import PersonalSection
from covey_shared.bundle import Bundle
from covey_shared.codec import Codec, codec_from_spec
from covey_shared.entries import Entries
from covey_shared.errors import CodecError, LayoutError, TaskFileError
from covey_shared.layout import Layout, Vector
from covey_shared.manifest import Manifest
from covey_shared.messages import PLAIN, Spec
from covey_shared.sharing import PERSONAL, Division, fresh_seed


@dataclass(frozen=True, eq=False)
class Divided:
    """A task's division with what the server needs of it. `start` float32 [n] is the adapter's, from the seed.

    `uploads`: the codec of every layout that an update may have, by the layout's digest; `tiers` the same for each tier
    of devices that has a codec of its own, by its name.
    """

    division: Division
    bundle: Bundle
    seed: int
    start: Vector
    layouts: dict[str, Layout]
    uploads: dict[str, Codec]
    tiers: dict[str, dict[str, Codec]]
    _places: dict[tuple[str, int], NDArray[np.int64]] = field(default_factory=dict)
    _allowed: dict[int, set[str]] = field(default_factory=dict)

    @property
    def plain(self) -> bool:
        """Whether everything travels, so that all layouts are the adapter's."""
        return self.division.sharing == PLAIN

    @property
    def codecs(self) -> tuple[Spec, ...]:
        """Every codec that an update may have, the task's own first."""
        return tuple(next(iter(codecs.values())).spec for codecs in (self.uploads, *self.tiers.values()))

    def upload(self, layout: str, codec: Spec) -> Codec:
        """The codec of an update of this layout that was checked to have one of the task's codecs."""
        every = (codecs[layout] for codecs in (self.uploads, *self.tiers.values()))
        return next(found for found in every if found.spec == codec)

    @property
    def published(self) -> Layout:
        """What devices download."""
        return self.division.published

    def allowed(self, round_: int) -> set[str]:
        """The digests of the layouts that a round's updates may have."""
        phase = (round_ - 1) % max(1, len(self.division.sharing.phases))
        if phase not in self._allowed:
            self._allowed[phase] = {self.division.uploaded(round_, rank).digest for rank in self.division.ranks}
        return self._allowed[phase]

    def begin(self) -> Vector:
        """Version 0 of what is published."""
        return self.division.start(self.start)

    def whole(self, view: Vector, round_: int = 0) -> Vector:
        """The space that the devices of a round train from (0: with nothing begun anew), from the published version."""
        if self.plain:
            return view
        anew = bool(round_ and self.division.sharing.fresh)
        fresh = self.bundle.start(fresh_seed(self.seed, round_)) if anew else None
        return self.division.at(self.start, view, fresh=fresh)

    def model(self, view: Vector) -> tuple[Vector, Vector | None]:
        """(adapter of `division.top`, second adapter) that everybody gets: what is not shared is at its start."""
        space = self.whole(view)
        return space[: self.division.top.size], self.division.second_at(space)

    def lifted(self, entries: Entries, layout: str, cohort: int = 0) -> Entries:
        """An update of a layout as entries of the space, in ascending order.

        Where devices differ in rank or cohort all that a device has is there, with zeros for what it did not send.
        """
        if self.plain:
            return entries
        places = self._placed(layout, cohort)
        if self.division.mixed or self.division.sharing.cohorts:
            entries = Entries(entries.size, slice(0, entries.size), entries.dense())
        where, values = places[entries.where], entries.values
        if np.any(np.diff(where) < 0):
            order = np.argsort(where)
            where, values = where[order], values[order]
        return Entries(self.division.space.size, where.astype(np.uint32), values)

    def down(self, change: Vector) -> Vector:
        """Of a change of the space what is published."""
        return change if self.plain else change[self.division.space.positions(self.published)]

    def _placed(self, layout: str, cohort: int) -> NDArray[np.int64]:
        if (layout, cohort) not in self._places:
            self._places[layout, cohort] = self.division.placed(self.layouts[layout], cohort)
        return self._places[layout, cohort]


def space_of(manifest: Manifest, rank: int = 0) -> Space:
    """What a task of this largest rank (0: the bundle's) has of a bundle. Raises TaskFileError for one it lacks."""
    if rank not in (0, *manifest.ranks):
        have = ", ".join(map(str, manifest.ranks)) or "none"
        raise TaskFileError(
            f"[task] rank = {rank}: the bundle was exported with {have}; take one of these, or export it with --ranks"
        )
    ranks = manifest.ranks if len(manifest.ranks) > 1 else ()  # alone it says nothing, and modules may have their own
    if rank in (0, manifest.rank):
        return Space(manifest.layout, manifest.frozen, ranks)
    return Space(manifest.layout.at_rank(rank), manifest.frozen, tuple(r for r in ranks if r <= rank))


def divide(
    bundle: Bundle, seed: int, strategy: Strategy, personal: PersonalSection, upload: Spec, rank: int = 0,
    tiers: Mapping[str, Spec] = {},
) -> Divided:  # fmt: skip
    """The division that a strategy, a task's [personal] and its largest rank (0: the bundle's) ask for.

    Raises TaskFileError where they cannot be had.
    """
    manifest = bundle.manifest
    ranks = strategy.sharing.ranks or ((rank,) if rank not in (0, manifest.rank) else ())
    try:
        kept = patterns_of(personal.policy, manifest.layout, personal.blocks, personal.tensors)
        division = Division(manifest.layout, manifest.frozen, replace(strategy.sharing, personal=kept, ranks=ranks))
    except LayoutError as error:
        raise TaskFileError(f"[personal] or strategy {strategy.name!r}: {error}") from None
    torn = [t for t in manifest.layout.tensors if t.kind in ("lora_A", "lora_B") and division.label(t) == PERSONAL]
    if strategy.whole and torn:
        raise TaskFileError(
            f"strategy {strategy.name!r} needs both LoRA factors of every device, and {torn[0].name!r} is personal; "
            "use strategy 'fedavg', or a policy that keeps heads only"
        )
    layouts = division.uploads()
    uploads = _codecs("[upload]", upload, layouts)
    own = {name: _codecs(f"[[tier]] {name}", codec, layouts) for name, codec in tiers.items()}
    return Divided(division, bundle, seed, bundle.start(seed), layouts, uploads, own)


def _codecs(where: str, codec: Spec, layouts: Mapping[str, Layout]) -> dict[str, Codec]:
    """A codec for each layout; refuses one that some layout cannot have."""
    try:
        return {digest: codec_from_spec(codec, layout) for digest, layout in layouts.items()}
    except CodecError as error:
        raise TaskFileError(f"{where} codec: {error}") from None
