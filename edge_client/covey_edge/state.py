"""What a device remembers, in one folder that survives any kill: two small files, each replaced whole.

`client` changes a few times a round: who this device is, the version it holds, the codec's memory, the update that is
not acknowledged yet (its exact bytes), evaluations and counters. `training` changes with the steps of a round and only
counts for the round that it names, so the two need not be written together.

A file is a magic with the format's number, a SHA-256, and one msgpack record. It is written beside the old one, synced
and renamed over it. A damaged one is moved aside and said so; one of a newer format is left alone and refused.
"""

import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from covey_edge.local import Progress
from covey_edge.locks import Taken, locked
from covey_edge.optim import OptimizerState
from covey_edge.versions import NOTHING, Held
from covey_shared.errors import MessageError, UsageError
from covey_shared.layout import Vector
from covey_shared.schema import Message

MAGIC, FORMAT = b"COVEYST", 1
HISTORY = 2000  # evaluations kept; version 0 always is


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending(Message):
    """An update that the server has not acknowledged. `codec_after`: the state of `codec` once it has."""

    round: int
    attempt: int
    version: int
    body: bytes
    codec: str
    codec_after: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored(Message):
    """A held-out evaluation of one version."""

    version: int
    loss_sum: float
    tokens: int
    correct: int

    @property
    def loss(self) -> float:
        """Mean loss in nats."""
        return self.loss_sum / self.tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Client(Message):
    """The `client` file. `task`: which task it belongs to; `codecs`: states of codecs by name; `pending`: 0 or 1.

    `adapter` holds the float32 bytes of version `held` as devices of `cohort` have it, none for -1. `own` holds those
    of the personal tensors, none as long as they are at their start, and `own_history` evaluations with them. `rounds`
    counts acknowledged updates.
    """

    client: str
    task: str
    held: int
    adapter: bytes
    cohort: int
    codecs: dict[str, bytes]
    pending: tuple[Pending, ...]
    history: tuple[Scored, ...]
    own: bytes
    own_history: tuple[Scored, ...]
    rounds: int
    trained_tokens: int
    train_seconds: float
    sent: dict[str, int]
    received: dict[str, int]

    def version(self) -> Held:
        """The version held."""
        return Held(self.held, vector_of(self.adapter))

    def score_of(self, version: int) -> Scored | None:
        """The evaluation of a version, if there was one."""
        return next((s for s in self.history if s.version == version), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training(Message):
    """The `training` file: a round in progress."""

    task: str
    round: int
    attempt: int
    version: int
    step: int
    adapter: bytes
    moments: tuple[bytes, ...]
    first: tuple[float, ...]
    last: tuple[float, ...]
    seconds: float

    def progress(self) -> Progress:
        """Where the round stood."""
        optimizer = OptimizerState(self.step, tuple(map(vector_of, self.moments)))
        return Progress(vector_of(self.adapter), optimizer, self.first, self.last, self.seconds)


S = TypeVar("S", bound=Message)


def vector_of(data: bytes) -> Vector:
    """Float32 values from their little-endian bytes."""
    return np.frombuffer(data, "<f4").astype(np.float32)


def bytes_of(vector: Vector) -> bytes:
    """The little-endian bytes of float32 values."""
    return np.ascontiguousarray(vector, "<f4").tobytes()


def new_client(name: str, task: str) -> Client:
    """A device at its start. Without a name it gets a random one: a host's name is often its owner's."""
    return Client(
        client=name or f"device-{secrets.token_hex(4)}", task=task, held=NOTHING, adapter=b"", cohort=0, codecs={},
        pending=(), history=(), own=b"", own_history=(), rounds=0, trained_tokens=0, train_seconds=0.0, sent={},
        received={},
    )  # fmt: skip


def training_of(task: str, round_: int, attempt: int, version: int, progress: Progress) -> Training:
    """The record of a round in progress."""
    return Training(
        task=task, round=round_, attempt=attempt, version=version, step=progress.step,
        adapter=bytes_of(progress.adapter), moments=tuple(map(bytes_of, progress.optimizer.moments)),
        first=progress.first, last=progress.last, seconds=progress.seconds,
    )  # fmt: skip


@dataclass(frozen=True)
class StateFolder:
    """The open folder; made by `open_folder`, which holds its lock."""

    path: Path

    def load_client(self) -> tuple[Client | None, str]:
        """The `client` file, or none; and one sentence where it was damaged."""
        return load_record(self.path / "client", Client)

    def load_training(self) -> tuple[Training | None, str]:
        """The `training` file, or none; and one sentence where it was damaged."""
        return load_record(self.path / "training", Training)

    def save(self, record: Client | Training) -> None:
        """Replace a record's file, durably: when this returns, a power cut cannot take it back."""
        save_record(self.path / type(record).__name__.lower(), record)

    def forget_training(self) -> None:
        """Drop the round in progress."""
        (self.path / "training").unlink(missing_ok=True)


def save_record(path: Path, record: Message) -> None:
    """Write one record as a file of this module's form, durably."""
    body = record.to_bytes()
    write_durably(path, MAGIC + bytes([FORMAT]) + hashlib.sha256(body).digest() + body)


def load_record(path: Path, kind: type[S]) -> tuple[S | None, str]:
    """The record in a file, or none; and one sentence where it was damaged, when it is moved aside."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None, ""
    if data[:7] == MAGIC and data[7:8] > bytes([FORMAT]):
        raise UsageError(f"{path} was written by a newer covey: update this one, or choose another --state")
    try:
        if data[:7] != MAGIC or hashlib.sha256(data[40:]).digest() != data[8:40]:
            raise MessageError("its digest is wrong")
        return kind.from_bytes(data[40:]), ""
    except MessageError as error:
        aside = path.with_name(f"{path.name}.damaged")
        path.replace(aside)
        return None, f"{path} is damaged ({error}); it was moved to {aside.name}, and the device starts afresh"


@contextmanager
def open_folder(path: Path) -> Iterator[StateFolder]:
    """Make the folder if needed and hold it for this process alone."""
    path.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with locked(path / "lock"):
            yield StateFolder(path)
    except Taken as error:
        raise UsageError(
            f"another covey join (process {error.holder or 'unknown'}) uses {path}: give this one its own with --state"
        ) from None


def write_durably(path: Path, data: bytes) -> None:
    """Replace a file so that after a kill or a power cut it is either the old or the new one, whole."""
    beside = path.with_name(path.name + ".new")
    try:
        with beside.open("wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        beside.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        beside.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UsageError(
                f"no space is left for {path} ({len(data):,} bytes): what was saved before is kept; free some space "
                "and run the same command again"
            ) from None
        raise
