"""A codec's state as bytes, so that a device that was killed goes on where it was.

    "CVS1", CRC-32 of the rest (little-endian), msgpack

Float32 vectors are msgpack extension type 1 with their little-endian bytes. The file is the device's own, but disks
and power supplies fail, so damage is told apart from a valid state.
"""

import struct
import zlib
from typing import Any

import msgpack
import numpy as np

from covey_shared.codec.chain import State
from covey_shared.errors import CodecError

MAGIC = b"CVS1"
VECTOR = 1


def dump_state(state: State) -> bytes:
    """The state as bytes. Raises CodecError for what is not plain data."""
    try:
        body: bytes = msgpack.packb(state, default=_pack_vector, use_bin_type=True, strict_types=True)
    except (TypeError, ValueError, OverflowError) as error:
        raise CodecError(f"the codec's state cannot be saved: {error}") from None
    return MAGIC + struct.pack("<I", zlib.crc32(body)) + body


def load_state(data: bytes) -> State:
    """The inverse of `dump_state`. Raises CodecError for bytes that it did not write."""
    if data[:4] != MAGIC or len(data) < 8:
        raise CodecError("the saved codec state is not one; delete it and the device starts without what was left over")
    if zlib.crc32(memoryview(data)[8:]) != struct.unpack_from("<I", data, 4)[0]:
        raise CodecError("the saved codec state is damaged; delete it and the device starts without what was left over")
    try:
        return msgpack.unpackb(memoryview(data)[8:], ext_hook=_unpack_vector, raw=False, strict_map_key=True)
    except Exception as error:  # msgpack raises its own classes, ValueError, RecursionError and more
        raise CodecError(f"the saved codec state cannot be read: {type(error).__name__}; delete it") from None


def _pack_vector(value: Any) -> msgpack.ExtType:
    if isinstance(value, np.ndarray) and value.dtype == np.float32 and value.ndim == 1:
        return msgpack.ExtType(VECTOR, value.astype("<f4").tobytes())
    raise TypeError(f"{type(value).__name__} is not plain data")


def _unpack_vector(code: int, data: bytes) -> Any:
    if code != VECTOR or len(data) % 4:
        raise ValueError(f"extension {code} of {len(data)} bytes")
    return np.frombuffer(data, "<f4").astype(np.float32)
