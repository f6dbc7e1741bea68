"""The stages that a spec can name: a closed table, which is part of the protocol.

Each entry is a function that takes the layout, what reaches the stage, and the spec with its arguments.
A stage with arguments that it does not know, or values that it cannot use, is refused before anything is encoded.
"""

import difflib
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from covey_shared.codec import levels, scale, spk1, values
from covey_shared.codec.chain import Codec, Reach, Stage, State, chain
from covey_shared.codec.topk import topk
from covey_shared.entries import Entries
from covey_shared.errors import CodecError, PayloadError
from covey_shared.layout import Layout, Vector
from covey_shared.messages import Scalar, StageSpec
from covey_shared.prng import draws

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
            raise CodecError(f"unknown codec stage {item.name!r}{_nearest(item.name, STAGES)}")
        stage = STAGES[item.name](layout, reach, item)
        stages.append(stage)
        reach = stage.leaves
    return chain(layout.size, *stages)


def _topk(layout: Layout, reach: Reach, spec: StageSpec) -> Stage:
    """`topk{density}`: the floor(density * entries) largest magnitudes, at least one, over all tensors together."""
    density = _number(spec, _arguments(spec, {"density": None})["density"], "density", 0, 1)

    def encode(entries: Entries, state: State) -> tuple[Entries, bytes, State]:
        keep = topk(entries.values, max(1, math.floor(entries.count * density)))
        return Entries(entries.size, _positions(entries.where, keep), entries.values[keep]), b"", state

    leaves = Reach(max(1, math.floor(reach.entries * density)), scaled=reach.scaled)
    return _filter(spec, leaves, encode)


def _segment(layout: Layout, reach: Reach, spec: StageSpec) -> Stage:
    """`segment{count}`: one of `count` contiguous segments of the vector, the next one each time. No index bytes.

    The seed picks the first, so that the devices of a round send different ones.
    """
    count = _whole(spec, _arguments(spec, {"count": None})["count"], "count", 1, layout.size)
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
    return _filter(spec, leaves, encode, decode, init=lambda seed: int(draws(seed, 0, 1)[0] % np.uint64(count)))


def _tensor_scale(layout: Layout, reach: Reach, spec: StageSpec) -> Stage:
    """`tensor_scale`: divides each tensor's entries by the mean of their magnitudes, which part `scale` carries.

    An absent or all-zero tensor has scale 0 and decodes to zeros.
    """
    _arguments(spec, {})
    starts = np.array(layout.offsets, np.int64)
    count = len(starts)

    def encode(entries: Entries, state: State) -> tuple[Entries, bytes, State]:
        lengths = scale.lengths_in(entries, starts)
        magnitudes = scale.means(entries.values, lengths)
        if magnitudes.max() >= LARGEST_MEAN:
            worst = layout.tensors[int(magnitudes.argmax())].name
            raise CodecError(f"tensor {worst!r} has a mean magnitude of {magnitudes.max():.3g}, which is no update")
        scales = scale.to_bfloat16(magnitudes)
        divisor: Vector = np.where(scales > 0, scale.from_bfloat16(scales), np.float32(1)).astype(np.float32)
        per_entry: Vector = np.repeat(divisor, lengths)
        scaled: Vector = entries.values / per_entry
        return replace(entries, values=scaled), scales.astype("<u2").tobytes(), state

    def decode(entries: Entries | None, part: bytes) -> Entries:
        assert entries is not None
        if len(part) != 2 * count:
            raise PayloadError(f"part 'scale' has {len(part)} bytes, the layout's {count} tensors need {2 * count}")
        scales = np.frombuffer(part, "<u2")
        if (scales >= 0x7F80).any():
            raise PayloadError("part 'scale' holds a scale that is negative or not finite")
        per_entry: Vector = np.repeat(scale.from_bfloat16(scales), scale.lengths_in(entries, starts))
        with np.errstate(over="ignore", under="ignore"):
            scaled = entries.values * per_entry
        if not np.isfinite(scaled).all():
            raise PayloadError("a value times its tensor's scale is not finite")
        return replace(entries, values=scaled)

    return Stage(spec, "scale", False, reach._replace(scaled=True), 2 * count, _no_state, encode, decode)


def _pack(layout: Layout, reach: Reach, spec: StageSpec) -> Stage:
    """`pack{values, error}`: the packed format SPK1, with values as f32, f16, lev, sign or auto.

    `error` is the relative L2 error that lev and auto may make.
    """
    given = _arguments(spec, {"values": "auto", "error": 0.1})
    mode, error = str(given["values"]), _number(spec, given["error"], "error", 1e-4, 1)
    if mode not in values.MODES:
        raise CodecError(f"stage pack: unknown values {mode!r}{_nearest(mode, values.MODES)}")

    def encode(entries: Entries, state: State) -> tuple[Entries, bytes, State]:
        if reach.scaled:
            entries = scale.fill_zero_tensors(entries, layout)
        return entries, spk1.encode(entries, layout.short_id, mode, error), state

    def decode(entries: Entries | None, part: bytes) -> Entries:
        return spk1.decode(part, layout.size, layout.short_id, reach.entries)

    longest = spk1.max_bytes(reach.entries, layout.size, mode)
    return Stage(spec, "packed", True, reach, longest, _no_state, encode, decode)


def _levels(layout: Layout, reach: Reach, spec: StageSpec) -> Stage:
    """`levels{error}`: LVL1, a few bits for every coordinate; `error` is its relative L2 error.

    For a Gaussian vector 0.5 takes 1.3 bits a coordinate, 0.3 takes 2.1, 0.1 takes 3.6.
    """
    error = _number(spec, _arguments(spec, {"error": None})["error"], "error", 1e-3, 0.95)
    if not reach.contiguous:
        raise CodecError("the stage levels takes whole vectors and segments; after topk use pack")

    def encode(entries: Entries, state: State) -> tuple[Entries, bytes, State]:
        return entries, levels.encode(entries, layout.short_id, error), state

    def decode(entries: Entries | None, part: bytes) -> Entries:
        return levels.decode(part, layout.size, layout.short_id, reach.entries)

    return Stage(spec, "packed", True, reach, levels.max_bytes(reach.entries), _no_state, encode, decode)


STAGES: dict[str, Callable[[Layout, Reach, StageSpec], Stage]] = {
    "topk": _topk,
    "segment": _segment,
    "tensor_scale": _tensor_scale,
    "pack": _pack,
    "levels": _levels,
}


def _no_state(seed: int) -> State:
    return None


def _unchanged(entries: Entries | None, part: bytes) -> Entries:
    assert entries is not None
    return entries


def _filter(
    spec: StageSpec,
    leaves: Reach,
    encode: Callable[[Entries, State], tuple[Entries, bytes, State]],
    decode: Callable[[Entries | None, bytes], Entries] = _unchanged,
    init: Callable[[int], State] = _no_state,
) -> Stage:
    """A stage that leaves entries out and writes nothing."""
    return Stage(spec, "", False, leaves, 0, init, encode, decode)


def _positions(where: slice | NDArray[np.uint32], keep: NDArray[np.uint32]) -> NDArray[np.uint32]:
    return keep + np.uint32(where.start) if isinstance(where, slice) else where[keep]


def _span(entries: Entries) -> tuple[int, int]:
    """The first and the last index; 0, 0 where there are none."""
    if not entries.count:
        return 0, 0
    if isinstance(entries.where, slice):
        return entries.where.start, entries.where.stop - 1
    return int(entries.where[0]), int(entries.where[-1])


def _arguments(spec: StageSpec, known: dict[str, Scalar | None]) -> dict[str, Scalar]:
    """The spec's arguments over their defaults; None marks one that must be given."""
    for name in spec.args:
        if name not in known:
            raise CodecError(f"stage {spec.name}: unknown argument {name!r}{_nearest(name, known)}")
    out = {}
    for name, default in known.items():
        value = spec.args.get(name, default)
        if value is None:
            raise CodecError(f"stage {spec.name}: the argument {name!r} is missing")
        out[name] = value
    return out


def _number(spec: StageSpec, value: Scalar, name: str, low: float, high: float) -> float:
    """A number in low..high, 0 excluded."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value > 0 and low <= value <= high):
        bound = f"{low:g}..{high:g}" if low else f"above 0 and at most {high:g}"
        raise CodecError(f"stage {spec.name}: {name} must be a number {bound}, got {value!r}")
    return float(value)


def _whole(spec: StageSpec, value: Scalar, name: str, low: int, high: int) -> int:
    """A whole number in low..high."""
    if type(value) is not int or not low <= value <= high:
        raise CodecError(f"stage {spec.name}: {name} must be a whole number in {low}..{high}, got {value!r}")
    return value


def _nearest(word: str, known: Iterable[str]) -> str:
    """What to say about a word that is not known: the nearest that is, or all."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known are {', '.join(known)}" if known else "; it takes none"
