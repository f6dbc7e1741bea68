"""LVL1, the second packed format: every coordinate of a contiguous run in a few bits. docs/codec.md describes it.

    level m = floor(|v| / step + 0.4); v decodes to 0 where m = 0, else to +-(base + step * m)

When to use it: for dense vectors, where most values are near zero. SPK1's LEV was made for the large values that a
top-k leaves and has no zero. One step serves the whole vector, which is what least squares asks for; each frame of
65,536 has its own `base` and `top`. A level up to `top` is a digit of base 2 top + 1, as many digits as fit make one
byte (five for top = 1), and the bytes are Huffman-coded: so it goes below one bit a coordinate. A level that reaches
`top` is followed by its excess in the token coder, so a few outliers cost a few bytes and not a larger alphabet.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from covey_shared.codec.framing import FRAME, VERSION, Data, check_end, check_scale, open_frame, open_header, seal
from covey_shared.codec.tokens import U32, deflate, inflate, pack, unpack
from covey_shared.entries import Entries
from covey_shared.errors import CodecError, PayloadError
from covey_shared.layout import Vector

MAGIC = b"LVL1"
HEADER = struct.Struct("<4sHHIIIIfI")  # magic, version, flags, n, coordinates, layout id, first index, step, checksum
FRAME_HEADER = struct.Struct("<IIIIfI")  # top, sections P Q R, base, checksum
LENGTHS = slice(1, 4)

TOPS = (1, 2, 3, 7, 15, 31, 127)  # what the encoder chooses from; the decoder takes any up to the last
MAX_TOP = TOPS[-1]
MAX_EXCESS = 1 << 28
ROUND = np.float32(0.4)  # instead of 0.5: a wider zero saves more bits than its error costs
SAMPLE = 1 << 16  # coordinates that the step is fitted to
TINY = 2.0**-100  # a vector without a larger magnitude is sent as zeros, so that no step underflows
HUGE = 2.0**120  # ... and one with a larger magnitude is refused, so that no value overflows

U8 = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class _Levels:
    """One frame on the way out: values, their levels, the base that fits them, and the squared error that is left."""

    v: Vector
    m: U32
    base: np.float32
    lost: float


def max_bytes(entries: int) -> int:
    """No payload of so many coordinates is longer: a byte each for digit and token, 20 raw bits, DEFLATE's overhead."""
    return HEADER.size + math.ceil(entries / FRAME) * (FRAME_HEADER.size + 256) + math.ceil(4.5 * entries)


def encode(entries: Entries, layout_id: int, error: float) -> bytes:
    """The payload of a contiguous run; `error` is the relative L2 error that it may make, 0.001 to 0.95."""
    if not isinstance(entries.where, slice):
        raise CodecError("the stage levels takes whole vectors and segments; after topk use pack")
    step, frames = _quantise(entries.values, error)
    head = HEADER.pack(
        MAGIC, VERSION, 0, entries.size, entries.count, layout_id, entries.where.start, step, 0
    )[:-4]  # fmt: skip
    return b"".join([seal(head), *(_encode_frame(frame) for frame in frames)])


def _quantise(v: Vector, error: float) -> tuple[np.float32, list[_Levels]]:
    """The step, and the levels of all frames, within the error."""
    top = float(np.abs(v).max(initial=0))
    if top >= HUGE:
        raise CodecError(f"the vector holds a magnitude of {top:.3g}; the stage levels takes less than {HUGE:.3g}")
    if top < TINY:
        return np.float32(0), [_Levels(p, np.zeros(len(p), np.uint32), np.float32(0), 0) for p in _pieces(v)]
    unit = np.float32(top)  # squares of parts of it do not underflow
    allowed = (error * top) ** 2 * sum(float(np.square(piece / unit).sum()) for piece in _pieces(v))
    step = _fit_step(v, top, allowed)
    while True:
        frames = [_levels(piece, step) for piece in _pieces(v)]
        lost = sum(frame.lost for frame in frames)
        if lost <= allowed:
            return step, frames
        step *= np.float32(0.995 * math.sqrt(allowed / lost))


def _pieces(v: Vector) -> Iterator[Vector]:
    for at in range(0, len(v), FRAME):
        yield v[at : at + FRAME]


def _fit_step(v: Vector, top: float, allowed: float) -> np.float32:
    """The largest step whose error on a sample stays within bounds: bisection, for the error grows with the step."""
    sample = np.ascontiguousarray(v[:: (len(v) // SAMPLE) | 1])
    share = allowed * len(sample) / len(v)
    fine = math.sqrt(12 * allowed / len(v))  # right for small steps; a wide zero loses more, a sparse vector less
    low, high = math.log(0.25 * fine), math.log(max(2 * top, fine))
    for _ in range(11):
        middle = (low + high) / 2
        fits = _levels(sample, np.float32(math.exp(middle))).lost <= share
        low, high = (middle, high) if fits else (low, middle)
    return np.float32(math.exp(low))


def _levels(v: Vector, step: np.float32) -> _Levels:
    """Nearest levels, the best base for them, and what is lost; computed in units of the step."""
    scaled = np.abs(v) / step
    m = (scaled + ROUND).astype(np.uint32)
    rest = scaled - m.astype(np.float32)
    some = m > 0
    base = np.float32((rest * some).sum() / max(int(some.sum()), 1))
    rest -= base * some
    return _Levels(v, m, base * step, float(step) ** 2 * float(np.square(rest).sum()))


def _encode_frame(frame: _Levels) -> bytes:
    """The shortest of the two encodings that promise to be."""
    return min((_encode_with(frame, top) for top in _best_tops(frame.m)), key=len)


def _encode_with(frame: _Levels, top: int) -> bytes:
    p = q = r = b""
    if top:
        digit = np.minimum(frame.m, top).astype(np.uint8)
        p = deflate(_join(2 * digit - ((frame.v > 0) & (digit > 0)), top))
    if frame.m.max(initial=0) > top:
        q, r = pack(frame.m[frame.m >= top] - np.uint32(top))
    head = FRAME_HEADER.pack(top, len(p), len(q), len(r), frame.base, 0)[:-4]
    return seal(head, p + q + r)


def _best_tops(m: U32) -> list[int]:
    """The two tops that should take the fewest bits; 0 if all levels are."""
    counts = np.bincount(np.minimum(m, MAX_TOP + 1))
    if len(counts) == 1:
        return [0]
    enough = next((top for top in TOPS if top >= len(counts) - 1), MAX_TOP)
    return sorted((top for top in TOPS if top <= enough), key=lambda top: _bits(counts, top))[:2]


def _bits(counts: NDArray[np.int64], top: int) -> float:
    """About how many bits a frame with these counts of levels takes.

    A Huffman code spends at least one bit a symbol, about 0.06 more than the entropy, and five bits for each symbol of
    its table, of which DEFLATE writes one every 16,384 symbols.
    """
    digits = np.append(counts[:top], counts[top:].sum())
    signs = digits[1:].sum()
    excess = counts[top:] if len(counts) > top + 1 else counts[:0]
    per_byte = digits_per_byte(top)
    symbols = digits.sum() / per_byte
    table = 5 * min(len(digits) * 2, 2 * top + 1) ** per_byte * math.ceil(symbols / 16_384)
    return float(max(_entropy(digits) + signs, symbols) + 0.06 * symbols + table + max(_entropy(excess), excess.sum()))


def _entropy(counts: NDArray[np.int64]) -> float:
    """Bits of all of them together."""
    some = counts[counts > 0].astype(np.float64)
    return float((some * np.log2(some.sum() / some)).sum())


def digits_per_byte(top: int) -> int:
    """How many digits of base 2 top + 1 one byte holds: 5 for top 1, 3 for 2, 2 for 3 to 7, else 1."""
    return next(g for g in (5, 4, 3, 2, 1) if (2 * top + 1) ** g <= 256)


def _join(digits: U8, top: int) -> U8:
    """Digits to bytes, the first digit least; missing ones at the end are 0."""
    per_byte, base = digits_per_byte(top), 2 * top + 1
    padded = np.zeros(-(-len(digits) // per_byte) * per_byte, np.uint8)
    padded[: len(digits)] = digits
    symbols = padded[0::per_byte].copy()
    for i in range(1, per_byte):
        symbols += padded[i::per_byte] * np.uint8(base**i)
    return symbols


@cache
def _digits_of(top: int) -> U8:
    """uint8 [symbols, digits per byte]: the inverse of `_join` as a table."""
    per_byte, base = digits_per_byte(top), 2 * top + 1
    return (np.arange(base**per_byte)[:, None] // base ** np.arange(per_byte) % base).astype(np.uint8)


def decode(payload: Data, size: int, layout_id: int, max_entries: int | None = None) -> Entries:
    """The run. Raises PayloadError, in one sentence, for any byte that should not be there; bounds as for SPK1."""
    limit = size if max_entries is None else min(size, max_entries)
    count, first, step = open_header(payload, MAGIC, HEADER, size, layout_id, limit)
    if first + count > size:
        raise PayloadError(f"the payload holds {count:,} coordinates from {first:,} on; the vector has {size:,}")
    check_scale("the step of the payload", step)
    view, at = memoryview(payload), HEADER.size
    pieces = []
    for number in range(math.ceil(count / FRAME)):
        fields, sections, at = open_frame(view, at, FRAME_HEADER, LENGTHS, number)
        pieces.append(_decode_frame(fields, sections, min(FRAME, count - number * FRAME), step, f"frame {number}"))
    check_end(payload, at)
    return Entries(size, slice(first, first + count), np.concatenate([np.empty(0, np.float32), *pieces]))


def _decode_frame(fields: list[int], sections: list[memoryview], count: int, step: float, where: str) -> Vector:
    top, base, (p, q, r) = fields[0], fields[-1], sections
    if top > MAX_TOP or not math.isfinite(base):
        raise PayloadError(f"{where} has top {top} and base {base}; top is at most {MAX_TOP}, base finite")
    if not top:
        if len(p) + len(q) + len(r):
            raise PayloadError(f"{where} has top 0, so no sections, but {len(p) + len(q) + len(r)} bytes of them")
        return np.zeros(count, np.float32)
    digits = _split(p, count, top, where)
    values = _values(np.arange(2 * top + 1, dtype=np.uint32), base, step, where)[digits]
    if len(q) or len(r):
        large = np.flatnonzero(digits >= 2 * top - 1)
        excess = unpack(q, r, len(large), f"the excesses of {where}")
        if int(excess.max(initial=0)) > MAX_EXCESS:
            raise PayloadError(f"{where} holds an excess above 2^28")
        values[large] = _values(digits[large] + np.uint32(2) * excess, base, step, where)
    return values


def _split(p: Data, count: int, top: int, where: str) -> U8:
    """The digits, uint8 [count]."""
    table = _digits_of(top)
    symbols = inflate(p, -(-count // table.shape[1]), f"the levels of {where}")
    if int(symbols.max(initial=0)) >= len(table):
        raise PayloadError(f"the levels of {where} hold the symbol {symbols.max()}; the highest is {len(table) - 1}")
    digits = np.take(table, symbols, axis=0).reshape(-1)
    if digits[count:].any():
        raise PayloadError(f"the levels of {where} end with padding digits that are not zero")
    return digits[:count]


def _values(signed: U32, base: float, step: float, where: str) -> Vector:
    """What levels stand for: 0 -> 0, 2m - 1 -> base + step * m, 2m -> the negative. One rounding an operation."""
    m = ((signed + np.uint32(1)) >> np.uint32(1)).astype(np.float32)
    with np.errstate(over="ignore"):
        absolute = m * np.float32(step) + np.float32(base)
    if not np.isfinite(absolute).all():
        raise PayloadError(f"{where} holds a level that is not finite; only finite numbers are accepted")
    values: Vector = np.where(signed & np.uint32(1), absolute, -absolute)
    values[signed == 0] = 0
    return values
