"""One process in place of a server and its devices: what a task file says, driven without HTTP.

Strategies, codecs, shares and local training are those of `covey serve` and `covey join`; what is not here is theirs
alone: files, clocks, signatures and retries.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import numpy as np
from clients import Setting

from covey_edge import local
from covey_edge.data import Dataset, Examples, evaluation_batches, split
from covey_edge.parts import PartTrainer, Share
from covey_edge.trainers import GraphTrainer, Trainer
from covey_server import recipe, task_file
from covey_server.division import Divided, divide
from covey_server.optimizers import make_optimizer
from covey_server.run import spec_of
from covey_server.strategies import Space, make_strategy
from covey_server.task_file import TaskFile
from covey_shared.codec import codec_from_spec, error_feedback
from covey_shared.entries import Entries
from covey_shared.layout import Vector
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


class Plan(NamedTuple):
    """A task, made ready."""

    task: TaskFile
    divided: Divided
    how: recipe.Recipe


def plan_of(setting: Setting, text: str, seed: int) -> Plan:
    """What `covey serve` makes of a task file."""
    manifest = setting.bundle.manifest
    task = task_file.parse(f'[task]\nbundle = ""\nseed = {seed}\n{text}')
    config = replace(task.client, steps=setting.steps, learning_rate=setting.rate)
    task = replace(task, client=config)
    chosen = make_strategy(
        task.strategy.name, task.strategy.args, Space(manifest.layout, manifest.frozen, manifest.ranks)
    )
    divided = divide(setting.bundle, seed, chosen, task.personal, spec_of(task.upload))
    down = codec_from_spec(spec_of(task.download), divided.published)
    return Plan(task, divided, recipe.Recipe(chosen, make_optimizer(task.server.name, task.server.args), down))


def one_round(
    setting: Setting, plan: Plan, client: Client, part: Share, view: Vector, round_: int, seed: int
) -> tuple[Entries, int]:
    """One device's training and upload: the entries that the server folds, and their bytes."""
    adapter, second = part.whole(view, client.own, round_)
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
    return plan.divided.lifted(plain.decode(parts), layout.digest), sum(map(len, parts.values()))


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
