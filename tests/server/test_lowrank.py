"""Sums of products of unlike rank against dense matrices."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_server.lowrank import Product, align, compress, frobenius, rank_for, singular_values, stack
from covey_shared.factors import Matrix

M, N = 30, 20


def product(rank: int, seed: int) -> Product:
    rng = np.random.default_rng(seed)
    return Product(rng.standard_normal((rank, N)), rng.standard_normal((M, rank)))


def relative(got: Matrix, wanted: Matrix) -> float:
    return float(np.linalg.norm(got - wanted) / np.linalg.norm(wanted))


@given(ranks=st.lists(st.integers(1, 12), min_size=1, max_size=5), seed=st.integers(0, 2**32 - 1))
def test_stack_is_the_exact_sum(ranks: list[int], seed: int) -> None:
    products = [product(r, seed + i) for i, r in enumerate(ranks)]
    weights = np.random.default_rng(seed).dirichlet(np.ones(len(ranks))).tolist()
    dense = sum((w * p.dense() for p, w in zip(products, weights, strict=True)), np.zeros((M, N)))
    stacked = stack(products, weights)
    assert stacked.rank == sum(ranks)
    assert np.abs(stacked.dense() - dense).max() < 1e-12
    back = list(reversed(range(len(ranks))))
    again = stack([products[i] for i in back], [weights[i] for i in back])
    assert np.abs(again.dense() - dense).max() < 1e-12, "the order of the blocks does not matter"


def test_scaling_both_factors_or_padding_would_be_wrong() -> None:
    """The two mistakes that published code makes are far from the sum."""
    products, weights = [product(r, r) for r in (8, 4, 2)], [0.5, 0.3, 0.2]
    right = stack(products, weights).dense()
    twice = stack([Product(p.a, p.b * w) for p, w in zip(products, weights, strict=True)], weights).dense()
    padded_a, padded_b = np.zeros((8, N)), np.zeros((M, 8))
    for p, w in zip(products, weights, strict=True):
        padded_a[: p.rank] += w * p.a
        padded_b[:, : p.rank] += w * p.b
    assert relative(twice, right) > 0.3
    assert relative(padded_b @ padded_a, right) > 0.3


@pytest.mark.parametrize("cap", [1, 3, 7, 14])
def test_compress_is_the_best_of_its_rank(cap: int) -> None:
    stacked = stack([product(r, r) for r in (8, 4, 2)], [0.5, 0.3, 0.2])
    s = np.linalg.svd(stacked.dense(), compute_uv=False)
    got = compress(stacked, cap)
    assert got.rank == cap
    left = np.linalg.norm(got.dense() - stacked.dense())
    assert left == pytest.approx(np.sqrt(np.square(s[cap:]).sum()), abs=1e-10), "Eckart-Young"


def test_compress_keeps_the_energy_with_the_smallest_rank() -> None:
    stacked = stack([product(r, r) for r in (8, 4, 2)], [0.5, 0.3, 0.2])
    s = singular_values(stacked)
    assert np.allclose(s, np.linalg.svd(stacked.dense(), compute_uv=False)[:14])
    for energy in (0.5, 0.9, 0.99):
        rank = compress(stacked, 14, energy).rank
        kept = np.cumsum(np.square(s)) / np.square(s).sum()
        assert kept[rank - 1] >= energy - 1e-9
        assert rank == 1 or kept[rank - 2] < energy


def test_compress_drops_what_is_zero() -> None:
    twin = product(3, 0)
    assert compress(stack([twin, twin], [0.5, 0.5]), 20).rank == 3
    assert compress(Product(np.zeros((4, N)), np.zeros((M, 4))), 20).rank == 0
    assert rank_for(np.zeros(3), 0.9) == 0
    wide = compress(product(40, 1), 64)
    assert wide.rank == N, "more factors than columns"


def test_compressed_factors_are_balanced_and_nested() -> None:
    got = compress(product(6, 3), 6)
    assert np.allclose(np.linalg.norm(got.a, axis=1), np.linalg.norm(got.b, axis=0))
    top = compress(product(6, 3), 2)
    assert np.allclose(got.b[:, :2] @ got.a[:2], top.dense()), "the first two factors are the best two"


def test_align_changes_looks_and_not_the_product() -> None:
    near = compress(product(5, 1), 5)
    rng = np.random.default_rng(0)
    turn, _ = np.linalg.qr(rng.standard_normal((5, 5)))
    turned = Product(turn @ near.a, near.b @ turn.T)
    aligned = align(turned, near.a)
    assert relative(aligned.dense(), turned.dense()) < 1e-12
    assert relative(aligned.a, near.a) < 1e-10
    assert align(turned, near.a[:3]) is turned


def test_align_keeps_what_devices_of_lower_rank_have() -> None:
    best = compress(product(8, 1), 8)
    near = best.a[[0, 1, 3, 2, 4, 5, 6, 7]] * -1.0  # what they hold: other signs, and two factors changed places
    ranks = (2, 4, 8, 16)
    aligned = align(best, near, ranks)
    for rank in (2, 4, 8):
        mine, before = (Product(p.a[:rank], p.b[:, :rank]) for p in (aligned, best))
        assert relative(mine.dense(), before.dense()) < 1e-12
    assert relative(aligned.a, near) < 1e-10


def test_frobenius_without_the_matrix() -> None:
    for seed in range(5):
        p = product(4, seed)
        assert frobenius(p) == pytest.approx(np.linalg.norm(p.dense()))
