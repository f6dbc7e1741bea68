"""The stages that a spec can name: a closed table, which is part of the protocol.

Each entry is a function that takes the layout, what reaches the stage, and the spec with its arguments.
A stage with arguments that it does not know, or values that it cannot use, is refused before anything is encoded.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from covey_shared.codec import affine, levels, scale, selection, spk1, values
from covey_shared.codec.arguments import arguments, filter_stage, nearest, no_state, number, whole
from covey_shared.codec.chain import Codec, Reach, Stage, State, chain
from covey_shared.codec.topk import topk
from covey_shared.entries import Entries
from covey_shared.errors import CodecError, LayoutError, PayloadError
from covey_shared.layout import Layout, Vector
from covey_shared.messages import StageSpec
from covey_shared.prng import draws

LONGEST_ROW = 2**31 - 1  # what `rows` may ask for; more than any tensor's has
LARGEST_MEAN = 2.0**90  # of a tensor's magnitudes; so no value times its scale overflows, whatever is lost on the way


def codec_from_spec(spec: Sequence[StageSpec], layout: Layout) -> Codec:
    """The codec that a task or a message names, for one layout. Raises CodecError that names the nearest known word.

    >>> from covey_shared.layout import Tensor
    >>> layout = Layout((Tensor(name="b", shape=(6,), kind="block", init="zeros"),))
    >>> spec = StageSpec(name="topk", args={"density": 0.5}), StageSpec(name="pack", args={"values": "f32"})
    >>> codec = codec_from_spec(spec, layout)
    >>> parts, state = codec.encode(np.array([1, -5, 0, 2, 0, 3], np.float32), codec.init(0))
    >>> codec.decode(parts).dense()
    array([ 0., -5.,  0.,  2.,  0.,  3.], dtype=float32)
    """
    stages: list[Stage] = []
    reach = Reach(layout.size, contiguous=True)
    for item in spec:
        if item.name not in STAGES:
            raise CodecError(f"unknown codec stage {item.name!r}{nearest(item.name, STAGES)}")
        stage = STAGES[item.name](layout, reach, item)
        stages.append(stage)
        reach = stage.leaves
    return chain(layout.size, *stages)


def _topk(layout: Layout, reach: Reach, spec: StageSpec) -> Stage:
    """`topk{density}`: the floor(density * entries) largest magnitudes, at least one, over all tensors together."""
    density = number(spec, arguments(spec, {"density": None})["density"], "density", 0, 1)

    def encode(entries: Entries, state: State) -> tuple[Entries, bytes, State]:
        keep = topk(entries.values, max(1, math.floor(entries.count * density)))
        return Entries(entries.size, _positions(entries.where, keep), entries.values[keep]), b"", state

    leaves = Reach(max(1, math.floor(reach.entries * density)), scaled=reach.scaled)
    return filter_stage(spec, leaves, encode)


def _importance(layout: Layout, reach: Reach, spec: StageSpec) -> Stage:
    """`importance{density}`: a top-k of how much each entry changes the model, by the norms of the other LoRA factor.

    The decoder need not know the norms. Until the codec was shown an adapter all entries count alike.
    """
    density = number(spec, arguments(spec, {"density": None})["density"], "density", 0, 1)
    try:
        factors = selection.norms_size(layout)
    except LayoutError as error:
        raise CodecError(f"the stage importance cannot weigh this adapter: {error}") from None

    def encode(entries: Entries, state: State) -> tuple[Entries, bytes, State]:
        if not isinstance(state, np.ndarray) or state.shape != (factors,):
            raise CodecError(f"the state of importance must be {factors} norms; make one with init")
        weights = selection.importance(layout, state)[entries.where] if state.any() else np.float32(1)
        keep = topk(_bounded(entries.values) * weights, max(1, math.floor(entries.count * density)))
        return Entries(entries.size, _positions(entries.where, keep), entries.values[keep]), b"", state

    leaves = Reach(max(1, math.floor(reach.entries * density)), scaled=reach.scaled)
    stage = filter_stage(spec, leaves, encode, init=lambda seed: np.zeros(factors, np.float32))
    return stage._replace(look=lambda adapter, state: selection.norms(layout, adapter))


def _adaptive(layout: Layout, reach: Reach, spec: StageSpec) -> Stage:
    """`adaptive{density}`: `topk` where a few entries carry the change, the next `segment` of like bytes where not.

    The kurtosis of the change decides, each time anew. Follow it with tensor_scale and pack{auto, error 0.65}, which
    takes signs for what is flat.
    """
    density = number(spec, arguments(spec, {"density": None})["density"], "density", 0, 1)
    n, count = layout.size, min(layout.size, selection.segments_for(density))
    top = max(1, math.floor(n * density))
    part = _segment(layout, reach, StageSpec(name="segment", args={"count": count}))

    def encode(entries: Entries, state: State) -> tuple[Entries, bytes, State]:
        if selection.kurtosis(entries.values) < selection.FLAT:
            return part.encode(entries, state)
        keep = topk(entries.values, top)
        return Entries(n, _positions(entries.where, keep), entries.values[keep]), b"", state

    def decode(entries: Entries | None, part_: bytes) -> Entries:
        assert entries is not None
        return entries if entries.count <= top else part.decode(entries, part_)

    return filter_stage(spec, Reach(max(top, part.leaves.entries)), encode, decode, init=part.init)


def _segment(layout: Layout, reach: Reach, spec: StageSpec) -> Stage:
    """`segment{count}`: one of `count` contiguous segments of the vector, the next one each time. No index bytes.

    The seed picks the first, so that the devices of a round send different ones.
    """
    count = whole(spec, arguments(spec, {"count": None})["count"], "count", 1, layout.size)
    if reach != Reach(layout.size, contiguous=True):
        raise CodecError("the stage segment cuts the whole vector: put it first, and once")
    n = layout.size

    def encode(entries: Entries, state: State) -> tuple[Entries, bytes, State]:
        if type(state) is not int or not 0 <= state < count:
            raise CodecError(f"the state of segment must be 0..{count - 1}, got {str(state)[:40]}; make one with init")
        where = slice(n * state // count, n * (state + 1) // count)
        return Entries(n, where, entries.values[where]), b"", (state + 1) % count

    def decode(entries: Entries | None, part: bytes) -> Entries:
        assert entries is not None
        first, last = _span(entries)
        segment = ((first + 1) * count - 1) // n  # the last one that begins at or before `first`
        if last >= n * (segment + 1) // count:
            raise PayloadError(f"entries {first:,} to {last:,} do not lie in one of the {count} segments")
        return entries

    leaves = Reach(-(-n // count), contiguous=True)
    return filter_stage(spec, leaves, encode, decode, init=lambda seed: int(draws(seed, 0, 1)[0] % np.uint64(count)))


def _tensor_scale(layout: Layout, reach: Reach, spec: StageSpec) -> Stage:
    """`tensor_scale{rows}`: divides each tensor's entries by the mean of their magnitudes, which part `scale` carries.

    With `rows` above 0 each row of at least so many entries has a scale of its own. An absent or all-zero group has
    scale 0 and decodes to zeros.
    """
    rows = whole(spec, arguments(spec, {"rows": 0})["rows"], "rows", 0, LONGEST_ROW)
    starts = scale.groups(layout, rows)
    count = len(starts)

    def encode(entries: Entries, state: State) -> tuple[Entries, bytes, State]:
        lengths = scale.lengths_in(entries, starts)
        magnitudes = scale.means(entries.values, lengths)
        if magnitudes.max() >= LARGEST_MEAN:
            at = int(starts[int(magnitudes.argmax())])
            worst = layout.tensors[bisect_right(layout.offsets, at) - 1].name
            raise CodecError(f"tensor {worst!r} has a mean magnitude of {magnitudes.max():.3g}, which is no update")
        scales = scale.to_bfloat16(magnitudes)
        divisor: Vector = np.where(scales > 0, scale.from_bfloat16(scales), np.float32(1)).astype(np.float32)
        per_entry: Vector = np.repeat(divisor, lengths)
        scaled: Vector = entries.values / per_entry
        return replace(entries, values=scaled), scales.astype("<u2").tobytes(), state

    def decode(entries: Entries | None, part: bytes) -> Entries:
        assert entries is not None
        if len(part) != 2 * count:
            raise PayloadError(f"part 'scale' has {len(part)} bytes, the layout's {count} scales need {2 * count}")
        scales = np.frombuffer(part, "<u2")
        if (scales >= 0x7F80).any():
            raise PayloadError("part 'scale' holds a scale that is negative or not finite")
        per_entry: Vector = np.repeat(scale.from_bfloat16(scales), scale.lengths_in(entries, starts))
        with np.errstate(over="ignore", under="ignore"):
            scaled = entries.values * per_entry
        if not np.isfinite(scaled).all():
            raise PayloadError("a value times its tensor's scale is not finite")
        return replace(entries, values=scaled)

    return Stage(spec, "scale", False, reach._replace(scaled=rows), 2 * count, no_state, encode, decode)


def _pack(layout: Layout, reach: Reach, spec: StageSpec) -> Stage:
    """`pack{values, error}`: the packed format SPK1, with values as f32, f16, lev, sign or auto.

    `error` is the relative L2 error that lev and auto may make.
    """
    given = arguments(spec, {"values": "auto", "error": 0.1})
    mode, error = str(given["values"]), number(spec, given["error"], "error", 1e-4, 1)
    if mode not in values.MODES:
        raise CodecError(f"stage pack: unknown values {mode!r}{nearest(mode, values.MODES)}")
    starts = None if reach.scaled is None else scale.groups(layout, reach.scaled)

    def encode(entries: Entries, state: State) -> tuple[Entries, bytes, State]:
        if starts is not None:
            entries = scale.fill_zero_groups(entries, starts)
        return entries, spk1.encode(entries, layout.short_id, mode, error), state

    def decode(entries: Entries | None, part: bytes) -> Entries:
        return spk1.decode(part, layout.size, layout.short_id, reach.entries)

    longest = spk1.max_bytes(reach.entries, layout.size, mode)
    return Stage(spec, "packed", True, reach, longest, no_state, encode, decode)


def _levels(layout: Layout, reach: Reach, spec: StageSpec) -> Stage:
    """`levels{error}`: LVL1, a few bits for every coordinate; `error` is its relative L2 error.

    For a Gaussian vector 0.5 takes 1.3 bits a coordinate, 0.3 takes 2.1, 0.1 takes 3.6.
    """
    error = number(spec, arguments(spec, {"error": None})["error"], "error", 1e-3, 0.95)
    if not reach.contiguous:
        raise CodecError("the stage levels takes whole vectors and segments; after topk use pack")

    def encode(entries: Entries, state: State) -> tuple[Entries, bytes, State]:
        return entries, levels.encode(entries, layout.short_id, error), state

    def decode(entries: Entries | None, part: bytes) -> Entries:
        return levels.decode(part, layout.size, layout.short_id, reach.entries)

    return Stage(spec, "packed", True, reach, levels.max_bytes(reach.entries), no_state, encode, decode)


def _affine(layout: Layout, reach: Reach, spec: StageSpec) -> Stage:
    """`affine{bits}`: AFF1, each output channel with a scale and an offset and 8, 4 or 2 bits an entry (FLoCoRA)."""
    bits = whole(spec, arguments(spec, {"bits": None})["bits"], "bits", 2, 8)
    if bits not in affine.BITS:
        raise CodecError(f"stage affine: bits must be 2, 4 or 8, got {bits}")
    if reach != Reach(layout.size, contiguous=True):
        raise CodecError("the stage affine takes the whole vector: let it stand alone")

    def encode(entries: Entries, state: State) -> tuple[Entries, bytes, State]:
        return entries, affine.encode(entries.values, layout, bits), state

    def decode(entries: Entries | None, part: bytes) -> Entries:
        return Entries(layout.size, slice(0, layout.size), affine.decode(part, layout, bits))

    return Stage(spec, "packed", True, reach, affine.max_bytes(layout, bits), no_state, encode, decode)


STAGES: dict[str, Callable[[Layout, Reach, StageSpec], Stage]] = {
    "topk": _topk,
    "importance": _importance,
    "adaptive": _adaptive,
    "segment": _segment,
    "tensor_scale": _tensor_scale,
    "pack": _pack,
    "levels": _levels,
    "affine": _affine,
}


def _bounded(values: Vector) -> Vector:
    """The values, made so small that a weight cannot make one overflow."""
    top = np.abs(values).max(initial=0)
    return values / top if top > 1 else values


def _positions(where: slice | NDArray[np.uint32], keep: NDArray[np.uint32]) -> NDArray[np.uint32]:
    return keep + np.uint32(where.start) if isinstance(where, slice) else where[keep]


def _span(entries: Entries) -> tuple[int, int]:
    """The first and the last index; 0, 0 where there are none."""
    if not entries.count:
        return 0, 0
    if isinstance(entries.where, slice):
        return entries.where.start, entries.where.stop - 1
    return int(entries.where[0]), int(entries.where[-1])
