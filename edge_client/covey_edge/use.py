"""`covey bundle generate` and `covey bundle classify`: a bundle and an adapter at work, to see what was learnt."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TextIO

import numpy as np
from numpy.typing import NDArray

from covey_edge import adapters
from covey_edge.data import evaluation_batches
from covey_edge.generate import Sampling, Stream, Writer, greedy, prompt_ids, sample
from covey_edge.sources import read_source
from covey_edge.tokens import open_tokenizer
from covey_edge.trainers import Score, Trainer, choose_runtime, open_trainer
from covey_edge.trainers.ranked import at_rank
from covey_shared.bundle import Bundle
from covey_shared.errors import UsageError
from covey_shared.layout import Vector


@dataclass(frozen=True, kw_only=True)
class Model:
    """What is put to use, as the command line names it; without an adapter it is the bundle's start."""

    bundle: Path
    adapter: Path | None = None
    runtime: str = "auto"
    provider: str = ""
    threads: int = 0

    def open(self) -> tuple[Bundle, Trainer, Vector]:
        """The bundle, checked for its runtime; the graphs; and the adapter."""
        bundle = Bundle.open(self.bundle, verify=False)
        runtime = choose_runtime(bundle.manifest, self.runtime)
        bundle.verify(runtime)
        given = adapters.read_adapter(self.adapter, bundle) if self.adapter else None
        trainer: Trainer = open_trainer(bundle, runtime, self.threads, self.provider)
        if given is None:
            return bundle, trainer, bundle.start(bundle.manifest.seed)
        rank = adapters.rank_of(given.layout, bundle.manifest)
        return bundle, at_rank(trainer, bundle.manifest, rank) if rank else trainer, given.vector


@dataclass(frozen=True, kw_only=True)
class Request:
    """What to write."""

    prompt: str
    max_tokens: int = 100
    samples: int = 1
    sampling: Sampling = field(default_factory=Sampling)


def generate(model: Model, request: Request, out: TextIO, err: TextIO) -> int:
    """Write the prompt and what follows, as it comes; what it cost goes to `err`."""
    bundle, trainer, adapter = model.open()
    manifest = bundle.manifest
    if manifest.task != "causal-lm":
        raise UsageError(f"the bundle is for {manifest.task}, which writes no text: use covey bundle classify")
    if request.max_tokens < 1 or not 1 <= request.samples <= manifest.batch_size:
        raise UsageError(f"--max-tokens is at least 1, and --samples 1 to the bundle's {manifest.batch_size} rows")
    coder = open_tokenizer(manifest.text, bundle.folder)
    prompt = prompt_ids(request.prompt, coder, manifest)
    writer, begun = Writer(trainer, adapter, manifest), time.perf_counter()
    tokens = passes = 0
    if request.sampling.temperature == 0:
        stream = Stream(coder, list(prompt))
        out.write(printable_text(request.prompt))
        for taken in greedy(writer, prompt, request.max_tokens):
            tokens, passes = tokens + len(taken), passes + 1
            out.write(printable_text(stream.add(taken)))
            out.flush()
        out.write(printable_text(stream.rest()) + "\n")
    else:
        found = sample(writer, prompt, request.max_tokens, request.sampling, request.samples)
        tokens, passes = sum(map(len, found)), max(map(len, found), default=0)
        for number, ids in enumerate(found, 1):
            stream = Stream(coder, list(prompt))
            head = f"[{number}] " if len(found) > 1 else ""
            out.write(head + printable_text(request.prompt + stream.add(ids) + stream.rest()) + "\n")
    seconds = time.perf_counter() - begun
    print(_cost(manifest.batch_size, manifest.seq_len, len(prompt), tokens, passes, seconds), file=err)
    return 0


def _cost(rows: int, window: int, prompt: int, tokens: int, passes: int, seconds: float) -> str:
    slid = f"; the text is longer than the window of {window} tokens, so the model saw the last {window} at a time"
    return (
        f"{tokens} tokens in {passes} passes of {rows} x {window}, {tokens / max(seconds, 1e-9):,.1f} tokens/s"
        f"{slid if prompt + tokens > window else ''}"
    )


def classify(
    model: Model, texts: Sequence[str], data: Path | None, text_field: str, label_field: str, out: TextIO
) -> int:
    """The classes of some texts, or how often the model is right on labelled data."""
    bundle, trainer, adapter = model.open()
    manifest = bundle.manifest
    if manifest.task == "causal-lm":
        raise UsageError("the bundle is for causal-lm, which has no classes: use covey bundle generate")
    if data is not None:
        return _accuracy(bundle, trainer, adapter, data, text_field, label_field, out)
    if not texts or manifest.image is not None:
        raise UsageError("say what to classify: --data PATH with labelled examples, or --text for a model of text")
    coder = open_tokenizer(manifest.text, bundle.folder)
    size, width = manifest.batch_size, max(map(len, manifest.labels))
    for first in range(0, len(texts), size):
        part = texts[first : first + size]
        ids = np.full((size, manifest.seq_len), manifest.text.pad_id, np.int64)
        for i in range(size):
            row = coder.row(part[min(i, len(part) - 1)], manifest.seq_len)
            ids[i, : len(row)] = row
        for text, p in zip(part, softmax(trainer.logits(adapter, ids)), strict=False):
            best = int(p.argmax())
            print(f"{manifest.labels[best]:<{width}} {p[best]:6.1%}  {printable_text(text)[:100]}", file=out)
    return 0


def _accuracy(
    bundle: Bundle, trainer: Trainer, adapter: Vector, data: Path, text_field: str, label_field: str, out: TextIO
) -> int:
    source = read_source(data, bundle.manifest, 0.5, text_field=text_field, label_field=label_field)
    if source.skipped:
        print(source.skipped, file=out)
    total = Score(0.0, 0, 0)
    for part in source.dataset(bundle.folder):
        for batch in evaluation_batches(part, bundle.manifest.batch_size, 0):
            score = trainer.evaluate(adapter, batch)
            total = Score(total.loss_sum + score.loss_sum, total.tokens + score.tokens, total.correct + score.correct)
    print(f"right {total.correct} of {total.tokens} ({total.correct / total.tokens:.1%})", file=out)
    print(f"loss  {total.loss_sum / total.tokens:.4f} nats", file=out)
    return 0


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Probabilities along the last axis.

    >>> softmax(np.float32([[0, 0]])).tolist()
    [[0.5, 0.5]]
    """
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True), np.float32)


def printable_text(text: str) -> str:
    """Text for a terminal: lines and tabs stay, other control characters go. A model may write escape sequences.

    >>> printable_text("a\\x1b[2J\\n")
    'a [2J\\n'
    """
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)
