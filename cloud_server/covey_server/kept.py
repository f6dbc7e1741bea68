"""Decoded updates, kept from when they were checked until they are folded, within a bound.

An update is decoded to be checked when it comes, and again when its version is made. What fits here is decoded once.
It is a copy: an update that is not here, after a restart or because it found no room, is read from the disk again, and
decoding is a function of the bytes, whose digest is the key. So nothing depends on what is kept but time.

Written on the event loop alone, read by every thread.
"""

from collections.abc import Iterable
from typing import NamedTuple

from covey_shared.entries import Entries

LIMIT = 64 * 2**20  # bytes of all that is kept


class Decoded(NamedTuple):
    """An update's entries, and the digest of the layout that they are of."""

    entries: Entries
    layout: str

    @property
    def bytes(self) -> int:
        """What it takes in memory."""
        where = self.entries.where
        return self.entries.values.nbytes + (0 if isinstance(where, slice) else where.nbytes)


class Kept:
    """Decoded updates by the SHA-256 of their bytes, `limit` bytes at most."""

    def __init__(self, limit: int = LIMIT):
        self._left = limit
        self._all: dict[str, Decoded] = {}

    def put(self, sha256: str, decoded: Decoded) -> None:
        """Keep an update if there is room."""
        if decoded.bytes <= self._left and sha256 not in self._all:
            decoded.entries.values.flags.writeable = False  # whoever folds it must not change it
            self._left -= decoded.bytes
            self._all[sha256] = decoded

    def get(self, sha256: str) -> Decoded | None:
        """An update that was kept."""
        return self._all.get(sha256)

    def drop(self, digests: Iterable[str]) -> None:
        """Forget updates that were folded; those that are not here are no error."""
        for sha256 in digests:
            decoded = self._all.pop(sha256, None)
            if decoded is not None:
                self._left += decoded.bytes
