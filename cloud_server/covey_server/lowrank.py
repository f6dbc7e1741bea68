"""Sums of low-rank products as low-rank products, without ever forming an m x n matrix. Pure, float64.

    sum of w_k B_k A_k = [B_1 | B_2 | ...] @ [w_1 A_1 ; w_2 A_2 ; ...]      exact, whatever the ranks

The weight stands on A alone; on both it would count twice. `compress` finds the best product of lower rank (Eckart,
Young 1936): with B = Q_B R_B and A^T = Q_A R_A only the small core R_B R_A^T needs a singular value decomposition.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from covey_shared.factors import Matrix


class Product(NamedTuple):
    """B @ A as its factors: A [r, n], B [m, r]."""

    a: Matrix
    b: Matrix

    @property
    def rank(self) -> int:
        """Number of factors."""
        return len(self.a)

    def dense(self) -> Matrix:
        """The whole matrix [m, n]."""
        return self.b @ self.a


def stack(products: Sequence[Product], weights: Sequence[float]) -> Product:
    """The weighted sum, exactly: factors one after the other (FLoRA, Wang et al. 2024, arXiv 2409.05976)."""
    scaled = [weight * product.a for product, weight in zip(products, weights, strict=True)]
    return Product(np.concatenate(scaled), np.concatenate([product.b for product in products], axis=1))


def compress(product: Product, cap: int, energy: float = 1.0) -> Product:
    """The best product of rank at most `cap` that keeps the share `energy` of the squared singular values.

    The smallest such rank is taken (FLoRIST, Ramesh and Dass 2026, arXiv 2506.09199), and each factor gets the square
    root of its singular value, so that A and B train at like speeds. With energy 1 all that is not zero is kept.
    """
    q_b, r_b = np.linalg.qr(product.b)
    q_a, r_a = np.linalg.qr(product.a.T)
    u, s, vt = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    rank = min(cap, rank_for(s, energy))
    root = np.sqrt(s[:rank])
    return Product(root[:, None] * (vt[:rank] @ q_a.T), q_b @ u[:, :rank] * root)


def rank_for(singular: Matrix, energy: float) -> int:
    """The smallest number of leading singular values that hold the share `energy` of the sum of squares."""
    squares = np.square(singular)
    if not squares.sum() > 0:
        return 0
    if energy >= 1:
        return int(np.count_nonzero(singular > singular[0] * len(singular) * np.finfo(np.float64).eps))
    return int(np.searchsorted(np.cumsum(squares), energy * squares.sum() * (1 - 1e-12)) + 1)


def singular_values(product: Product) -> Matrix:
    """The singular values, float64 [r], largest first."""
    core = np.linalg.qr(product.b)[1] @ np.linalg.qr(product.a.T)[1].T
    return np.asarray(np.linalg.svd(core, compute_uv=False), np.float64)


def align(product: Product, near: Matrix, ranks: Sequence[int] = ()) -> Product:
    """The same product with its factors turned towards `near`, another A [r, n] of the same rank.

    Singular vectors are determined only up to signs and order, so two versions of one adapter may look unlike. Devices
    download differences: the rotation nearest to what they hold (Procrustes) keeps these small. Where devices have
    lower `ranks`, the product of so many leading factors stays the same too: only factors between two ranks are turned
    into one another.
    """
    if product.a.shape != near.shape:
        return product
    cuts = (0, *sorted({rank for rank in ranks if rank < product.rank}), product.rank)
    turned = [_turned(product, near, slice(i, j)) for i, j in pairwise(cuts)]
    return Product(np.concatenate([part.a for part in turned]), np.concatenate([part.b for part in turned], axis=1))


def _turned(product: Product, near: Matrix, factors: slice) -> Product:
    a, b = product.a[factors], product.b[:, factors]
    u, _, vt = np.linalg.svd(near[factors] @ a.T)
    turn = u @ vt
    return Product(turn @ a, b @ turn.T)


def frobenius(product: Product) -> float:
    """The Frobenius norm of B @ A, by the two Gram matrices."""
    return float(np.sqrt(max(np.sum((product.b.T @ product.b) * (product.a @ product.a.T)), 0.0)))
