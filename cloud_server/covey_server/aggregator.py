"""The run in motion: what happens when a device asks, sends, or time passes.

This is the one place where the pure parts meet the disk and the clock. Everything here runs on the event loop and
decides nothing: the engine says who trains and when a round ends, the store says what counts, the recipe computes. What
takes more than a millisecond runs in a thread, one decoded update at a time.

The order that makes an acknowledged update count exactly once: bytes synced, row committed, engine told, receipt sent.
"""

import asyncio
import logging
import math
import random
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from covey_server import access, control, engine, intake, recipe, rounds, store
from covey_server.failpoints import failpoint
from covey_server.metrics import Metrics
from covey_server.publish import publish_adapter
from covey_server.refusals import Refused
from covey_server.regroup import cohort_of
from covey_server.run import Run, buffer_rules, store_version
from covey_server.shelf import Shelf
from covey_server.traffic import Traffic
from covey_server.validation import check_layout, max_upload_bytes
from covey_server.versions import next_version
from covey_shared.layout import Vector
from covey_shared.messages import PROTOCOL, Assignment, CheckIn, Evaluation, Receipt, Task

log = logging.getLogger("covey.server")

TICK_S = 0.25  # how exactly deadlines are kept
FLUSH_S = 10.0  # traffic counters to disk; a crash loses what was counted since
# An update this small is read in under a millisecond or two: handing it to a thread would cost a fifth more.
SOON_BYTES, SOON_ENTRIES = 64 * 1024, 2**19
RETRY_S = 5.0  # between attempts to publish on a full disk


class Aggregator:
    """A served run. `progress` is called with one line for each round; `publish_dir` may be None."""

    def __init__(self, run: Run, publish_dir: Path | None, progress: Callable[[str], None]):
        self.run = run
        self.last = run.task.task.rounds  # the version that ends the task
        self._buffers = buffer_rules(run.task)
        self.server = run.server
        self.versions = run.versions
        self.traffic = Traffic()
        self.metrics = Metrics()
        run.db.observe = self.metrics.committed
        self.seen: dict[str, float] = {}  # device -> when it last checked in, of time.monotonic
        self.told_done: set[str] = set()
        self.control = run.db.run(control.load)
        self._crowd = 0  # devices that asked lately
        self._touched_s = time.monotonic()
        self.failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.publish_dir = publish_dir
        self._progress = progress
        self.shelf = Shelf(run)
        self._decoding = asyncio.Semaphore(1)  # memory: one decoded update at a time
        every = (run.divided.uploads, *run.divided.tiers.values())
        self._is_soon = max(codec.max_entries for codecs in every for codec in codecs.values()) <= SOON_ENTRIES
        self._tasks: set[asyncio.Task[None]] = set()
        self.state, decisions = run.machine.resumed(time.monotonic())
        self._start(self._publish(self.server.version, self.server.view))
        self._carry_out(decisions)

    # What devices ask.

    def task(self, tier: str = "") -> Task:
        """GET /v1/task, for a device of a tier, or of none."""
        run, state = self.run, self.state
        if tier and tier not in run.divided.tiers:
            have = ", ".join(run.divided.tiers) or "none"
            raise Refused(
                "bad_message", f"the task has no tier {tier!r}, it has {have}; join with one of these, or without"
            )
        codecs = run.divided.tiers[tier] if tier else run.divided.uploads
        return Task(
            protocol=PROTOCOL,
            name=run.task.task.name,
            model=run.bundle.manifest.model,
            bundle=run.bundle.digest,
            layout=run.layout.digest,
            seed=run.task.task.seed,
            rounds=self.last,
            round=min(state.round, self.last),
            version=state.version,
            state="done" if state.phase == engine.DONE else "running",
            upload_codec=next(iter(codecs.values())).spec,
            local=run.task.client.config(),
            max_upload_bytes=max_upload_bytes(run.upload),
            sharing=run.divided.division.sharing,
        )

    async def check_in(self, message: CheckIn) -> Assignment:
        """POST /v1/checkin. An assignment is on disk before it is given."""
        check_layout(message.layout, self.run.layout.digest)
        now_s = time.monotonic()
        self.seen[message.client] = now_s
        if self.control.paused and self.state.phase != engine.DONE:
            return self._assignment(engine.Wait(message.client, control.WAIT_S), message.client)
        answer = self._apply(engine.CheckedIn(message.client, now_s))
        if isinstance(answer, engine.Assign):
            where = (answer.round, answer.attempt, answer.client, answer.version)
            row = (*where, message.runtime, message.examples, time.time())
            await self.run.db.do(access.if_welcome(message.client, store.assign), *row)
        if isinstance(answer, engine.Done):
            self.told_done.add(message.client)
        return self._assignment(answer, message.client)

    def _assignment(self, answer: engine.Decision | None, client: str) -> Assignment:
        state, cohort = self.state, cohort_of(self.run.grouping, self.server.cohorts, client)
        if isinstance(answer, engine.Assign):
            return Assignment(
                action="train", round=answer.round, attempt=answer.attempt, version=answer.version,
                deadline_s=answer.deadline_s, retry_after_s=0.0, cohort=cohort,
            )  # fmt: skip
        action, wait_s = "done", 0.0
        if isinstance(answer, engine.Wait):
            action, wait_s = "wait", control.pace(answer.retry_after_s, self._crowd, random.random())
        return Assignment(
            action=action, round=min(state.round, self.last), attempt=0, version=state.version, deadline_s=0.0,
            retry_after_s=wait_s, cohort=cohort,
        )  # fmt: skip

    async def take_update(self, round_: int, client: str, body: bytes, sha256: str) -> Receipt:
        """PUT /v1/updates/{round}/{client}, with the body's digest in hex. The receipt means that the update is on disk
        and counts once.
        """
        run = self.run
        if len(body) <= SOON_BYTES and self._is_soon:
            row, refused, decoded = intake.read(run, self.state, round_, client, body, sha256)
        else:
            async with self._decoding:
                what = (run, self.state, round_, client, body, sha256)
                row, refused, decoded = await asyncio.to_thread(intake.read, *what)
        if refused is None:
            work = access.if_welcome(client, store.accept)
            verdict = await run.db.do(work, row, body, run.segments, self._buffers)
        else:  # it may have been counted when it came for the first time
            known = await run.db.do(store.known, row)
            verdict = known if known is not None else store.Verdict(refused.code)
        if verdict.row is None:
            raise Refused(*(refused or intake.closed(run, self.state, row)))
        if verdict.kind == "accepted":
            if decoded is not None:
                run.kept.put(row.sha256, decoded)
            self._apply(engine.UpdateAccepted(round_, client, verdict.row.counted_in))
            self.metrics.staleness.observe(verdict.row.staleness)
        return self._receipt(verdict.row, row.sha256, verdict.kind)

    async def welcome(self, round_: int, client: str, version: int, sha256: str) -> Receipt | None:
        """Before an update comes in pieces: None if it may, its receipt if it is counted already, or Refused."""
        stored = await self.run.db.do(store.find_update, round_, client)
        if stored is not None:
            return self._receipt(stored, sha256, "duplicate" if stored.sha256 == sha256 else "conflict")
        refused = self.run.machine.admits(self.state, client, round_, version)
        if refused is not None:
            raise Refused(*refused)
        return None

    def _receipt(self, stored: store.UpdateRow, sha256: str, kind: str) -> Receipt:
        receipt = intake.receipt(stored, sha256, kind)
        self.metrics.updates.labels(kind).inc()
        return receipt

    async def take_evaluation(self, message: Evaluation) -> None:
        """PUT /v1/evaluations/{version}/{client}. Said again, the last one counts."""
        check_layout(message.layout, self.run.layout.digest)
        if message.version > self.state.version:
            raise Refused(
                "wrong_version", f"version {message.version} does not exist, the head is {self.state.version}"
            )
        row = (message.version, message.client, message.loss_sum, message.tokens, message.correct)
        await self.run.db.do(access.if_welcome(message.client, store.evaluate), *row, kind=message.kind)

    async def adapter(self, version: int, held: int, cohort: int | None, client: str) -> bytes:
        """GET /v1/adapter/{version}?held=H: the bytes of the Adapter message, with `cohort` of its cohort's copies."""
        return await self.shelf.adapter(self.server, self.versions, version, held, cohort, client)

    # What time brings.

    async def watch(self) -> None:
        """Feeds the engine with time, and the disk with traffic, until cancelled."""
        flushed = now_s = time.monotonic()
        while True:
            await asyncio.sleep(TICK_S)
            late_s, now_s = time.monotonic() - now_s - TICK_S, time.monotonic()
            self.metrics.loop_lag.observe(max(late_s, 0.0))
            self._apply(engine.Tick(now_s))
            if now_s - flushed > FLUSH_S:
                flushed = now_s
                self._crowd = sum(now_s - then_s < control.CROWD_S for then_s in self.seen.values())
                await self.flush()

    def close_round(self) -> None:
        """As if the deadline of the open round had come. Raises Refused where there is none."""
        if not isinstance(self.state, rounds.State) or self.state.phase != engine.OPEN:
            raise Refused("conflict", "there is no round to close: buffers close when they are full")
        self.state = replace(self.state, deadline_s=-math.inf)
        self._apply(engine.Tick(time.monotonic()))

    async def flush(self) -> None:
        """Write the traffic counters; what a full disk refuses stays in memory for the next time."""
        rows = self.traffic.take()
        try:
            await self.run.db.do(store.add_traffic, rows)
        except sqlite3.Error as error:
            self.traffic.put_back(rows)
            log.error("traffic counters were not saved: %s", error)

    async def finish(self, timeout_s: float) -> None:
        """Wait for a round that is being closed, and save the counters. What does not end in time is redone later."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=timeout_s)
        for task in self._tasks:
            task.cancel()
        await self.flush()

    def touched(self) -> None:
        """A request has come."""
        self._touched_s = time.monotonic()

    async def all_finished(self, quiet_s: float) -> bool:
        """Whether every device seen knows that the task is done, and has evaluated it or been quiet for `quiet_s`."""
        if not self.seen.keys() <= self.told_done:
            return False
        kinds = ("global", "personal") if self.run.divided.division.keeps else ("global",)
        sets = [await self.run.db.do(store.evaluators, self.state.version, kind) for kind in kinds]
        return all(self.seen.keys() <= evaluated for evaluated in sets) or time.monotonic() - self._touched_s > quiet_s

    async def held_out(self) -> tuple[int, dict[str, float]]:
        """The newest version that devices have had time to evaluate, and its held-out losses by kind."""
        version = self.state.version if self.state.phase == engine.DONE else max(self.state.version - 1, 0)
        return version, await self.run.db.do(store.held_out_losses, version)

    def facts(self) -> dict[str, Any]:
        """What there is to say of the version that is being made."""
        return self.run.machine.facts(self.state, time.monotonic())

    # What the engine decides.

    def _apply(self, event: engine.Event) -> engine.Decision | None:
        """Feed the engine; returns what it has to say to the device, if anything."""
        self.state, decisions = self.run.machine.step(self.state, event)
        return self._carry_out(decisions)

    def _carry_out(self, decisions: tuple[engine.Decision, ...]) -> engine.Decision | None:
        answer: engine.Decision | None = None
        for decision in decisions:
            if isinstance(decision, engine.CloseRound):
                self._start(self._close(decision.round))
            elif isinstance(decision, engine.ReopenRound):
                self._start(self._reopen(decision))
            else:
                answer = decision
        return answer

    async def _reopen(self, decision: engine.ReopenRound) -> None:
        facts = self.facts()
        self._progress(
            f"round {decision.round}: {len(facts['accepted'])} updates at the deadline, {facts['minimum']} are needed; "
            f"attempt {decision.attempt + 1}"
        )
        try:
            await self.run.db.do(store.reopen, decision.round, decision.attempt)
        except sqlite3.OperationalError as error:  # nothing depends on it but the attempt's number after a restart
            log.error("attempt %d was not recorded: %s", decision.attempt, error)

    async def _close(self, round_: int) -> None:
        """Aggregate and publish, again and again while the disk is full: until then nothing has changed."""
        started = time.monotonic()
        while True:
            try:
                rows, server, row, stale = await self._advance(round_)
                break
            except (OSError, sqlite3.OperationalError) as error:
                log.error("round %d could not be published, trying again in %g s: %s", round_, RETRY_S, error)
                await asyncio.sleep(RETRY_S)
        self.metrics.rounds.observe(max(row.created - self.versions[-1].created, 0.0))
        self.server = server
        self.run.kept.drop(update.sha256 for update in rows)
        self.versions = [*self.versions, row]
        failpoint("published")
        self._apply(engine.Published(row.version))
        await self._forget(row.version, stale)
        await self._report(rows, row, time.monotonic() - started)
        await self._publish(server.version, server.view)

    async def _forget(self, version: int, stale: list[str]) -> None:
        """Delete what nobody needs any more; a server that is killed before sweeps it when it starts."""
        failpoint("deleting")
        await asyncio.to_thread(self.run.blobs.delete, stale)
        if not self.run.task.task.keep_updates:
            await self.run.db.do(lambda connection: self.run.segments.delete(version))

    async def _advance(
        self, round_: int
    ) -> tuple[list[store.UpdateRow], recipe.ServerState, store.VersionRow, list[str]]:
        """One attempt to turn the round's updates into the head version; returns also the blobs no longer needed."""
        db, keep = self.run.db, self.run.task.task.keep_updates
        rows = await db.do(store.freeze, round_)
        failpoint("frozen")
        server, row = await asyncio.to_thread(self._aggregate, rows)
        return rows, server, row, await db.do(store.publish, row, keep_updates=keep)

    def _aggregate(self, rows: list[store.UpdateRow]) -> tuple[recipe.ServerState, store.VersionRow]:
        """The next version, its blobs on disk."""
        run = self.run
        with self.metrics.fold.time():
            server, step = next_version(run, self.server, rows)
        return server, store_version(run.blobs, run.recipe, server, step, len(rows), time.time())

    async def _report(self, rows: list[store.UpdateRow], row: store.VersionRow, seconds: float) -> None:
        training = sum(u.loss_after * u.examples for u in rows) / sum(u.examples for u in rows)
        up = sum(u.bytes for u in rows)
        known = await self.run.db.do(store.held_out_losses, row.version - 1)
        held_out = f", {in_words(known)} of version {row.version - 1}" if known else ""
        ages = [u.staleness for u in rows]
        stale = f", {max(ages)} versions old at most" if self._buffers else ""
        self._progress(
            f"round {row.version}/{self.last}: {len(rows)} updates, {up:,} bytes up, step of "
            f"{row.step_bytes:,} bytes, training loss {training:.4f}{held_out}{stale}, published in {seconds:.2f} s"
        )

    async def _publish(self, version: int, view: Vector) -> None:
        """The adapter in PEFT's format. A failure is reported and does not stop training: the next version tries."""
        every, last = self.run.task.task.publish_every, version >= self.last
        if self.publish_dir is None or version == 0 or not (last or (every and version % every == 0)):
            return
        name = self.run.task.task.name
        adapter, second = self.run.divided.model(view)
        layout = self.run.divided.division.top
        what = (self.publish_dir, self.run.bundle, name, version, adapter, second, self.control.pinned, layout)
        try:
            await asyncio.to_thread(publish_adapter, *what)
        except OSError as error:
            log.error("version %d was not written to %s: %s", version, self.publish_dir, error)

    def _start(self, work: Any) -> None:
        """Run in the background; an error there ends the server instead of vanishing."""
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not self.failure.done():
            self.failure.set_exception(error)


def in_words(losses: Mapping[str, float]) -> str:
    """Held-out losses by kind, for a line of text."""
    own = f" ({losses['personal']:.4f} with devices' own)" if "personal" in losses else ""
    return f"held-out loss {losses['global']:.4f}{own}" if "global" in losses else f"held-out loss{own}"
