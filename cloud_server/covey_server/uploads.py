"""Uploads in pieces, on disk: a file for the bytes, a file for what they are to be, and a name that cannot be guessed.

They are not the run's memory: what is lost here is sent again. So no table, no transaction, no sync but the one before
an offset is told. An upload belongs to one device, which has one at a time; all together may promise `limit` bytes; one
that nobody touched for `max_age_s` is removed. Time is monotonic: a clock that jumps expires nothing.

What this does not know: HTTP, and what an update is.
"""

import asyncio
import json
import os
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from covey_server.blobs import write_durably
from covey_server.refusals import Refused

MAX_AGE_S = 86_400.0  # a phone that was switched off overnight goes on where it was
NAME = re.compile(r"[A-Za-z0-9_-]{32}")


@dataclass
class Partial:
    """An upload: what it is to be (`length` bytes with this SHA-256), and the `offset` that it has come to."""

    name: str
    client: str
    round: int
    length: int
    sha256: str
    offset: int
    touched_s: float
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    interrupt: Callable[[], None] = lambda: None  # ends the request that is appending


class Uploads:
    """A folder of partial uploads; those of an earlier process are found again. Used on the event loop alone."""

    def __init__(self, folder: Path, limit: int, now_s: float, max_age_s: float = MAX_AGE_S):
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.limit, self.max_age_s = folder, limit, max_age_s
        self._all = {partial.name: partial for path in folder.glob("*.json") if (partial := _load(path, now_s))}
        self._remove_strangers()

    def create(self, client: str, round_: int, length: int, sha256: str, now_s: float) -> Partial:
        """The device's upload of these bytes: the one that it has begun, or a new one in place of any other."""
        for partial in [p for p in self._all.values() if p.client == client]:
            if (partial.round, partial.length, partial.sha256) == (round_, length, sha256):
                partial.touched_s = now_s
                return partial
            self.remove(partial)
        if self.promised + length > self.limit:
            raise Refused("busy", "the server holds as many unfinished uploads as it can; try again")
        partial = Partial(secrets.token_urlsafe(24), client, round_, length, sha256, 0, now_s)
        what = {"client": client, "round": round_, "length": length, "sha256": sha256}
        self.path(partial).touch(mode=0o600)
        write_durably(self.folder / f"{partial.name}.json", json.dumps(what).encode())
        self._all[partial.name] = partial
        return partial

    @property
    def promised(self) -> int:
        """Bytes that all uploads may come to."""
        return sum(partial.length for partial in self._all.values())

    def find(self, client: str, name: str, now_s: float) -> Partial:
        """The device's upload of that name, or Refused: it never existed, expired, or belongs to another device."""
        partial = self._all.get(name)
        if partial is None or partial.client != client:
            raise Refused("not_found", "there is no such upload, or no more; begin a new one")
        partial.touched_s = now_s
        return partial

    def append(self, partial: Partial, data: bytes) -> None:
        """Write at the offset. What a full disk does not take leaves the offset where it was. Raises OSError."""
        descriptor = os.open(self.path(partial), os.O_WRONLY | os.O_CLOEXEC)
        try:
            written = 0
            while written < len(data):
                written += os.pwrite(descriptor, data[written:], partial.offset + written)
        finally:
            os.close(descriptor)
        partial.offset += len(data)

    def settle(self, partial: Partial) -> None:
        """What the offset says is on disk. Blocks; for a thread."""
        descriptor = os.open(self.path(partial), os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def read(self, partial: Partial) -> bytes:
        """All bytes."""
        return self.path(partial).read_bytes()[: partial.offset]

    def remove(self, partial: Partial) -> None:
        """Forget an upload; once more is no error."""
        self._all.pop(partial.name, None)
        (self.folder / f"{partial.name}.json").unlink(missing_ok=True)
        self.path(partial).unlink(missing_ok=True)

    def sweep(self, now_s: float) -> int:
        """Remove what nobody has touched for too long; returns how many."""
        old = [p for p in self._all.values() if now_s - p.touched_s > self.max_age_s and not p.lock.locked()]
        for partial in old:
            self.remove(partial)
        return len(old)

    def path(self, partial: Partial) -> Path:
        """The file of the bytes. Its name is ours: no text of a device stands in a path."""
        assert NAME.fullmatch(partial.name), partial.name
        return self.folder / f"{partial.name}.part"

    def _remove_strangers(self) -> None:
        """Files without their other half, from a crash between the two."""
        ours = {f"{name}{ending}" for name in self._all for ending in (".json", ".part")}
        for path in self.folder.iterdir():
            if path.name not in ours:
                path.unlink()


def _load(path: Path, now_s: float) -> Partial | None:
    """An upload of an earlier process; None for what is damaged or incomplete."""
    part = path.with_suffix(".part")
    try:
        what = json.loads(path.read_bytes())
        size = min(part.stat().st_size, int(what["length"]))
        fields = {name: what[name] for name in ("client", "round", "length", "sha256")}
        return Partial(name=path.stem, offset=size, touched_s=now_s, **fields)
    except (OSError, ValueError, KeyError, TypeError):
        return None
