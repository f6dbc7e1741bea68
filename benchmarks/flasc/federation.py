"""One run: a method on a task from the seeded start to the last round, in one process, bytes from real messages.

Local training, codecs, folds, server optimizers and the choice of what a device downloads are the product's. Devices
are drawn anew each round; a device that comes back downloads from the version that it has, as it would over HTTP.

What is counted is the length of message bodies, Adapter down and Update up. Headers, check-ins and the bundle are not:
they are the same for every method.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from simulation import Client, message, one_round
from tasks import Federation, Task

from covey_edge import local
from covey_edge.data import Examples, evaluation_batches
from covey_edge.parts import PartTrainer, Share, share
from covey_server import downloads, recipe, task_file
from covey_server.prepare import Prepared, prepare
from covey_server.recipe import ServerState
from covey_server.simulation import version_row
from covey_server.store import VersionRow
from covey_shared.codec import Codec, codec_from_spec, presets
from covey_shared.codec.topk import topk
from covey_shared.entries import Entries
from covey_shared.layout import Layout, Tensor, Vector, vector_digest
from covey_shared.messages import Adapter, StageSpec, Step

ERROR = 0.1  # of the values of a mask that devices and server share, relative to their norm


class Mask(NamedTuple):
    """A pruning baseline of FLASC's paper: devices train only the entries that they download.

    `kind`: `fixed` is SparseAdapter (one dense round, then the mask is chosen and stays), `shrinking` Adapter-LTH (a
    new mask each round, the density multiplied by `decay` each), `fresh` Federated Select (a new mask each round).
    `shared` is none of the paper's: devices train everything and send what the download's mask has, so that an upload
    needs no indices; its values travel to a tenth of their norm. `fair` scores an entry by its distance from the start,
    which takes a dense first round; the paper's score is its magnitude, which at first is random lora_A alone. With
    `quota` each tensor keeps the density's share of its own entries: after a step of AdamW all distances are alike.
    """

    kind: str
    density: float
    fair: bool
    decay: float = 1.0
    quota: bool = False

    def at(self, round_: int) -> float:
        """The density of a round, counted from 1."""
        if self.kind == "shrinking":
            return max(self.density, self.decay ** (round_ - 1))
        return 1.0 if round_ == 1 and (self.fair or self.kind == "fixed") else self.density


class Method(NamedTuple):
    """What a file in methods/ says.

    `task` and `optimizers` are parts of a task file of the product; without the latter those of Task hold, and with
    them `rates`, pairs of the devices' and the server's learning rate to choose from. `like` is a method of the same
    kind whose rates are taken over. `feedback`: whether devices keep what codecs drop. `ranks`: those of
    the bundle, where devices have different ones, in turn; so do devices take the task's tiers. `steps` and `rounds`
    multiply the task's. `warm` is the share of the rounds, the first ones, that have `warm_task` in place of `task`.
    `tasks`: where it is run; empty means everywhere.
    """

    name: str
    title: str
    family: str
    rank: int
    task: str
    optimizers: str = ""
    rates: tuple[tuple[float, float], ...] = ()
    like: str = ""
    feedback: bool = False
    mask: Mask | None = None
    ranks: tuple[int, ...] = ()
    steps: float = 1.0  # of the task's local steps
    rounds: float = 1.0  # of the task's rounds
    tasks: tuple[str, ...] = ()  # where it is run; empty: everywhere
    warm: float = 0.0
    warm_task: str = ""


class Point(NamedTuple):
    """A version: loss in nats and share of hits on the watched part of the test set, bytes so far."""

    round: int
    loss: float
    accuracy: float
    up: int
    down: int


@dataclass
class Traffic:
    """What devices have downloaded, in the terms of covey_server.downloads."""

    rows: list[VersionRow]
    held: dict[str, int]
    steps: dict[int, Step]
    layout: str

    def publish(self, plan: Prepared, state: ServerState, step: Step | None) -> None:
        """A new version."""
        if step is not None:
            self.steps[state.version] = step
        self.rows.append(version_row(plan, state, step))

    def fetch(self, name: str, whole: Step | None) -> int:
        """The bytes of the message that brings a device to the newest version."""
        version, held = self.rows[-1].version, self.held.get(name, -1)
        size = sum(map(len, whole.parts.values())) if whole else 1 << 62
        chosen = downloads.plan(self.rows, held, version, size)
        self.held[name] = version
        steps = (whole,) if chosen.whole and whole else tuple(self.steps[v] for v in chosen.steps)
        return len(downloads.message(chosen, self.rows, self.layout, steps))


def run(
    task: Task, method: Method, federation: Federation, rates: tuple[float, float], seed: int, rounds: int,
    digests: list[str] | None = None,
) -> Iterator[Point]:  # fmt: skip
    """The watched versions of one run, the first and the last among them; then the last again, judged.

    `digests` receives that of every version.
    """
    plan = planned(task, method, federation, rates, seed)
    if method.mask is not None:
        yield from masked(task, method.mask, federation, plan, seed, rounds)
        return
    bundle, layout = federation.setting.bundle, plan.divided.published
    exact = codec_from_spec(presets.dense(), layout)
    own = {rank: share(bundle, plan.divided.division.sharing, seed, rank) for rank in method.ranks or (0,)}
    usual, warm = tiers_of(plan), method.warm * rounds
    first = planned(task, method._replace(task=method.warm_task), federation, rates, seed) if warm else plan
    early = tiers_of(first)
    clients = {n: Client(n, data, data.train) for n, data in federation.setting.data.items()}
    number = {name: i for i, name in enumerate(federation.names)}
    state, step = recipe.first(plan.recipe, plan.divided.begin(), seed)
    traffic = Traffic([], {}, {}, layout.digest)
    traffic.publish(plan, state, step)
    up = down = 0
    yield watched(federation, plan, state, up, down)
    for round_ in range(1, rounds + 1):
        now, tiers = (first, early) if round_ <= warm else (plan, usual)
        if round_ - 1 <= warm < round_:  # another codec: what devices kept for the one before means nothing to it
            for client in clients.values():
                client.codecs.clear()
        whole, updates = recipe.whole(state.view, state.version, exact), []
        for name in drawn(task, federation, seed, round_):
            down += traffic.fetch(name, whole)
            part: Share = own[method.ranks[number[name] % len(method.ranks)] if method.ranks else 0]
            mine = tiers[number[name] % len(tiers)]
            entries, size = one_round(federation.setting, mine, clients[name], part, state.view, round_, seed)
            updates.append((entries, plan.recipe.strategy.weigh(clients[name].data.train.count)))
            up += size
        start = plan.divided.whole(state.view, round_)
        change = plan.divided.down(recipe.fold_weighted(plan.recipe.strategy, start, updates))
        state, step = recipe.advance(now.recipe, state, change)
        traffic.publish(plan, state, step)
        if round_ % task.every == 0 or round_ == rounds:
            yield watched(federation, plan, state, up, down)
    if digests is not None:
        digests += [row.digest for row in traffic.rows]
    yield Point(state.version, *score(federation, plan, state.view, federation.judge), up, down)


def tiers_of(plan: Prepared) -> list[Prepared]:
    """The plan as devices of each tier have it, those of none first."""
    every = [plan.divided.uploads, *plan.divided.tiers.values()]
    return [plan._replace(divided=replace(plan.divided, uploads=uploads)) for uploads in every]


def planned(task: Task, method: Method, federation: Federation, rates: tuple[float, float], seed: int) -> Prepared:
    """The method's task file with these rates."""
    sections = method.optimizers or task.optimizers
    parsed = task_file.parse(f'[task]\nbundle = ""\nseed = {seed}\n{sections}{method.task}')
    steps = max(1, round(task.steps * method.steps))
    client = replace(parsed.client, learning_rate=rates[0], steps=steps, error_feedback=method.feedback)
    server = replace(parsed.server, args={**parsed.server.args, "learning_rate": rates[1]})
    return prepare(replace(parsed, client=client, server=server), federation.setting.bundle)


def drawn(task: Task, federation: Federation, seed: int, round_: int) -> list[str]:
    """The devices of a round: uniformly, without replacement, the same for every method."""
    rng = np.random.default_rng([seed, round_])
    count = min(task.cohort, len(federation.names))
    return [federation.names[i] for i in rng.choice(len(federation.names), count, replace=False)]


def watched(federation: Federation, plan: Prepared, state: ServerState, up: int, down: int) -> Point:
    """A version as everybody downloads it, on the watched part."""
    return Point(state.version, *score(federation, plan, state.view, federation.watch), up, down)


def score(federation: Federation, plan: Prepared, view: Vector, examples: Examples) -> tuple[float, float]:
    """(loss in nats, share of hits) of a published version."""
    adapter, second = plan.divided.model(view)
    trainer = federation.tester if second is None else federation.tester.with_frozen(second)
    batches = evaluation_batches(examples, federation.test_batch, 0)
    scores = [trainer.evaluate(adapter, batch) for batch in batches]
    tokens = sum(s.tokens for s in scores)
    return sum(s.loss_sum for s in scores) / tokens, sum(s.correct for s in scores) / tokens


def masked(
    task: Task, mask: Mask, federation: Federation, plan: Prepared, seed: int, rounds: int
) -> Iterator[Point]:  # fmt: skip
    """A run of a pruning baseline: a download has its indices coded, an upload needs none. Values travel as float32."""
    bundle, how = federation.setting.bundle, plan.recipe
    layout, start = bundle.manifest.layout, bundle.start(seed)
    base = start if mask.fair else np.zeros_like(start)
    optimizer, w = how.optimizer.init(layout.size), start
    everything, fixed = np.arange(layout.size), np.empty(0, np.int64)
    up = down = 0
    for round_ in range(1, rounds + 2):
        density = mask.at(round_)
        kept = fixed if mask.kind == "fixed" and len(fixed) else everything
        if mask.quota and density < 1 and not len(fixed):
            kept = shares(w - base, layout, density)
        view, where, size = pruned(w, base, density, kept, layout, round_, exact=mask.kind != "shared")
        if mask.kind == "fixed" and round_ > 1 and not len(fixed):
            fixed = where
        if (round_ - 1) % task.every == 0 or round_ == rounds + 1:
            yield Point(round_ - 1, *score(federation, plan, view, federation.watch), up, down)
        if round_ == rounds + 1:
            yield Point(rounds, *score(federation, plan, view, federation.judge), up, down)
            return
        updates = []
        for name in drawn(task, federation, seed, round_):
            entries, sent = trained(federation, plan, name, view, where, round_, seed, mask.kind)
            updates.append((entries, 1.0))
            up, down = up + sent, down + size
        change = recipe.fold_weighted(how.strategy, view, updates)
        optimizer, w = how.optimizer.step(optimizer, w, change)
        if mask.kind == "fixed" and round_ > 1:
            still = np.setdiff1d(everything, fixed)
            w[still] = start[still]


def shares(change: Vector, layout: Layout, density: float) -> NDArray[np.int64]:
    """The positions of each tensor's largest entries, the density's share of them, at least one."""
    found = []
    for tensor, offset in zip(layout.tensors, layout.offsets, strict=True):
        mine = change[offset : offset + tensor.size]
        found.append(topk(mine, max(1, int(tensor.size * density))).astype(np.int64) + offset)
    return np.concatenate(found)


def pruned(
    w: Vector, base: Vector, density: float, kept: Any, layout: Any, round_: int, *, exact: bool = True
) -> tuple[Vector, Any, int]:
    """(what devices download, the entries of the mask, the message's bytes)."""
    sent = min(density, (len(kept) + 0.5) / len(w))  # of a quota: no more entries than it chose
    spec = presets.dense() if density == 1 else presets.flasc(sent)
    spec = spec if exact or density == 1 else (spec[0], StageSpec(name="pack", args={"values": "auto", "error": ERROR}))
    codec: Codec = codec_from_spec(spec, layout)
    change = np.zeros_like(w)
    change[kept] = w[kept] - base[kept]
    parts, _ = codec.encode(change, codec.init(0))
    entries = codec.decode(parts)
    view = base.copy()
    view[entries.where] += entries.values
    where = np.arange(layout.size)[entries.where]
    step = Step(version=round_, codec=spec, parts=parts)
    message = Adapter(version=round_, base=0, layout=layout.digest, digest=vector_digest(view), steps=(step,))
    return view, where, len(message.to_bytes())


def trained(
    federation: Federation, plan: Prepared, name: str, view: Vector, where: Any, round_: int, seed: int, kind: str
) -> tuple[Entries, int]:
    """One device that sends the entries of a mask: its change there, and the bytes of its upload."""
    setting, config, data = federation.setting, plan.task.client.config(), federation.setting.data[name]
    own = np.arange(len(view)) if kind == "shared" else where
    trainer = PartTrainer(setting.trainer, view, own)
    stream, batch_size = local.batch_seed(seed, round_, name), setting.bundle.manifest.batch_size
    *_, last = local.train(trainer, data.train, batch_size, config, stream, local.begin(view[own], config))
    change = (last.adapter - view[own])[where] if kind == "shared" else last.adapter - view[own]
    spec = presets.levels(ERROR) if kind == "shared" else presets.dense()
    codec = codec_from_spec(spec, Layout((Tensor(name="mask", shape=(len(where),), kind="block", init="zeros"),)))
    parts, _ = codec.encode(change, codec.init(0))
    digest = setting.bundle.manifest.layout.digest
    body = message(name, digest, round_, codec, parts, data.train.count, last)
    values = codec.decode(parts).dense()
    return Entries(len(view), where.astype(np.uint32), values), len(body)
