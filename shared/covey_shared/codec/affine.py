"""AFF1, the third packed format: each row of a matrix in 8, 4 or 2 bits, with a scale and an offset. docs/codec.md.

    code q in 0..2^bits - 1 stands for q * scale + offset; one scale and one offset for each slice of dimension 0

After FLoCoRA (Grativol Ribeiro et al. 2024, arXiv 2406.14082): a tensor of two or more dimensions takes bits * entries
bits and 64 for each output channel, one of fewer stays float32. When to use it: for small convolutional models with
short rows of like values. For LoRA on linear layers `levels` needs fewer bits at the same error.

The authors keep a zero point that is not rounded, so their codes are no integers, and a constant channel spoils its
whole tensor. Here the offset is the channel's least value, which has neither fault.
"""

import math
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from covey_shared.codec.framing import VERSION, Data, check_end, open_header, seal
from covey_shared.errors import CodecError, PayloadError
from covey_shared.layout import Layout, Tensor, Vector

MAGIC = b"AFF1"
HEADER = struct.Struct("<4sHHIIIIII")  # magic, version, flags, n, entries, layout id, bits, CRC of the body, checksum
HUGE = 2.0**120  # a vector with a larger magnitude is refused, so that no value overflows
BITS = (2, 4, 8)

Codes = NDArray[np.uint8]


def body_bytes(layout: Layout, bits: int) -> int:
    """Bytes of the body: the published formula, each tensor padded to a byte.

    >>> body_bytes(Layout((Tensor(name="w", shape=(2, 10), kind="block", init="zeros"),)), 4)
    26
    """
    return sum(_tensor_bytes(tensor, bits) for tensor in layout.tensors)


def max_bytes(layout: Layout, bits: int) -> int:
    """Bytes of every payload of this layout."""
    return HEADER.size + body_bytes(layout, bits)


def encode(vector: Vector, layout: Layout, bits: int) -> bytes:
    """The payload of a whole vector, float32 [n], finite."""
    body = b"".join(_encode(vector[where], tensor, bits) for tensor, where in layout.slices())
    head = HEADER.pack(MAGIC, VERSION, 0, layout.size, layout.size, layout.short_id, bits, 0, 0)[:-8]
    return seal(head + struct.pack("<I", zlib.crc32(body))) + body


def decode(payload: Data, layout: Layout, bits: int) -> Vector:
    """The vector, float32 [n], every value finite. Raises PayloadError for anything that `encode` does not write."""
    entries, got_bits, crc = open_header(payload, MAGIC, HEADER, layout.size, layout.short_id, layout.size)
    if entries != layout.size or got_bits != bits:
        raise PayloadError(
            f"the payload has {entries:,} entries of {got_bits} bits; {layout.size:,} of {bits} bits are expected"
        )
    body = memoryview(payload)[HEADER.size :]
    wanted = body_bytes(layout, bits)
    if len(body) < wanted:
        raise PayloadError(f"the payload has {len(body):,} bytes of codes, the layout needs {wanted:,}")
    check_end(body, wanted)
    if zlib.crc32(body) != crc:
        raise PayloadError("the payload does not match its checksum; it was damaged on the way")
    out = np.empty(layout.size, np.float32)
    for (tensor, where), piece in zip(layout.slices(), _pieces(body, layout, bits), strict=True):
        out[where] = _decode(piece, tensor, bits)
    return out


def _pieces(body: memoryview, layout: Layout, bits: int) -> Iterator[memoryview]:
    at = 0
    for tensor in layout.tensors:
        size = _tensor_bytes(tensor, bits)
        yield body[at : at + size]
        at += size


def _tensor_bytes(tensor: Tensor, bits: int) -> int:
    if len(tensor.shape) < 2:
        return 4 * tensor.size
    return 8 * tensor.shape[0] + math.ceil(tensor.size * bits / 8)


def _encode(values: Vector, tensor: Tensor, bits: int) -> bytes:
    """Scales, offsets and codes of one tensor; float32 for one of a single dimension."""
    if len(tensor.shape) < 2:
        return bytes(values.astype("<f4"))
    rows = values.reshape(tensor.shape[0], -1)
    low, high = rows.min(axis=1), rows.max(axis=1)
    if max(high.max(), -low.min()) >= HUGE:
        raise CodecError(f"tensor {tensor.name!r} holds a magnitude above {HUGE:.3g}, which is no update")
    scale = ((high - low) / np.float32(2**bits - 1)).astype(np.float32)
    safe = np.where(scale > 0, scale, np.float32(1))
    codes = np.where(scale[:, None] > 0, np.rint((rows - low[:, None]) / safe[:, None]), 0)
    codes = np.clip(codes, 0, 2**bits - 1).astype(np.uint8)
    return bytes(scale.astype("<f4")) + bytes(low.astype("<f4")) + _pack(codes.reshape(-1), bits)


def _decode(piece: memoryview, tensor: Tensor, bits: int) -> Vector:
    if len(tensor.shape) < 2:
        values = np.frombuffer(piece, "<f4").astype(np.float32)
    else:
        channels = tensor.shape[0]
        scale, low = np.frombuffer(piece[: 8 * channels], "<f4").astype(np.float32).reshape(2, channels)
        codes = _unpack(piece[8 * channels :], tensor.size, bits, tensor.name).reshape(channels, -1)
        with np.errstate(over="ignore", invalid="ignore"):
            values = (codes.astype(np.float32) * scale[:, None] + low[:, None]).reshape(-1)
        if (np.signbit(scale) | ~np.isfinite(scale) | ~np.isfinite(low)).any():
            raise PayloadError(f"tensor {tensor.name!r} has a scale that is negative or not finite, or such an offset")
    if not np.isfinite(values).all():
        raise PayloadError(f"tensor {tensor.name!r} decodes to a value that is not finite")
    return values


def _pack(codes: Codes, bits: int) -> bytes:
    """Codes end to end, the first one in the lowest bits of the first byte, padded with zeros."""
    each = 8 // bits
    padded = np.zeros(-(-len(codes) // each) * each, np.uint8)
    padded[: len(codes)] = codes
    shifts = np.arange(each, dtype=np.uint8) * np.uint8(bits)
    packed: Codes = np.bitwise_or.reduce(padded.reshape(-1, each) << shifts, axis=1)
    return bytes(packed)


def _unpack(data: memoryview, count: int, bits: int, name: str) -> Codes:
    shifts = np.arange(8 // bits, dtype=np.uint8) * np.uint8(bits)
    codes = (np.frombuffer(data, np.uint8)[:, None] >> shifts & np.uint8(2**bits - 1)).reshape(-1)
    if codes[count:].any():
        raise PayloadError(f"the codes of tensor {name!r} end with padding bits that are not zero")
    return codes[:count]
