"""SPK1, the packed format: some entries of a float32 vector as bytes. docs/codec.md describes it for implementers.

A header of 24 bytes, then frames of 65,536 entries in ascending order of index, each with its own value codec, scale
and checksum. Indices are gaps through the token coder; a contiguous run has no index bytes at all.

The decoder checks everything before it returns anything, so a caller applies a payload whole or not at all. DEFLATE
output is not canonical: payloads are compared by what they decode to, never by their bytes.
"""

import math
import struct
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from covey_shared.codec import values
from covey_shared.codec.framing import FRAME, VERSION, Data, check_end, check_scale, open_frame, open_header, seal
from covey_shared.codec.tokens import U32, pack, unpack
from covey_shared.entries import Entries
from covey_shared.errors import PayloadError

MAGIC = b"SPK1"
HEADER = struct.Struct("<4sHHIIII")  # magic, version, flags, n, entries, layout id, checksum
FRAME_HEADER = struct.Struct("<IIIIIIIffI")  # value codec, first index, entries, sections A B P Q, base, step, checksum
LENGTHS = slice(3, 7)


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
    head = HEADER.pack(MAGIC, VERSION, 0, entries.size, entries.count, layout_id, 0)[:-4]
    frames = (
        _encode_frame(_indices(entries, at), values.encode(entries.values[at : at + FRAME], mode, error))
        for at in range(0, entries.count, FRAME)
    )
    return b"".join([seal(head), *frames])


def _indices(entries: Entries, at: int) -> U32 | slice:
    """Where the entries of the frame that begins at entry `at` lie; a slice if they are contiguous."""
    stop = min(at + FRAME, entries.count)
    if isinstance(entries.where, slice):
        return slice(entries.where.start + at, entries.where.start + stop)
    where = entries.where[at:stop]
    first, last = int(where[0]), int(where[-1])
    return slice(first, last + 1) if last - first == stop - at - 1 else where


def _encode_frame(where: U32 | slice, coded: values.Coded) -> bytes:
    if isinstance(where, slice):
        first, count, a, b = where.start, where.stop - where.start, b"", b""
    else:
        gaps = np.zeros(len(where), np.uint32)
        gaps[1:] = np.diff(where) - np.uint32(1)
        first, count, (a, b) = int(where[0]), len(where), pack(gaps)
    lengths = (len(a), len(b), len(coded.p), len(coded.q))
    head = FRAME_HEADER.pack(coded.codec, first, count, *lengths, coded.base, coded.step, 0)[:-4]
    return seal(head, b"".join([a, b, coded.p, coded.q]))


def decode(payload: Data, size: int, layout_id: int, max_entries: int | None = None) -> Entries:
    """The entries of a vector of `size`. Raises PayloadError, in one sentence, for any byte that should not be there.

    `max_entries` is how many the receiver takes, by default `size`. Time and memory are bounded by it and by the
    payload's length, whatever the payload claims.
    """
    limit = size if max_entries is None else min(size, max_entries)
    (count,) = open_header(payload, MAGIC, HEADER, size, layout_id, limit)
    frames = _read_frames(memoryview(payload), size, count)
    one_run = all(f.contiguous for f in frames) and all(f.first + f.count == g.first for f, g in pairwise(frames))
    out = np.empty(count, np.float32)
    where = np.empty(0 if one_run else count, np.uint32)
    for frame in frames:
        at = slice(frame.number * FRAME, frame.number * FRAME + frame.count)
        if not one_run:
            where[at] = _frame_indices(frame, size)
        out[at] = values.decode(frame.values, frame.count, f"frame {frame.number}")
    if one_run:
        first = frames[0].first if frames else 0
        return Entries(size, slice(first, first + count), out)
    _check_order(where)
    return Entries(size, where, out)


def _read_frames(payload: memoryview, size: int, count: int) -> list[_Frame]:
    """All frames, checked as far as that goes without decoding them."""
    frames: list[_Frame] = []
    at = HEADER.size
    for number in range(math.ceil(count / FRAME)):
        fields, sections, at = open_frame(payload, at, FRAME_HEADER, LENGTHS, number)
        frame = _read_frame(number, fields, sections, min(FRAME, count - number * FRAME))
        if frame.first + frame.count > size:
            raise PayloadError(f"frame {number} begins at index {frame.first:,}; the vector has {size:,} entries")
        if frames and frame.first < frames[-1].first + frames[-1].count:
            raise PayloadError(f"frame {number} begins at index {frame.first:,}, inside the frame before it")
        frames.append(frame)
    check_end(payload, at)
    return frames


def _read_frame(number: int, fields: list[int], sections: list[memoryview], expected: int) -> _Frame:
    codec, first, count, *_, base, step = fields
    gaps, gap_bits, p, q = sections
    if codec > values.SIGN:
        raise PayloadError(f"frame {number} has the unknown value codec {codec}; known are 0 to {values.SIGN}")
    if count != expected:
        raise PayloadError(f"frame {number} has {count:,} entries, expected {expected:,}")
    check_scale(f"the base of frame {number}", base)
    check_scale(f"the step of frame {number}", step)
    if len(gap_bits) and not len(gaps):
        raise PayloadError(f"frame {number} has raw bits of gaps but no gaps")
    return _Frame(number, first, count, gaps, gap_bits, values.Coded(codec, base, step, p, q))


def _frame_indices(frame: _Frame, size: int) -> U32:
    """The frame's indices, ascending and below `size`."""
    if frame.contiguous:
        return np.arange(frame.first, frame.first + frame.count, dtype=np.uint32)
    gaps = unpack(frame.gaps, frame.gap_bits, frame.count, f"the gaps of frame {frame.number}")
    if gaps[0]:
        raise PayloadError(f"frame {frame.number} begins with a gap of {gaps[0]:,} instead of 0")
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
        number = int(bad[0]) + 1
        index = int(where[number * FRAME])
        raise PayloadError(f"frame {number} begins at index {index:,}, inside the frame before it")
