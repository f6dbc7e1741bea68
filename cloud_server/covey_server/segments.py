"""The bytes of updates, appended to one file a version: many uploads share one sync, and are forgotten by one unlink.

A file of its own for each upload costs a sync of the file, one of its folder and an unlink. Here the database's thread
appends what waits in its queue, syncs once, commits the rows that say where each update lies, and only then is anybody
told. A crash may leave bytes behind the last row's end; they are written over, since the end is taken from the rows.

Written by the database's thread alone; reading is for every thread. What this does not know: the tables.
"""

import hashlib
import os
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from covey_server.blobs import StoreError, sync_folder
from covey_server.failpoints import failpoint

sync_file: Callable[[int], None] = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


class Segments:
    """A folder of segments, each named by its number. `ends`: bytes in use of those that exist."""

    def __init__(self, folder: Path, ends: Mapping[int, int]):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._ends = dict(ends)
        self._kept = dict(ends)  # the ends at the last sync
        self._files: dict[int, int] = {}  # number -> descriptor
        self._dirty: set[int] = set()

    def check(self) -> None:
        """Raises StoreError for a segment that is missing or shorter than its rows say."""
        for number, end in self._ends.items():
            path = self._path(number)
            size = path.stat().st_size if path.exists() else 0
            if size < end:
                raise StoreError(f"{path} has {size:,} bytes, {end:,} were acknowledged; restore it from a backup")

    def append(self, number: int, data: bytes) -> int:
        """Write `data` at the end of a segment; returns its position. Durable after the next `sync`."""
        descriptor = self._open(number)
        position = self._ends.get(number, 0)
        self._dirty.add(number)
        written = 0
        while written < len(data):  # a disk that fills up writes a part of it and says why at the next call
            written += os.pwrite(descriptor, data[written:], position + written)
        self._ends[number] = position + len(data)
        failpoint("appended")
        return position

    def sync(self) -> None:
        """Everything appended is on disk. Raises OSError, and then nothing since the last `sync` may be relied on."""
        for number in sorted(self._dirty):
            sync_file(self._files[number])
            self._dirty.discard(number)
            failpoint("synced")
        self._kept = dict(self._ends)

    def undo(self) -> None:
        """Forget what was appended since the last `sync`: its rows were not committed."""
        self._ends = dict(self._kept)
        self._dirty.clear()

    def read(self, number: int, position: int, size: int, sha256: str) -> bytes:
        """An update's bytes. Raises StoreError when they are gone or changed."""
        path = self._path(number)
        try:
            with path.open("rb") as stream:
                stream.seek(position)
                data = stream.read(size)
        except FileNotFoundError:
            raise StoreError(f"the segment {path} is missing; restore it from a backup") from None
        if hashlib.sha256(data).hexdigest() != sha256:
            raise StoreError(
                f"the update {sha256[:12]} at byte {position:,} of {path} is damaged; restore it from a backup"
            )
        return data

    def delete(self, number: int) -> None:
        """Forget a segment; one that is not there is no error."""
        descriptor = self._files.pop(number, None)
        if descriptor is not None:
            os.close(descriptor)
        self._ends.pop(number, None)
        self._kept.pop(number, None)
        self._dirty.discard(number)
        self._path(number).unlink(missing_ok=True)

    def sweep(self, keep: Collection[int]) -> int:
        """Remove every segment that is not in `keep`. Only before anything runs."""
        wanted = {self._path(number) for number in keep}
        stale = [path for path in self.folder.iterdir() if path not in wanted]
        for path in stale:
            path.unlink()
        return len(stale)

    def close(self) -> None:
        """Give the descriptors back."""
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def _open(self, number: int) -> int:
        if number not in self._files:
            for idle in sorted(self._files.keys() - self._dirty)[:-1]:  # one or two segments are written at a time
                os.close(self._files.pop(idle))
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
            self._files[number] = os.open(self._path(number), flags, 0o600)
            sync_folder(self.folder)
        return self._files[number]

    def _path(self, number: int) -> Path:
        return self.folder / f"{number}.updates"
