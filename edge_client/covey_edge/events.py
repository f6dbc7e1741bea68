"""What a device tells while it works: one stream of events, and two who listen.

An event is a flat record with the fields `event` and `time` (seconds since 1970). `json_lines` writes each as a line of
JSON for a program that follows; `display` turns them into progress bars and sentences for a person.
"""

import json
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, TextIO

from tqdm import tqdm

Sink = Callable[[dict[str, Any]], None]

# What a person reads. Other events move a bar, or are for programs alone.
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
LONG_WAIT_S = 10.0  # after which a person is told what for
WAITING = (
    "waiting for other devices: `covey serve` says how many updates a round takes, [round] target in its task file"
)
UNITS = {"step": "step", "batch": "batch", "piece": "B"}  # the events that move a bar: done of total


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
    screen = stack.enter_context(closing(Bars(stream, enabled=bars)))
    waited = 0.0

    def show(record: dict[str, Any]) -> None:
        nonlocal waited
        event, before = record["event"], waited
        waited = waited + record["seconds"] if event == "wait" else 0.0
        if before < LONG_WAIT_S <= waited:
            tqdm.write(WAITING, file=stream)
        if event in UNITS:
            note = f"loss {record['loss']:.4f}" if "loss" in record else ""
            screen.work(record["what"], record["done"], record["total"], UNITS[event], note)
        elif event == "round":
            screen.rounds(record["version"], record["rounds"])
        elif event == "done":
            screen.rounds(record["version"], record["version"])
        elif event in SENTENCES:
            tqdm.write(printable(SENTENCES[event].format(**record)), file=stream)

    return show


class Bars:
    """Two progress bars that come when there is something to show and go when it is done."""

    def __init__(self, stream: TextIO, *, enabled: bool):
        self._options = {"file": stream, "dynamic_ncols": True}
        self._enabled = enabled
        self._rounds: Any = None
        self._work: Any = None

    def rounds(self, done: int, total: int) -> None:
        """The task's progress."""
        if not self._enabled:
            return
        if self._rounds is None or self._rounds.total != total:
            self.close()
            self._rounds = tqdm(total=total, desc="rounds", unit="round", position=0, **self._options)
        self._rounds.update(done - self._rounds.n)

    def work(self, what: str, done: int, total: int, unit: str, note: str) -> None:
        """What is being done now; another thing, or the same from the beginning, gets a bar of its own."""
        if not self._enabled:
            return
        if self._work is None or self._work.desc != what or done < self._work.n:
            self._close_work()
            scale = {"unit": unit, "unit_scale": unit == "B", "leave": False, "position": int(self._rounds is not None)}
            self._work = tqdm(total=total, desc=what, **scale, **self._options)
        self._work.set_postfix_str(note, refresh=False)
        self._work.update(done - self._work.n)
        if done >= total:
            self._close_work()

    def close(self) -> None:
        """Leave the terminal as it should be."""
        self._close_work()
        if self._rounds is not None:
            self._rounds.close()
            self._rounds = None

    def _close_work(self) -> None:
        if self._work is not None:
            self._work.close()
            self._work = None


def printable(text: str) -> str:
    """Without control characters: names and sentences come from a server, and a terminal obeys escape sequences.

    >>> printable("a\\x1b[2Jb")
    'a [2Jb'
    """
    return "".join(c if c.isprintable() else " " for c in text)
