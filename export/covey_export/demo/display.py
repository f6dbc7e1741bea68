"""The live display: a table of devices that fills in while they train, and one line for the server.

On a terminal it redraws in place; in a log it prints one line a round. It knows only the events that clients write and
what the server's status says.
"""

import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from covey_export.demo.report import human

# What a device is doing after an event; others leave it as it was.
DOING = {
    "piece": "downloading", "joined": "ready", "round": "starting a round", "version": "has the adapter",
    "batch": "evaluating", "step": "training", "trained": "uploading", "uploaded": "counted", "wait": "waiting",
    "refused": "refused", "late": "late", "done": "done", "error": "failed",
}  # fmt: skip


@dataclass
class Row:
    """What is known of one device."""

    name: str
    runtime: str
    doing: str = "starting"
    round: int = 0
    step: int = 0
    steps: int = 1
    loss: float | None = None
    first: float | None = None
    latest: float | None = None
    upload_bytes: int = 0
    download_bytes: int = 0

    def take(self, event: dict[str, Any]) -> None:
        """Fold one event into the row; unknown events and fields are left alone."""
        kind = event["event"]
        self.doing = DOING.get(kind, self.doing)
        self.round = event.get("round", self.round)
        if kind == "step":
            self.step, self.steps, self.loss = event["done"], event["total"], event["loss"]
        elif kind == "evaluated":
            self.first = event["loss"] if self.first is None else self.first
            self.latest = event["loss"]
        elif kind == "uploaded":
            self.upload_bytes += event["bytes"]
        elif kind == "version":
            self.download_bytes += event["bytes"]


class Display:
    """A context manager; call `update` as often as you like."""

    def __init__(self, console: Console, label: str, rows: list[Row], rounds: int):
        self.console, self.label, self.rows, self.rounds = console, label, rows, rounds
        self.round = 0
        self.started = time.monotonic()
        self.live = Live(console=console, refresh_per_second=8, transient=True) if console.is_terminal else None

    def __enter__(self) -> "Display":
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            self.live.stop()

    def update(self, version: int) -> None:
        """Redraw, or print a line when a round has closed."""
        if self.live:
            self.live.update(self.render(version))
        elif version > self.round:
            self.console.print(self.line(version))
        self.round = max(self.round, version)

    def line(self, version: int) -> str:
        """One line on where the run is."""
        latest = [r.latest for r in self.rows if r.latest is not None]
        mean = f"{sum(latest) / len(latest):.4f}" if latest else "-"
        up, down = (sum(r.upload_bytes for r in self.rows), sum(r.download_bytes for r in self.rows))
        seconds = time.monotonic() - self.started
        return (
            f"{self.label}: round {version}/{self.rounds}, mean held-out loss {mean}, "
            f"up {human(up)}, down {human(down)}, {seconds:.0f} s"
        )

    def render(self, version: int) -> Group:
        """The picture."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for name in ("device", "runtime", "round", "doing", "", "train loss", "held-out", "up", "down"):
            table.add_column(name, justify="left" if name in ("device", "runtime", "doing", "") else "right")
        for r in self.rows:
            training = r.doing == "training"
            bar = ProgressBar(total=max(1, r.steps), completed=r.step if training else 0, width=16)
            table.add_row(
                r.name, r.runtime, str(r.round), r.doing, bar if training else "",
                "" if r.loss is None else f"{r.loss:.3f}", _held_out(r), human(r.upload_bytes), human(r.download_bytes),
            )  # fmt: skip
        return Group(Text(self.line(version), style="bold"), table)


def _held_out(row: Row) -> Text:
    if row.first is None or row.latest is None:
        return Text("")
    style = "green" if row.latest < row.first else ""
    return Text(f"{row.first:.3f} -> {row.latest:.3f}", style=style)
