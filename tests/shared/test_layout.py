"""The layout: offsets, identity, start values, and what it refuses. Golden start values are in test_vectors.py."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_shared.errors import LayoutError
from covey_shared.layout import INITS, KINDS, MAX_ENTRIES, Layout, Tensor, vector_digest
from tests.helpers_shared import LAYOUT

SHAPES = st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple)


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    names = draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=6, unique=True))
    return Layout(
        tuple(
            Tensor(
                name=name,
                shape=draw(SHAPES),
                kind=draw(st.sampled_from(KINDS)),
                init=draw(st.sampled_from(INITS)),
                module=draw(st.text(max_size=4)),
                rank=draw(st.integers(0, 64)),
                scale=draw(st.floats(allow_nan=False, allow_infinity=False)),
            )
            for name in names
        )
    )


@given(layouts())
def test_json_round_trip_keeps_the_digest(layout: Layout) -> None:
    again = Layout.from_json(json.loads(json.dumps(layout.to_json())))
    assert again == layout
    assert again.digest == layout.digest
    assert len(layout.digest) == 64
    assert layout.short_id == int.from_bytes(bytes.fromhex(layout.digest)[:4], "little")


@given(layouts())
def test_split_and_join_are_inverse(layout: Layout) -> None:
    vector = np.arange(layout.size, dtype=np.float32)
    parts = layout.split(vector)
    assert [p.shape for p in parts.values()] == [t.shape for t in layout.tensors]
    assert np.array_equal(layout.join(dict(reversed(parts.items()))), vector)
    assert layout.offsets == tuple(where.start for _, where in layout.slices())


@given(layouts(), st.integers(0, 2**63 - 1))
def test_start(layout: Layout, seed: int) -> None:
    stored = np.arange(layout.stored_size, dtype=np.float32) + 1
    start = layout.start(seed, stored)
    assert np.array_equal(start, layout.start(seed, stored))
    taken = 0
    for tensor, where in layout.slices():
        values = start[where]
        if tensor.init == "zeros":
            assert not values.any()
        elif tensor.init == "stored":
            assert np.array_equal(values, stored[taken : taken + tensor.size])
            taken += tensor.size
        else:
            assert np.abs(values).max() <= np.float32(1 / math.sqrt(math.prod(tensor.shape[1:])))


def test_start_is_kaiming_uniform() -> None:
    layout = Layout((Tensor(name="a", shape=(50, 400), kind="lora_A", init="kaiming_uniform"),))
    start = layout.start(3)
    bound = 1 / math.sqrt(400)
    assert np.abs(start).max() == pytest.approx(bound, rel=1e-3)
    assert start.mean() == pytest.approx(0, abs=bound / 100)
    assert start.std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert not np.array_equal(start, layout.start(4))


def test_the_identity_covers_everything() -> None:
    base = LAYOUT.to_json()
    changes: list[tuple[str, Any]] = [
        ("name", "other"), ("shape", [6, 4]), ("kind", "block"), ("init", "zeros"), ("module", "k"), ("rank", 8),
        ("scale", 1.0),
    ]  # fmt: skip
    digests = {LAYOUT.digest, Layout(LAYOUT.tensors[::-1]).digest}
    for field, value in changes:
        digests.add(Layout.from_json([{**base[0], field: value}, *base[1:]]).digest)
    assert len(digests) == len(changes) + 2


def test_whole_numbers_as_scale_are_the_same_layout() -> None:
    made = Tensor(name="a", shape=(2,), kind="lora_A", init="zeros", scale=2)
    assert Layout((made,)).digest == Layout.from_json([{**made.to_json(), "scale": 2.0}]).digest


TENSOR = Tensor(name="a", shape=(2, 3), kind="lora_A", init="zeros", rank=1).to_json()
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"name": ""}, "has no name"),
    ({"name": 5}, "has no name"),
    ({"shape": []}, "every dimension must be a positive integer"),
    ({"shape": [0]}, "every dimension must be a positive integer"),
    ({"shape": [True]}, "every dimension must be a positive integer"),
    ({"shape": [2.0]}, "every dimension must be a positive integer"),
    ({"shape": "ab"}, "not an object with a shape"),
    ({"kind": "lora"}, "has kind 'lora'; known kinds are lora_A, lora_B, head, norm, block"),
    ({"kind": ["lora_A"]}, "has kind"),
    ({"init": "ones"}, "has init 'ones'; known are kaiming_uniform, zeros, stored"),
    ({"rank": -1}, "has rank -1"),
    ({"rank": "8"}, "has rank '8'"),
    ({"rank": 1.5}, "has rank 1.5"),
    ({"scale": math.inf}, "has scale 'inf'; it must be a finite number"),
    ({"scale": "1"}, "has scale '1'; it must be a finite number"),
    ({"scale": 10**400}, "has scale"),
    ({"scale": True}, "has scale"),
    ({"module": None}, "and module None"),
    ({"colour": 1}, "unexpected keyword argument 'colour'"),
]


@pytest.mark.parametrize(("change", "sentence"), WRONG)
def test_wrong_tensors(change: dict[str, Any], sentence: str) -> None:
    with pytest.raises(LayoutError, match=sentence):
        Layout.from_json([{**TENSOR, **change}])


@pytest.mark.parametrize("data", [None, {}, "x", 5, [None], [[]], [{}], []])
def test_wrong_layouts(data: Any) -> None:
    with pytest.raises(LayoutError):
        Layout.from_json(data)


def test_names_are_unique_and_the_size_is_bounded() -> None:
    with pytest.raises(LayoutError, match="names 'a' twice"):
        Layout.from_json([TENSOR, TENSOR])
    half = {**TENSOR, "shape": [2**30]}
    assert Layout.from_json([half]).size == 2**30
    with pytest.raises(LayoutError, match=f"at most {MAX_ENTRIES:,}"):
        Layout.from_json([half, {**half, "name": "b"}])
    with pytest.raises(LayoutError, match="at most"):
        Layout.from_json([{**TENSOR, "shape": [10**30, 10**30]}])


def test_wrong_vectors_and_arrays() -> None:
    good = LAYOUT.split(LAYOUT.start(0, np.zeros(3, np.float32)))
    for vector in (np.zeros(5, np.float32), np.zeros(LAYOUT.size), np.zeros((LAYOUT.size, 1), np.float32)):
        with pytest.raises(LayoutError, match=r"expected float32 \[47\], got"):
            LAYOUT.split(vector)  # type: ignore[arg-type]
    with pytest.raises(LayoutError, match=r"missing \['q.lora_A.weight'\], unknown \['x'\]"):
        LAYOUT.join({"x" if name == "q.lora_A.weight" else name: array for name, array in good.items()})
    with pytest.raises(LayoutError, match=r"'q.lora_A.weight' has shape \(6, 4\), the layout says \(4, 6\)"):
        LAYOUT.join({**good, "q.lora_A.weight": good["q.lora_A.weight"].reshape(6, 4)})
    with pytest.raises(LayoutError, match="the start file has 2 entries, the layout stores 3"):
        LAYOUT.start(0, np.zeros(2, np.float32))


def lora(out: int, inner: int, rank: int, name: str = "m", conv: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    point = (1,) * len(conv)
    return (
        Tensor(name=f"{name}.A", shape=(rank, inner, *conv), kind="lora_A", init="kaiming_uniform", rank=rank, scale=2),
        Tensor(name=f"{name}.B", shape=(out, rank, *point), kind="lora_B", init="zeros", rank=rank, scale=2),
    )


HEAD = Tensor(name="head", shape=(3, 2), kind="head", init="stored")


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 6), st.integers(1, 6), st.booleans())
def test_a_lower_rank_is_the_first_rows_and_columns(out: int, inner: int, rank: int, lower: int, conv: bool) -> None:
    layout = Layout((*lora(out, inner, rank, conv=(3, 2) if conv else ()), HEAD))
    sub = layout.at_rank(lower)
    assert [t.rank for t in sub.tensors] == [min(rank, lower)] * 2 + [0]
    assert [t.scale for t in sub.tensors] == [t.scale for t in layout.tensors]
    full = np.arange(layout.size, dtype=np.float32)
    ours, theirs = layout.split(full), sub.split(full[layout.positions(sub)])
    np.testing.assert_array_equal(theirs["m.A"], ours["m.A"][:lower])
    np.testing.assert_array_equal(theirs["m.B"], ours["m.B"][:, :lower])
    np.testing.assert_array_equal(theirs["head"], ours["head"])
    assert layout.positions(sub).dtype == np.int64


def test_a_lower_rank_of_mixed_ranks_keeps_the_small_ones() -> None:
    layout = Layout((*lora(3, 4, 8, "q"), *lora(3, 4, 2, "v")))
    assert [t.rank for t in layout.at_rank(4).tensors] == [4, 4, 2, 2]
    assert layout.at_rank(8) is layout.at_rank(99) is layout
    assert layout.at_rank(4).at_rank(3) == layout.at_rank(3)
    inner = layout.at_rank(4)
    nested = layout.positions(inner)[inner.positions(layout.at_rank(3))]
    np.testing.assert_array_equal(nested, layout.positions(layout.at_rank(3)))


def test_a_zero_padded_adapter_is_the_same_product() -> None:
    layout = Layout(lora(5, 7, 6))
    sub = layout.at_rank(2)
    vector = np.random.default_rng(0).standard_normal(sub.size).astype(np.float32)
    full = np.zeros(layout.size, np.float32)
    full[layout.positions(sub)] = vector
    small, large = sub.split(vector), layout.split(full)
    np.testing.assert_array_equal(large["m.B"] @ large["m.A"], small["m.B"] @ small["m.A"])


def test_ranks_and_parts_that_are_not() -> None:
    layout = Layout(lora(3, 4, 4))
    with pytest.raises(LayoutError, match="the rank is 0; it must be at least 1"):
        layout.at_rank(0)
    grouped = Tensor(name="g.B", shape=(6, 2, 1, 1), kind="lora_B", init="zeros", rank=4)
    with pytest.raises(LayoutError, match=r"'g\.B' of shape .* has no lower rank than 4"):
        Layout((grouped,)).at_rank(2)
    with pytest.raises(LayoutError, match="has no tensor 'head'"):
        layout.positions(Layout((HEAD,)))
    with pytest.raises(LayoutError, match=r"'m.A' of shape \(8, 4\) is no part"):
        layout.positions(Layout(lora(3, 4, 8)))


def test_vector_digest_is_that_of_little_endian_bytes() -> None:
    assert vector_digest(np.array([1.0], np.float32)) == vector_digest(np.array([1.0], ">f4"))
    assert vector_digest(np.array([0.0], np.float32)) != vector_digest(np.array([-0.0], np.float32))
    every_other = np.arange(10, dtype=np.float32)[::2]
    assert vector_digest(every_other) == vector_digest(every_other.copy())
