"""`covey plan` as a person sees it: how far it is, what each stage found, and what is recommended."""

import sys
from typing import TextIO

from tqdm import tqdm

from covey_edge.events import printable
from covey_edge.planner import chart
from covey_edge.planner.halving import LEARNED, Found, Job
from covey_edge.planner.run import PICTURE, RESULT, TASK, Options, Plan, Watch, plan
from covey_edge.planner.sizes import parse_bytes

POOR = "  the pilots learned next to nothing: give them more --rounds or --steps before you trust this"


def run(options: Options, out: TextIO, err: TextIO) -> int:
    """Plan and say so: progress to `err`, the result to `out`."""
    screen = Screen(err, parse_bytes(options.bytes_per_round))
    try:
        made = plan(options, screen.watch())
    finally:
        screen.close()
    print(summary(options, made), file=out)
    return 0


class Screen:
    """A bar for the stage that runs, on a terminal, and a line for each that ended."""

    def __init__(self, err: TextIO, budget: int):
        self._err, self._budget, self._bar, self._name = err, budget, tqdm(disable=True), ""
        self._jobs: list[Job] = []
        self._done: dict[Job, int] = {}
        self._best: tuple[float, str] = (float("inf"), "")
        self._over = 0

    def watch(self) -> Watch:
        """What `plan` calls."""
        return Watch(self.say, self.stage, self.round, self.ended, self.sized)

    def say(self, sentence: str) -> None:
        """Some lines above the bar."""
        for line in sentence.splitlines():
            tqdm.write(printable(line), file=self._err)

    def stage(self, name: str, jobs: list[Job]) -> None:
        """A stage begins."""
        self.close()
        self._name, self._jobs, self._done = name, jobs, {}
        self._best, self._over = (float("inf"), ""), 0
        self._begin(name, sum(job.rounds for job in jobs), "round")

    def round(self, job: Job, done: int) -> None:
        """A pilot's round has ended."""
        self._bar.update(done - self._done.get(job, 0))
        self._done[job] = done

    def ended(self, job: Job, found: Found) -> None:
        """A pilot has ended."""
        self.round(job, job.rounds)
        if found.worst <= self._budget:
            self._best = min(self._best, (found.loss, job.choice.words))
        self._over += found.worst > self._budget
        self._bar.set_postfix_str(f"best {self._best[0]:.4f}")
        self._jobs = [other for other in self._jobs if other != job]
        if not self._jobs:
            over = f"; {self._over} took more bytes than asked for in some round" if self._over else ""
            best = f"the best {self._best[0]:.4f} ({self._best[1]})" if self._best[1] else "none of use"
            self.say(f"{self._name}: {len(self._done)} pilots, {best}{over}")

    def sized(self, done: int, total: int) -> None:
        """A codec's message was measured."""
        if done == 1:
            self._begin("messages", total, "codec")
        self._bar.update(1)

    def _begin(self, what: str, total: int, unit: str) -> None:
        self._bar.close()
        self._bar = tqdm(
            total=total, desc=what, unit=unit, file=self._err, dynamic_ncols=True, leave=False,
            disable=not self._err.isatty(),
        )  # fmt: skip

    def close(self) -> None:
        """Leave the terminal as it should be."""
        self._bar.close()


def summary(options: Options, made: Plan) -> str:
    """The finalists, the recommended file and where everything lies."""
    folder, found = options.out, made.results[made.chosen]
    picture = f", {folder / PICTURE}" if (folder / PICTURE).exists() else ""
    if not picture:
        print("no picture: it needs matplotlib (pip install matplotlib)", file=sys.stderr)
    poor = [] if found.loss < made.before * (1 - LEARNED) else [POOR]
    return "\n".join([
        chart.table(made.search, made.results, made.chosen),
        "",
        f"recommended: {made.chosen.choice.words}",
        f"  {found.sent:,.0f} bytes up and {found.received:,.0f} down a device and round, {found.worst:,} at most "
        f"(asked for: {made.search.budget:,})",
        f"  held-out loss {made.before:.4f} -> {found.loss:.4f} nats after {made.chosen.rounds} rounds",
        f"  {folder / TASK}; all pilots: {folder / RESULT}{picture}",
        *poor,
        "",
        f"Serve it:\n  covey serve {folder / TASK}",
    ])  # fmt: skip
