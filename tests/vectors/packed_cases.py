"""Payloads of SPK1 and LVL1, good and bad, built field by field: what `make.py` writes to the golden files."""

import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from covey_shared.codec import tokens

Json = dict[str, Any]
Pieces = list[tuple[bytes, str]]  # bytes, what they are
Fields = dict[str, tuple[str, Any]]  # name: struct format, value
SIZE, LAYOUT_ID = 1000, 0x11223344
WHERE = np.array([3, 17, 18, 400, 401, 999], np.uint32)
VALUES = np.array([0.5, -0.5, 2.0, -0.75, 0.625, -8.0], np.float32)
NAN, INFINITY = float("nan"), float("inf")


# ---- payloads, field by field ----


def sealed(pieces: Pieces, behind: Pieces = []) -> Pieces:  # noqa: B006
    """The pieces, the checksum of all, and what lies behind it."""
    checksum = zlib.crc32(b"".join(data for data, _ in [*pieces, *behind]))
    return [*pieces, (struct.pack("<I", checksum), "checksum"), *behind]


def fields(forms: Fields, changes: Json) -> Pieces:
    """Named fields; `changes` replaces values by name, `{"n": 7}` say."""
    return [(struct.pack("<" + form, changes.get(name, value)), name) for name, (form, value) in forms.items()]


def spk1_header(count: int = 6, **changes: Any) -> Pieces:
    """An SPK1 header for vectors of 1000 entries."""
    forms: Fields = {
        "magic": ("4s", b"SPK1"),
        "version": ("H", 1),
        "flags": ("H", 0),
        "n": ("I", SIZE),
        "entries": ("I", count),
    }
    return sealed(fields({**forms, "layout id": ("I", LAYOUT_ID)}, changes))


def spk1_frame(codec: int, first: int, count: int, sections: list[bytes], **changes: Any) -> Pieces:
    """An SPK1 frame; the sections are A, B, P, Q."""
    forms: Fields = {"value codec": ("I", codec), "first index": ("I", first), "entries": ("I", count)}
    forms |= {f"length of {name}": ("I", len(s)) for name, s in zip("ABPQ", sections, strict=True)}
    forms |= {"base": ("f", 1.0), "step": ("f", 0.0)}
    named = zip(sections, ("A gap tokens", "B gap bits", "P values", "Q value bits"), strict=True)
    return sealed(fields(forms, changes), [(data, name) for data, name in named if data])


def lvl1_header(count: int = 6, first: int = 10, **changes: Any) -> Pieces:
    """An LVL1 header for vectors of 1000 entries."""
    forms: Fields = {
        "magic": ("4s", b"LVL1"),
        "version": ("H", 1),
        "flags": ("H", 0),
        "n": ("I", SIZE),
        "entries": ("I", count),
    }
    forms |= {"layout id": ("I", LAYOUT_ID), "first index": ("I", first), "step": ("f", 0.5)}
    return sealed(fields(forms, changes))


def lvl1_frame(top: int, sections: list[bytes], **changes: Any) -> Pieces:
    """An LVL1 frame; the sections are P, Q, R."""
    forms: Fields = {"top": ("I", top)} | {
        f"length of {n}": ("I", len(s)) for n, s in zip("PQR", sections, strict=True)
    }
    named = zip(sections, ("P digits", "Q excess tokens", "R excess bits"), strict=True)
    return sealed(fields({**forms, "base": ("f", 0.125)}, changes), [(data, name) for data, name in named if data])


def deflated(*symbols: int) -> bytes:
    """DEFLATE of the symbols, as the encoder writes it."""
    return tokens.deflate(np.array(symbols, np.uint8))


def tight(data: bytes) -> bytes:
    """DEFLATE with matches and all: a decoder must read every valid stream."""
    coder = zlib.compressobj(9, zlib.DEFLATED, -15)
    return coder.compress(data) + coder.flush()


def gaps(where: Any) -> tuple[bytes, bytes]:
    """Sections A and B for these indices."""
    where = np.asarray(where, np.uint32)
    return tokens.pack(np.append(0, np.diff(where) - 1).astype(np.uint32))


# ---- SPK1 ----


def spk1_good() -> Iterator[tuple[str, int, Pieces]]:
    """Name, size and payload of each valid case."""
    a, b = gaps(WHERE)
    signs = b"\x2a"
    yield "no entries", SIZE, spk1_header(0)
    yield "one entry, the last", SIZE, [*spk1_header(1), *spk1_frame(3, 999, 1, [b"", b"", b"\x01", b""])]
    yield "sign", SIZE, [*spk1_header(), *spk1_frame(3, 3, 6, [a, b, signs, b""], base=2.0625)]
    yield "f32", SIZE, [*spk1_header(), *spk1_frame(0, 3, 6, [a, b, VALUES.astype("<f4").tobytes(), b""], base=0.0)]
    halves = (VALUES / 8).astype("<f2").tobytes()
    yield "f16 with a small base", SIZE, [*spk1_header(), *spk1_frame(1, 3, 6, [a, b, halves, b""], base=8e-6)]
    p, q = tokens.pack(np.array([0, 1, 40, 41, 7, 2**31], np.uint32))
    yield "levels, one large", SIZE, [*spk1_header(), *spk1_frame(2, 3, 6, [a, b, p, q], base=0.25, step=0.375)]
    base, step = struct.unpack("<2f", bytes.fromhex("f8fe2f3fdfdb963f"))
    p = deflated(0, 1, 2, 1, 0, 13)
    yield (
        "levels as the encoder chose them",
        SIZE,
        [
            *spk1_header(),
            *spk1_frame(2, 3, 6, [a, b, p, b""], base=base, step=step),
        ],
    )
    run = [b"", b"", b"\x2a", b""]
    yield "a contiguous run", SIZE, [*spk1_header(), *spk1_frame(3, 500, 6, run, base=1e-6)]
    yield "a contiguous run at the end", SIZE, [*spk1_header(), *spk1_frame(3, 994, 6, run)]
    yield (
        "a run with its gaps written out",
        SIZE,
        [*spk1_header(), *spk1_frame(3, 500, 6, [deflated(*[0] * 6), *run[1:]])],
    )
    numbers = np.array([15, 16, 17, 31, 32, 255, 256, 1000, 65_535, 65_536, 2**31 - 1, 0], np.uint32)
    p, q = tokens.pack(numbers)
    yield "every width of raw bits", SIZE, [*spk1_header(12), *spk1_frame(2, 0, 12, [b"", b"", p, q], step=1.0)]
    yield from spk1_two_frames()


def spk1_two_frames() -> Iterator[tuple[str, int, Pieces]]:
    """65,536 entries and a few more, in few bytes by streams of equal symbols."""
    size = 200_000
    level = tight(bytes(65_536))
    head = spk1_header(65_538, n=size)
    one = spk1_frame(2, 100, 65_536, [b"", b"", level, b""], base=0.5, step=1.0)
    yield "two frames of one run", size, [*head, *one, *spk1_frame(3, 65_636, 2, [b"", b"", b"\x01", b""], base=2.0)]
    yield "two runs apart", size, [*head, *one, *spk1_frame(3, 70_000, 2, [b"", b"", b"\x02", b""], base=2.0)]
    every_other = tight(bytes([0]) + bytes([1]) * 65_535)
    sparse = spk1_frame(2, 1, 65_536, [every_other, b"", level, b""], base=0.5, step=1.0)
    last = spk1_frame(0, 131_075, 2, [deflated(0, 15), b"", struct.pack("<2f", -0.0, 1e-45), b""], base=0.0)
    yield "every other entry", size, [*head, *sparse, *last]


def spk1_bad() -> Iterator[tuple[str, Pieces, Json]]:
    """Name, payload and how the receiver differs from the usual one (size, layout id, entries taken)."""
    yield from bad_headers(spk1_header, spk1_frame(3, 500, 6, [b"", b"", b"\x2a", b""]))
    yield from spk1_bad_structure()
    yield from spk1_bad_gaps()
    yield from spk1_bad_values()


def bad_headers(header: Callable[..., Pieces], frame: Pieces) -> Iterator[tuple[str, Pieces, Json]]:
    """What both formats check before the first frame."""
    good = [*header(), *frame]
    whole = b"".join(data for data, _ in good)
    yield "empty", [], {}
    yield "cut inside the header", [(whole[:23], "the beginning")], {}
    yield "wrong magic", [*header(magic=b"PK\x03\x04"), *frame], {}
    yield "header damaged", [(whole[:12], "the beginning"), (b"\x07", "a flipped byte"), (whole[13:], "the rest")], {}
    yield "version 2", [*header(version=2), *frame], {}
    yield "a flag", [*header(flags=1), *frame], {}
    yield "another size", good, {"size": 1001}
    yield "another layout", good, {"layout_id": LAYOUT_ID + 1}
    yield "more entries than the vector has", [*header(1001), *frame], {}
    yield "more entries than are taken", good, {"max_entries": 5}
    yield "cut before the first frame", header(), {}
    yield "cut inside the frame's header", [*header(), (b"".join(d for d, _ in frame)[:20], "the beginning")], {}
    yield "cut inside the last section", [(whole[:-1], "all but the last byte")], {}
    yield "frame damaged", [(whole[:-1], "all but the last byte"), (bytes([whole[-1] ^ 16]), "a flipped bit")], {}
    yield "bytes left over", [*good, (b"\0", "one byte too many")], {}


def spk1_bad_structure() -> Iterator[tuple[str, Pieces, Json]]:
    """Frame headers, and frames that do not follow each other."""
    run = [b"", b"", b"\x2a", b""]
    frame = spk1_frame(3, 500, 6, run)
    yield (
        "lengths that wrap around 32 bits",
        [*spk1_header(), *spk1_frame(3, 500, 6, run, **{"length of A": 2**32 - 1, "length of P": 2})],
        {},
    )
    yield "unknown value codec", [*spk1_header(), *spk1_frame(4, 500, 6, run)], {}
    yield "fewer entries than announced", [*spk1_header(), *spk1_frame(3, 500, 5, run)], {}
    yield "entries in no frame", [*spk1_header(0), *frame], {}
    for name, value in {"NaN": NAN, "infinite": INFINITY, "negative": -1.0, "minus zero": -0.0}.items():
        yield f"base {name}", [*spk1_header(), *spk1_frame(3, 500, 6, run, base=value)], {}
        yield f"step {name}", [*spk1_header(), *spk1_frame(3, 500, 6, run, step=value)], {}
    yield "run past the end", [*spk1_header(), *spk1_frame(3, 995, 6, run)], {}
    yield "run that wraps around 32 bits", [*spk1_header(), *spk1_frame(3, 2**32 - 1, 6, run)], {}
    yield "gap bits without gaps", [*spk1_header(), *spk1_frame(3, 500, 6, [b"", b"\0", b"\x2a", b""])], {}
    size = {"size": 200_000}
    head, level = spk1_header(65_538, n=200_000), tight(bytes(65_536))
    one = spk1_frame(2, 100, 65_536, [b"", b"", level, b""], base=0.5)
    yield "frames that overlap", [*head, *one, *spk1_frame(3, 65_635, 2, [b"", b"", b"\0", b""])], size
    sparse = spk1_frame(2, 1, 65_536, [tight(bytes([0]) + bytes([1]) * 65_535), b"", level, b""], base=0.5)
    yield "frames that overlap behind gaps", [*head, *sparse, *spk1_frame(3, 131_071, 2, [b"", b"", b"\0", b""])], size


def spk1_bad_gaps() -> Iterator[tuple[str, Pieces, Json]]:
    """Section A and B."""
    a, b = gaps(WHERE)

    def case(name: str, gap_tokens: bytes, gap_bits: bytes, first: int = 3) -> tuple[str, Pieces, Json]:
        return name, [*spk1_header(), *spk1_frame(3, first, 6, [gap_tokens, gap_bits, b"\x2a", b""])], {}

    yield case("not DEFLATE", b"\xff\xff\xff\xff", b"")
    yield case("token 240", deflated(0, 0, 0, 0, 0, 240), b"")
    yield case("a token missing", deflated(0, 0, 0, 0, 0), b"")
    yield case("a token too many", deflated(0, 0, 0, 0, 0, 0, 0), b"")
    yield case("a deflate bomb", tight(bytes(1_000_000)), b"")
    yield case("DEFLATE cut", a[:-1], b)
    yield case("bytes behind the DEFLATE stream", a + b"\0", b)
    yield case("first gap not 0", deflated(1, 0, 0, 0, 0, 0), b"")
    yield case("an index past the end", a, b, first=4)
    far, bits = tokens.pack(np.array([0, 2**32 - 1, 2**32 - 1, 2**32 - 1, 2**32 - 1, 2**32 - 1], np.uint32))
    yield case("gaps whose sum wraps around 32 bits", far, bits)
    yield case("a byte of gap bits missing", a, b[:-1])
    yield case("a byte of gap bits too many", a, b + b"\0")
    yield case("padding of gap bits not zero", a, b[:-1] + bytes([b[-1] | 0x80]))


def spk1_bad_values() -> Iterator[tuple[str, Pieces, Json]]:
    """Section P and Q."""

    def case(name: str, codec: int, p: bytes, q: bytes = b"", **numbers: float) -> tuple[str, Pieces, Json]:
        return name, [*spk1_header(), *spk1_frame(codec, 500, 6, [b"", b"", p, q], **numbers)], {}

    p, q = tokens.pack(np.array([0, 1, 40, 41, 7, 2**31], np.uint32))
    yield case("f32 a byte short", 0, bytes(23))
    yield case("f32 with section Q", 0, bytes(24), b"\0")
    yield case("f32 NaN", 0, struct.pack("<6f", 1, 2, NAN, 3, 4, 5))
    yield case("f32 infinite", 0, struct.pack("<6f", 1, 2, 3, 4, 5, -INFINITY))
    yield case("f16 a byte too long", 1, bytes(13))
    yield case("f16 infinite", 1, struct.pack("<6e", 1, INFINITY, 1, 1, 1, 1))
    yield case("f16 times base overflows", 1, struct.pack("<6e", 1, 2, 1, 1, 1, 1), base=3e38)
    yield case("sign bytes missing", 3, b"")
    yield case("sign with section Q", 3, b"\x2a", b"\0")
    yield case("padding of signs not zero", 3, b"\x6a")
    yield case("level tokens missing", 2, deflated(0, 1, 2), step=1.0)
    yield case("level bits missing", 2, p, q[:-1], step=1.0)
    yield case("level bits too many", 2, p, q + b"\0", step=1.0)
    yield case("level overflows", 2, p, q, step=1e38)


# ---- LVL1 ----


def lvl1_good() -> Iterator[tuple[str, int, Pieces]]:
    """Name, size and payload of each valid case."""
    yield "no coordinates", SIZE, lvl1_header(0, 0)
    yield "all zero", SIZE, [*lvl1_header(), *lvl1_frame(0, [b"", b"", b""])]
    ternary = deflated(0 + 3 * 1 + 9 * 2 + 27 * 0 + 81 * 1, 2)
    yield "ternary, the last byte padded", SIZE, [*lvl1_header(), *lvl1_frame(1, [ternary, b"", b""])]
    q, r = tokens.pack(np.array([0, 7, 300], np.uint32))
    outliers = deflated(0 + 5 * 3 + 25 * 4, 3 + 5 * 1 + 25 * 2)
    yield "outliers above top 2", SIZE, [*lvl1_header(), *lvl1_frame(2, [outliers, q, r], base=-0.25)]
    yield (
        "top 7, two digits a byte",
        SIZE,
        [*lvl1_header(), *lvl1_frame(7, [deflated(0 + 15 * 14, 13 + 15 * 1, 8), b"", b""])],
    )
    yield (
        "top 127, one digit a byte",
        SIZE,
        [*lvl1_header(), *lvl1_frame(127, [deflated(0, 254, 253, 1, 2, 100), b"", b""])],
    )
    yield (
        "a top that the encoder does not use",
        SIZE,
        [*lvl1_header(), *lvl1_frame(5, [deflated(10 + 11 * 9, 0, 1), b"", b""])],
    )
    yield "at the end of the vector", SIZE, [*lvl1_header(6, 994), *lvl1_frame(1, [ternary, b"", b""])]
    first = lvl1_frame(1, [tight(bytes([121]) * 13_107 + bytes([1])), b"", b""])
    yield (
        "two frames",
        200_000,
        [*lvl1_header(65_538, 5, n=200_000), *first, *lvl1_frame(1, [deflated(5), b"", b""], base=1.0)],
    )


def lvl1_bad() -> Iterator[tuple[str, Pieces, Json]]:
    """Name, payload and how the receiver differs from the usual one."""
    ternary = deflated(112, 2)
    yield from bad_headers(lvl1_header, lvl1_frame(1, [ternary, b"", b""]))
    yield "run past the end", [*lvl1_header(6, 995), *lvl1_frame(1, [ternary, b"", b""])], {}
    yield "run that wraps around 32 bits", [*lvl1_header(6, 2**32 - 1), *lvl1_frame(1, [ternary, b"", b""])], {}
    for name, value in {"NaN": NAN, "infinite": INFINITY, "negative": -1.0, "minus zero": -0.0}.items():
        yield f"step {name}", [*lvl1_header(step=value), *lvl1_frame(1, [ternary, b"", b""])], {}

    def case(name: str, top: int, p: bytes, q: bytes = b"", r: bytes = b"", **changes: Any) -> tuple[str, Pieces, Json]:
        return name, [*lvl1_header(), *lvl1_frame(top, [p, q, r], **changes)], {}

    wrapping = {"length of P": 2**32 - 1, "length of Q": 2}
    yield "lengths that wrap around 32 bits", [*lvl1_header(), *lvl1_frame(1, [ternary, b"", b""], **wrapping)], {}
    yield case("top 128", 128, deflated(0, 0, 0, 0, 0, 0))
    yield case("base NaN", 1, ternary, base=NAN)
    yield case("base infinite", 1, ternary, base=-INFINITY)
    yield case("top 0 with digits", 0, ternary)
    yield case("not DEFLATE", 1, b"\xff\xff\xff\xff")
    yield case("a symbol missing", 1, deflated(112))
    yield case("a symbol too many", 1, deflated(112, 2, 0))
    yield case("a deflate bomb", 1, tight(bytes(1_000_000)))
    yield case("a symbol above the alphabet", 1, deflated(243, 2))
    yield case("padding digits not zero", 1, deflated(112, 5))
    yield case("an excess missing", 2, deflated(115, 58), *tokens.pack(np.array([0, 7], np.uint32)))
    yield case("an excess too many", 2, deflated(115, 58), *tokens.pack(np.array([0, 7, 1, 1], np.uint32)))
    yield case("excess bits without tokens", 2, deflated(115, 58), b"", b"\0")
    yield case("excesses where no level reaches top", 1, deflated(0, 0), *tokens.pack(np.array([3], np.uint32)))
    yield case("an excess above 2^28", 1, deflated(1, 0), *tokens.pack(np.array([2**28 + 1], np.uint32)))
    yield "a level that overflows", [*lvl1_header(step=3e38), *lvl1_frame(2, [deflated(0, 0), b"", b""])], {}
