"""Clustering by cosine: planted groups are found, and do not flicker."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey_server.cohorts import Matrix, cluster, similarity

N = 400


def planted(sizes: list[int], noise: float, seed: int = 0) -> tuple[list[str], Matrix, list[int]]:
    """Devices of groups with orthogonal directions, of unlike lengths."""
    rng = np.random.default_rng(seed)
    ways, _ = np.linalg.qr(rng.standard_normal((N, len(sizes))))
    truth = [g for g, size in enumerate(sizes) for _ in range(size)]
    rows = ways[:, truth].T + noise * rng.standard_normal((len(truth), N)) / np.sqrt(N)
    names = [f"d{i:02d}" for i in rng.permutation(len(truth))]
    return names, rows * rng.uniform(0.1, 10, (len(truth), 1)), truth


def partition(names: list[str], groups: list[int]) -> set[frozenset[str]]:
    return {frozenset(n for n, g in zip(names, groups, strict=True) if g == group) for group in set(groups)}


@settings(max_examples=30)
@given(sizes=st.lists(st.integers(2, 8), min_size=2, max_size=4), seed=st.integers(0, 10**6))
def test_planted_groups_are_found(sizes: list[int], seed: int) -> None:
    names, rows, truth = planted(sizes, 0.7, seed)
    got = cluster(names, rows, len(sizes))
    assert partition(names, [got.member[n] for n in names]) == partition(names, truth)
    back = list(reversed(range(len(names))))
    again = cluster([names[i] for i in back], rows[back], len(sizes))
    assert again.member == got.member, "the order of devices does not matter"
    assert np.allclose(np.linalg.norm(got.centres, axis=1), 1)


def test_numbers_are_kept_and_those_who_are_away_too() -> None:
    names, rows, truth = planted([5, 5, 5], 0.5)
    first = cluster(names, rows, 3)
    some = [i for i in range(15) if i % 5]
    _, fresh, _ = planted([5, 5, 5], 0.5)
    second = cluster([names[i] for i in some], fresh[some], 3, first)
    assert second.member == first.member
    assert len(truth) == len(second.member)


def test_hysteresis() -> None:
    """A device between two groups stays where it is until another centre is clearly nearer."""
    names, rows, _ = planted([4, 4], 0.0)
    first = cluster(names, rows, 2)
    ways = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for lean, moves in ((0.01, False), (0.5, True)):
        rows = ways.copy()
        rows[0] = (1 - lean) * ways[0] + (1 + lean) * ways[7]
        second = cluster(names, rows, 2, first, margin=0.1)
        assert (second.member[names[0]] != first.member[names[0]]) == moves


def test_small_groups_are_given_up() -> None:
    names, rows, _ = planted([5, 5, 1], 0.3)
    got = cluster(names, rows, 3, smallest=2)
    assert len(set(got.member.values())) == 2
    assert cluster(names, rows, 3, smallest=1).member != got.member
    everyone = cluster(names[:2], rows[[0, 5]], 2, smallest=2)
    assert len(set(everyone.member.values())) == 1, "two groups of one become one"


def test_pinned_devices_stay() -> None:
    names, rows, truth = planted([4, 4], 0.3)
    got = cluster(names, rows, 2, pinned={names[0]: 1, names[7]: 1})
    assert got.member[names[0]] == got.member[names[7]] == 1
    alone = cluster(names, rows, 3, pinned={names[0]: 2}, smallest=3)
    assert alone.member[names[0]] == 2, "a group of pinned devices may be small"
    assert truth[0] != truth[7]


def test_fewer_devices_than_groups_and_zeros() -> None:
    names, rows, _ = planted([1, 1], 0.0)
    got = cluster(names, rows, 4, smallest=1)
    assert len(set(got.member.values())) == 2
    assert cluster(["a", "b"], np.zeros((2, N)), 2, smallest=1).member.keys() == {"a", "b"}


def test_similarity() -> None:
    rows = np.array([[1.0, 0], [2, 0], [0, 3], [-1, 0], [0, 0]])
    assert similarity(rows)[0] == pytest.approx([1, 1, 0, -1, 0])
