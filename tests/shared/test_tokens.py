"""The token coder against its definition, number by number."""

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_shared.codec import tokens
from covey_shared.errors import PayloadError
from tests.helpers_shared import slow_numbers

U32 = st.integers(0, 2**32 - 1) | st.integers(0, 40) | st.integers(0, 31).map(lambda bit: 1 << bit)

# number, token, raw bits, their value
TABLE = [
    (0, 0, 0, 0), (7, 7, 0, 0), (8, 8, 0, 0), (15, 15, 0, 0), (16, 16, 1, 0), (17, 16, 1, 1), (31, 23, 1, 1),
    (32, 24, 2, 0), (255, 47, 4, 15), (256, 48, 5, 0), (1000, 63, 6, 40), (65535, 111, 12, 4095), (65536, 112, 13, 0),
    (2**24 - 1, 175, 20, 2**20 - 1), (2**24 + 1, 176, 21, 1), (2**31, 232, 28, 0), (2**32 - 1, 239, 28, 2**28 - 1),
]  # fmt: skip


@pytest.mark.parametrize(("number", "token", "width", "low"), TABLE)
def test_table(number: int, token: int, width: int, low: int) -> None:
    assert tokens.tokenize(np.array([number], np.uint32)).tolist() == [token]
    assert (int(tokens.WIDTH[token]), int(tokens.FLOOR[token]) + low) == (width, number)
    deflated, raw = tokens.pack(np.array([number], np.uint32))
    assert int.from_bytes(raw, "little") == low
    assert len(raw) == (width + 7) // 8
    assert tokens.unpack(deflated, raw, 1, "it").tolist() == [number]


@given(st.lists(U32, max_size=300))
def test_round_trip(numbers: list[int]) -> None:
    packed = tokens.pack(np.array(numbers, np.uint32))
    assert tokens.unpack(*packed, len(numbers), "they").tolist() == numbers
    assert slow_numbers(*packed) == numbers


@given(st.lists(st.tuples(st.integers(1, 28), st.integers(0, 2**28 - 1)), min_size=1, max_size=200))
def test_raw_bits(pairs: list[tuple[int, int]]) -> None:
    """Against one big integer."""
    widths = np.array([w for w, _ in pairs], np.uint8)
    values = np.array([v & ((1 << w) - 1) for w, v in pairs], np.uint32)
    total, at = 0, 0
    for width, value in zip(widths.tolist(), values.tolist(), strict=True):
        total |= value << at
        at += width
    raw = tokens.pack_bits(values, widths)
    assert raw == total.to_bytes((at + 7) // 8, "little")
    assert tokens.unpack_bits(raw, widths, "they").tolist() == values.tolist()


@given(st.binary(max_size=60), st.binary(max_size=10), st.integers(0, 50))
def test_arbitrary_bytes_are_refused_or_read(deflated: bytes, raw: bytes, count: int) -> None:
    with suppress(PayloadError):
        assert len(tokens.unpack(deflated, raw, count, "they")) == count
