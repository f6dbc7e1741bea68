"""Hostile payloads: whatever comes, only PayloadError goes out, quickly and in little memory.

Most mutations get their checksums made right again, so that they reach the parser behind them.
"""

import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import pytest

from covey_shared.codec import levels, spk1
from covey_shared.entries import Entries
from covey_shared.errors import PayloadError
from tests.vectors.packed_cases import lvl1_frame, lvl1_header, spk1_frame, spk1_header, tight

LAYOUT_ID = 0x11223344
EXTREMES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF, 0x7F800000)


class Format(NamedTuple):
    """A packed format, and where its headers' fields are."""

    decode: Callable[..., Entries]
    header: int
    frame: int
    lengths: slice


FORMATS = {
    "spk1": Format(spk1.decode, spk1.HEADER.size, spk1.FRAME_HEADER.size, slice(12, 28)),
    "lvl1": Format(levels.decode, levels.HEADER.size, levels.FRAME_HEADER.size, slice(4, 16)),
}


def seeds(form: str) -> list[tuple[bytes, int]]:
    """Honest payloads with their vectors' sizes: sparse and dense, each value codec, one with two frames."""
    rng = np.random.default_rng(0)
    out = []
    for size in (3, 200, 5000):
        x = (rng.standard_normal(size) * np.exp(rng.standard_normal(size))).astype(np.float32)
        if form == "lvl1":
            out += [(levels.encode(Entries(size, slice(0, size), x), LAYOUT_ID, e), size) for e in (0.05, 0.4, 0.8)]
        else:
            where = np.flatnonzero(rng.random(size) < 0.3).astype(np.uint32)
            for mode in ("f32", "f16", "lev", "sign"):
                out.append((spk1.encode(Entries(size, where, x[where]), LAYOUT_ID, mode), size))
                out.append((spk1.encode(Entries(size, slice(0, size), x), LAYOUT_ID, mode), size))
    size = 70_000
    x = rng.standard_normal(size).astype(np.float32)
    run = Entries(size, slice(0, size), x)
    out.append((levels.encode(run, LAYOUT_ID, 0.8) if form == "lvl1" else spk1.encode(run, LAYOUT_ID, "sign"), size))
    return out


def mutate(payload: bytes, form: Format, rng: np.random.Generator) -> bytes:
    """One to three random changes."""
    data = bytearray(payload)
    for _ in range(rng.integers(1, 4)):
        at = int(rng.integers(len(data))) if data else 0
        kind = rng.integers(7)
        if kind == 0:
            del data[at:]
        elif kind == 1 and data:
            data[at] ^= 1 << int(rng.integers(8))
        elif kind == 2 and data:
            data[at] = int(rng.integers(256))
        elif kind == 3:
            data[at:at] = rng.bytes(int(rng.integers(1, 9)))
        elif kind == 4:
            del data[at : at + int(rng.integers(1, 9))]
        else:  # a field of the first headers set to an extreme
            field = 4 * int(rng.integers((form.header + form.frame) // 4))
            data[field : field + 4] = struct.pack("<I", int(rng.choice(EXTREMES)))
    return bytes(data)


def reseal(payload: bytes, form: Format) -> bytes:
    """The checksums made right, as far as the headers can be followed."""
    data = bytearray(payload)
    if len(data) < form.header:
        return payload
    data[form.header - 4 : form.header] = struct.pack("<I", zlib.crc32(data[: form.header - 4]))
    at = form.header
    while at + form.frame <= len(data):
        head = data[at : at + form.frame]
        body = at + form.frame
        end = body + sum(np.frombuffer(bytes(head[form.lengths]), "<u4").tolist())
        checksum = zlib.crc32(data[body:end], zlib.crc32(head[:-4]))
        data[body - 4 : body] = struct.pack("<I", checksum)
        at = end
    return bytes(data)


@pytest.mark.parametrize("name", FORMATS)
def test_mutations(name: str) -> None:
    form = FORMATS[name]
    rng = np.random.default_rng(7)
    honest = seeds(name)
    refused = longest = 0
    slowest = 0.0
    for _ in range(4000):
        payload, size = honest[rng.integers(len(honest))]
        hostile = mutate(payload, form, rng)
        if rng.random() < 0.8:
            hostile = reseal(hostile, form)
        began = time.process_time()
        try:
            entries = form.decode(hostile, size, LAYOUT_ID)
        except PayloadError as error:
            refused += 1
            longest = max(longest, len(str(error)))
        else:
            check_sound(entries, size)
        slowest = max(slowest, time.process_time() - began)
    assert refused > 2000
    assert longest < 200
    assert slowest < 1


def check_sound(entries: Entries, size: int) -> None:
    """What every caller may rely on."""
    index = np.arange(size)[entries.where] if isinstance(entries.where, slice) else entries.where.astype(np.int64)
    assert entries.size == size
    assert len(index) == entries.count
    assert (np.diff(index) > 0).all()
    assert not len(index) or (index[0] >= 0 and index[-1] < size)
    assert entries.values.dtype == np.float32
    assert np.isfinite(entries.values).all()


def bombs() -> dict[str, tuple[Callable[..., Entries], bytes]]:
    """Small payloads that claim or unfold to much."""
    zeros = tight(bytes(100_000_000))
    size, many = 1_000_000, 65_536

    def joined(*pieces: list[tuple[bytes, str]]) -> bytes:
        return b"".join(data for piece in pieces for data, _ in piece)

    gaps = spk1_frame(3, 0, many, [zeros, b"", bytes(8192), b""])
    deep = spk1_frame(2, 0, many, [b"", b"", zeros, b""])
    digits = lvl1_frame(1, [zeros, b"", b""])
    excesses = lvl1_frame(1, [tight(bytes([121])), zeros, b""])
    return {
        "gaps that inflate to 100 MB": (spk1.decode, joined(spk1_header(many, n=size), gaps)),
        "levels that inflate to 100 MB": (spk1.decode, joined(spk1_header(many, n=size), deep)),
        "a claim of all entries without a frame": (spk1.decode, joined(spk1_header(size, n=size))),
        "digits that inflate to 100 MB": (levels.decode, joined(lvl1_header(many, 0, n=size), digits)),
        "excesses that inflate to 100 MB": (levels.decode, joined(lvl1_header(5, 0, n=size), excesses)),
    }


def test_bombs_cost_nothing() -> None:
    for name, (decode, payload) in bombs().items():
        tracemalloc.start()
        began = time.process_time()
        with pytest.raises(PayloadError):
            decode(payload, 1_000_000, LAYOUT_ID)
        seconds, (_, peak) = time.process_time() - began, tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 8 * 2**20, f"{name}: {peak:,} bytes"
        assert seconds < 0.5, f"{name}: {seconds} s"


def test_arbitrary_bytes() -> None:
    rng = np.random.default_rng(3)
    for _ in range(500):
        payload = rng.bytes(int(rng.integers(200)))
        for form in FORMATS.values():
            with pytest.raises(PayloadError):
                form.decode(payload, 1000, LAYOUT_ID)
