"""One process in place of a server and its devices: what a task file says, driven without HTTP.

Strategies, codecs, shares and local training are those of `covey serve` and `covey join`; what is not here is theirs
alone: files, clocks, signatures and retries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from clients import Setting

from covey_edge import local
from covey_edge.data import Dataset, Examples, evaluation_batches, split
from covey_edge.parts import PartTrainer, Share
from covey_edge.trainers import GraphTrainer, Trainer
from covey_server import task_file
from covey_server.prepare import Prepared, prepare
from covey_shared.codec import Codec, error_feedback
from covey_shared.entries import Entries
from covey_shared.layout import Vector
from covey_shared.messages import Update
from covey_shared.prng import derive


@dataclass
class Client:
    """One device: its examples, those that fusion is searched on, and what it remembers."""

    name: str
    data: Dataset
    searched: Examples
    own: Vector = field(default_factory=lambda: np.empty(0, np.float32))
    codecs: dict[str, Any] = field(default_factory=dict)


def clients_of(setting: Setting, *, fuses: bool) -> list[Client]:
    """The devices, fresh."""
    out = []
    for name, data in setting.data.items():
        searched = data.train
        if fuses:
            data, searched = data._replace(train=split(data.train, 0.1, "").train), split(data.train, 0.1, "").heldout
        out.append(Client(name, data, searched))
    return out


def plan_of(setting: Setting, text: str, seed: int) -> Prepared:
    """What `covey serve` makes of a task file, with the setting's steps and rate."""
    task = task_file.parse(f'[task]\nbundle = ""\nseed = {seed}\n{text}')
    client = replace(task.client, steps=setting.steps, learning_rate=setting.rate)
    return prepare(replace(task, client=client), setting.bundle)


def held(part: Share, view: Vector, cohort: int) -> Vector:
    """Of a published version what a device of this cohort has."""
    division = part.division
    return view[division.published.positions(division.downloaded(cohort))] if division.sharing.cohorts else view


def one_round(
    setting: Setting, plan: Prepared, client: Client, part: Share, view: Vector, round_: int, seed: int, cohort: int = 0
) -> tuple[Entries, int]:
    """One device's training and upload: the entries that the server folds, and the bytes of the message's body."""
    adapter, second = part.whole(held(part, view, cohort), client.own, round_, cohort)
    trainer = PartTrainer(with_second(setting.trainer, second), adapter, part.trained(round_))
    before, config = adapter[trainer.where], plan.task.client.config()
    stream = local.batch_seed(seed, round_, client.name)
    batch_size = setting.bundle.manifest.batch_size
    *_, last = local.train(trainer, client.data.train, batch_size, config, stream, local.begin(before, config))
    layout = part.division.uploaded(round_, part.rank)
    plain = plan.divided.uploads[layout.digest]
    codec = error_feedback(plain) if config.error_feedback else plain
    known = client.codecs.get(layout.digest)
    known = codec.init(derive(seed, "codec", client.name)) if known is None else known
    known = codec.look(part.sent(last.adapter, round_), known)
    parts, client.codecs[layout.digest] = codec.encode(part.sent(last.adapter - before, round_), known)
    sharing = part.division.sharing
    if not sharing.fusion:
        client.own = part.kept(last.adapter, round_)
    elif not len(client.own) or round_ % sharing.sync_every == 0:
        client.own = trainer.full(last.adapter)
    body = message(client.name, layout.digest, round_, plain, parts, client.data.train.count, last)
    return plan.divided.lifted(plain.decode(parts), layout.digest, cohort), len(body)


def message(
    name: str, layout: str, round_: int, codec: Codec, parts: Mapping[str, bytes], examples: int, last: local.Progress
) -> bytes:
    """The body of a device's upload, with what it says of its training."""
    return Update(
        client=name, layout=layout, round=round_, attempt=0, version=round_ - 1, codec=codec.spec, parts=dict(parts),
        examples=examples, steps=last.step, loss_before=last.loss_before, loss_after=last.loss_after,
        seconds=last.seconds,
    ).to_bytes()  # fmt: skip


def with_second(trainer: GraphTrainer, second: Vector | None) -> GraphTrainer:
    """The trainer with a second adapter, if there is one."""
    return trainer if second is None else trainer.with_frozen(second)


def score(setting: Setting, models: Sequence[tuple[Trainer, Vector, Client]]) -> tuple[float, float]:
    """(loss, accuracy) over all devices' held-out examples, each counted once."""
    loss, tokens, hits = 0.0, 0, 0
    for trainer, adapter, client in models:
        for batch in evaluation_batches(client.data.heldout, setting.bundle.manifest.batch_size, setting.eval_batches):
            got = trainer.evaluate(adapter, batch)
            loss, tokens, hits = loss + got.loss_sum, tokens + got.tokens, hits + got.correct
    return loss / tokens, hits / tokens
