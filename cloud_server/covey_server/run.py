"""Opening a run: the task, the bundle and the folder that holds what was learned so far, checked against each other.

A run's folder belongs to one process (a lock file), to one bundle (its digest) and to one task: a task file that
contradicts what is stored is refused by the key that changed.
"""

import fcntl
import os
import sqlite3
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import IO

from covey_server import buffers, recipe, rounds, sections, store, task_changes
from covey_server.blobs import Blobs
from covey_server.database import Database
from covey_server.division import Divided
from covey_server.engine import Machine
from covey_server.failpoints import failpoint
from covey_server.kept import Decoded, Kept
from covey_server.prepare import prepare
from covey_server.recipe import Recipe, ServerState
from covey_server.regroup import Grouping
from covey_server.schema import SCHEMA
from covey_server.segments import Segments
from covey_server.task_sections import TaskFile
from covey_shared.bundle import Bundle
from covey_shared.codec import Codec
from covey_shared.entries import Entries
from covey_shared.errors import TaskFileError, UsageError
from covey_shared.layout import Layout, vector_digest
from covey_shared.messages import Step, Update


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A run, opened: everything that does not change while it is served, and where it stood."""

    task: TaskFile
    bundle: Bundle
    divided: Divided
    grouping: Grouping | None
    recipe: Recipe
    db: Database
    blobs: Blobs
    segments: Segments
    server: ServerState
    versions: list[store.VersionRow]
    machine: Machine
    devices: list[str]
    lock: IO[bytes]
    kept: Kept = field(default_factory=Kept)

    @property
    def layout(self) -> Layout:
        """What is trained."""
        return self.bundle.manifest.layout

    @property
    def upload(self) -> Codec:
        """The codec of uploads; of several layouts and tiers, that with the longest payloads."""
        every = (codecs.values() for codecs in (self.divided.uploads, *self.divided.tiers.values()))
        return max(chain.from_iterable(every), key=lambda codec: codec.max_bytes)

    def update(self, row: store.UpdateRow, cohort: int = 0) -> Entries:
        """An accepted update of a cohort's device, decoded and aged, as entries of the space that strategies fold."""
        how, weight = self.task.round, 1.0
        entries, layout = self.decoded(row)
        if how.mode == "async":
            weight = recipe.staleness_weight(how.staleness, how.staleness_power, how.staleness_factor, row.staleness)
        return recipe.aged(self.divided.lifted(entries, layout, cohort), weight)

    def decoded(self, row: store.UpdateRow) -> Decoded:
        """An accepted update, decoded when it came or from the disk."""
        if (kept := self.kept.get(row.sha256)) is not None:
            return kept
        if row.segment is None:
            body = self.blobs.get(row.sha256)
        else:
            body = self.segments.read(row.segment, row.position, row.bytes, row.sha256)
        message = Update.from_bytes(body)
        codec = self.divided.upload(message.layout, message.codec)
        return Decoded(codec.decode(message.parts), message.layout)

    def close(self) -> None:
        """Commit what is queued, checkpoint, give the folder back."""
        self.db.close()
        self.segments.close()
        self.lock.close()


def open_run(task: TaskFile, folder: Path, now: float) -> Run:
    """Open the run in `folder`, or begin it there. `now` is the time in Unix seconds, for the record."""
    bundle = Bundle.open(Path(task.task.bundle))
    prepared = prepare(task, bundle)
    divided, how = prepared.divided, prepared.recipe
    lock = lock_folder(folder)
    db = _open_database(folder / "covey.sqlite")
    try:
        blobs = Blobs(folder / "blobs")
        if not db.run(store.get_meta):
            _begin(db, blobs, task, divided, how, now)
        _check_identity(db, task, bundle, folder)
        segments = Segments(folder / "segments", db.run(store.segments_in_use))
        segments.check()
        db.journal = segments
        blobs.sweep(db.run(store.blobs_in_use))
        segments.sweep(db.run(store.segments_in_use))
        versions = db.run(store.versions)
        state = versions[-1].state
        assert state is not None
        if len(how.sections) > 1 and not versions[-1].sections:
            raise UsageError(f"the run in {folder} is of an older covey, whose cohorts are others; start a new run")
        return Run(
            task=task, bundle=bundle, divided=divided, grouping=prepared.grouping,
            recipe=how, db=db, blobs=blobs,
            segments=segments, server=ServerState.from_bytes(blobs.get(state)), versions=versions,
            machine=machine_of(task, db), devices=db.run(store.devices), lock=lock,
        )  # fmt: skip
    except BaseException:
        db.close()
        lock.close()
        raise


def round_rules(task: TaskFile) -> rounds.Rules:
    """The synchronous engine's view of a task."""
    section = task.round
    return rounds.Rules(
        rounds=task.task.rounds,
        target=section.target,
        cohort=section.cohort,
        minimum=section.needed,
        deadline_s=section.deadline_s,
        pool_s=section.pool_s if section.selection == "uniform" else 0.0,
        retry_s=section.retry_s,
        seed=task.task.seed,
    )


def buffer_rules(task: TaskFile) -> buffers.Rules | None:
    """The asynchronous engine's view of a task; None in synchronous mode."""
    section = task.round
    if section.mode != "async":
        return None
    return buffers.Rules(
        rounds=task.task.rounds,
        buffer=section.buffer,
        max_staleness=section.max_staleness,
        concurrency=section.concurrency,
        deadline_s=section.deadline_s,
        retry_s=section.retry_s,
    )


def machine_of(task: TaskFile, db: Database) -> Machine:
    """The engine in the task's mode, going on from what the database knows."""
    rules = buffer_rules(task)
    if rules is None:
        return rounds.machine(round_rules(task), db.run(store.saved_round))
    return buffers.machine(rules, db.run(store.saved_buffer, rules.max_staleness))


def lock_folder(folder: Path) -> IO[bytes]:
    """Take the run's folder for this process; the lock goes with the process, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / "lock").open("ab")
    except OSError as error:
        raise UsageError(
            f"the data folder {folder} cannot be written ({error.strerror}); choose another --data-dir"
        ) from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.close()
        raise UsageError(
            f"the data folder {folder} is in use by another covey serve; stop that one or choose another --data-dir"
        ) from None
    return lock


def store_version(
    blobs: Blobs, how: Recipe, state: ServerState, step: Step | None, updates: int, now: float
) -> store.VersionRow:
    """Put a version's blobs on disk; returns the row that makes it count."""
    return store.VersionRow(
        version=state.version,
        parent=state.version - 1 if state.version else None,
        base=how.base(state.version),
        step=blobs.put(step.to_bytes()) if step else None,
        step_bytes=sum(len(part) for part in step.parts.values()) if step else 0,
        state=blobs.put(state.to_bytes()),
        digest=vector_digest(state.view),
        updates=updates,
        created=now,
        sections=sections.facts(how.sections, state.view, step),
    )


def _open_database(path: Path) -> Database:
    try:
        return Database(path, SCHEMA)
    except sqlite3.OperationalError as error:
        raise UsageError(f"the database {path} cannot be opened: {error}; free the disk or choose --data-dir") from None


def _begin(db: Database, blobs: Blobs, task: TaskFile, divided: Divided, how: Recipe, now: float) -> None:
    """Version 0 and the run's identity."""
    bundle = divided.bundle
    state, step = recipe.first(how, divided.begin(), task.task.seed)
    row = store_version(blobs, how, state, step, 0, now)
    meta = {"task": task.to_json(), "bundle": bundle.digest, "layout": bundle.manifest.layout.digest}
    failpoint("beginning")
    db.run(store.begin, meta, row)


def _check_identity(db: Database, task: TaskFile, bundle: Bundle, folder: Path) -> None:
    """Refuses another bundle and a task that contradicts the run; stores the task where it may change."""
    meta = db.run(store.get_meta)
    fresh = "start a new run with another --data-dir"
    if meta["bundle"] != bundle.digest:
        raise UsageError(
            f"the run in {folder} belongs to the bundle {meta['bundle'][:12]}, the task file names "
            f"{bundle.digest[:12]} ({bundle.folder}); restore that bundle, or {fresh}"
        )
    key = task_changes.changed_key(meta["task"], task, db.run(store.head_version))
    if key is not None:
        raise TaskFileError(f"{key} differs from the run in {folder}; change it back, or {fresh}")
    if meta["task"] != task.to_json():
        db.run(store.set_meta, {"task": task.to_json()})


def default_folder(task: Path) -> Path:
    """Where a run lives unless told otherwise: beside its task file."""
    return Path(os.path.abspath(task)).with_suffix(".run")
