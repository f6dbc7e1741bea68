"""SplitMix64 (Steele, Lea, Flood 2014): the protocol's one random generator.

Start values, sampling and segment order must be the same bits in Python and Kotlin, so nothing that crosses the wire
may come from NumPy's or the platform's generator.
"""

import numpy as np
from numpy.typing import NDArray

GOLDEN = 0x9E3779B97F4A7C15
MASK = (1 << 64) - 1


def mix(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function, elementwise on uint64."""
    z = state.copy()
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def draws(seed: int, first: int, count: int) -> NDArray[np.uint64]:
    """Outputs `first` to `first + count - 1` of the stream of `seed` (any integer, taken modulo 2^64).

    >>> [hex(int(x)) for x in draws(0, 0, 2)]
    ['0xe220a8397b1dcdaf', '0x6e789e6aa1b965f4']
    """
    steps = np.arange(first + 1, first + count + 1, dtype=np.uint64)
    return mix(np.uint64(seed & MASK) + steps * np.uint64(GOLDEN))


def uniform(seed: int, first: int, count: int) -> NDArray[np.float32]:
    """The top 24 bits of each output as a float32 in [0, 1): every value is exact."""
    return (draws(seed, first, count) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def derive(*parts: int | str) -> int:
    """A seed in 0..2^64-1 from numbers and strings, in order: one stream per (task seed, round, client) and the like.

    Strings enter as UTF-8 bytes, eight at a time, little-endian, with their length first.
    """
    state = 0
    for part in parts:
        if isinstance(part, str):
            data = part.encode()
            words = [len(data), *(int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8))]
        else:
            words = [part & MASK]
        for word in words:
            state = int(draws(state ^ word, 0, 1)[0])
    return state


def permutation(seed: int, count: int) -> NDArray[np.int64]:
    """A shuffle of 0..count-1: the stable order of the first `count` outputs."""
    return np.argsort(draws(seed, 0, count), kind="stable").astype(np.int64)
