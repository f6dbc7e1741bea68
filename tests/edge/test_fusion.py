"""Fusing two adapters: the algebra of both ways, and a search that never loses."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_edge.fusion import BOX, concatenated, factorwise, search
from covey_shared.errors import LayoutError
from covey_shared.factors import pairs, products
from covey_shared.layout import Layout, Tensor


def layout_of(rank: int, scale: float, *, head: bool = False) -> Layout:
    a = Tensor(name="A", shape=(rank, 7), kind="lora_A", init="zeros", module="q", rank=rank, scale=scale)
    b = Tensor(name="B", shape=(5, rank), kind="lora_B", init="zeros", module="q", rank=rank, scale=scale)
    return Layout((a, b, *([Tensor(name="h", shape=(3,), kind="head", init="zeros")] if head else [])))


LAYOUT, SECOND = layout_of(3, 2.0, head=True), layout_of(4, 0.5)
RNG = np.random.default_rng(0)
SHARED, PERSONAL = (RNG.standard_normal(LAYOUT.size).astype(np.float32) for _ in range(2))


@pytest.mark.parametrize("weights", [(1.0, 0.0), (0.0, 1.0), (0.3, -1.2), (1.5, 1.5)])
def test_concatenation_is_the_exact_sum_of_products(weights: tuple[float, float]) -> None:
    adapter, beside = concatenated(LAYOUT, SECOND, SHARED, PERSONAL, *weights)
    ((_, first),), ((_, second),) = products(LAYOUT, adapter), products(SECOND, beside)
    ((_, shared),), ((_, personal),) = products(LAYOUT, SHARED), products(LAYOUT, PERSONAL)
    assert np.allclose(first + second, weights[0] * shared + weights[1] * personal, atol=1e-5)
    assert np.allclose(adapter[-3:], weights[0] * SHARED[-3:] + weights[1] * PERSONAL[-3:])


def test_factorwise_has_cross_terms() -> None:
    (pair,) = pairs(LAYOUT)
    (a1, b1), (a2, b2) = pair.of(SHARED), pair.of(PERSONAL)
    ((_, got),) = products(LAYOUT, factorwise(SHARED, PERSONAL, 0.5, 0.25))
    wanted = 0.25 * b1 @ a1 + 0.0625 * b2 @ a2 + 0.125 * (b1 @ a2 + b2 @ a1)
    assert np.allclose(got, 2.0 * wanted, atol=1e-5)


def test_each_adapter_alone() -> None:
    assert np.array_equal(factorwise(SHARED, PERSONAL, 1, 0), SHARED)
    assert np.array_equal(factorwise(SHARED, PERSONAL, 0, 1), PERSONAL)


def test_a_second_adapter_that_is_too_small() -> None:
    with pytest.raises(LayoutError, match="cannot hold 'q' at rank 3"):
        concatenated(LAYOUT, layout_of(2, 1.0), SHARED, PERSONAL, 1, 1)


@given(st.floats(-1.4, 1.4), st.floats(-1.4, 1.4), st.floats(0.1, 10))
def test_search_finds_a_valley(x: float, y: float, tilt: float) -> None:
    found = search(lambda w1, w2: (w1 - x) ** 2 + tilt * (w2 - y) ** 2, budget=120, penalty=0.0)
    assert found.loss < 0.05
    assert found.evaluations <= 120
    assert max(abs(found.shared), abs(found.personal)) <= BOX


@given(seed=st.integers(0, 10**6), budget=st.integers(0, 60), penalty=st.floats(0, 10))
def test_never_worse_than_the_better_of_the_two(seed: int, budget: int, penalty: float) -> None:
    rough = np.random.default_rng(seed).uniform(0, 5, 6)

    def loss(w1: float, w2: float) -> float:
        return float(abs(math.sin(rough[0] * w1 + rough[1] * w2 * w1)) + rough[2] * abs(w2 - rough[3] / 5))

    found = search(loss, budget, penalty)
    assert found.loss <= min(loss(1.0, 0.0), loss(0.0, 1.0))
    assert found.loss == loss(found.shared, found.personal)
    assert found.evaluations <= max(2, budget)


def test_near_equals_are_decided_by_the_penalty() -> None:
    assert search(lambda w1, w2: 0.0)[:2] == (0.0, 0.0)
    assert search(lambda w1, w2: math.inf if (w1, w2) == (0, 0) else abs(w1) + abs(w2)).loss <= 1
