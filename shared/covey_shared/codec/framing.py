"""What the two packed formats have in common: a sealed header, and frames of sections behind sealed headers of theirs.

A seal is the CRC-32 of a header and, in a frame, of the sections behind it. It finds damage; it does not authenticate.
All numbers are little-endian.
"""

import math
import struct
import zlib
from itertools import accumulate, pairwise
from typing import Any

from covey_shared.errors import PayloadError

VERSION = 1
FRAME = 65_536  # entries of every frame but the last
HEADER = "<4sHHIII"  # magic, version, flags, n, entries, layout id: how every header begins

Data = bytes | memoryview


def seal(head: bytes, body: bytes = b"") -> bytes:
    """The header, its checksum and what follows it."""
    return head + struct.pack("<I", zlib.crc32(body, zlib.crc32(head))) + body


def open_header(payload: Data, magic: bytes, form: struct.Struct, size: int, layout_id: int, limit: int) -> list[Any]:
    """The number of entries, and the fields between the layout id and the checksum. `limit`: how many are taken."""
    if len(payload) < form.size:
        raise PayloadError(f"the payload has {len(payload)} bytes; its header alone has {form.size}")
    got, version, flags, n, entries, layout, *rest, checksum = form.unpack_from(payload)
    if got != magic:
        raise PayloadError(f"the payload begins with {got!r} instead of {magic!r}")
    if zlib.crc32(payload[: form.size - 4]) != checksum:
        raise PayloadError("the payload's header does not match its checksum; it was damaged on the way")
    if version != VERSION or flags:
        raise PayloadError(
            f"the payload has version {version} and flags {flags}; this side reads version {VERSION} without flags"
        )
    if n != size:
        raise PayloadError(f"the payload is for a vector of {n:,} entries; this task's has {size:,}")
    if layout != layout_id:
        raise PayloadError(f"the payload is for layout {layout:08x}; this task has layout {layout_id:08x}")
    if entries > limit:
        raise PayloadError(f"the payload claims {entries:,} entries; at most {limit:,} are accepted", 413)
    return [entries, *rest]


def open_frame(
    payload: memoryview, at: int, form: struct.Struct, lengths: slice, number: int
) -> tuple[list[Any], list[memoryview], int]:
    """The header's fields without the checksum, the sections whose lengths stand at `lengths`, and where they end."""
    left = len(payload) - at - form.size
    if left < 0:
        raise PayloadError(f"the payload ends inside the header of frame {number}")
    *fields, checksum = form.unpack_from(payload, at)
    sizes = fields[lengths]
    if sum(sizes) > left:
        raise PayloadError(f"frame {number} claims {sum(sizes):,} bytes of sections; {left:,} are left")
    body = at + form.size
    end = body + sum(sizes)
    if zlib.crc32(payload[body:end], zlib.crc32(payload[at : body - 4])) != checksum:
        raise PayloadError(f"frame {number} does not match its checksum; it was damaged on the way")
    return fields, [payload[i:j] for i, j in pairwise(accumulate(sizes, initial=body))], end


def check_scale(what: str, number: float) -> None:
    """Refuses a base or step that is negative, minus zero included, or not finite."""
    if not math.isfinite(number) or math.copysign(1, number) < 0:
        raise PayloadError(f"{what} is {number}; it must be finite and not negative")


def check_end(payload: Data, at: int) -> None:
    """Refuses bytes after the last frame."""
    if at != len(payload):
        raise PayloadError(f"{len(payload) - at} bytes are left over after the last frame")
