"""What a device tells while it works: one stream of events, and two who listen.

An event is a flat record with the fields `event` and `time` (seconds since 1970). `json_lines` writes each as a line of
JSON for a program that follows; `display` turns them into progress bars and sentences for a person.
"""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

Sink = Callable[[dict[str, Any]], None]

# What a person reads; events that are not here move a bar or are for programs alone.
SENTENCES = {
    "joined": "joined {task} as {client}: {model} on {runtime}, {examples} examples to train on, {heldout} held out",
    "notice": "{message}",
    "bundle": "downloaded {bytes:,} bytes of the bundle",
    "evaluated": "version {version}: held-out loss {loss:.4f}",
    "trained": "round {round}: {steps} steps, training loss {loss_before:.4f} -> {loss_after:.4f}",
    "uploaded": "round {round}: {bytes:,} bytes {status}",
    "refused": "round {round}: the server refused: {message}",
    "late": "round {round}: the deadline passed at step {step}; asking the server again",
}


class Events:
    """Where events go. `emit("step", round=3, loss=1.2)` reaches every sink, in order."""

    def __init__(self, *sinks: Sink):
        self._sinks = sinks

    def emit(self, event: str, **fields: Any) -> None:
        """Tell everyone."""
        record = {"event": event, "time": round(time.time(), 3), **fields}
        for sink in self._sinks:
            sink(record)

    def notice(self, message: str) -> None:
        """A sentence for people that is no error."""
        if message:
            self.emit("notice", message=message)


def open_events(stack: ExitStack, stream: TextIO, *, quiet: bool, path: Path | None) -> Events:
    """The listeners that a command line asks for; files and bars are closed with the stack."""
    sinks: list[Sink] = []
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        sinks.append(json_lines(stack.enter_context(path.open("a", encoding="utf-8"))))
    if not quiet:
        sinks.append(display(stack, stream, bars=stream.isatty()))
    return Events(*sinks)


def json_lines(out: TextIO) -> Sink:
    """One line an event, flushed at once: whoever follows sees it while it is true."""

    def write(record: dict[str, Any]) -> None:
        out.write(json.dumps(record) + "\n")
        out.flush()

    return write


def display(stack: ExitStack, stream: TextIO, *, bars: bool) -> Sink:
    """Sentences, and on a terminal a bar of rounds above a bar of what is being done."""
    rounds = stack.enter_context(tqdm(file=stream, disable=not bars, unit="round", desc="rounds", position=0))
    work = stack.enter_context(tqdm(file=stream, disable=not bars, position=1, leave=False))

    def show(record: dict[str, Any]) -> None:
        event = record["event"]
        if event in ("step", "batch", "piece"):
            _move(work, record["done"], record["total"], record["what"])
            if event == "step":
                work.set_postfix_str(f"loss {record['loss']:.4f}", refresh=False)
        elif event == "round":
            _move(rounds, record["round"] - 1, record["rounds"], "rounds")
        elif event in SENTENCES:
            tqdm.write(SENTENCES[event].format(**record), file=stream)

    return show


def _move(bar: Any, done: int, total: int, what: str) -> None:
    """Set a bar to a position, starting it again when it is for something else."""
    if bar.total != total or bar.desc != f"{what}: " or done < bar.n:
        bar.reset(total)
        bar.set_description(what, refresh=False)
    bar.update(done - bar.n)
