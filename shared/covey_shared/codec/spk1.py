"""SPK1, the packed format: some entries of a float32 vector as bytes. docs/codec.md describes it for implementers.

A header of 24 bytes, then frames of 65,536 entries in ascending order of index, each with its own value codec, scale
and checksum. Indices are gaps through the token coder; a contiguous run has no index bytes at all.

The decoder checks everything before it returns anything, so a caller applies a payload whole or not at all. DEFLATE
output is not canonical: payloads are compared by what they decode to, never by their bytes.
"""

import math
import struct
import zlib
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from covey_shared.codec import values
from covey_shared.codec.tokens import U32, pack, unpack
from covey_shared.entries import Entries
from covey_shared.errors import PayloadError
from covey_shared.layout import Vector

MAGIC = b"SPK1"
VERSION = 1
FRAME = 65_536  # entries of every frame but the last
HEADER = struct.Struct("<4sHHIIII")  # magic, version, flags, n, k, layout id, checksum
FRAME_HEADER = struct.Struct("<IIIIIIIffI")  # value codec, first index, entries, sections A B P Q, base, step, checksum

Data = bytes | memoryview


@dataclass(frozen=True, slots=True)
class _Frame:
    """A frame whose structure and checksum are right, its sections still packed."""

    number: int
    first: int
    count: int
    gaps: Data
    gap_bits: Data
    values: values.Coded

    @property
    def contiguous(self) -> bool:
        return not len(self.gaps)


def max_bytes(entries: int, size: int, mode: str) -> int:
    """No payload of so many entries of a vector of `size` is longer, whatever lies in it.

    An index takes a token of one byte and, on average, at most log2(size / entries) raw bits; 128 bytes a frame are
    more than DEFLATE adds to what it cannot compress.
    """
    frames = math.ceil(entries / FRAME)
    index = 1 + math.log2(size / entries) / 8 if entries else 0
    return HEADER.size + frames * (FRAME_HEADER.size + 128 + 16) + math.ceil((index + values.MAX_BYTES[mode]) * entries)


def encode(entries: Entries, layout_id: int, mode: str = "auto", error: float = 0.1) -> bytes:
    """The payload. Values must be finite; `mode` and `error` as in `values.encode`."""
    header = HEADER.pack(MAGIC, VERSION, 0, entries.size, entries.count, layout_id, 0)[:-4]
    frames = [
        _encode_frame(_indices(entries, at), entries.values[at : at + FRAME], mode, error)
        for at in range(0, entries.count, FRAME)
    ]
    return b"".join([header, struct.pack("<I", zlib.crc32(header)), *frames])


def _indices(entries: Entries, at: int) -> U32 | slice:
    """Where the entries of the frame that begins at entry `at` lie; a slice if they are contiguous."""
    stop = min(at + FRAME, entries.count)
    if isinstance(entries.where, slice):
        return slice(entries.where.start + at, entries.where.start + stop)
    where = entries.where[at:stop]
    first, last = int(where[0]), int(where[-1])
    return slice(first, last + 1) if last - first == stop - at - 1 else where


def _encode_frame(where: U32 | slice, v: Vector, mode: str, error: float) -> bytes:
    if isinstance(where, slice):
        first, a, b = where.start, b"", b""
    else:
        gaps = np.zeros(len(where), np.uint32)
        np.subtract(where[1:], where[:-1], out=gaps[1:])
        gaps[1:] -= np.uint32(1)
        first, (a, b) = int(where[0]), pack(gaps)
    coded = values.encode(v, mode, error)
    lengths = (len(a), len(b), len(coded.p), len(coded.q))
    header = FRAME_HEADER.pack(coded.codec, first, len(v), *lengths, coded.base, coded.step, 0)[:-4]
    body = b"".join([a, b, coded.p, coded.q])
    return header + struct.pack("<I", zlib.crc32(body, zlib.crc32(header))) + body


def decode(payload: Data, size: int, layout_id: int, max_entries: int | None = None) -> Entries:
    """The entries of a vector of `size`. Raises PayloadError, in one sentence, for any byte that should not be there.

    `max_entries` is how many the receiver takes, by default `size`. Time and memory are bounded by it and by the
    payload's length, whatever the payload claims.
    """
    limit = size if max_entries is None else min(size, max_entries)
    payload = memoryview(payload)
    count = _read_header(payload, size, layout_id, limit)
    frames = _read_frames(payload, size, count)
    out = np.empty(count, np.float32)
    where = np.empty(0 if _one_run(frames) else count, np.uint32)
    for frame in frames:
        at = frame.number * FRAME
        if len(where):
            where[at : at + frame.count] = _frame_indices(frame, size)
        out[at : at + frame.count] = values.decode(frame.values, frame.count, f"frame {frame.number}")
    if len(where):
        _check_order(where)
        return Entries(size, where, out)
    first = frames[0].first if frames else 0
    return Entries(size, slice(first, first + count), out)


def _read_header(payload: memoryview, size: int, layout_id: int, limit: int) -> int:
    """The number of entries."""
    if len(payload) < HEADER.size:
        raise PayloadError(f"the payload has {len(payload)} bytes; its header alone has {HEADER.size}")
    magic, version, flags, n, k, layout, checksum = HEADER.unpack_from(payload)
    if magic != MAGIC:
        raise PayloadError(f"the payload begins with {magic!r} instead of {MAGIC!r}")
    if zlib.crc32(payload[: HEADER.size - 4]) != checksum:
        raise PayloadError("the payload's header does not match its checksum; it was damaged on the way")
    if version != VERSION or flags:
        raise PayloadError(
            f"the payload has version {version} and flags {flags}; this side reads version 1 without flags"
        )
    if n != size or n >= 2**31:
        raise PayloadError(f"the payload is for a vector of {n:,} entries; this task's has {size:,}")
    if layout != layout_id:
        raise PayloadError(f"the payload is for layout {layout:08x}; this task has layout {layout_id:08x}")
    if k > limit:
        raise PayloadError(f"the payload claims {k:,} entries; at most {limit:,} are accepted", 413)
    return int(k)


def _read_frames(payload: memoryview, size: int, count: int) -> list[_Frame]:
    """All frames, checked as far as that goes without decoding them."""
    frames: list[_Frame] = []
    at = HEADER.size
    for number in range(math.ceil(count / FRAME)):
        frame, at = _read_frame(payload, at, number, min(FRAME, count - number * FRAME))
        if frames and frame.first < frames[-1].first + frames[-1].count:
            raise PayloadError(f"frame {number} begins at index {frame.first}, inside the frame before it")
        if frame.first + frame.count > size:
            raise PayloadError(f"frame {number} reaches past the last of {size:,} entries")
        frames.append(frame)
    if at != len(payload):
        raise PayloadError(f"{len(payload) - at} bytes are left over after the last frame")
    return frames


def _read_frame(payload: memoryview, at: int, number: int, expected: int) -> tuple[_Frame, int]:
    """One frame and where it ends."""
    left = len(payload) - at - FRAME_HEADER.size
    if left < 0:
        raise PayloadError(f"the payload ends inside the header of frame {number}")
    codec, first, count, a, b, p, q, base, step, checksum = FRAME_HEADER.unpack_from(payload, at)
    if a + b + p + q > left:
        raise PayloadError(f"frame {number} claims {a + b + p + q:,} bytes of sections; {left:,} are left")
    body = at + FRAME_HEADER.size
    end = body + a + b + p + q
    if zlib.crc32(payload[body:end], zlib.crc32(payload[at : body - 4])) != checksum:
        raise PayloadError(f"frame {number} does not match its checksum; it was damaged on the way")
    if codec > values.SIGN:
        raise PayloadError(f"frame {number} has the unknown value codec {codec}; known are 0 to {values.SIGN}")
    if count != expected:
        raise PayloadError(f"frame {number} has {count:,} entries, expected {expected:,}")
    if not (0 <= base < math.inf and 0 <= step < math.inf):
        raise PayloadError(f"frame {number} has base {base} and step {step}; both must be finite and not negative")
    if b and not a:
        raise PayloadError(f"frame {number} has raw bits of gaps without gaps")
    cuts = [body, body + a, body + a + b, body + a + b + p, end]
    sections = [payload[i:j] for i, j in pairwise(cuts)]
    coded = values.Coded(codec, base, step, sections[2], sections[3])
    return _Frame(number, first, count, sections[0], sections[1], coded), end


def _one_run(frames: list[_Frame]) -> bool:
    """Whether the frames are contiguous and follow each other without a gap."""
    ends = [f.first + f.count for f in frames]
    return all(f.contiguous for f in frames) and all(f.first == end for f, end in zip(frames[1:], ends, strict=False))


def _frame_indices(frame: _Frame, size: int) -> NDArray[np.uint32]:
    """The frame's indices, ascending and below `size`."""
    if frame.contiguous:
        return np.arange(frame.first, frame.first + frame.count, dtype=np.uint32)
    gaps = unpack(frame.gaps, frame.gap_bits, frame.count, f"the gaps of frame {frame.number}")
    if gaps[0]:
        raise PayloadError(f"frame {frame.number} begins with a gap of {gaps[0]} instead of 0")
    last = frame.first + int(gaps.sum(dtype=np.uint64)) + frame.count - 1
    if last >= size:
        raise PayloadError(f"frame {frame.number} reaches index {last:,}; the vector has {size:,} entries")
    gaps += np.uint32(1)
    gaps[0] = frame.first
    return np.cumsum(gaps, dtype=np.uint32)


def _check_order(where: U32) -> None:
    """Refuses a frame that begins at or before the last index of the one before it."""
    starts = np.arange(FRAME, len(where), FRAME)
    bad = np.flatnonzero(where[starts] <= where[starts - 1])
    if len(bad):
        number, index = int(bad[0]) + 1, int(where[starts[bad[0]]])
        raise PayloadError(f"frame {number} begins at index {index}, inside the frame before it")
