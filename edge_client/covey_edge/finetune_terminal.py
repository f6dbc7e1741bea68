"""`covey bundle train` as a person sees it: what it works with, how far it is, and what came of it."""

import math
from collections.abc import Callable
from contextlib import closing
from importlib.util import find_spec
from typing import Any, TextIO

from tqdm import tqdm

from covey_edge import curve, finetune
from covey_edge.adapters import has_peft
from covey_edge.events import Bars, printable
from covey_edge.finetune import Job, Options
from covey_shared.errors import UsageError
from covey_shared.peft_folder import WHOLE
from covey_shared.show import size_text


def run(options: Options, out: TextIO, err: TextIO) -> int:
    """Train and say so: progress to `err`, the result to `out`."""
    if options.plot and find_spec("matplotlib") is None:
        raise UsageError("--plot needs matplotlib, which is not installed: pip install matplotlib")

    def say(sentence: str) -> None:
        for line in sentence.splitlines():
            tqdm.write(printable(line), file=err)

    finetune.check_place(options.out)
    job = finetune.prepare(options, say)  # what is wrong is said before anything is made
    with closing(Bars(err, enabled=err.isatty())) as bars, finetune.held(options.out) as state:
        saved = finetune.load(job, state, say)
        say(introduction(job))
        show = _show(bars, err)
        saved = finetune.train(job, state, saved, say, show)
        result = finetune.finish(job, saved, show)
    if options.plot:
        heldout = [(0, result["loss_before"]), (result["steps"], result["loss_after"])]
        curve.plot(options.plot, result["losses"], heldout, f"{result['model']} on {result['runtime']}")
    print(summary(job, result), file=out)
    return 0


def introduction(job: Job) -> str:
    """What trains on what, and what a kill costs."""
    options, manifest = job.options, job.bundle.manifest
    rank = f", rank {job.rank}" if job.rank else ""
    return (
        f"{manifest.model} on {job.runtime}: {job.layout.size:,} numbers{rank}; {job.dataset.train.count} examples to "
        f"train on, {job.dataset.heldout.count} held out\nthe state is saved in {options.out / finetune.STATE} every "
        f"{options.save_every} steps and on Ctrl-C: the same command goes on from there"
    )


def _show(bars: Bars, err: TextIO) -> Callable[[str, int, int, str], None]:
    """Bars on a terminal; elsewhere a line for each tenth of the training."""

    def show(what: str, done: int, total: int, note: str) -> None:
        bars.work(what, done, total, "step" if what == "training" else "batch", note)
        if what == "training" and not err.isatty() and done * 10 // total > (done - 1) * 10 // total:
            print(f"step {done}/{total}  {note}", file=err, flush=True)

    return show


def summary(job: Job, result: dict[str, Any]) -> str:
    """The result in a few lines."""
    before, after, losses = result["loss_before"], result["loss_after"], result["losses"]
    manifest = job.bundle.manifest
    lines = [f"held-out loss    {before:.4f} -> {after:.4f} nats ({100 * (after / before - 1):+.1f} %)"]
    if manifest.task != "causal-lm":
        lines.append(f"accuracy         {result['accuracy_before']:.1%} -> {result['accuracy_after']:.1%}")
    elif manifest.text.kind == "bytes":
        bits = (x / math.log(2) for x in (before, after))
        lines.append("bits per byte    {:.4f} -> {:.4f}".format(*bits))
    lines += [
        f"training loss    {losses[0]:.4f} {curve.sparkline(losses)} {losses[-1]:.4f}",
        f"speed            {1000 * result['seconds'] / result['steps']:,.0f} ms a step, "
        f"{result['tokens_per_second']:,.0f} {job.unit}/s",
        f"peak memory      {size_text(result['peak_bytes'])} (this process, libraries and data included)",
        f"adapter          {_written(job)}",
    ]
    return "\n".join([*lines, _next(job)])


def _written(job: Job) -> str:
    out = job.options.out
    reader = "PEFT" if has_peft(job.bundle) else f"load_state_dict: {WHOLE}"
    return f"{out} (for {reader}), {out / finetune.FLAT}"


def _next(job: Job) -> str:
    """What to type next."""
    action, what = (
        ("generate", "--prompt TEXT") if job.bundle.manifest.task == "causal-lm" else ("classify", "--data PATH")
    )
    return f"\nTry it:\n  covey bundle {action} {job.bundle.folder} --adapter {job.options.out} {what}"
