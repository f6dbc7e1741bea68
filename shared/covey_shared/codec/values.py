"""How the values of one frame are written. Four codecs, chosen frame by frame:

    F32   float32 as they are
    F16   float16 of v / base, base = max |v|, so that updates of 1e-6 do not underflow
    LEV   a sign and a level: |v| = base + step * m, m a small integer, through the token coder
    SIGN  one bit: v = +-base, base = mean |v|

LEV has uniform levels and entropy-coded numbers, so heavy tails need no blocks and no special treatment of outliers.
The decoder's arithmetic is float32, one rounding an operation, so that every platform gets the same bits.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from covey_shared.codec.tokens import U32, pack, unpack
from covey_shared.errors import PayloadError
from covey_shared.layout import Vector

F32, F16, LEV, SIGN = range(4)
MODES = ("f32", "f16", "lev", "sign", "auto")
MAX_BYTES = {"f32": 4.0, "f16": 2.0, "lev": 4.5, "sign": 0.125, "auto": 4.5}  # of a value at most, by mode
MAX_LEVEL = 1 << 30
LARGEST = float(np.finfo(np.float32).max)

Data = bytes | memoryview


class Coded(NamedTuple):
    """One frame's values: which codec, its two numbers, and the sections P and Q."""

    codec: int
    base: float
    step: float
    p: Data
    q: Data


def encode(v: Vector, mode: str, error: float) -> Coded:
    """float32 [c], finite, c >= 1, in one of MODES; `error` is the relative L2 error that `lev` and `auto` may make.

    `auto` takes one bit a value where that is within the error, else levels.
    """
    if mode == "f32":
        return _encode_f32(v)
    if mode == "f16":
        return _encode_f16(v)
    absolute = np.abs(v)
    mean = float(absolute.mean(dtype=np.float64))
    square = float(np.square(absolute, dtype=np.float64).mean())
    if mode == "sign" or (mode == "auto" and square - mean * mean <= error * error * square):
        return Coded(SIGN, mean, 0.0, np.packbits(v < 0, bitorder="little").tobytes(), b"")
    return _encode_levels(v, absolute, error, math.sqrt(square))


def _encode_f32(v: Vector) -> Coded:
    return Coded(F32, 0.0, 0.0, v.astype("<f4").tobytes(), b"")


def _encode_f16(v: Vector) -> Coded:
    base = float(np.abs(v).max())
    scaled = v / np.float32(base) if base else v
    return Coded(F16, base, 0.0, scaled.astype("<f2").tobytes(), b"")


def _encode_levels(v: Vector, absolute: Vector, error: float, rms: float) -> Coded:
    """Levels whose step gives the error: sqrt(12) * error * rms if values lie evenly within a level, less if not."""
    low, high = absolute.min(), float(absolute.max())
    step = np.float32(math.sqrt(12) * error * rms)
    for _ in range(20):
        if not step > 0 or high + float(step) >= LARGEST:
            break  # underflow, or so close to overflow that base + step * m could be infinite
        level = np.minimum((absolute - low) / step, MAX_LEVEL).astype(np.uint32)
        rest = absolute - level.astype(np.float32) * step
        base = max(0.0, float(rest.mean(dtype=np.float64)))  # least squares, given the levels; rounding may go below 0
        got = math.sqrt(max(float(np.square(rest - np.float32(base), dtype=np.float64).mean()), 0.0))
        if got <= error * rms:
            p, q = pack(level << np.uint32(1) | (v < 0))
            return Coded(LEV, base, float(step), p, q)
        step *= np.float32(0.95 * error * rms / got)
    return _encode_f32(v)


def decode(coded: Coded, count: int, where: str) -> Vector:
    """float32 [count], finite. Raises PayloadError, naming `where`, for anything else."""
    v = _DECODERS[coded.codec](coded, count, where)
    if not np.isfinite(v).all():
        raise PayloadError(f"{where} holds the value {v[~np.isfinite(v)][0]}; only finite numbers are accepted")
    return v


def _decode_f32(coded: Coded, count: int, where: str) -> Vector:
    _check_sections(coded, 4 * count, where)
    return np.frombuffer(coded.p, "<f4").astype(np.float32)


def _decode_f16(coded: Coded, count: int, where: str) -> Vector:
    _check_sections(coded, 2 * count, where)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.frombuffer(coded.p, "<f2").astype(np.float32) * np.float32(coded.base)


def _decode_levels(coded: Coded, count: int, where: str) -> Vector:
    z: U32 = unpack(coded.p, coded.q, count, f"the levels of {where}")
    with np.errstate(over="ignore"):
        absolute = (z >> np.uint32(1)).astype(np.float32) * np.float32(coded.step) + np.float32(coded.base)
    return _with_sign(absolute, z & np.uint32(1))


def _decode_sign(coded: Coded, count: int, where: str) -> Vector:
    _check_sections(coded, (count + 7) // 8, where)
    if count % 8 and coded.p[-1] >> (count % 8):
        raise PayloadError(f"the signs of {where} end with padding bits that are not zero")
    bits = np.unpackbits(np.frombuffer(coded.p, np.uint8), count=count, bitorder="little")
    return _with_sign(np.full(count, coded.base, np.float32), bits)


def _with_sign(absolute: Vector, negative: NDArray[np.uint8] | U32) -> Vector:
    return (absolute.view(np.uint32) | (negative.astype(np.uint32) << np.uint32(31))).view(np.float32)


def _check_sections(coded: Coded, length: int, where: str) -> None:
    if len(coded.p) != length or len(coded.q):
        sent = f"{len(coded.p)} and {len(coded.q)}"
        raise PayloadError(f"{where} needs {length} and 0 bytes of values, {sent} were sent")


_DECODERS = (_decode_f32, _decode_f16, _decode_levels, _decode_sign)
