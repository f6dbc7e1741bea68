"""One pilot: a choice trained by simulated devices with the client's own code, against the server's own half.

What a device does is what the agent of `covey join` does between two requests: come to the newest version by the
server's message, train, put the change through the codec, keep what the codec held back. Bytes are the lengths of the
bodies that would cross the network, both ways; HTTP's own headers and the bundle, which is downloaded once, are not.
"""

import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np

from covey_edge import local
from covey_edge.data import Dataset, evaluation_batches
from covey_edge.device import Device
from covey_edge.encoding import encoded
from covey_edge.parts import PartTrainer
from covey_edge.plan import Train, Wishes
from covey_edge.planner.halving import Found, Job
from covey_edge.planner.space import Scene, text
from covey_edge.trainers import Trainer
from covey_edge.versions import NOTHING, Held, advance
from covey_shared.bundle import Bundle
from covey_shared.codec import dump_state, load_state
from covey_shared.errors import CoveyError
from covey_shared.layout import Vector
from covey_shared.messages import Adapter
from covey_shared.prng import derive, permutation
from covey_shared.simulation import Begin, Simulated

NO_OWN = np.empty(0, np.float32)


class Stage(NamedTuple):
    """What all pilots stand on. `eval_batches`: of each device's held-out examples at most, 0 = all."""

    bundle: Bundle
    trainer: Trainer
    devices: Mapping[str, Dataset]
    scene: Scene
    begin: Begin
    eval_batches: int


@dataclass(frozen=True)
class Running:
    """A pilot after some rounds. `held`: the version of each device; `codecs`: what each one's codec held back."""

    server: Simulated
    held: Mapping[str, int]
    codecs: Mapping[str, Mapping[str, bytes]]
    worst: int = 0
    up: int = 0
    down: int = 0
    uploads: int = 0
    downloads: int = 0
    seconds: float = 0.0
    failed: bool = False
    views: Mapping[int, Vector] = field(default_factory=dict)

    @property
    def rounds(self) -> int:
        """Rounds done; where training failed there will be no more."""
        return self.server.version

    def to_bytes(self) -> bytes:
        """For another process; the versions that devices hold are in it."""
        plain = {n: getattr(self, n) for n in ("worst", "up", "down", "uploads", "downloads", "seconds", "failed")}
        held = {"held": dict(self.held), "codecs": {k: dict(v) for k, v in self.codecs.items()}}
        views = {str(version): vector for version, vector in self.views.items()}
        return dump_state({"server": self.server.to_bytes(), "views": views, **held, **plain})


def start(stage: Stage, job: Job, saved: bytes) -> Running:
    """A pilot at its beginning, or where `saved` says."""
    kept: dict[str, Any] = load_state(saved) if saved else {"server": b"", "held": {}, "codecs": {}, "views": {}}
    server = stage.begin(text(job.choice, stage.scene), stage.bundle, kept.pop("server"))
    views = {int(version): vector for version, vector in kept.pop("views").items()}
    return Running(server=server, views=views, **kept)


def train(stage: Stage, job: Job, running: Running) -> Iterator[Running]:
    """The remaining rounds, each as it ends. A pilot whose training fails stops there, marked as failed."""
    while running.rounds < job.rounds and not running.failed:
        try:
            running = one_round(stage, running)
        except CoveyError:  # a loss that is no number, or a version that cannot be published: the choice is no good
            running = replace(running, failed=True)
        yield running


def found(stage: Stage, running: Running) -> Found:
    """What a pilot came to, evaluated on every device's held-out examples."""
    up, down = running.up / max(1, running.uploads), running.down / max(1, running.downloads)
    numbers = (running.worst, up, down, running.seconds)
    if running.failed:
        return Found((math.inf,) * len(stage.devices), 0.0, *numbers)
    adapter, second = running.server.model()
    assert second is None  # no choice has a second adapter
    losses, correct, counted = [], 0, 0
    for data in stage.devices.values():
        loss, tokens = 0.0, 0
        for batch in evaluation_batches(data.heldout, stage.bundle.manifest.batch_size, stage.eval_batches):
            score = stage.trainer.evaluate(adapter, batch)
            loss, tokens, correct = loss + score.loss_sum, tokens + score.tokens, correct + score.correct
        losses.append(loss / tokens if math.isfinite(loss) else math.inf)
        counted += tokens
    return Found(tuple(losses), correct / counted, *numbers)


class Took(NamedTuple):
    """A device's round: bytes of its download, the upload's body, and what its codec keeps, by the codec's name."""

    down: int
    body: bytes
    codecs: dict[str, bytes]


def one_round(stage: Stage, running: Running) -> Running:
    """Every device of the round downloads, trains and uploads; the server makes the next version."""
    began, server, version = time.perf_counter(), running.server, running.server.version
    names = cohort(stage, version + 1)
    view = _view(stage, running, names[0])
    had = {name: running.held.get(name, NOTHING) for name in names}
    sizes = {one: len(server.adapter(one)) for one in set(had.values())}
    took = {name: _took(stage, running, name, view, sizes[had[name]]) for name in names}
    server.close_round([t.body for t in took.values()])
    held = {**running.held, **dict.fromkeys(names, version)}
    downs = [t.down for t in took.values()] if version else []  # version 0 is its number: it would flatter the mean
    return replace(
        running, held=held, codecs={**running.codecs, **{name: t.codecs for name, t in took.items()}},
        views={v: view if v == version else running.views[v] for v in set(held.values())},
        worst=max(running.worst, *(t.down + len(t.body) for t in took.values())),
        up=running.up + sum(len(t.body) for t in took.values()), uploads=running.uploads + len(took),
        down=running.down + sum(downs), downloads=running.downloads + len(downs),
        seconds=running.seconds + time.perf_counter() - began,
    )  # fmt: skip


def _view(stage: Stage, running: Running, name: str) -> Vector:
    """The newest version, as a device comes to it; all devices that have it have the same bits."""
    before, server = running.held.get(name, NOTHING), running.server
    device = _device(stage, running, name)
    message = Adapter.from_bytes(server.adapter(before))
    have = Held(before, running.views.get(before, NO_OWN))
    return advance(have, message, device.share.division.published, device.start).adapter


def _device(stage: Stage, running: Running, name: str) -> Device:
    data = stage.devices[name]
    return Device(running.server.task, stage.bundle, data, stage.trainer, "pilot", Wishes(), stage.eval_batches)


def cohort(stage: Stage, round_: int) -> list[str]:
    """The devices of a round, drawn without replacement."""
    names = sorted(stage.devices)
    order = permutation(derive(stage.scene.seed, "cohort", round_), len(names))
    return [names[i] for i in sorted(order[: stage.scene.cohort])]


def _took(stage: Stage, running: Running, name: str, view: Vector, down: int) -> Took:
    """What one device does between two requests, after a download of `down` bytes."""
    device, version = _device(stage, running, name), running.server.version
    round_, task, codecs = version + 1, device.task, running.codecs.get(name, {})
    whole, trainer = device.model(view, NO_OWN, round_)
    part = PartTrainer(trainer, whole, device.share.trained(round_))
    before = whole[part.where]
    seed, size = local.batch_seed(task.seed, round_, name), device.bundle.manifest.batch_size
    *_, last = local.train(part, device.parts.train, size, task.local, seed, local.begin(before, task.local))
    known = codecs.get(device.codec_name(round_), b"")
    pending, _ = encoded(device, name, Train(round_, 0, version, 0.0), last, before, known)
    return Took(down, pending.body, {pending.codec: pending.codec_after})
