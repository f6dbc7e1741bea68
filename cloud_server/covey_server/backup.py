"""Backup and restore of a run's folder, while a server works in it.

SQLite's online backup gives the database at one instant. Everything that its rows name is then copied: blobs, which are
never changed, and the used part of each segment, which only grows. A server that publishes meanwhile may delete a file
before it is copied; then the database is taken again. At the end the copy is verified as if it were to be served, and
only then gets its name. Adapters in PEFT's format are not copied: they can be made from the newest version.

Vaults are copied last. One that its device deletes meanwhile is not in the copy. Nobody here can check what is in one:
its device notices damage when it opens it.
"""

import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import NamedTuple

from covey_server import store
from covey_server.blobs import Blobs, sync_folder, write_durably
from covey_server.database import connect
from covey_server.failpoints import failpoint
from covey_server.schema import SCHEMA
from covey_server.segments import Segments
from covey_server.vaults import FOLDER, vaults_in
from covey_shared.errors import UsageError

DATABASE = "covey.sqlite"
TRIES = 20  # a version is published and its predecessor's state deleted between two looks


class Copied(NamedTuple):
    """What a copy holds: its newest version, updates that are not folded yet, bytes on disk, and devices' vaults."""

    version: int
    updates: int
    bytes: int
    vaults: int = 0


def copy_run(source: Path, target: Path, *, vaults: bool = True) -> Copied:
    """Copy the run in `source` to `target`, which must not exist; without what devices keep in vaults where `vaults` is
    False. Leaves nothing if it raises.
    """
    if not (source / DATABASE).exists():
        raise UsageError(f"there is no run in {source}: its {DATABASE} is missing")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists already; choose a folder that does not")
    partial = target.with_name(target.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        _copy_while_it_changes(source, partial)
        if vaults:
            _copy_vaults(source / FOLDER, partial / FOLDER)
        copied = verify(partial)
        if target.exists():
            target.rmdir()
        partial.replace(target)
        sync_folder(target.parent)
        return copied
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _copy_while_it_changes(source: Path, target: Path) -> None:
    for _ in range(TRIES):
        try:
            return _copy(source, target)
        except FileNotFoundError as error:
            gone = error.filename
            for name in ("blobs", "segments"):
                shutil.rmtree(target / name, ignore_errors=True)
    raise UsageError(f"{gone} was deleted {TRIES} times while it was copied; back up while less is published")


def _copy(source: Path, target: Path) -> None:
    """The database at one instant, and then what its rows name."""
    with (
        closing(sqlite3.connect(f"file:{source / DATABASE}?mode=ro", uri=True, timeout=30)) as live,
        closing(sqlite3.connect(target / DATABASE)) as copy,
    ):
        live.backup(copy)
    failpoint("backup")
    with closing(connect(target / DATABASE, SCHEMA)) as db:
        blobs, segments = store.blobs_in_use(db), store.segments_in_use(db)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for digest in sorted(blobs):
        path = Path(digest[:2], digest)
        (target / "blobs" / path.parent).mkdir(parents=True, exist_ok=True)
        write_durably(target / "blobs" / path, (source / "blobs" / path).read_bytes())
    (target / "segments").mkdir(exist_ok=True)
    for number, end in segments.items():
        path = Path("segments", f"{number}.updates")
        with (source / path).open("rb") as stream:
            write_durably(target / path, stream.read(end))


def _copy_vaults(source: Path, target: Path) -> None:
    """Every vault that is there from beginning to end: what a device deletes stays deleted."""
    for path in vaults_in(source):
        target.mkdir(exist_ok=True)
        with suppress(FileNotFoundError):
            write_durably(target / path.name, path.read_bytes())
    failpoint("backup")
    for path in vaults_in(target):
        if not (source / path.name).exists():
            path.unlink()


def verify(folder: Path) -> Copied:
    """Everything that a server would rely on, read and compared with its digest. Raises StoreError."""
    with closing(connect(folder / DATABASE, SCHEMA)) as db:
        blobs = Blobs(folder / "blobs")
        for digest in store.blobs_in_use(db):
            blobs.get(digest)
        segments = Segments(folder / "segments", store.segments_in_use(db))
        segments.check()
        pending = [row for row in store.stored_updates(db) if row.segment is not None]
        for row in pending:
            assert row.segment is not None
            segments.read(row.segment, row.position, row.bytes, row.sha256)
        version = store.head_version(db)
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    return Copied(version, len(pending), size, len(vaults_in(folder / FOLDER)))
