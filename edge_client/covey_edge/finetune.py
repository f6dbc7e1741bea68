"""`covey bundle train`: a fine-tune of one bundle on one device, without a server; then the adapter as files.

The same data, trainers and optimisers as a round of `covey join`. Everything lies in one folder: the adapter as PEFT
loads it, the flat file, the result, and below `.covey` the state, which holds enough to go on after any kill with the
same bits: batches depend on seed and step alone.
"""

import hashlib
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from covey_edge import adapters, local
from covey_edge.adapters import Adapter
from covey_edge.data import Dataset, evaluation_batches, training_batch
from covey_edge.locks import Taken, locked
from covey_edge.optim import OptimizerState
from covey_edge.sources import read_source
from covey_edge.state import bytes_of, load_record, save_record, vector_of, write_durably
from covey_edge.trainers import Score, Trainer, choose_runtime, open_trainer
from covey_edge.trainers.ranked import at_rank
from covey_shared.bundle import Bundle
from covey_shared.errors import UsageError
from covey_shared.layout import Layout, Vector, vector_digest
from covey_shared.messages import LocalConfig
from covey_shared.prng import derive
from covey_shared.schema import Message

STATE, FLAT, RESULT = ".covey", "adapter.flat", "result.json"
Say = Callable[[str], None]
Show = Callable[[str, int, int, str], None]  # what, done, total, note


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a person can choose; docs/bundle.md explains each."""

    bundle: Path
    data: Path
    out: Path = Path("adapter")
    steps: int = 100
    runtime: str = "auto"
    provider: str = ""
    threads: int = 0
    optimizer: str = "adamw"
    learning_rate: float = 1e-3
    rank: int = 0
    seed: int = 0
    adapter: Path | None = None
    text_field: str = "text"
    label_field: str = "label"
    holdout: float = 0.2
    eval_batches: int = 16
    save_every: int = 10
    plot: Path | None = None
    force: bool = False

    def __post_init__(self) -> None:
        for name in ("steps", "save_every"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1")
        for name in ("threads", "rank", "seed", "eval_batches"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name.replace('_', '-')} must not be negative")
        if not 0 < self.holdout <= 0.5:
            raise UsageError(f"--holdout is a share above 0 and at most 0.5: {self.holdout}")
        if not 0 < self.learning_rate < math.inf:
            raise UsageError(f"--learning-rate must be a positive number: {self.learning_rate}")

    def config(self) -> LocalConfig:
        """As a task states it to its devices, with the server's defaults for what is not asked here."""
        return LocalConfig(
            optimizer=self.optimizer, learning_rate=self.learning_rate, steps=self.steps, momentum=0.9, beta1=0.9,
            beta2=0.999, eps=1e-8, weight_decay=0.0, clip_norm=1.0, error_feedback=False,
        )  # fmt: skip


class Job(NamedTuple):
    """A fine-tune made ready. `key` names everything that its result depends on, but for the number of steps."""

    options: Options
    bundle: Bundle
    layout: Layout
    dataset: Dataset
    trainer: Trainer
    runtime: str
    start: Vector
    key: str

    @property
    def rank(self) -> int:
        """As which the bundle offers the layout; 0 without LoRA."""
        return adapters.rank_of(self.layout, self.bundle.manifest)

    @property
    def tokens(self) -> int:
        """Tokens of a step; images, for a bundle of images."""
        return self.bundle.manifest.batch_size * max(1, self.bundle.manifest.seq_len)

    @property
    def unit(self) -> str:
        """What `tokens` counts."""
        return "images" if self.bundle.manifest.image else "tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved(Message):
    """The state file. `losses`: float32 bytes, a value a step. `before`: the start's held-out score, none at first."""

    key: str
    step: int
    adapter: bytes
    moments: tuple[bytes, ...]
    losses: bytes
    seconds: float
    before: tuple[float, ...]


def prepare(options: Options, say: Say) -> Job:
    """Everything that can be wrong is looked at here, the cheapest first. Raises UsageError and its kin."""
    bundle = Bundle.open(options.bundle, verify=False)
    manifest = bundle.manifest
    runtime = choose_runtime(manifest, options.runtime)
    source = read_source(
        options.data, manifest, options.holdout, text_field=options.text_field, label_field=options.label_field
    )  # fmt: skip
    if source.skipped:
        say(source.skipped)
    bundle.verify(runtime)
    dataset = source.dataset(bundle.folder)
    given = adapters.read_adapter(options.adapter, bundle) if options.adapter else None
    rank = options.rank or (adapters.rank_of(given.layout, manifest) if given else manifest.rank)
    layout = manifest.layout if rank == manifest.rank else manifest.layout.at_rank(rank)
    if given and given.layout != layout:
        raise UsageError(f"{options.adapter} has rank {adapters.rank_of(given.layout, manifest)}, not --rank {rank}")
    trainer: Trainer = open_trainer(bundle, runtime, options.threads, options.provider)
    trainer = at_rank(trainer, manifest, rank) if rank else trainer
    start = given.vector if given else bundle.start(options.seed, rank)
    layout.check(start)
    return Job(options, bundle, layout, dataset, trainer, runtime, start, _key(options, bundle, dataset, start))


def _key(options: Options, bundle: Bundle, dataset: Dataset, start: Vector) -> str:
    """The data counts by its sizes and by its first and last batch, which is enough to notice another data set."""
    size = bundle.manifest.batch_size
    batches = [training_batch(dataset.train, size, options.seed, step) for step in (0, dataset.train.count // size)]
    data = [hashlib.sha256(a.tobytes()).hexdigest() for batch in batches for a in batch]
    config = {k: v for k, v in asdict(options.config()).items() if k != "steps"}
    parts = (bundle.digest, vector_digest(start), dataset.train.count, dataset.heldout.count, data, config)
    return hashlib.sha256(repr((*parts, options.seed, options.eval_batches)).encode()).hexdigest()


def check_place(out: Path) -> None:
    """Refuse a place that holds something else than such a fine-tune."""
    if out.exists() and not (out.is_dir() and ((out / STATE).is_dir() or not any(out.iterdir()))):
        raise UsageError(f"{out} exists and is not a folder that covey bundle train made: choose another --out")


@contextmanager
def held(out: Path) -> Iterator[Path]:
    """Make the folder and hold it for this process; gives the state's file."""
    (out / STATE).mkdir(parents=True, exist_ok=True)
    try:
        with locked(out / STATE / "lock"):
            yield out / STATE / "training"
    except Taken as error:
        raise UsageError(f"another covey bundle train (process {error.holder}) writes to {out}") from None


def load(job: Job, path: Path, say: Say) -> Saved:
    """Where an earlier run with the same settings and data stopped, or the beginning."""
    saved, sentence = load_record(path, Saved)
    if sentence:
        say(sentence)
    if saved is None or job.options.force:
        return Saved(key=job.key, step=0, adapter=bytes_of(job.start), moments=(), losses=b"", seconds=0.0, before=())
    if saved.key != job.key:
        raise UsageError(
            f"{job.options.out} holds a run with other settings, data or bundle (at step {saved.step}): choose another "
            "--out, or start it anew with --force"
        )
    if saved.step > job.options.steps:
        raise UsageError(f"{job.options.out} is at step {saved.step} already: ask for more --steps, or use --force")
    if saved.step:
        say(f"going on after step {saved.step}, from {path.parent}")
    return saved


def train(job: Job, path: Path, saved: Saved, say: Say, show: Show) -> Saved:
    """The remaining steps; the state is saved every few, and when a person stops it."""
    if not saved.before:
        saved = replace(saved, before=tuple(map(float, evaluate(job, job.start, show))))
    config = job.options.config()
    progress = local.begin(vector_of(saved.adapter), config)
    if saved.moments:
        progress = progress._replace(optimizer=OptimizerState(saved.step, tuple(map(vector_of, saved.moments))))
    losses = list(vector_of(saved.losses))
    seed = derive(job.options.seed, "batches")
    progress = progress._replace(seconds=saved.seconds)
    size, total = job.bundle.manifest.batch_size, config.steps
    try:
        for step in local.train(job.trainer, job.dataset.train, size, config, seed, progress):
            progress = step
            losses.append(np.float32(progress.last[-1]))
            speed = job.tokens * progress.step / progress.seconds
            show("training", progress.step, total, f"loss {losses[-1]:.4f}, {speed:,.0f} {job.unit}/s")
            if progress.step % job.options.save_every == 0 and progress.step < total:
                save_record(path, _saved(saved, progress, losses))
    except local.TrainingError:
        raise UsageError(
            f"the training loss or its gradient became no number at step {progress.step + 1}: try a smaller "
            "--learning-rate with --force"
        ) from None
    except KeyboardInterrupt:
        save_record(path, _saved(saved, progress, losses))
        say(f"stopped after step {progress.step} of {total}; the same command goes on from there")
        raise
    saved = _saved(saved, progress, losses)
    save_record(path, saved)
    return saved


def _saved(saved: Saved, progress: local.Progress, losses: list[np.float32]) -> Saved:
    return replace(
        saved, step=progress.step, adapter=bytes_of(progress.adapter),
        moments=tuple(map(bytes_of, progress.optimizer.moments)), losses=bytes_of(np.asarray(losses, np.float32)),
        seconds=progress.seconds,
    )  # fmt: skip


def evaluate(job: Job, adapter: Vector, show: Show) -> Score:
    """The sums over the held-out examples."""
    size, limit, total = job.bundle.manifest.batch_size, job.options.eval_batches, Score(0.0, 0, 0)
    batches = list(evaluation_batches(job.dataset.heldout, size, limit))
    for done, batch in enumerate(batches, 1):
        score = job.trainer.evaluate(adapter, batch)
        total = Score(total.loss_sum + score.loss_sum, total.tokens + score.tokens, total.correct + score.correct)
        show("evaluating", done, len(batches), "")
    return total


def finish(job: Job, saved: Saved, show: Show) -> dict[str, Any]:
    """Evaluate, write the adapter in both forms and the result; returns the result."""
    adapter = Adapter(job.layout, vector_of(saved.adapter))
    before, after = Score(saved.before[0], *map(int, saved.before[1:])), evaluate(job, adapter.vector, show)
    out, losses = job.options.out, vector_of(saved.losses)
    adapters.write_adapter(adapter, out / FLAT, job.bundle, "flat")
    adapters.write_into(adapter, out, job.bundle)
    result = {
        "model": job.bundle.manifest.model, "bundle": job.bundle.digest, "runtime": job.runtime,
        "rank": job.rank, "numbers": job.layout.size,
        "examples": job.dataset.train.count, "heldout": job.dataset.heldout.count,
        "steps": saved.step, "seconds": saved.seconds, "tokens_per_second": job.tokens * saved.step / saved.seconds,
        "loss_before": before.loss_sum / before.tokens, "loss_after": after.loss_sum / after.tokens,
        "accuracy_before": before.correct / before.tokens, "accuracy_after": after.correct / after.tokens,
        "peak_bytes": peak_bytes(), "adapter_digest": vector_digest(adapter.vector),
        "losses": [round(float(x), 6) for x in losses], "finished": time.time(),
    }  # fmt: skip
    write_durably(out / RESULT, (json.dumps(result, indent=1) + "\n").encode())
    return result


def peak_bytes() -> int:
    """The largest resident memory that this process ever had; on Linux getrusage's is inherited from its parent."""
    try:
        return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak
