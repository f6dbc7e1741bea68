"""Exact top-k against a plain stable sort, on the data that would break a guess."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_shared.codec.topk import CHUNK, SAMPLE, topk
from covey_shared.errors import CodecError
from covey_shared.layout import Vector

LARGE = 3 * SAMPLE + 17  # above the size from which a sample is taken
FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)


def by_sorting(x: Vector, k: int) -> list[int]:
    return sorted(np.lexsort((np.arange(len(x)), -np.abs(x)))[:k].tolist())


@given(st.lists(FINITE | st.sampled_from([0.0, -0.0, 1.0, -1.0]), min_size=1, max_size=60), st.data())
def test_equals_sorting(values: list[float], data: st.DataObject) -> None:
    x = np.array(values, np.float32)
    k = data.draw(st.integers(0, len(x)))
    found = topk(x, k)
    assert found.dtype == np.uint32
    assert found.tolist() == by_sorting(x, k)


def seen_by_the_sample(rng: np.random.Generator) -> Vector:
    """Large exactly where the sample looks, so that the guess is far too high."""
    x = rng.standard_normal(LARGE).astype(np.float32)
    x[:: (LARGE // SAMPLE) | 1] *= 100
    return x


DATA: dict[str, Callable[[np.random.Generator], Vector]] = {
    "normal": lambda rng: rng.standard_normal(LARGE).astype(np.float32),
    "heavy tail": lambda rng: rng.standard_cauchy(LARGE).astype(np.float32),
    "all equal": lambda rng: np.full(LARGE, -2.5, np.float32),
    "few values": lambda rng: rng.integers(-2, 3, LARGE).astype(np.float32),
    "zeros but for a few": lambda rng: np.where(rng.random(LARGE) < 1e-4, 1, 0).astype(np.float32),
    "rising": lambda rng: np.arange(LARGE, dtype=np.float32),
    "falling": lambda rng: np.arange(LARGE, 0, -1, dtype=np.float32),
    "seen by the sample": seen_by_the_sample,
    "subnormal": lambda rng: (rng.standard_normal(LARGE) * 1e-42).astype(np.float32),
}


@pytest.mark.parametrize("name", DATA)
def test_large_vectors(name: str) -> None:
    x = DATA[name](np.random.default_rng(1))
    for k in (1, 100, LARGE // 16, LARGE // 2, LARGE - 1, LARGE):
        assert topk(x, k).tolist() == by_sorting(x, k), k


def test_does_not_change_its_input() -> None:
    x = np.random.default_rng(0).standard_normal(LARGE).astype(np.float32)
    before = x.copy()
    topk(x, 1000)
    assert np.array_equal(x, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("where", [0, CHUNK // 2, LARGE - 1])
def test_refuses_what_is_not_finite(bad: float, where: int) -> None:
    x = np.zeros(LARGE, np.float32)
    x[where] = bad
    with pytest.raises(CodecError, match=f"entry {where} of the vector is {bad}"):
        topk(x, 5)


@pytest.mark.parametrize("k", [-1, 4])
def test_refuses_an_impossible_k(k: int) -> None:
    with pytest.raises(CodecError, match=r"needs k in 0\.\.3"):
        topk(np.ones(3, np.float32), k)
