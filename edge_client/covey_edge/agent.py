"""The loop of a device: asks `plan` what is next and does it. All input and output of a round is here.

What is durable when: a version once its digest is right; training every few seconds; an update, with its exact bytes,
before the first byte of it is sent; the codec's next state only together with the server's acknowledgement, so that a
change that never arrived is not taken for sent.
"""

import asyncio
import hashlib
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from covey_edge import calls, local
from covey_edge.data import evaluation_batches, evaluation_count
from covey_edge.device import Device
from covey_edge.encoding import encoded
from covey_edge.events import Events
from covey_edge.local import Progress
from covey_edge.parts import PartTrainer
from covey_edge.plan import (
    Action,
    CheckIn,
    Evaluate,
    Fetch,
    Finish,
    Train,
    Upload,
    View,
    Wait,
    after_check_in,
    before_check_in,
)
from covey_edge.state import HISTORY, Client, Pending, Scored, StateFolder, bytes_of, training_of, vector_of
from covey_edge.trainers import Score, Trainer
from covey_edge.transport import Refused, ServerError, Transport
from covey_edge.uploads import Parcel, deliver
from covey_edge.versions import NOTHING, Held, advance
from covey_shared import messages
from covey_shared.errors import RemoteError
from covey_shared.layout import Layout, Vector
from covey_shared.messages import Assignment, Evaluation

CHECKPOINT_S = 2.0  # between two saves of a round in progress: what a kill costs at most
MAX_REFUSALS = 5  # in a row, before the server's sentence becomes the end
NO_OWN = np.empty(0, np.float32)  # personal tensors at their start
MIN_WAIT_S, MAX_WAIT_S = 0.02, 600.0  # between check-ins, whatever the server says


class Agent:
    """One device in one task. `record` is what it remembers; every change of it is saved before it is relied on."""

    def __init__(self, device: Device, transport: Transport, folder: StateFolder, record: Client, events: Events):
        self.device, self.transport, self.folder, self.events = device, transport, folder, events
        self.record = record
        self.held = record.version()
        self.uploaded = self.refusals = 0
        self.cohort = record.cohort  # as the server said last; what is held is of record.cohort

    async def run(self) -> Client:
        """Take part until the task is done (or one round is); returns what is remembered in the end."""
        perform: dict[type, Callable[[Any], Awaitable[bool]]] = {
            Fetch: self.fetch,
            Evaluate: self.evaluate,
            Train: self.train,
            Upload: self.upload,
            Wait: self.wait,
        }
        todo: deque[Action] = deque()
        while True:
            action = todo.popleft() if todo else before_check_in(self.view(), self.device.wishes)[0]
            if isinstance(action, Finish):
                return self.record
            if isinstance(action, CheckIn):
                todo.extend(after_check_in(self.view(), await self.check_in(), self.device.wishes))
            elif not await perform[type(action)](action):
                todo.clear()  # the rest of the plan stood on what did not happen

    def view(self) -> View:
        """What decisions depend on."""
        evaluated = {s.version for s in self.record.history}
        moved = self.cohort != self.record.cohort  # so that it is fetched anew, whichever version it is
        return View(NOTHING if moved else self.held.version, evaluated, bool(self.record.pending), self.uploaded)

    async def check_in(self) -> Assignment:
        """Offer this device."""
        task, examples = self.device.task, self.device.dataset.train.count
        message = messages.CheckIn(
            client=self.record.client, layout=task.layout, held=self.held.version, examples=examples,
            runtime=self.device.runtime,
        )  # fmt: skip
        assignment = await calls.check_in(self.transport, message)
        self.cohort = assignment.cohort
        if assignment.action == "train":
            self.events.emit(
                "round", round=assignment.round, rounds=task.rounds, attempt=assignment.attempt,
                version=assignment.version, deadline_s=assignment.deadline_s,
            )  # fmt: skip
        return assignment

    async def fetch(self, action: Fetch) -> bool:
        """Come to a version: from the one held if the server's steps fit, else from the beginning."""
        received, before = self.transport.traffic.received.get(calls.ADAPTER, 0), self.held
        held = before if before.version <= action.version else Held(NOTHING, before.adapter)
        try:
            try:
                self.held = await self.advance_from(held, action.version)
            except (RemoteError, Refused) as error:
                moved = (
                    isinstance(error, Refused) and error.code == "conflict"
                )  # to another cohort, since it checked in
                if held.version == NOTHING or moved:
                    raise
                self.events.notice(f"starting again from the whole adapter: {error}")
                self.held = await self.advance_from(Held(NOTHING, held.adapter), action.version)
        except Refused as error:
            return await self.refused(error, 0)
        went_back = action.version < before.version  # the server lost what it had: its next versions are other ones
        history = tuple(s for s in self.record.history if not went_back or s.version in (0, action.version))
        self.save(held=self.held.version, adapter=bytes_of(self.held.adapter), cohort=self.cohort, history=history)
        size = self.transport.traffic.received[calls.ADAPTER] - received
        self.events.emit("version", version=action.version, bytes=size)
        return True

    async def advance_from(self, held: Held, version: int) -> Held:
        """The version, from what is held, with its digest checked."""
        parts = [
            await self.part_from(held, version, layout, cohort)
            for layout, cohort in self.device.share.division.downloads(self.cohort)
        ]
        return Held(version, parts[0] if len(parts) == 1 else np.concatenate(parts))

    async def part_from(self, held: Held, version: int, layout: Layout, cohort: int | None) -> Vector:
        """A part of the version: what all devices have, or the copies of this device's cohort."""
        share, known = self.device.share, held.version
        if cohort is not None and cohort != self.record.cohort:
            known = NOTHING  # of that cohort: what is held is another's
        mine = held.adapter
        if known != NOTHING:
            mine = held.adapter[share.division.downloaded(self.record.cohort).positions(layout)]
        message = await calls.get_adapter(self.transport, version, known, layout, cohort)
        start = partial(share.start_of, layout)
        return (await asyncio.to_thread(advance, Held(known, mine), message, layout, start)).adapter

    async def evaluate(self, action: Evaluate) -> bool:
        """Held-out loss of the version that is held; the server hears of it, and may decline."""
        scored = await self.report(action.version, NO_OWN, "global")
        self.save(history=_appended(self.record.history, scored))
        if self.device.share.division.personal(self.device.share.rank) is not None or self.fuses():
            own = await self.report(action.version, vector_of(self.record.own), "personal")
            self.save(own_history=_appended(self.record.own_history, own))
        return True

    def fuses(self) -> bool:
        """Whether this device has an adapter of its own besides the shared one."""
        return bool(self.device.task.sharing.fusion and self.record.own)

    async def report(self, version: int, own: Vector, kind: str) -> Scored:
        """Evaluate the version held, for all (with personal tensors at their start) or for this device, and say so."""
        if kind == "personal" and self.fuses():
            adapter, trainer, found = await asyncio.to_thread(self.device.fused, self.held.adapter, own)
            self.events.emit("fused", version=version, **found._asdict())
        else:
            adapter, trainer = self.device.model(self.held.adapter, own, cohort=self.cohort)
        score = await self.score(adapter, trainer)
        message = Evaluation(client=self.record.client, layout=self.device.task.layout, version=version, kind=kind,
                             **score._asdict())  # fmt: skip
        try:
            await calls.put_evaluation(self.transport, message)
        except Refused as error:
            self.events.notice(f"the server does not take the evaluation of version {version}: {error}")
        scored = Scored(version=version, **score._asdict())
        self.events.emit("evaluated", version=version, kind=kind, loss=scored.loss, **score._asdict())
        return scored

    async def score(self, adapter: Vector, trainer: Trainer) -> Score:
        """The sums over the held-out examples."""
        examples, batch_size = self.device.dataset.heldout, self.device.bundle.manifest.batch_size
        total = evaluation_count(examples, batch_size, self.device.eval_batches)
        loss_sum, tokens, correct = 0.0, 0, 0
        for done, batch in enumerate(evaluation_batches(examples, batch_size, self.device.eval_batches), 1):
            score = await asyncio.to_thread(trainer.evaluate, adapter, batch)
            loss_sum, tokens, correct = loss_sum + score.loss_sum, tokens + score.tokens, correct + score.correct
            self.events.emit("batch", what="evaluating", done=done, total=total)
        return Score(loss_sum, tokens, correct)

    async def train(self, action: Train) -> bool:
        """All steps of a round, from where a killed process left it; then the update, encoded and saved."""
        whole, trainer = self.device.model(self.held.adapter, vector_of(self.record.own), action.round, action.cohort)
        part = PartTrainer(trainer, whole, self.device.share.trained(action.round))
        before = whole[part.where]
        progress = await self.train_steps(action, part, before)
        if progress is None:
            return False
        pending, state = await asyncio.to_thread(self.encode, action, progress, before)
        manifest = self.device.bundle.manifest
        self.save(
            pending=(pending,), codecs=self.codecs(pending.codec, state),
            own=bytes_of(self.own_after(action, part, progress)),
            trained_tokens=self.record.trained_tokens + progress.step * manifest.batch_size * max(1, manifest.seq_len),
            train_seconds=self.record.train_seconds + progress.seconds,
        )  # fmt: skip
        self.folder.forget_training()
        self.events.emit(
            "trained", round=action.round, steps=progress.step, seconds=round(progress.seconds, 3),
            loss_before=progress.loss_before, loss_after=progress.loss_after, bytes=len(pending.body),
        )  # fmt: skip
        return True

    def own_after(self, action: Train, part: PartTrainer, progress: Progress) -> Vector:
        """What this device keeps to itself after a round: its personal tensors, or where adapters are fused a copy of
        what it trained, taken in its first round and then as often as the task says.
        """
        sharing = self.device.task.sharing
        if not sharing.fusion:
            return self.device.share.kept(progress.adapter, action.round)
        due = not self.record.own or (sharing.sync_every and action.round % sharing.sync_every == 0)
        return part.full(progress.adapter) if due else vector_of(self.record.own)

    def codecs(self, name: str, state: bytes) -> dict[str, bytes]:
        """The states to remember with this one: as many as a task has phases, the newest."""
        wanted = max(1, len(self.device.task.sharing.phases))
        others = {key: value for key, value in self.record.codecs.items() if key != name}
        return {**dict(list(others.items())[len(others) - wanted + 1 :] if wanted > 1 else ()), name: state}

    def encode(self, action: Train, progress: Progress, before: Vector) -> tuple[Pending, bytes]:
        """The round's change as an update to send, and the codec's state until that is acknowledged."""
        known = self.record.codecs.get(self.device.codec_name(action.round), b"")
        return encoded(self.device, self.record.client, action, progress, before, known)

    async def train_steps(self, action: Train, trainer: Trainer, before: Vector) -> Progress | None:
        """The finished round, or None where its deadline passed: what is done is kept in case it is opened again."""
        task, deadline = self.device.task, time.monotonic() + action.deadline_s
        progress, saved = self.resumed(action, before), time.monotonic()
        seed = local.batch_seed(task.seed, action.round, self.record.client)
        batch_size = self.device.bundle.manifest.batch_size
        steps = local.train(trainer, self.device.parts.train, batch_size, task.local, seed, progress)
        try:
            while (after := await asyncio.to_thread(next, steps, None)) is not None:
                progress = after
                self.events.emit(
                    "step", what=f"training for round {action.round}", round=action.round, done=progress.step,
                    total=task.local.steps, loss=progress.last[-1],
                )  # fmt: skip
                if time.monotonic() - saved >= self.device.checkpoint_s:
                    self.checkpoint(action, progress)
                    saved = time.monotonic()
                if time.monotonic() > deadline and progress.step < task.local.steps:
                    self.checkpoint(action, progress)
                    self.events.emit("late", round=action.round, step=progress.step)
                    return None
        except asyncio.CancelledError:  # Ctrl-C: lose nothing
            self.checkpoint(action, progress)
            raise
        return progress

    def resumed(self, action: Train, before: Vector) -> Progress:
        """The round's saved progress if there is any of this very round, else its beginning."""
        saved, sentence = self.folder.load_training()
        self.events.notice(sentence)
        if saved and (saved.task, saved.round, saved.attempt, saved.version) == _key(self.record.task, action):
            self.events.notice(f"going on with round {action.round} after step {saved.step}")
            return saved.progress()
        return local.begin(before, self.device.task.local)

    def checkpoint(self, action: Train, progress: Progress) -> None:
        """Save the round in progress."""
        self.folder.save(training_of(self.record.task, action.round, action.attempt, action.version, progress))

    async def upload(self, action: Upload) -> bool:
        """Send the pending bytes until they are acknowledged; a refusal drops them and keeps the codec's old state."""
        pending = self.record.pending[0]
        try:
            parcel = Parcel(pending.round, pending.version, self.record.client, pending.body)
            receipt = await deliver(self.transport, self.folder.path / "upload", parcel)
        except Refused as error:
            self.save(pending=())
            return await self.refused(error, pending.round)
        if receipt.digest != hashlib.sha256(pending.body).hexdigest():
            raise ServerError(f"the server acknowledged other bytes than were sent for round {pending.round}")
        self.uploaded, self.refusals = self.uploaded + 1, 0
        codecs = self.codecs(pending.codec, pending.codec_after)
        self.save(pending=(), codecs=codecs, rounds=self.record.rounds + 1)
        self.events.emit("uploaded", round=pending.round, bytes=len(pending.body), status=receipt.status,
                         version=receipt.version, staleness=receipt.staleness)  # fmt: skip
        return True

    async def refused(self, error: Refused, round_: int) -> bool:
        """Note a refusal and pause; too many in a row are the end."""
        self.refusals += 1
        self.events.emit("refused", round=round_, message=str(error), status=error.status, code=error.code)
        if self.refusals >= MAX_REFUSALS:
            raise error
        await asyncio.sleep(self.transport.backoff.delay(self.refusals, random.random()))
        return False

    async def wait(self, action: Wait) -> bool:
        """Sleep as long as the server asked, with a little jitter so that devices do not march in step."""
        seconds = min(max(action.seconds, MIN_WAIT_S), MAX_WAIT_S) * (1 + 0.1 * random.random())
        self.events.emit("wait", seconds=round(seconds, 3))
        await asyncio.sleep(seconds)
        return True

    def save(self, **changes: Any) -> None:
        """Change what is remembered, durably."""
        traffic = self.transport.traffic
        self.record = replace(self.record, sent=dict(traffic.sent), received=dict(traffic.received), **changes)
        self.folder.save(self.record)


def _appended(history: tuple[Scored, ...], scored: Scored) -> tuple[Scored, ...]:
    """With one more; the first stays, and of the rest the newest."""
    return (*history[:1], *history[1:][1 - HISTORY :], scored)


def _key(task: str, action: Train) -> tuple[str, int, int, int]:
    """What a saved round must be of to be gone on with."""
    return (task, action.round, action.attempt, action.version)
