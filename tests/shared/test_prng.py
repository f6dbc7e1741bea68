"""SplitMix64: known outputs, streams and what is derived from them. More golden numbers are in test_vectors.py."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from covey_shared import prng

SEEDS = st.integers(0, 2**64 - 1)


def test_published_outputs() -> None:
    """The first outputs for seed 1234567, as printed with the reference implementation."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [int(x) for x in prng.draws(1234567, 0, 5)] == expected


def one_at_a_time(seed: int, count: int) -> list[int]:
    """The generator as its authors write it, in Python integers."""
    out, mask = [], (1 << 64) - 1
    for _ in range(count):
        seed = (seed + 0x9E3779B97F4A7C15) & mask
        z = (seed ^ (seed >> 30)) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & mask
        out.append(z ^ (z >> 31))
    return out


@given(SEEDS, st.integers(0, 50), st.integers(0, 50))
def test_any_stretch_of_the_stream(seed: int, first: int, count: int) -> None:
    assert [int(x) for x in prng.draws(seed, first, count)] == one_at_a_time(seed, first + count)[first:]


@given(SEEDS)
def test_uniform_is_exact_and_below_one(seed: int) -> None:
    u = prng.uniform(seed, 0, 100)
    assert u.dtype == np.float32
    assert u.min() >= 0
    assert u.max() < 1
    assert [int(x) for x in u * np.float32(2**24)] == [x >> 40 for x in one_at_a_time(seed, 100)]


@given(SEEDS, st.integers(0, 200))
def test_permutation(seed: int, count: int) -> None:
    assert sorted(prng.permutation(seed, count).tolist()) == list(range(count))


@given(st.lists(SEEDS | st.text(max_size=20), max_size=4), st.lists(SEEDS | st.text(max_size=20), max_size=4))
def test_derived_seeds_differ(one: list[int | str], other: list[int | str]) -> None:
    seeds = prng.derive(*one), prng.derive(*other)
    assert all(0 <= s < 2**64 for s in seeds)
    if [type(p) for p in one] == [type(p) for p in other]:
        assert (seeds[0] == seeds[1]) == (one == other)


def test_parts_are_told_apart() -> None:
    parts: list[tuple[int | str, ...]] = [
        ("ab",),
        ("a", "b"),
        ("a", ""),
        ("", "a"),
        ("a\0",),
        (1, 2),
        (2, 1),
        (12,),
        ("1", "2"),
    ]
    assert len({prng.derive(*p) for p in parts}) == len(parts)
