"""A task made ready for its bundle: strategy, division, optimiser and codecs, everything that rounds need but files.

`covey serve` opens a run with it, and whoever tries a task out without a server (see `simulation`) has the very same.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from covey_server import task_sections
from covey_server.division import Divided, divide, space_of
from covey_server.optimizers import make_optimizer
from covey_server.recipe import Recipe
from covey_server.regroup import Grouping, grouping_of
from covey_server.sections import joined, sections_of
from covey_server.strategies import make_strategy
from covey_server.task_sections import Named, TaskFile
from covey_shared.bundle import Bundle
from covey_shared.codec import Codec, codec_from_spec, presets
from covey_shared.errors import CodecError, TaskFileError
from covey_shared.layout import Layout
from covey_shared.messages import Spec, StageSpec

PRESETS: dict[str, Callable[..., Spec]] = {
    "dense": presets.dense,
    "sign": presets.sign,
    "levels": presets.levels,
    "flasc": presets.flasc,
    "affine": presets.affine,
    "segments": presets.segments,
    "adaptive": presets.adaptive,
    "important": presets.important,
}


class Prepared(NamedTuple):
    """A task with its bundle. `grouping`: of strategy `cohorts`, else None."""

    task: TaskFile
    divided: Divided
    grouping: Grouping | None
    recipe: Recipe


def prepare(task: TaskFile, bundle: Bundle) -> Prepared:
    """Raises TaskFileError where the task does not fit the bundle."""
    rank = task.task.rank
    strategy = make_strategy(task.strategy.name, task.strategy.args, space_of(bundle.manifest, rank))
    tiers = {tier.name: spec_of(tier.codec) for tier in task.tiers}
    divided = divide(bundle, task.task.seed, strategy, task.personal, spec_of(task.upload), rank, tiers)
    grouping = grouping_of(task.strategy.args) if task.strategy.name == "cohorts" else None
    sections = sections_of(divided.division, partial(codec_of, "download", task.download))
    origin = divided.begin() if task.since == "start" else None
    optimizer = make_optimizer(task.server.name, task.server.args)
    return Prepared(task, divided, grouping, Recipe(strategy, optimizer, joined(sections), origin, sections))


def spec_of(codec: task_sections.Codec) -> Spec:
    """The stages that a task file names, presets spelled out."""
    if isinstance(codec, Named):
        return PRESETS[codec.name](**codec.args)
    return tuple(StageSpec(name=stage.name, args=stage.args) for stage in codec)


def codec_of(section: str, codec: task_sections.Codec, layout: Layout) -> Codec:
    """The codec of [upload] or [download], checked against the layout."""
    try:
        return codec_from_spec(spec_of(codec), layout)
    except CodecError as error:
        raise TaskFileError(f"[{section}] codec: {error}") from None
