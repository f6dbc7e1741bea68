"""The laws of the robust rules: what attackers can and cannot move."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from covey_server import robust
from covey_server.defence import capped, clip_factors
from covey_shared.entries import Entries

SIZE = 40
values = st.floats(-1e3, 1e3, width=32, allow_subnormal=False)


@st.composite
def sparse(draw: st.DrawFn) -> Entries:
    mask = draw(arrays(bool, SIZE))
    where = np.flatnonzero(mask).astype(np.uint32)
    return Entries(SIZE, where, draw(arrays(np.float32, len(where), elements=values)))


def dense(vector: np.ndarray) -> Entries:
    return Entries(len(vector), slice(0, len(vector)), vector.astype(np.float32))


cohorts = st.lists(sparse(), min_size=1, max_size=9)


@given(cohorts)
def test_nothing_trimmed_is_the_mean_with_absent_as_no_change(updates: list[Entries]) -> None:
    expected = np.mean([u.dense().astype(np.float64) for u in updates], axis=0)
    np.testing.assert_allclose(robust.trimmed_mean(updates, 0), expected, rtol=1e-5, atol=1e-3)


@given(cohorts, st.randoms())
def test_the_order_of_devices_does_not_matter(updates: list[Entries], random: object) -> None:
    shuffled = sorted(updates, key=lambda u: random.random())  # type: ignore[attr-defined]
    f = (len(updates) - 1) // 2
    assert np.array_equal(robust.median(updates, f), robust.median(shuffled, f))
    assert np.array_equal(robust.trimmed_mean(updates, f), robust.trimmed_mean(shuffled, f))


@pytest.mark.parametrize("rule", [robust.trimmed_mean, robust.median])
@given(honest=st.lists(sparse(), min_size=3, max_size=7), evil=sparse(), count=st.integers(1, 3))
def test_attackers_do_not_leave_the_range_of_honest_values(
    rule: object, honest: list[Entries], evil: Entries, count: int
) -> None:
    f = min(count, (len(honest) - 1) // 2, len(honest) - 1)
    huge = Entries(SIZE, evil.where, evil.values * np.float32(1e6) + np.float32(1e9))
    moved = rule([*honest, *[huge] * f], f)  # type: ignore[operator]
    matrix = np.full((len(honest), SIZE), np.nan)
    for row, update in zip(matrix, honest, strict=True):
        row[update.where] = update.values
    sent = ~np.isnan(matrix).all(axis=0)
    assert not moved[~sent].any(), "coordinates that only attackers sent stay"
    low, high = np.nanmin(matrix[:, sent], axis=0), np.nanmax(matrix[:, sent], axis=0)
    slack = 1e-4 * np.maximum(np.abs(low), np.abs(high))
    assert (moved[sent] >= np.minimum(low, 0) - slack).all()
    assert (moved[sent] <= np.maximum(high, 0) + slack).all()


def test_absent_is_not_zero() -> None:
    one = Entries(4, np.array([1], np.uint32), np.array([8.0], np.float32))
    assert robust.median([one, one, dense(np.zeros(4))], 0)[1] == 8.0
    only = [one, Entries(4, np.array([2], np.uint32), np.array([1.0], np.float32)), one]
    assert robust.median(only, 0).tolist() == [0.0, np.float32(16 / 3), np.float32(1 / 3), 0.0]


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    updates = [Entries(1000, np.flatnonzero(m).astype(np.uint32), rng.standard_normal(m.sum()).astype(np.float32))
               for m in rng.random((7, 1000)) < 0.6]  # fmt: skip
    updates.append(Entries(1000, slice(100, 700), rng.standard_normal(600).astype(np.float32)))
    whole = robust.trimmed_mean(updates, 1), robust.median(updates, 1)
    monkeypatch.setattr(robust, "CHUNK_VALUES", 300)
    assert np.array_equal(whole[0], robust.trimmed_mean(updates, 1))
    assert np.array_equal(whole[1], robust.median(updates, 1))


def test_half_of_the_devices_cannot_be_attackers() -> None:
    with pytest.raises(ValueError, match="outvoted"):
        robust.median([dense(np.ones(3))] * 4, 2)


@given(arrays(np.float32, (6, 30), elements=values), arrays(np.float32, 30, elements=values))
def test_krum_scores_are_those_of_the_definition(honest: np.ndarray, center: np.ndarray) -> None:
    matrix = np.concatenate([honest, center[None]]).astype(np.float64)
    squared = np.square(matrix[:, None] - matrix[None]).sum(-1)
    scores = [np.sort(np.delete(row, i))[: 7 - 1 - 2].sum() for i, row in enumerate(squared)]
    best = robust.krum([dense(row) for row in matrix], 1)[0]
    assert scores[best] <= min(scores) * (1 + 1e-6) + 1e-3


def test_krum_leaves_the_far_ones_out() -> None:
    rng = np.random.default_rng(0)
    honest = [dense(1 + 0.1 * rng.standard_normal(50)) for _ in range(8)]
    evil = [dense(np.full(50, -100.0))] * 2
    assert not set(robust.krum([*evil, *honest], 2, keep=6)) & {0, 1}


def test_krum_refuses_different_supports_and_small_cohorts() -> None:
    sparse_one = Entries(3, np.array([0, 2], np.uint32), np.ones(2, np.float32))
    with pytest.raises(ValueError, match="same coordinates"):
        robust.krum([dense(np.ones(3))] * 4 + [sparse_one], 1)
    with pytest.raises(ValueError, match="at least 5 updates"):
        robust.krum([dense(np.ones(3))] * 4, 1)


norms_of_updates = st.just(0.0) | st.floats(1e-9, 1e6)


@given(st.lists(norms_of_updates, min_size=1, max_size=20), st.floats(0, 1))
def test_no_clipped_norm_is_above_the_quantile(norms: list[float], quantile: float) -> None:
    factors = clip_factors(norms, quantile)
    bound = np.quantile(norms, quantile, method="lower")
    assert ((factors > 0) | (bound == 0)).all()
    assert (factors <= 1).all()
    assert (factors * norms <= bound * (1 + 1e-9)).all()
    assert (factors[np.asarray(norms) <= bound] == 1).all()


@given(
    st.lists(st.tuples(st.floats(1e-3, 1e6), st.sampled_from("abcdef")), min_size=1, max_size=20), st.floats(0.05, 1)
)
def test_no_group_has_more_than_its_cap(devices: list[tuple[float, str]], cap: float) -> None:
    weights, groups = [w for w, _ in devices], [g for _, g in devices]
    out = capped(weights, groups, cap)
    assert (out <= np.asarray(weights) * (1 + 1e-9)).all()
    totals = {g: sum(w for w, name in zip(out, groups, strict=True) if name == g) for g in groups}
    if cap * len(totals) > 1:
        assert max(totals.values()) <= cap * sum(totals.values()) * (1 + 1e-6)
    else:
        np.testing.assert_allclose(list(totals.values()), totals[groups[0]], rtol=1e-6)


def test_a_device_that_claims_a_billion_examples_gets_its_cap() -> None:
    out = capped([10, 10, 10, 10, 1e9], ["a", "b", "c", "d", "e"], 0.25)
    np.testing.assert_allclose(out / out.sum(), [0.1875] * 4 + [0.25])
    assert np.array_equal(capped([1, 2, 3], ["a", "b", "c"], 1.0), [1, 2, 3])
