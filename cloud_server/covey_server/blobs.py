"""Content-addressed files: a blob's name is the SHA-256 of its bytes.

A blob is on disk when `put` returns: written to a temporary file, synced, renamed, and the folder synced. Reading
compares the digest, so a damaged disk is reported and never averaged in.
"""

import hashlib
import itertools
import os
import re
from collections.abc import Collection
from pathlib import Path

from covey_server.failpoints import failpoint
from covey_shared.errors import CoveyError

_TEMPORARY = ".tmp-"
_numbers = itertools.count()


class StoreError(CoveyError):
    """The run's folder is damaged, from another version, or in use."""


class Blobs:
    """A folder of blobs. Safe to use from several threads; one process at a time."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder

    def put(self, data: bytes) -> str:
        """Store `data` durably; returns its SHA-256. Raises OSError when the disk refuses, and leaves nothing."""
        digest = hashlib.sha256(data).hexdigest()
        path = self._path(digest)
        if not path.exists():
            self._write(path, data)
        sync_folder(path.parent)
        return digest

    def get(self, digest: str) -> bytes:
        """The bytes of a blob. Raises StoreError when they are gone or changed."""
        try:
            data = self._path(digest).read_bytes()
        except FileNotFoundError:
            raise StoreError(
                f"the blob {digest[:12]} is missing from {self.folder}; restore it from a backup"
            ) from None
        if hashlib.sha256(data).hexdigest() != digest:
            raise StoreError(f"the blob {digest[:12]} in {self.folder} is damaged; restore the backup")
        return data

    def delete(self, digests: Collection[str]) -> None:
        """Remove blobs; those that are not there are no error."""
        for digest in digests:
            self._path(digest).unlink(missing_ok=True)

    def sweep(self, keep: Collection[str]) -> int:
        """Remove every blob that is not in `keep`, and what a crash left half-written. Only before anything runs."""
        wanted = {self._path(digest) for digest in keep}
        stale = [path for path in self.folder.rglob("*") if path.is_file() and path not in wanted]
        for path in stale:
            path.unlink()
        return len(stale)

    def _path(self, digest: str) -> Path:
        assert re.fullmatch("[0-9a-f]{64}", digest), digest
        return self.folder / digest[:2] / digest

    def _write(self, path: Path, data: bytes) -> None:
        if not path.parent.exists():
            path.parent.mkdir(exist_ok=True)
            sync_folder(self.folder)
        write_durably(path, data)


def write_durably(path: Path, data: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never half of it. The folder is not synced."""
    temporary = path.parent / f"{_TEMPORARY}{os.getpid()}-{next(_numbers)}"
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        failpoint("blob-written")
        temporary.replace(path)
        failpoint("blob-renamed")
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
