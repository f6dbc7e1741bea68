"""A codec is a chain of small pure stages: what a device or the server sends instead of a vector.

Unlike an optax transform a stage runs on two machines, `encode` where the vector is and `decode` where it is wanted.
So a chain has a `spec`, plain data that travels with what it encoded and is enough to build the decoder. State stays
with the encoder, goes in and comes out, and is plain data that `state.dump_state` can save between rounds.

    entries -> topk -> entries -> tensor_scale -> entries + part "scale" -> pack -> parts "scale", "packed"

The last stage, and only the last, turns the entries into bytes.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from covey_shared.entries import Entries
from covey_shared.errors import CodecError, PayloadError
from covey_shared.layout import Vector
from covey_shared.messages import Spec, StageSpec

State = Any  # None, numbers, strings, bytes, float32 vectors, and lists and string-keyed dicts of them
Parts = dict[str, bytes]


class Reach(NamedTuple):
    """What reaches or leaves a stage: so many entries at most, in one contiguous run or not.

    `scaled`: None, or by how `tensor_scale` grouped them, its argument `rows`.
    """

    entries: int
    contiguous: bool = False
    scaled: int | None = None


def _blind(adapter: Vector, state: State) -> State:
    """Of what needs not know the adapter."""
    return state


class Stage(NamedTuple):
    """One stage, bound to a layout and to its place in a chain.

    `encode(entries, state)` gives what is left to send, the stage's own part (b"" if it has none) and the next state.
    `decode(entries, part)` undoes it; the entries that a final stage decodes are None. `part` names the part, "" for
    none, and has at most `max_bytes`. `leaves` is what the next stage, or the decoder's caller, has to expect.
    `look(adapter, state)` shows it the adapter that a change led to.
    """

    spec: StageSpec
    part: str
    final: bool
    leaves: Reach
    max_bytes: int
    init: Callable[[int], State]
    encode: Callable[[Entries, State], tuple[Entries, bytes, State]]
    decode: Callable[[Entries | None, bytes], Entries]
    look: Callable[[Vector, State], State] = _blind


class Codec(NamedTuple):
    """A whole chain for vectors float32 [size].

    `init(seed)` gives the first state. `encode(vector, state)` gives the parts to send and the next state, and raises
    CodecError for a vector that is not finite or has another size. `decode(parts)` gives the entries, or raises
    PayloadError. No encoded vector has more than `max_entries` entries or `max_bytes` bytes in all parts together, and
    more are not decoded. `look(adapter, state)` is for a codec that chooses by what a change does to the adapter: show
    it the trained one before `encode`.
    """

    spec: Spec
    size: int
    max_entries: int
    max_bytes: int
    init: Callable[[int], State]
    encode: Callable[[Vector, State], tuple[Parts, State]]
    decode: Callable[[Mapping[str, bytes]], Entries]
    look: Callable[[Vector, State], State] = _blind


def chain(size: int, *stages: Stage) -> Codec:
    """The codec that encodes with the stages in order and decodes in reverse."""
    _check_chain(stages)

    def encode(vector: Vector, state: State) -> tuple[Parts, State]:
        check_vector(vector, size)
        if not isinstance(state, list) or len(state) != len(stages):
            raise CodecError(f"the codec's state is not that of a chain of {len(stages)} stages; make one with init")
        entries = Entries(size, slice(0, size), vector)
        parts: Parts = {}
        new = []
        for stage, old in zip(stages, state, strict=True):
            entries, part, after = stage.encode(entries, old)
            new.append(after)
            if stage.part:
                parts[stage.part] = part
        return parts, new

    def decode(parts: Mapping[str, bytes]) -> Entries:
        _check_parts(parts, stages)
        *filters, final = stages
        entries = final.decode(None, parts[final.part])
        for stage in reversed(filters):
            entries = stage.decode(entries, parts.get(stage.part, b""))
        return entries

    return Codec(
        spec=tuple(s.spec for s in stages),
        size=size,
        max_entries=stages[-1].leaves.entries,
        max_bytes=sum(s.max_bytes for s in stages),
        init=lambda seed: [s.init(seed) for s in stages],
        encode=encode,
        decode=decode,
        look=lambda adapter, state: [s.look(adapter, old) for s, old in zip(stages, state, strict=True)],
    )


def error_feedback(codec: Codec) -> Codec:
    """Adds what `codec` lost in earlier rounds to what it encodes now (Seide et al. 2014, Karimireddy et al. 2019).

    The decoder need not know, so the spec stays the same. Keep the old state until the receiver has acknowledged: an
    update that never arrives is then not counted as sent.
    """

    def init(seed: int) -> State:
        return {"inner": codec.init(seed), "residual": np.zeros(codec.size, np.float32)}

    def encode(vector: Vector, state: State) -> tuple[Parts, State]:
        if not isinstance(state, dict) or set(state) != {"inner", "residual"}:
            raise CodecError("the codec's state is not that of error feedback; make one with init")
        check_vector(vector, codec.size)
        check_vector(state["residual"], codec.size)
        with np.errstate(over="ignore"):  # the inner codec refuses what overflowed
            wanted = vector + state["residual"]
        parts, inner = codec.encode(wanted, state["inner"])
        sent = codec.decode(parts)
        wanted[sent.where] -= sent.values
        return parts, {"inner": inner, "residual": wanted}

    def look(adapter: Vector, state: State) -> State:
        return {**state, "inner": codec.look(adapter, state["inner"])}

    return codec._replace(init=init, encode=encode, look=look)


def check_vector(vector: Vector, size: int) -> None:
    """Refuses anything but finite float32 [size]."""
    if not isinstance(vector, np.ndarray) or vector.dtype != np.float32 or vector.shape != (size,):
        got = f"{vector.dtype} {list(vector.shape)}" if isinstance(vector, np.ndarray) else type(vector).__name__
        raise CodecError(f"the codec takes float32 [{size}], got {got}")
    with np.errstate(over="ignore", invalid="ignore"):
        quick = np.isfinite(vector.sum())  # one pass and no array; a sum of finite numbers may still overflow
    if not quick:
        bad = np.flatnonzero(~np.isfinite(vector))
        if len(bad):
            raise CodecError(f"entry {bad[0]} of the vector is {vector[bad[0]]}; only finite numbers can be sent")


def _check_chain(stages: tuple[Stage, ...]) -> None:
    if not stages or [s.final for s in stages] != [False] * (len(stages) - 1) + [True]:
        names = " -> ".join(s.spec.name for s in stages) or "nothing"
        raise CodecError(f"a codec must end with the one stage that writes bytes, pack or levels; this one is {names}")
    parts = [s.part for s in stages if s.part]
    if len(set(parts)) != len(parts):
        twice = next(p for p in parts if parts.count(p) > 1)
        raise CodecError(f"two stages of the codec write the part {twice!r}; name that stage once")


def _check_parts(parts: Mapping[str, bytes], stages: tuple[Stage, ...]) -> None:
    expected = {s.part: s for s in stages if s.part}
    if set(parts) != set(expected):
        got = ", ".join(sorted(str(p)[:40] for p in list(parts)[:8])) or "none"
        raise PayloadError(f"the codec's parts are {', '.join(sorted(expected))}; sent were {got}")
    for name, stage in expected.items():
        if len(parts[name]) > stage.max_bytes:
            raise PayloadError(
                f"part {name!r} has {len(parts[name]):,} bytes, at most {stage.max_bytes:,} are accepted", 413
            )
