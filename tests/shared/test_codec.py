"""What codecs say about misuse, what single stages promise beyond the laws, and saved state."""

import struct
import zlib
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_shared import codec as package
from covey_shared.codec import Stage, chain, codec_from_spec, dump_state, error_feedback, load_state, presets, spk1
from covey_shared.codec.chain import Reach, State
from covey_shared.entries import Entries
from covey_shared.errors import CodecError, PayloadError
from covey_shared.layout import Layout, Tensor
from covey_shared.messages import Spec, StageSpec
from covey_shared.schema import Scalar
from tests.helpers_shared import layout_of


def spec(*stages: tuple[str, Mapping[str, Scalar]]) -> Spec:
    return tuple(StageSpec(name=name, args=dict(args)) for name, args in stages)


PACK = ("pack", {"values": "f32"})
WRONG: list[tuple[Spec, str]] = [
    ((), "must end with the one stage that writes bytes, pack or levels; this one is nothing"),
    (spec(("topk", {"density": 0.5})), "must end with the one stage that writes bytes"),
    (spec(PACK, ("topk", {"density": 0.5})), "this one is pack -> topk"),
    (spec(PACK, PACK), "this one is pack -> pack"),
    (spec(("tensor_scale", {}), ("tensor_scale", {}), PACK), "two stages of the codec write the part 'scale'"),
    (spec(("topkk", {"density": 0.5}), PACK), "unknown codec stage 'topkk'; did you mean 'topk'?"),
    (
        spec(("gzip", {}), PACK),
        "unknown codec stage 'gzip'; known are topk, importance, adaptive, segment, tensor_scale, pack, levels, affine",
    ),
    (spec(("topk", {}), PACK), "stage topk: the argument 'density' is missing"),
    (spec(("topk", {"densty": 0.5}), PACK), "stage topk: unknown argument 'densty'; did you mean 'density'?"),
    (spec(("tensor_scale", {"norm": 2}), PACK), "stage tensor_scale: unknown argument 'norm'; known are rows"),
    (spec(("tensor_scale", {"rows": -1}), PACK), "stage tensor_scale: rows must be a whole number in 0.."),
    (spec(("topk", {"density": 0.0}), PACK), "density must be a number above 0 and at most 1, got 0.0"),
    (spec(("topk", {"density": 1.5}), PACK), "density must be a number above 0 and at most 1, got 1.5"),
    (spec(("topk", {"density": True}), PACK), "density must be a number above 0 and at most 1, got True"),
    (spec(("topk", {"density": "all"}), PACK), "density must be a number above 0 and at most 1, got 'all'"),
    (spec(("segment", {"count": 0}), PACK), r"count must be a whole number in 1\.\.60, got 0"),
    (spec(("segment", {"count": 61}), PACK), r"count must be a whole number in 1\.\.60, got 61"),
    (spec(("segment", {"count": 2.0}), PACK), r"count must be a whole number in 1\.\.60, got 2\.0"),
    (spec(("topk", {"density": 0.5}), ("segment", {"count": 2}), PACK), "put it first, and once"),
    (spec(("segment", {"count": 2}), ("segment", {"count": 2}), PACK), "put it first, and once"),
    (spec(("pack", {"values": "zstd"})), "unknown values 'zstd'; known are f32, f16, lev, sign, auto"),
    (spec(("pack", {"values": "singe"})), "unknown values 'singe'; did you mean 'sign'"),
    (spec(("pack", {"error": 0})), r"error must be a number 0\.0001\.\.1, got 0"),
    (spec(("levels", {"error": 1.0})), r"error must be a number 0\.001\.\.0\.95, got 1\.0"),
    (spec(("topk", {"density": 0.5}), ("levels", {"error": 0.5})), "after topk use pack"),
]


@pytest.mark.parametrize(("wrong", "sentence"), WRONG, ids=lambda x: x if isinstance(x, str) else "")
def test_wrong_spec(wrong: Spec, sentence: str) -> None:
    with pytest.raises(CodecError, match=sentence.replace("?", r"\?")):
        codec_from_spec(wrong, layout_of(60))


def test_public_names() -> None:
    assert sorted(package.__all__) == package.__all__ or package.__all__[0] == "STAGES"
    for name in package.__all__:
        assert hasattr(package, name)


def test_topk_keeps_the_share_rounded_down_and_at_least_one() -> None:
    for size, density, kept in ((10, 0.25, 2), (10, 0.29, 2), (10, 0.3, 3), (10, 0.01, 1), (10, 1.0, 10), (3, 0.5, 1)):
        codec = codec_from_spec(presets.flasc(density), layout_of(size))
        parts, _ = codec.encode(np.arange(size, dtype=np.float32), codec.init(0))
        entries = codec.decode(parts)
        assert entries.count == kept == codec.max_entries
        assert entries.dense()[-kept:].tolist() == list(range(size - kept, size))


def test_segments_take_turns_and_cover_everything() -> None:
    codec = codec_from_spec(spec(("segment", {"count": 4}), PACK), layout_of(103))
    firsts = set()
    for seed in range(20):
        state = codec.init(seed)
        seen = []
        for _ in range(5):
            parts, state = codec.encode(np.ones(103, np.float32), state)
            entries = codec.decode(parts)
            assert isinstance(entries.where, slice)
            seen.append((entries.where.start, entries.where.stop))
        assert seen[4] == seen[0]
        assert sum(stop - start for start, stop in set(seen)) == 103
        assert sorted(start for start, _ in set(seen))[0] == 0
        firsts.add(seen[0])
    assert len(firsts) == 4, "every segment is some device's first"


@pytest.mark.parametrize(("size", "count"), [(7, 7), (7, 3), (10, 4), (103, 20), (5, 1)])
def test_segments_are_told_apart(size: int, count: int) -> None:
    """Every run is accepted exactly if it lies within one segment."""
    codec = codec_from_spec(spec(("segment", {"count": count}), PACK), layout_of(size))
    cuts = [size * i // count for i in range(count + 1)]
    for first in range(size):
        for last in range(first, min(size, first + codec.max_entries)):
            run = Entries(size, slice(first, last + 1), np.ones(last + 1 - first, np.float32))
            parts = {"packed": spk1.encode(run, layout_of(size).short_id)}
            if any(a <= first and last < b for a, b in pairwise(cuts)):
                assert codec.decode(parts).where == run.where
            else:
                with pytest.raises(PayloadError, match="do not lie in one of the"):
                    codec.decode(parts)


def test_a_hostile_count_costs_nothing() -> None:
    layout = Layout((Tensor(name="t", shape=(2**31 - 1,), kind="block", init="zeros"),))
    assert codec_from_spec(spec(("segment", {"count": 2**31 - 1}), PACK), layout).max_entries == 1


def test_tensor_scale_suits_each_tensor() -> None:
    """Signs of tensors a million times apart: each comes back at its own mean magnitude."""
    tensors = [Tensor(name=f"t{i}", shape=(50,), kind="block", init="zeros") for i in range(3)]
    codec = codec_from_spec(presets.sign(), Layout(tuple(tensors)))
    rng = np.random.default_rng(0)
    vector = (rng.standard_normal(150) * np.repeat([1.0, 1e-6, 0.0], 50)).astype(np.float32)
    parts, _ = codec.encode(vector, codec.init(0))
    got = codec.decode(parts).dense()
    for i in range(3):
        mine = slice(50 * i, 50 * i + 50)
        assert np.abs(got[mine]) == pytest.approx(np.full(50, np.abs(vector[mine]).mean()), rel=0.01)
        assert np.array_equal(np.sign(got[mine]), np.sign(vector[mine]))
    assert len(parts["scale"]) == 6


def test_long_rows_have_scales_of_their_own() -> None:
    """Of a head some rows are large; a factor with short rows keeps one scale."""
    head = Tensor(name="head", shape=(3, 50), kind="head", init="stored")
    short = Tensor(name="b", shape=(25, 2), kind="block", init="zeros")
    codec = codec_from_spec(presets.sign(rows=50), Layout((short, head)))
    rng = np.random.default_rng(0)
    vector = (rng.standard_normal(200) * np.repeat([1.0, 1e-3, 1.0, 0.0], 50)).astype(np.float32)
    parts, _ = codec.encode(vector, codec.init(0))
    got = codec.decode(parts).dense()
    for i in range(4):
        mine = slice(50 * i, 50 * i + 50)
        assert np.abs(got[mine]) == pytest.approx(np.full(50, np.abs(vector[mine]).mean()), rel=0.01)
    assert len(parts["scale"]) == 8
    assert codec_from_spec(presets.sign(rows=51), Layout((short, head))).max_bytes == codec.max_bytes - 4


def test_tensor_scale_refuses_what_is_no_update() -> None:
    codec = codec_from_spec(presets.sign(), layout_of(10))
    with pytest.raises(CodecError, match=r"tensor 't1' has a mean magnitude of 1e\+30"):
        codec.encode(np.array([0, 1e30, 1e30, 1e30, 0, 0, 0, 0, 0, 0], np.float32), codec.init(0))


def test_parts_of_another_type_are_refused() -> None:
    codec = codec_from_spec(presets.dense(), layout_of(10))
    with pytest.raises(PayloadError, match="parts are packed; sent were none"):
        codec.decode({})
    with pytest.raises(PayloadError, match="parts are packed; sent were packed, x"):
        codec.decode({"packed": b"", "x": b""})


@pytest.mark.parametrize("state", [None, [], [1, 2, 3], {"inner": []}, "x", [None, None, 7]])
def test_state_of_another_codec_is_refused(state: Any) -> None:
    codec = codec_from_spec(spec(("segment", {"count": 4}), PACK), layout_of(60))
    for wrapped in (codec, error_feedback(codec)):
        with pytest.raises(CodecError, match="make one with init"):
            wrapped.encode(np.ones(60, np.float32), state)


@pytest.mark.parametrize("residual", [None, 1.0, np.zeros(59, np.float32), np.zeros(60, np.float64)])
def test_residual_of_another_size_is_refused(residual: Any) -> None:
    codec = error_feedback(codec_from_spec(presets.dense(), layout_of(60)))
    with pytest.raises(CodecError, match=r"takes float32 \[60\]"):
        codec.encode(np.ones(60, np.float32), {"inner": [None], "residual": residual})


def test_overflowing_sum_is_no_false_alarm() -> None:
    codec = codec_from_spec(presets.dense(), layout_of(60))
    vector = np.full(60, 3e38, np.float32)
    assert np.array_equal(codec.decode(codec.encode(vector, codec.init(0))[0]).values, vector)
    feedback = error_feedback(codec)
    with pytest.raises(CodecError, match="entry 0 of the vector is inf"):
        feedback.encode(vector, {"inner": [None], "residual": vector})


def test_a_stage_is_four_functions() -> None:
    """A new stage needs no class: the chain takes any that keeps the contract."""
    layout = layout_of(6)

    def negated(entries: Entries | None) -> Entries:
        assert entries is not None
        return Entries(entries.size, entries.where, -entries.values)

    def encode(entries: Entries, state: State) -> tuple[Entries, bytes, State]:
        return negated(entries), b"", state

    def decode(entries: Entries | None, part: bytes) -> Entries:
        return negated(entries)

    whole = Reach(6, contiguous=True)
    negate = Stage(StageSpec(name="negate", args={}), "", False, whole, 0, lambda seed: None, encode, decode)
    pack = package.STAGES["pack"](layout, negate.leaves, presets.dense()[0])
    codec = chain(6, negate, pack)
    vector = np.arange(6, dtype=np.float32)
    parts, _ = codec.encode(vector, codec.init(0))
    assert np.array_equal(codec.decode(parts).values, vector)
    assert [s.name for s in codec.spec] == ["negate", "pack"]


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)


@given(PLAIN)
def test_state_round_trip(state: Any) -> None:
    assert load_state(dump_state(state)) == state


def test_state_keeps_vectors_bit_by_bit() -> None:
    vector = np.array([0.0, -0.0, 1e-45, 3e38, 1 / 3], np.float32)
    loaded = load_state(dump_state({"residual": vector}))["residual"]
    assert loaded.dtype == np.float32
    assert loaded.tobytes() == vector.tobytes()
    loaded += 1  # it can be written to


@pytest.mark.parametrize("state", [{1, 2}, object(), np.zeros(3), np.zeros((2, 2), np.float32), {1: 2, "a": object()}])
def test_only_plain_state_is_saved(state: Any) -> None:
    with pytest.raises(CodecError, match="cannot be saved"):
        dump_state(state)


def test_damaged_state_is_refused() -> None:
    good = dump_state({"inner": [None, 3], "residual": np.ones(20, np.float32)})
    for length in range(len(good)):
        with pytest.raises(CodecError, match="delete it"):
            load_state(good[:length])
    for at in range(len(good)):
        with pytest.raises(CodecError, match="delete it"):
            load_state(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])


def sealed(body: bytes) -> bytes:
    return b"CVS1" + struct.pack("<I", zlib.crc32(body)) + body


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xc1",
        b"\x90\x90",
        b"\x91" * 5000,
        b"\xdd\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\x81\x01\x02",
        msgpack.packb(msgpack.ExtType(1, b"123")),
        msgpack.packb(msgpack.ExtType(2, b"1234")),
    ],
    ids=repr,
)
def test_sealed_nonsense_is_refused(body: bytes) -> None:
    with pytest.raises(CodecError, match="delete it"):
        load_state(sealed(body))
