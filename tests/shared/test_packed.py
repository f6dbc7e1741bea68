"""SPK1 and LVL1 round trips on what a device sends: any values, sparse or not, one frame or several."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from covey_shared.codec import levels, spk1, values
from covey_shared.codec.framing import FRAME
from covey_shared.entries import Entries
from covey_shared.errors import CodecError
from covey_shared.layout import Vector
from tests.helpers_shared import float_bits, slow_lvl1, slow_spk1

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0])
TAME = st.floats(-(2.0**100), 2.0**100, width=32).filter(lambda x: x == 0 or abs(x) > 1e-25)


@st.composite
def entries(draw: st.DrawFn, floats: st.SearchStrategy[float] = FLOATS) -> Entries:
    """Up to 60 entries of a vector of up to 2^31 - 1, contiguous or not."""
    value = np.array(draw(st.lists(floats, min_size=1, max_size=60)), np.float32)
    size = draw(st.integers(len(value), 2**31 - 1) | st.integers(len(value), 100))
    if draw(st.booleans()):
        first = draw(st.integers(0, size - len(value)))
        return Entries(size, slice(first, first + len(value)), value)
    where = draw(st.sets(st.integers(0, size - 1), min_size=len(value), max_size=len(value)))
    return Entries(size, np.array(sorted(where), np.uint32), value)


def indices(found: Entries) -> list[int]:
    where = found.where
    return list(range(where.start, where.stop)) if isinstance(where, slice) else where.tolist()


def relative_error(got: Vector, wanted: Vector) -> float:
    difference = got.astype(np.float64) - wanted.astype(np.float64)
    return float(np.sqrt(np.square(difference).sum() / max(np.square(wanted.astype(np.float64)).sum(), 1e-300)))


@given(entries(), st.sampled_from(values.MODES), st.sampled_from([0.01, 0.1, 0.5]))
def test_spk1_keeps_indices_and_error(sent: Entries, mode: str, error: float) -> None:
    payload = spk1.encode(sent, 7, mode, error)
    got = spk1.decode(payload, sent.size, 7)
    assert indices(got) == indices(sent)
    assert got.values.dtype == np.float32
    assert len(payload) <= spk1.max_bytes(sent.count, sent.size, mode)
    if mode == "f32":
        assert float_bits(got.values) == float_bits(sent.values)
    if mode in ("lev", "auto") and np.abs(sent.values).max() > 1e-30:
        assert relative_error(got.values, sent.values) <= error * 1.001
    if mode == "f16":
        largest = float(np.abs(sent.values).max())
        assert np.abs(got.values.astype(np.float64) - sent.values).max() <= largest * 2.0**-11 + 1e-44


@given(entries(), st.sampled_from(values.MODES))
def test_slow_decoder_agrees_on_spk1(sent: Entries, mode: str) -> None:
    payload = spk1.encode(sent, 7, mode)
    where, value = slow_spk1(payload)
    got = spk1.decode(payload, sent.size, 7)
    assert where == indices(got)
    assert np.array_equal(np.array(value, np.float32), got.values)


@given(st.lists(TAME, min_size=1, max_size=100), st.integers(0, 50), st.sampled_from([0.001, 0.05, 0.3, 0.6, 0.95]))
def test_lvl1_keeps_error(value: list[float], first: int, error: float) -> None:
    v = np.array(value, np.float32)
    payload = levels.encode(Entries(200, slice(first, first + len(v)), v), 7, error)
    got = levels.decode(payload, 200, 7)
    assert got.where == slice(first, first + len(v))
    assert relative_error(got.values, v) <= error * 1.001
    assert np.all(got.values[v == 0] == 0)
    assert len(payload) <= levels.max_bytes(len(v))
    start, slow = slow_lvl1(payload)
    assert start == first
    assert np.array_equal(np.array(slow, np.float32), got.values)


DENSE: dict[str, Callable[[np.random.Generator, int], NDArray[Any]]] = {
    "normal": lambda rng, n: rng.standard_normal(n),
    "flat": lambda rng, n: rng.uniform(-1, 1, n),
    "heavy tail": lambda rng, n: rng.standard_t(2, n),
    "one spike": lambda rng, n: np.where(np.arange(n) == n // 2, 1e6, rng.standard_normal(n)),
    "tensors of unlike scale": lambda rng, n: rng.standard_normal(n) * 10.0 ** -(np.arange(n) * 10 // n),
    "one of three levels": lambda rng, n: rng.integers(-1, 2, n) * 1e-6,
    "mostly zero": lambda rng, n: np.where(rng.random(n) < 0.01, rng.standard_normal(n), 0),
    "zeros": lambda rng, n: np.zeros(n),
}  # fmt: skip


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("error", [0.001, 0.1, 0.45, 0.9])
def test_lvl1_on_several_frames(name: str, error: float) -> None:
    n = 2 * FRAME + 77
    v = DENSE[name](np.random.default_rng(5), n).astype(np.float32)
    payload = levels.encode(Entries(n, slice(0, n), v), 7, error)
    assert relative_error(levels.decode(payload, n, 7).values, v) <= error * 1.0001
    assert len(payload) <= levels.max_bytes(n)


@pytest.mark.parametrize(("error", "bits"), [(0.1, 3.7), (0.3, 2.15), (0.45, 1.52), (0.5, 1.35), (0.7, 0.8)])
def test_lvl1_is_small(error: float, bits: float) -> None:
    """Bits a coordinate on Gaussian vectors: what docs/codec.md states."""
    n = 4 * FRAME
    v = np.random.default_rng(1).standard_normal(n).astype(np.float32)
    assert len(levels.encode(Entries(n, slice(0, n), v), 7, error)) * 8 / n < bits


@pytest.mark.parametrize("mode", values.MODES)
@pytest.mark.parametrize("density", [1.0, 0.3, 0.01])
def test_spk1_on_several_frames(mode: str, density: float) -> None:
    rng = np.random.default_rng(2)
    n = round((2 * FRAME + 99) / density)
    where = np.flatnonzero(rng.random(n) < density).astype(np.uint32)
    value = rng.standard_normal(len(where)).astype(np.float32)
    got = spk1.decode(spk1.encode(Entries(n, where, value), 7, mode), n, 7)
    assert np.array_equal(np.arange(n)[got.where], where)
    assert relative_error(got.values, value) < {"f32": 1e-9, "f16": 1e-3, "lev": 0.1, "auto": 0.1, "sign": 0.7}[mode]


@settings(max_examples=20)
@given(st.integers(0, 3), st.integers(0, 200))
def test_no_index_bytes_for_runs(frames: int, more: int) -> None:
    count = frames * FRAME + more
    sent = Entries(2**31 - 1, slice(5, 5 + count), np.ones(count, np.float32))
    whole, rest = divmod(count, FRAME)
    expected = 24 + whole * (40 + FRAME // 8) + (40 + (rest + 7) // 8 if rest else 0)
    assert len(spk1.encode(sent, 7, "sign")) == expected


def test_index_cost_is_near_the_entropy() -> None:
    """log2 C(n, k) / k is 5.397 bits at 1/16; 1.5 % above it is what docs/codec.md states."""
    rng = np.random.default_rng(0)
    n = 1_000_000
    where = np.flatnonzero(rng.random(n) < 1 / 16).astype(np.uint32)
    payload = spk1.encode(Entries(n, where, np.ones(len(where), np.float32)), 7, "sign")
    index_bits = len(payload) * 8 / len(where) - 1
    assert index_bits < 5.397 * 1.015


def test_levels_refuses_what_it_cannot_hold() -> None:
    with pytest.raises(CodecError, match="after topk use pack"):
        levels.encode(Entries(9, np.array([1, 5], np.uint32), np.ones(2, np.float32)), 7, 0.1)
    with pytest.raises(CodecError, match="takes less than"):
        levels.encode(Entries(2, slice(0, 2), np.array([1, 2e38], np.float32)), 7, 0.1)
