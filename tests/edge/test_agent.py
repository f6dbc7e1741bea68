"""One device against a server that speaks the protocol over a real socket, with the little NumPy model."""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from aiohttp import web

from covey_edge.agent import Agent
from covey_edge.data import Dataset, build_dataset
from covey_edge.device import Device, task_name
from covey_edge.events import Events
from covey_edge.local import TrainingError, train
from covey_edge.plan import Wishes
from covey_edge.state import Client, new_client, open_folder
from covey_edge.texts import Document
from covey_edge.tokens import bytes_coder
from covey_edge.transport import Backoff, Refused, ServerError, Traffic, connect
from covey_shared.bundle import Bundle
from covey_shared.codec import codec_from_spec, presets
from covey_shared.errors import UsageError
from covey_shared.layout import vector_digest
from covey_shared.messages import Adapter, Receipt, Step, Task
from tests.helpers_edge import (
    BYTES,
    LAYOUT,
    BigramTrainer,
    Listening,
    ProtocolServer,
    cut,
    first,
    manifest_of,
    refuse,
    reply,
    task_of,
)

TEXT = "the cat sat on the mat and the dog lay on the log; " * 20
MANIFEST = manifest_of()
Log = list[dict[str, Any]]


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return build_dataset((Document("d", TEXT),), bytes_coder(BYTES), MANIFEST, 0.2)


@pytest.fixture
def server() -> ProtocolServer:
    task = task_of(MANIFEST)
    return ProtocolServer(task, MANIFEST.to_bytes(), LAYOUT.start(task.seed))


@dataclass
class Run:
    """One process's life as the agent: a folder that outlives it, a trainer, and what it told."""

    folder: Path
    dataset: Dataset
    wishes: Wishes = field(default_factory=Wishes)
    checkpoint_s: float = 0.0
    name: str = "me"

    def __call__(
        self,
        server: ProtocolServer,
        trainer: BigramTrainer | None = None,
        task: Task | None = None,
        stop: Callable[[dict[str, Any]], bool] = lambda event: False,
    ) -> tuple[Client, Log]:
        """Runs to the end, or until `stop` says so of an event: then nothing more happens, as after a kill."""
        log: Log = []

        class Killed(BaseException):
            pass

        def listen(event: dict[str, Any]) -> None:
            log.append(event)
            if stop(event):
                raise Killed

        async def main() -> Client:
            device = Device(
                task or server.task, Bundle(self.folder, MANIFEST, server.task.bundle), self.dataset,
                trainer or BigramTrainer(), "onnx", self.wishes, 0, self.checkpoint_s,
            )  # fmt: skip
            with open_folder(self.folder) as folder:
                record = folder.load_client()[0] or new_client(self.name, task_name(server.task))
                async with Listening(server.handle) as url, connect(url, None, Traffic()) as transport:
                    transport.backoff = Backoff(0.01, 0.05)
                    return await Agent(device, transport, folder, record, Events(listen)).run()

        try:
            return asyncio.run(main()), log
        except Killed:
            with open_folder(self.folder) as folder:
                return folder.load_client()[0] or new_client(self.name, ""), log


@pytest.fixture
def run(tmp_path: Path, dataset: Dataset) -> Run:
    return Run(tmp_path / "state", dataset)


def events(log: Log, name: str) -> Log:
    return [e for e in log if e["event"] == name]


def test_a_whole_task(run: Run, server: ProtocolServer) -> None:
    record, log = run(server)
    assert record.rounds == 3
    assert [s.version for s in record.history] == [0, 1, 2, 3]
    assert [s.loss for s in record.history] == sorted((s.loss for s in record.history), reverse=True)
    assert [(e.version, e.tokens) for e in server.evaluations] == [(v, record.history[0].tokens) for v in range(4)]
    assert [u.round for u in server.updates] == [1, 2, 3]
    assert [u.version for u in server.updates] == [0, 1, 2]
    assert {(u.client, u.steps, u.examples) for u in server.updates} == {("me", 6, run.dataset.train.count)}
    assert record.held == 3
    np.testing.assert_array_equal(record.version().adapter, server.adapter(3))
    assert record.sent["update"] == sum(map(len, server.bodies))
    assert record.trained_tokens == 3 * 6 * 4 * 16
    assert not record.pending
    assert len(events(log, "step")) == 18
    assert sorted(p.name for p in run.folder.iterdir()) == ["client", "lock"]


def test_error_feedback_carries_what_the_codec_dropped(run: Run, server: ProtocolServer) -> None:
    """Round 2 sends its change plus round 1's residual: computed here from the messages alone."""
    run(server)
    task, trainer = server.task, BigramTrainer()
    from covey_edge.local import batch_seed, begin

    residual = np.zeros(LAYOUT.size, np.float32)
    codec = codec_from_spec(task.upload_codec, LAYOUT)
    for update in server.updates[:2]:
        start = server.adapter(update.version)
        seed = batch_seed(task.seed, update.round, "me")
        last = list(train(trainer, run.dataset.train, 4, task.local, seed, begin(start, task.local)))[-1]
        wanted = last.adapter - start + residual
        parts, _ = codec.encode(wanted, codec.init(0))
        assert parts == update.parts
        residual = wanted - codec.decode(parts).dense()
    assert np.abs(residual).max() > 0


MOMENTS = {
    "before the first version": lambda e: e["event"] == "round",
    "after a version": lambda e: e["event"] == "version" and e["version"] == 1,
    "after an evaluation": lambda e: e["event"] == "evaluated" and e["version"] == 1,
    "in the middle of training": lambda e: e["event"] == "step" and (e["round"], e["done"]) == (2, 4),
    "after the first step of all": lambda e: e["event"] == "step",
    "encoded and not sent": lambda e: e["event"] == "trained" and e["round"] == 2,
    "acknowledged": lambda e: e["event"] == "uploaded" and e["round"] == 2,
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_anywhere_ends_with_the_same_bits(moment: str, run: Run, dataset: Dataset, tmp_path: Path) -> None:
    def fresh() -> ProtocolServer:
        return ProtocolServer(task_of(MANIFEST), MANIFEST.to_bytes(), LAYOUT.start(7))

    unkilled = fresh()
    Run(tmp_path / "other", dataset)(unkilled)
    server = fresh()
    _, before = run(server, stop=MOMENTS[moment])
    record, after = run(server)
    assert record.rounds == 3
    assert vector_digest(server.adapter(3)) == vector_digest(unkilled.adapter(3))
    assert [replace(u, seconds=0.0) for u in server.updates] == [replace(u, seconds=0.0) for u in unkilled.updates]
    steps = [(e["round"], e["done"]) for e in events(before + after, "step")]
    assert len(set(steps)) == 18
    assert len(steps) <= 19  # at most the step that was done and not saved is done again


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_an_upload_that_is_cut_is_sent_again_and_counted_once(lost: str, run: Run, server: ProtocolServer) -> None:
    counted: list[bool] = []

    async def after_counting(request: web.Request) -> web.StreamResponse | None:
        """The server has the update, the answer is lost."""
        if request.method != "PUT" or "updates" not in request.path or counted:
            return None
        counted.append(True)
        await server._put_updates(request, "1", "me")
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    server.faults.append(cut(2, "PUT /v1/updates") if lost == "request" else after_counting)
    record, log = run(server)
    assert record.rounds == 3
    assert [u.round for u in server.updates] == [1, 2, 3]
    expected = ["accepted"] * 3 if lost == "request" else ["duplicate", "accepted", "accepted"]
    assert [e["status"] for e in events(log, "uploaded")] == expected
    if lost == "answer":
        assert server.bodies[0] == server.bodies[1]


def test_pending_goes_first_and_unchanged_after_a_kill(run: Run, server: ProtocolServer) -> None:
    stopped, _ = run(server, stop=MOMENTS["encoded and not sent"])
    assert len(stopped.pending) == 1
    server.log.clear()
    run(server)
    assert server.log[0] == "PUT /v1/updates/2/me"
    assert server.bodies[1] == stopped.pending[0].body


def test_a_late_update_is_dropped_and_the_codec_forgets_it(run: Run, server: ProtocolServer) -> None:
    server.faults.append(first(1, "PUT /v1/updates/2", lambda: refuse(410, "late", "round 2 is closed")))
    record, log = run(server)
    assert [e["message"] for e in events(log, "refused")] == ["round 2 is closed"]
    assert record.rounds == 3
    assert [u.round for u in server.updates] == [1, 2, 3]


def test_a_server_that_always_refuses_ends_it_with_its_sentence(run: Run, server: ProtocolServer) -> None:
    server.faults.append(first(99, "PUT /v1/updates", lambda: refuse(409, "wrong_codec", "the task takes topk")))
    with pytest.raises(Refused, match="the task takes topk"):
        run(server)
    assert len(server.bodies) == 0
    with open_folder(run.folder) as folder:
        client = folder.load_client()[0]
    assert client is not None
    assert not client.pending


def test_a_refused_check_in_is_final(run: Run, server: ProtocolServer) -> None:
    server.faults.append(first(9, "POST", lambda: refuse(409, "wrong_layout", "this device trains another layout")))
    with pytest.raises(Refused, match="trains another layout"):
        run(server)


def test_an_evaluation_that_is_declined_does_not_matter(run: Run, server: ProtocolServer) -> None:
    server.faults.append(first(1, "PUT /v1/evaluations", lambda: refuse(404, "not_found", "no evaluations here")))
    record, log = run(server)
    assert record.rounds == 3
    assert len(record.history) == 4
    assert any("no evaluations here" in e["message"] for e in events(log, "notice"))


SPOILED = {
    "no steps": (),
    "damaged": (Step(version=2, codec=presets.dense(), parts={"packed": b"SPK1 it is not"}),),
}


@pytest.mark.parametrize("steps", SPOILED)
def test_a_wrong_version_is_fetched_whole(steps: str, run: Run, server: ProtocolServer) -> None:
    """A delta that does not lead to the digest, or to anything: the device starts again from the beginning, once."""
    spoiled: list[str] = []

    async def spoil(request: web.Request) -> web.StreamResponse | None:
        if not request.path.startswith("/v1/adapter/2") or request.query["held"] == "-1":
            return None
        spoiled.append(request.query["held"])
        return reply(Adapter(version=2, base=1, layout=LAYOUT.digest, digest="0" * 64, steps=SPOILED[steps]))

    server.faults.append(spoil)
    record, log = run(server)
    assert spoiled == ["1"]
    assert record.rounds == 3
    np.testing.assert_array_equal(record.version().adapter, server.adapter(3))
    assert any("starting again from the whole adapter" in e["message"] for e in events(log, "notice"))


def test_a_server_whose_versions_are_all_wrong(run: Run, server: ProtocolServer) -> None:
    async def spoil(request: web.Request) -> web.StreamResponse | None:
        if not request.path.startswith("/v1/adapter"):
            return None
        return reply(Adapter(version=0, base=0, layout=LAYOUT.digest, digest="0" * 64, steps=()))

    server.faults.append(spoil)
    with pytest.raises(Exception, match="does not have the digest that the server states"):
        run(server)
    assert not server.updates


def test_an_acknowledgement_of_other_bytes(run: Run, server: ProtocolServer) -> None:
    wrong = Receipt(status="accepted", round=1, digest="0" * 64, payload_bytes=3, version=1, staleness=0)
    server.faults.append(first(1, "PUT /v1/updates", lambda: reply(wrong)))
    with pytest.raises(ServerError, match="acknowledged other bytes than were sent for round 1"):
        run(server)
    with open_folder(run.folder) as folder:
        client = folder.load_client()[0]
    assert client is not None
    assert client.pending


def test_a_deadline_that_passes(run: Run, server: ProtocolServer) -> None:
    """The device asks again; the same round goes on where it was, a new attempt starts over."""
    server.deadline_s = 0.0
    server.task = replace(server.task, rounds=1)
    record, log = run(server)
    assert record.rounds == 1
    assert [e["step"] for e in events(log, "late")] == [1, 2, 3, 4, 5]
    assert [e["done"] for e in events(log, "step")] == [1, 2, 3, 4, 5, 6]


def test_another_attempt_starts_over(run: Run, server: ProtocolServer) -> None:
    run(server, stop=MOMENTS["in the middle of training"])
    server.attempt = 2
    _, log = run(server)
    assert [e["done"] for e in events(log, "step")][:3] == [1, 2, 3]
    assert server.updates[1].attempt == 2


def test_nan_is_never_uploaded(run: Run, server: ProtocolServer) -> None:
    with pytest.raises(TrainingError, match="became nan at step 2 of 6"):
        run(server, BigramTrainer(poison_at=8))
    assert [u.round for u in server.updates] == [1]
    with open_folder(run.folder) as folder:
        client = folder.load_client()[0]
    assert client is not None
    assert not client.pending


def test_an_update_beyond_the_servers_limit(run: Run, server: ProtocolServer) -> None:
    server.task = replace(server.task, upload_codec=presets.dense(), max_upload_bytes=1000)
    with pytest.raises(UsageError, match=r"the update has .* bytes, the server takes at most 1,000"):
        run(server)
    assert not server.bodies


@pytest.mark.parametrize(
    ("wishes", "versions"),
    [(Wishes(eval_every=0), [0, 3]), (Wishes(eval_every=2), [0, 2, 3]), (Wishes(), [0, 1, 2, 3])],
)
def test_how_often_to_evaluate(wishes: Wishes, versions: list[int], run: Run, server: ProtocolServer) -> None:
    run.wishes = wishes
    assert [s.version for s in run(server)[0].history] == versions


def test_once(run: Run, server: ProtocolServer) -> None:
    run.wishes = Wishes(once=True)
    assert run(server)[0].rounds == 1
    assert run(server)[0].rounds == 2
    assert [u.round for u in server.updates] == [1, 2]


def test_waiting(run: Run, server: ProtocolServer) -> None:
    from covey_shared.messages import Assignment

    wait = Assignment(action="wait", round=1, attempt=1, version=0, deadline_s=0.0, retry_after_s=0.2)
    server.faults.append(first(2, "POST", lambda: reply(wait)))
    record, log = run(server)
    assert record.rounds == 3
    assert [0.2 <= e["seconds"] <= 0.22 for e in events(log, "wait")] == [True, True]


def test_task_names_tell_tasks_apart() -> None:
    one = task_of(MANIFEST)
    others = [replace(one, name="b"), replace(one, seed=8), replace(one, bundle=hashlib.sha256(b"").hexdigest())]
    assert len({task_name(t) for t in (one, *others)}) == 4
    assert task_name(one) == task_name(replace(one, round=3, version=2, rounds=9))


def test_a_server_that_lost_its_versions(run: Run, server: ProtocolServer) -> None:
    """The head moves back to 1: the device follows, and measures the new versions 2 and 3 as new ones."""
    run(server, stop=lambda e: e["event"] == "evaluated" and e["version"] == 2)
    del server.steps[1:], server.updates[1:]
    record, log = run(server)
    assert record.held == 3
    np.testing.assert_array_equal(record.version().adapter, server.adapter(3))
    assert [e["version"] for e in events(log, "evaluated")] == [2, 3]
    assert [s.version for s in record.history] == [0, 1, 2, 3]
