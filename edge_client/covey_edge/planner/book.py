"""The folder of a plan: what was asked, every pilot as it ends, and where unfinished ones stand.

plan.json       what the results depend on; another plan in the same folder is refused
pilots.jsonl    one line a pilot, appended and synced; a line that a kill tore off is not read
pilots/         where pilots stand, so that one that goes on for more rounds need not begin again
messages.json   sizes of messages; fitted.json: the pilots and rounds that fit a time
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from covey_edge.locks import Taken, locked
from covey_edge.planner.halving import Found, Job
from covey_edge.planner.space import Choice
from covey_edge.state import write_durably
from covey_shared.errors import UsageError

ABOUT, LINES, STATES = "plan.json", "pilots.jsonl", "pilots"
SIZES, FITTED = "messages.json", "fitted.json"
LARGEST = 2**30  # bytes of all states: beyond it a pilot that goes on begins again, with the same bits


class Book:
    """A plan's folder, held by this process."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.results = dict(_read(folder / LINES))

    def add(self, job: Job, found: Found) -> None:
        """A pilot that has ended."""
        line = json.dumps({"rounds": job.rounds, **job.choice.to_json(), **to_json(found)}) + "\n"
        with (self.folder / LINES).open("a") as out:
            out.write(line)
            out.flush()
            os.fsync(out.fileno())
        self.results[job] = found

    def state(self, choice: Choice) -> bytes:
        """Where a pilot of this choice stands, or nothing."""
        return load_state_of(self.folder, choice)

    def drop_states(self, keep: set[Choice]) -> None:
        """Forget where pilots stand that do not go on."""
        names = {name_of(choice) for choice in keep}
        for path in (self.folder / STATES).glob("*"):
            if path.name not in names:
                path.unlink(missing_ok=True)


@contextmanager
def opened(folder: Path, about: dict[str, Any], *, force: bool) -> Iterator[Book]:
    """The folder, made if need be, and held. Refuses one of another plan, unless it is to be begun anew."""
    if folder.exists() and not (folder.is_dir() and ((folder / ABOUT).is_file() or not any(folder.iterdir()))):
        raise UsageError(f"{folder} exists and is not a folder that covey plan made: choose another --out")
    (folder / STATES).mkdir(parents=True, exist_ok=True)
    try:
        with locked(folder / "lock"):
            _agree(folder, about, force)
            yield Book(folder)
    except Taken as error:
        raise UsageError(f"another covey plan (process {error.holder}) writes to {folder}") from None


def _agree(folder: Path, about: dict[str, Any], force: bool) -> None:
    path, text = folder / ABOUT, json.dumps(about, indent=1, sort_keys=True) + "\n"
    if path.exists() and not force:
        old = _json(path.read_text())
        key = next((k for k in about if old.get(k) != json.loads(text)[k]), None)
        if key is not None:
            raise UsageError(
                f"{folder} holds a plan with another {key.replace('_', ' ')}: choose another --out, or begin it anew "
                "with --force"
            )
        return
    for stale in (folder / LINES, folder / SIZES, folder / FITTED, *(folder / STATES).glob("*")):
        stale.unlink(missing_ok=True)
    write_durably(path, text.encode())


def _json(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _read(path: Path) -> Iterator[tuple[Job, Found]]:
    """The pilots of a file; lines that are no pilots, as a kill may leave one, are passed over."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):  # what follows a torn line must not be appended to it
        with path.open("ab") as out:
            out.write(b"\n")
    for line in data.decode(errors="replace").splitlines():
        row = _json(line)
        try:
            choice = Choice(**{name: row[name] for name in Choice.__slots__})
            yield Job(choice, row["rounds"]), from_json(row)
        except (KeyError, TypeError, ValueError):
            continue


def to_json(found: Found) -> dict[str, Any]:
    """A pilot's result; a loss that is no number is null."""
    losses = [loss if math.isfinite(loss) else None for loss in found.losses]
    mean = found.loss if math.isfinite(found.loss) else None
    return {**found._asdict(), "losses": losses, "loss": mean}


def from_json(row: dict[str, Any]) -> Found:
    """The inverse of `to_json`."""
    losses = tuple(math.inf if loss is None else float(loss) for loss in row["losses"])
    return Found(losses, *(row[name] for name in Found._fields[1:]))


def name_of(choice: Choice) -> str:
    """The file name of a choice's state."""
    return hashlib.sha256(json.dumps(choice.to_json(), sort_keys=True).encode()).hexdigest()[:24]


def load_state_of(folder: Path, choice: Choice) -> bytes:
    """Where a pilot stands, or nothing."""
    path = folder / STATES / name_of(choice)
    return path.read_bytes() if path.exists() else b""


def save_state_of(folder: Path, choice: Choice, data: bytes) -> None:
    """Keep where a pilot stands, as long as all of them together stay small."""
    states = folder / STATES
    held = sum(path.stat().st_size for path in states.glob("*") if path.name != name_of(choice))
    if held + len(data) <= LARGEST:
        write_durably(states / name_of(choice), data)
