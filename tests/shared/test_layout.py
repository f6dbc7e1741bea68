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


def test_vector_digest_is_that_of_little_endian_bytes() -> None:
    assert vector_digest(np.array([1.0], np.float32)) == vector_digest(np.array([1.0], ">f4"))
    assert vector_digest(np.array([0.0], np.float32)) != vector_digest(np.array([-0.0], np.float32))
    every_other = np.arange(10, dtype=np.float32)[::2]
    assert vector_digest(every_other) == vector_digest(every_other.copy())
