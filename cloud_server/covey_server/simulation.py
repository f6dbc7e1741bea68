"""A task without sockets, clocks and files, for `covey_shared.simulation`: `covey serve`'s own arithmetic.

A task text is parsed and prepared as ever, uploads are read and checked as ever, folded in the order of device names,
and a device downloads what `downloads.plan` finds cheapest. What is missing is what does not change the numbers: rounds
that are opened and closed, enrolment, and keeping things on disk.
"""

from collections.abc import Sequence

import numpy as np

from covey_server import downloads, recipe, task_file
from covey_server.defence import guarded
from covey_server.prepare import Prepared, prepare
from covey_server.recipe import ServerState
from covey_server.store import VersionRow
from covey_server.validation import max_upload_bytes, read_entries, read_update
from covey_shared.bundle import Bundle
from covey_shared.codec import Codec, codec_from_spec, dump_state, load_state, presets
from covey_shared.entries import Entries
from covey_shared.errors import CodecError, TaskFileError, UsageError
from covey_shared.layout import Vector, vector_digest
from covey_shared.messages import PROTOCOL, Step, Task, Update


def begin(text: str, bundle: Bundle, saved: bytes = b"") -> "Simulation":
    """A task at its version 0, or where `saved` says. The bundle that the text names is not looked for."""
    task = task_file.parse(text)
    if task.round.mode == "async" or task.strategy.name == "cohorts":
        raise TaskFileError("asynchronous rounds and strategy 'cohorts' cannot be simulated; use mode = 'sync'")
    prepared = prepare(task, bundle)
    exact = codec_from_spec(presets.dense(), prepared.divided.published)
    if not saved:
        state, step = recipe.first(prepared.recipe, prepared.divided.begin(), task.task.seed)
        return Simulation(prepared, exact, state, [version_row(prepared, state, step)], {0: step} if step else {})
    kept = load_state(saved)
    rows = [VersionRow(**{**row, "parent": None, "created": 0.0}) for row in kept["rows"]]
    steps = {row.version: Step.from_bytes(body) for row, body in zip(rows, kept["steps"], strict=True) if body}
    return Simulation(prepared, exact, ServerState.from_bytes(kept["state"]), rows, steps)


class Simulation:
    """See `covey_shared.simulation.Simulated`."""

    def __init__(
        self, prepared: Prepared, exact: Codec, state: ServerState, rows: list[VersionRow], steps: dict[int, Step]
    ):  # fmt: skip
        self._prepared, self._exact, self._state, self._rows, self._steps = prepared, exact, state, rows, steps

    @property
    def task(self) -> Task:
        """What a device would be told."""
        task, divided = self._prepared.task, self._prepared.divided
        manifest = divided.bundle.manifest
        codec = max(divided.uploads.values(), key=lambda codec: codec.max_bytes)
        return Task(
            protocol=PROTOCOL, name=task.task.name, model=manifest.model, bundle=divided.bundle.digest,
            layout=manifest.layout.digest, seed=task.task.seed, rounds=task.task.rounds, round=self.version + 1,
            version=self.version, state="running", upload_codec=codec.spec, local=task.client.config(),
            max_upload_bytes=max_upload_bytes(codec), sharing=divided.division.sharing,
        )  # fmt: skip

    @property
    def version(self) -> int:
        """The newest version."""
        return self._state.version

    def adapter(self, held: int) -> bytes:
        """What a device that holds `held` downloads to come to the newest version."""
        view = self._state.view
        chosen = downloads.plan(self._rows, held, self.version, 4 * len(view))
        whole = recipe.whole(view, self.version, self._exact) if chosen.whole else None
        if chosen.whole and whole is None:
            chosen = downloads.plan(self._rows, held, self.version, 2**62)
        steps = (whole,) if whole else tuple(self._steps[v] for v in chosen.steps)
        return downloads.message(chosen, self._rows, self._prepared.divided.published.digest, steps)

    def close_round(self, updates: Sequence[bytes]) -> None:
        """Fold a round's uploads and make the next version."""
        divided, how = self._prepared.divided, self._prepared.recipe
        messages = sorted((self._read(body) for body in updates), key=lambda message: message.client)
        start = divided.whole(self._state.view, self.version + 1)
        weights = [how.strategy.weigh(m.examples) for m in messages]
        names = [m.client for m in messages]
        bounds, issuers = self._prepared.task.defence, [f"device {name}" for name in names]
        weighed = guarded(bounds, lambda: map(self._entries, messages), weights, names, issuers)
        change = divided.down(recipe.fold_weighted(how.strategy, start, weighed))
        try:
            self._state, step = recipe.advance(how, self._state, change)
        except CodecError as error:
            raise UsageError(f"version {self.version + 1} cannot be published: {error}") from None
        self._steps[self.version] = step
        self._rows.append(version_row(self._prepared, self._state, step))

    def model(self) -> tuple[Vector, Vector | None]:
        """The newest version in the bundle's own layout; factors that the task does not have are zeros."""
        divided = self._prepared.divided
        adapter, second = divided.model(self._state.view)
        division = divided.division
        if division.top is division.adapter:
            return adapter, second
        full = np.zeros_like(divided.start)
        full[division.adapter.positions(division.top)] = adapter
        return full, second

    def to_bytes(self) -> bytes:
        """Where it stands."""
        rows = [{k: v for k, v in row._asdict().items() if k not in LEFT_OUT} for row in self._rows]
        steps = [self._steps[row.version].to_bytes() if row.version in self._steps else b"" for row in self._rows]
        return dump_state({"state": self._state.to_bytes(), "rows": rows, "steps": steps})

    def _read(self, body: bytes) -> Update:
        """An upload, looked at as the server does."""
        round_, divided = self.version + 1, self._prepared.divided
        named = Update.from_bytes(body)
        return read_update(body, round_, named.client, self._prepared.divided.allowed(round_), divided.codecs)

    def _entries(self, message: Update) -> Entries:
        divided = self._prepared.divided
        codec = divided.upload(message.layout, message.codec)
        return divided.lifted(read_entries(message, codec, self._prepared.task.round.max_norm), message.layout)


LEFT_OUT = ("parent", "created")  # of a row: what says nothing without files


def version_row(prepared: Prepared, state: ServerState, step: Step | None) -> VersionRow:
    """What `downloads.plan` wants to know of a version."""
    size = sum(map(len, step.parts.values())) if step else 0
    return VersionRow(
        version=state.version, parent=None, base=prepared.recipe.base(state.version), step="step" if step else None,
        step_bytes=size, state=None, digest=vector_digest(state.view), updates=0, created=0.0,
    )  # fmt: skip
