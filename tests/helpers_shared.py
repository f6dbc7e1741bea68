"""For the tests of covey_shared: a small layout, and slow decoders of the packed formats written from docs/codec.md.

The reference decoders use no line of the package: plain loops, one number at a time. They read valid payloads only.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from covey_shared.layout import Layout, Tensor, Vector

VECTORS = Path(__file__).parent / "vectors"

LAYOUT = Layout(
    (
        Tensor(name="q.lora_A.weight", shape=(4, 6), kind="lora_A", init="kaiming_uniform", rank=4, scale=2.0),
        Tensor(name="q.lora_B.weight", shape=(5, 4), kind="lora_B", init="zeros", rank=4, scale=0.5),
        Tensor(name="classifier.weight", shape=(3,), kind="head", init="stored"),
    )
)  # fmt: skip


def layout_of(size: int) -> Layout:
    """A layout of `size` entries in up to three tensors of unlike size."""
    sizes = [s for s in (size // 7, size // 3, size - size // 7 - size // 3) if s]
    return Layout(
        tuple(Tensor(name=f"t{i}", shape=(s,), kind="block", init="zeros") for i, s in enumerate(sizes)),
    )


def vectors(name: str) -> Any:
    """The content of a file of test vectors."""
    return json.loads((VECTORS / name).read_text())


def payload_of(annotated: list[list[str]]) -> bytes:
    """The bytes of `[[hex, what it is], ...]`."""
    return bytes.fromhex("".join(piece[0] for piece in annotated))


def float_bits(values: Vector) -> list[str]:
    """Each float32 as its eight hex digits, most significant first."""
    return [f"{int(bits):08x}" for bits in np.ascontiguousarray(values, np.float32).view(np.uint32)]


def floats_of(bits: list[str]) -> Vector:
    """The inverse of `float_bits`."""
    return np.array([int(b, 16) for b in bits], np.uint32).view(np.float32)


class Bits:
    """Reads numbers of given widths, lowest bit first."""

    def __init__(self, data: bytes):
        self.value = int.from_bytes(data, "little")

    def take(self, width: int) -> int:
        """The next number."""
        taken = self.value & ((1 << width) - 1)
        self.value >>= width
        return taken


def slow_numbers(deflated: bytes, raw: bytes) -> list[int]:
    """The token coder, decoded one token at a time."""
    bits = Bits(raw)
    numbers = []
    for token in zlib.decompress(deflated, -15):
        if token < 16:
            numbers.append(token)
        else:
            width = (token >> 3) - 1
            numbers.append(((8 | (token & 7)) << width) + bits.take(width))
    return numbers


def slow_spk1(payload: bytes) -> tuple[list[int], list[np.float32]]:
    """Indices and values of a valid SPK1 payload."""
    indices: list[int] = []
    values: list[np.float32] = []
    at = 24
    while at < len(payload):
        codec, first, count, a, b, p, q = struct.unpack_from("<7I", payload, at)
        base, step = np.frombuffer(payload, "<f4", 2, at + 28)
        cuts = np.cumsum([at + 40, a, b, p, q])
        sections = [payload[i:j] for i, j in pairwise(cuts)]
        gaps = slow_numbers(sections[0], sections[1]) if a else [0] * count
        for i, gap in enumerate(gaps):
            indices.append(first if i == 0 else indices[-1] + gap + 1)
        values += slow_values(codec, base, step, sections[2], sections[3], count)
        at = int(cuts[-1])
    return indices, values


def slow_values(codec: int, base: np.float32, step: np.float32, p: bytes, q: bytes, count: int) -> list[np.float32]:
    """The values of one frame of SPK1."""
    if codec == 0:
        return [np.float32(x) for x in struct.unpack(f"<{count}f", p)]
    if codec == 1:
        return [np.float32(x) * base for x in struct.unpack(f"<{count}e", p)]
    if codec == 2:
        return [(base + step * np.float32(z >> 1)) * np.float32(1 - 2 * (z & 1)) for z in slow_numbers(p, q)]
    return [-base if p[i // 8] >> (i % 8) & 1 else base for i in range(count)]


def slow_lvl1(payload: bytes) -> tuple[int, list[np.float32]]:
    """The first index and the values of a valid LVL1 payload."""
    (count,) = struct.unpack_from("<I", payload, 12)
    (first,) = struct.unpack_from("<I", payload, 20)
    (step,) = np.frombuffer(payload, "<f4", 1, 24)
    values: list[np.float32] = []
    at = 32
    while at < len(payload):
        top, p, q, r = struct.unpack_from("<4I", payload, at)
        (base,) = np.frombuffer(payload, "<f4", 1, at + 16)
        body = at + 24
        sections = payload[body : body + p], payload[body + p : body + p + q], payload[body + p + q : body + p + q + r]
        values += list(slow_levels(top, base, step, *sections, min(65_536, count - len(values))))
        at = body + p + q + r
    return first, values


def slow_levels(
    top: int, base: np.float32, step: np.float32, p: bytes, q: bytes, r: bytes, count: int
) -> Iterator[np.float32]:
    """The values of one frame of LVL1."""
    if not top:
        yield from [np.float32(0)] * count
        return
    alphabet = 2 * top + 1
    per_byte = max(g for g in range(1, 6) if alphabet**g <= 256)
    digits = [s // alphabet**i % alphabet for s in zlib.decompress(p, -15) for i in range(per_byte)]
    excesses = iter(slow_numbers(q, r)) if q else None
    for digit in digits[:count]:
        level = (digit + 1) // 2
        if level == top and excesses:
            level += next(excesses)
        value = base + step * np.float32(level)
        yield np.float32(0) if digit == 0 else value if digit % 2 else -value


def slow_aff1(payload: bytes, layout: Layout) -> list[np.float32]:
    """The values of a valid AFF1 payload."""
    (bits,) = struct.unpack_from("<I", payload, 20)
    at, out = 32, []
    for tensor in layout.tensors:
        if len(tensor.shape) == 1:
            out += list(np.frombuffer(payload, "<f4", tensor.size, at))
            at += 4 * tensor.size
            continue
        channels = tensor.shape[0]
        scales = struct.unpack_from(f"<{channels}f", payload, at)
        offsets = struct.unpack_from(f"<{channels}f", payload, at + 4 * channels)
        at += 8 * channels
        for i in range(tensor.size):
            code = payload[at + i * bits // 8] >> (i * bits % 8) & ((1 << bits) - 1)
            channel = i // (tensor.size // channels)
            out.append(np.float32(code) * np.float32(scales[channel]) + np.float32(offsets[channel]))
        at += (tensor.size * bits + 7) // 8
    return out
