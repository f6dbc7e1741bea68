"""One table of all codec stages, and the laws that every chain keeps. A new stage is one line here."""

import json
from typing import NamedTuple

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey_shared.codec import STAGES, Codec, codec_from_spec, dump_state, error_feedback, load_state, presets
from covey_shared.errors import CodecError
from covey_shared.layout import Vector
from covey_shared.messages import Spec, StageSpec
from covey_shared.schema import Scalar
from tests.helpers_shared import layout_of


class Chain(NamedTuple):
    """A chain and what it promises: the relative L2 error of what is sent, and that zeros come out as zeros."""

    spec: Spec
    error: float
    keeps_zeros: bool = False


def spec(*stages: tuple[str, dict[str, Scalar]]) -> Spec:
    return tuple(StageSpec(name=name, args=args) for name, args in stages)


CHAINS = {
    "dense": Chain(presets.dense(), 0, keeps_zeros=True),
    "flasc": Chain(presets.flasc(0.25), 0, keeps_zeros=True),
    "sign": Chain(presets.sign(), 1),
    "levels": Chain(presets.levels(0.3), 0.3, keeps_zeros=True),
    "half floats": Chain(spec(("pack", {"values": "f16"})), 2e-3, keeps_zeros=True),
    "top-k, levels": Chain(spec(("topk", {"density": 0.1}), ("pack", {"values": "lev", "error": 0.05})), 0.05),
    "top-k, automatic": Chain(spec(("topk", {"density": 1.0}), ("pack", {})), 0.1),
    "scaled": Chain(spec(("tensor_scale", {}), ("pack", {"values": "f32"})), 1e-6, keeps_zeros=True),
    "scaled by rows": Chain(spec(("tensor_scale", {"rows": 2}), ("pack", {"values": "f32"})), 1e-6, keeps_zeros=True),
    "top-k, scaled": Chain(spec(("topk", {"density": 0.5}), ("tensor_scale", {}), ("pack", {"values": "f16"})), 2e-3),
    "scaled top-k": Chain(spec(("tensor_scale", {}), ("topk", {"density": 0.5}), ("pack", {"values": "f32"})), 1e-6),
    "segments": Chain(spec(("segment", {"count": 3}), ("pack", {"values": "f32"})), 0, keeps_zeros=True),
    "segments of signs": Chain(spec(("segment", {"count": 3}), ("tensor_scale", {}), ("pack", {"values": "sign"})), 1),
    "segments of levels": Chain(spec(("segment", {"count": 2}), ("levels", {"error": 0.5})), 0.5, keeps_zeros=True),
    "segment, top-k": Chain(spec(("segment", {"count": 2}), ("topk", {"density": 0.5}), ("pack", {"error": 0.2})), 0.2),
    "importance": Chain(spec(("importance", {"density": 0.5}), ("pack", {"values": "f32"})), 0),
    "adaptive": Chain(presets.adaptive(0.25), 1),  # its 0.65 holds for the values as scaled, tensor by tensor
    "affine": Chain(presets.affine(4), 0, keeps_zeros=True),  # these layouts have no rows: float32
    "one segment": Chain(spec(("segment", {"count": 1}), ("pack", {"values": "sign"})), 1),
}  # fmt: skip
ALL = pytest.mark.parametrize("name", CHAINS)

TAME = st.floats(-(2.0**60), 2.0**60, width=32).filter(lambda x: x == 0 or abs(x) > 2.0**-60)
VECTORS = st.lists(TAME | st.sampled_from([0.0, -0.0, 1e-6]), min_size=3, max_size=80).map(
    lambda values: np.array(values, np.float32)
)


def codec_of(name: str, size: int) -> Codec:
    return codec_from_spec(CHAINS[name].spec, layout_of(size))


def relative_error(got: Vector, wanted: Vector) -> float:
    scale = float(np.abs(wanted).max(initial=0)) or 1.0
    difference = (got.astype(np.float64) - wanted) / scale
    return float(np.sqrt(np.square(difference).sum() / max(np.square(wanted / scale, dtype=np.float64).sum(), 1e-300)))


def test_every_stage_is_under_the_laws() -> None:
    assert {stage.name for chain in CHAINS.values() for stage in chain.spec} == set(STAGES)


@ALL
@settings(max_examples=40)
@given(vector=VECTORS, seed=st.integers(0, 2**63 - 1))
def test_round_trip(name: str, vector: Vector, seed: int) -> None:
    codec = codec_of(name, len(vector))
    before = vector.copy()
    parts, _ = codec.encode(vector, codec.init(seed))
    assert np.array_equal(vector, before), "the input was changed"
    entries = codec.decode(parts)
    sent = vector[entries.where]
    assert entries.size == len(vector)
    assert entries.values.dtype == np.float32
    assert entries.values.shape == sent.shape
    assert 1 <= entries.count <= codec.max_entries
    assert sum(map(len, parts.values())) <= codec.max_bytes
    assert relative_error(entries.values, sent) <= CHAINS[name].error * 1.01 + 1e-12
    if CHAINS[name].keeps_zeros:
        assert not entries.values[sent == 0].any()


@ALL
@settings(max_examples=15)
@given(vector=VECTORS)
def test_spec_alone_builds_the_decoder(name: str, vector: Vector) -> None:
    codec = codec_of(name, len(vector))
    parts, _ = codec.encode(vector, codec.init(0))
    plain = [{"name": s.name, "args": s.args} for s in codec.spec]
    for copy in (json.loads(json.dumps(plain)), msgpack.unpackb(msgpack.packb(plain))):
        again = codec_from_spec([StageSpec(**s) for s in copy], layout_of(len(vector)))
        assert again.spec == codec.spec
        assert np.array_equal(again.decode(parts).dense(), codec.decode(parts).dense())
    assert tuple(StageSpec.from_bytes(s.to_bytes()) for s in codec.spec) == codec.spec


@ALL
@pytest.mark.parametrize("size", [3, 50, 70_000])
def test_zeros_decode_to_zeros(name: str, size: int) -> None:
    codec = codec_of(name, size)
    parts, _ = codec.encode(np.zeros(size, np.float32), codec.init(0))
    assert not codec.decode(parts).values.any()


@ALL
def test_one_entry(name: str) -> None:
    if dict(CHAINS[name].spec[0].args).get("count", 1) != 1:
        pytest.skip("one entry has no several segments")
    codec = codec_of(name, 1)
    parts, _ = codec.encode(np.array([-2.5], np.float32), codec.init(0))
    assert codec.decode(parts).dense() == pytest.approx([-2.5], rel=max(CHAINS[name].error, 1e-6))


@ALL
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, 31, 59])
def test_refuses_what_is_not_finite(name: str, bad: float, where: int) -> None:
    codec = codec_of(name, 60)
    vector = np.ones(60, np.float32)
    vector[where] = bad
    for wrapped in (codec, error_feedback(codec)):
        with pytest.raises(CodecError, match=f"entry {where} of the vector is {bad}"):
            wrapped.encode(vector, wrapped.init(0))


@ALL
def test_refuses_another_size_and_type(name: str) -> None:
    codec = codec_of(name, 60)
    for vector in (np.ones(59, np.float32), np.ones(60, np.float64), np.ones((2, 30), np.float32)):
        with pytest.raises(CodecError, match=r"takes float32 \[60\], got"):
            codec.encode(vector, codec.init(0))  # type: ignore[arg-type]


@ALL
@pytest.mark.parametrize("feedback", [False, True])
def test_state_survives_a_save(name: str, feedback: bool) -> None:
    """Four rounds, once with the state kept in memory and once through bytes."""
    codec = error_feedback(codec_of(name, 60)) if feedback else codec_of(name, 60)
    rng = np.random.default_rng(0)
    kept = saved = codec.init(5)
    for _ in range(4):
        vector = rng.standard_normal(60).astype(np.float32)
        parts, kept = codec.encode(vector, kept)
        again, saved = codec.encode(vector, load_state(dump_state(saved)))
        assert parts == again
    assert dump_state(kept) == dump_state(saved)


@ALL
def test_encoding_is_a_pure_function(name: str) -> None:
    """An upload that failed can be encoded again from the old state."""
    codec = error_feedback(codec_of(name, 60))
    rng = np.random.default_rng(1)
    vector = rng.standard_normal(60).astype(np.float32)
    _, state = codec.encode(vector, codec.init(0))
    before = dump_state(state)
    first, second = codec.encode(vector, state), codec.encode(vector, state)
    assert first[0] == second[0]
    assert dump_state(first[1]) == dump_state(second[1])
    assert dump_state(state) == before


@ALL
def test_error_feedback_delivers_everything_in_the_end(name: str) -> None:
    """What arrived and what is left over make up what was to be sent, and the mean of what arrived converges to it."""
    codec = error_feedback(codec_of(name, 300))
    vector = np.random.default_rng(2).standard_normal(300).astype(np.float32)
    state = codec.init(0)
    arrived = np.zeros(300, np.float64)
    rounds = 400
    for _ in range(rounds):
        parts, state = codec.encode(vector, state)
        arrived += codec.decode(parts).dense()
    assert relative_error(arrived + state["residual"], rounds * vector) < 1e-5
    assert relative_error((arrived / rounds).astype(np.float32), vector) < 0.05


@ALL
def test_largest_and_smallest_numbers(name: str) -> None:
    """An encoder never writes what its decoder refuses: it encodes, or says why not."""
    codec = codec_of(name, 60)
    rng = np.random.default_rng(3)
    for power in (-149, -140, -126, -100, -64, 64, 90, 110, 120, 126, 127):
        vector = (rng.uniform(-1, 1, 60) * 2.0**power).astype(np.float32)
        try:
            parts, _ = codec.encode(vector, codec.init(0))
        except CodecError as error:
            assert power > 90, error  # noqa: PT017
        else:
            assert np.isfinite(codec.decode(parts).values).all()
