"""A plan from the first look at the data to the recommended file."""

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from covey_edge.data import training_batch
from covey_edge.planner import book, chart, crew, halving, pilot, sizes
from covey_edge.planner.book import Book
from covey_edge.planner.crew import Setup
from covey_edge.planner.deal import Sample
from covey_edge.planner.halving import Found, Job, Search
from covey_edge.planner.measure import measure
from covey_edge.planner.pilot import Stage
from covey_edge.planner.space import RATES, Choice
from covey_edge.planner.taskfile import Facts, render
from covey_edge.state import write_durably
from covey_shared.errors import UsageError
from covey_shared.show import size_text

TASK, RESULT, PICTURE = "task.toml", "result.json", "curve.png"
LONGER = 5  # times the rounds of a pilot: what the recommended file asks for
Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a person can choose; docs/plan.md explains each."""

    bundle: Path
    data: Path
    bytes_per_round: str
    out: Path = Path("plan")
    clients: int = 8
    cohort: int = 0
    rounds: int = 18
    steps: int = 8
    pilots: int = 24
    eval_batches: int = 8
    budget_minutes: float = 0.0
    jobs: int = 1
    seed: int = 0
    alpha: float = 0.5
    holdout: float = 0.2
    text_field: str = "text"
    label_field: str = "label"
    client_field: str = ""
    runtime: str = "auto"
    provider: str = ""
    threads: int = 0
    force: bool = False

    def __post_init__(self) -> None:
        least = {"clients": 2, "cohort": 0, "rounds": 1, "steps": 1, "pilots": 2, "eval_batches": 0, "jobs": 1,
                 "seed": 0, "threads": 0, "budget_minutes": 0}  # fmt: skip
        for name, bound in least.items():
            if not bound <= getattr(self, name) < math.inf:
                raise UsageError(f"--{name.replace('_', '-')} must be at least {bound}: {getattr(self, name)}")
        if not 0 < self.holdout <= 0.5:
            raise UsageError(f"--holdout is a share above 0 and at most 0.5: {self.holdout}")
        if not 0 < self.alpha < math.inf:
            raise UsageError(f"--alpha must be a positive number: {self.alpha}")
        if self.cohort > self.clients:
            raise UsageError(f"--cohort is at most --clients ({self.clients}): {self.cohort}")

    def setup(self) -> Setup:
        """For the processes that run pilots."""
        sample = Sample(self.data, self.clients, self.seed, self.alpha, self.holdout, self.text_field,
                        self.label_field, self.client_field)  # fmt: skip
        return Setup(
            bundle=self.bundle, sample=sample, steps=self.steps, cohort=self.cohort, eval_batches=self.eval_batches,
            runtime=self.runtime, threads=self.threads, provider=self.provider, folder=self.out,
        )  # fmt: skip


class Watch(NamedTuple):
    """Who hears how far it is: `stage(name, pilots)`, `round(job, done)`, `ended(job, found)`, `sized(done, total)`."""

    say: Say
    stage: Callable[[str, list[Job]], None]
    round: crew.Tell
    ended: Callable[[Job, Found], None]
    sized: Callable[[int, int], None]


class Plan(NamedTuple):
    """What came of it."""

    search: Search
    results: dict[Job, Found]
    chosen: Job
    before: float
    dealt: str
    text: str


def plan(options: Options, watch: Watch) -> Plan:
    """Everything; what is wrong is said before anything is written. Leaves the files in `options.out`."""
    began = time.monotonic()
    budget, setup = sizes.parse_bytes(options.bytes_per_round), options.setup()
    stage, dealt, runtime = crew.opened(setup)
    ranks = stage.bundle.manifest.ranks or (0,)
    watch.say(_introduction(stage, dealt.how, runtime))
    if len(ranks) == 1:
        watch.say(_one_rank(ranks[0]))
    about = _about(options, stage, budget)
    with book.opened(options.out, about, force=options.force) as notes:
        measured = _measured(stage, ranks, options.out, watch)
        since = "version" if stage.scene.cohort == len(stage.devices) else "start"
        every = sizes.pairs(measured, since)
        fit = sizes.affordable(every, budget)
        before = pilot.found(stage, pilot.start(stage, Job(_any(fit, since), 0), b"")).loss
        search = Search(tuple(fit), budget, options.pilots, halving.rungs(options.rounds), since, before)
        search = _in_time(search, stage, options, notes, watch)
        watch.say(_budget(fit, every, budget, before))
        ended = _search(search, stage, setup, options, notes, watch, began)
        chosen = halving.recommend(search, notes.results)
        if chosen is None:
            raise UsageError(_nothing(search, notes.results))
        facts = Facts(
            os.path.relpath(options.bundle.resolve(), options.out.resolve()), stage.bundle.manifest.model,
            stage.bundle.manifest.ranks, budget, len(notes.results), chosen.rounds, before, dealt.how,
            LONGER * options.rounds,
        )  # fmt: skip
        text = render(chosen.choice, notes.results[chosen], stage.scene, facts)
        stage.begin(text, stage.bundle, b"")  # the very check that `covey serve` makes
        made = Plan(search, notes.results, chosen, before, dealt.how, text)
        _write(options.out, made, ended)
        return made


def _search(
    search: Search, stage: Stage, setup: Setup, options: Options, notes: Book, watch: Watch, began: float
) -> bool:  # fmt: skip
    """Stage by stage until there is none or the time is up; whether it came to the end."""
    until = began + 60 * options.budget_minutes if options.budget_minutes else math.inf
    team = crew.Crew(setup, options.jobs) if options.jobs > 1 else None
    run = team.at_once if team else partial(crew.in_turn, stage, options.out)
    with closing(team) if team else closing(_Nothing()):
        while stage_ := halving.next_stage(search, notes.results):
            name, jobs = stage_
            notes.drop_states(_alive(notes.results, jobs))
            watch.stage(name, jobs)
            for job, found in _until(run(jobs, watch.round), until):
                notes.add(job, found)
                watch.ended(job, found)
            if time.monotonic() > until:
                watch.say("the time is up: recommending from the pilots that have ended; the same command goes on")
                return False
    return True


class _Nothing:
    def close(self) -> None:
        """Nothing was opened."""


def _until(results: Iterable[tuple[Job, Found]], until: float) -> Iterator[tuple[Job, Found]]:
    for result in results:
        yield result
        if time.monotonic() > until:
            return


def _alive(results: halving.Results, jobs: list[Job]) -> set[Choice]:
    """The choices that may still go on: those of this stage, and those that have come as far as it goes."""
    return {job.choice for job in jobs} | {job.choice for job in results if job.rounds >= jobs[0].rounds}


def _any(fit: list[sizes.Pair], since: str) -> Choice:
    return Choice(fit[0].rank, fit[0].up, fit[0].down, since, RATES[0])


def _measured(stage: Stage, ranks: tuple[int, ...], folder: Path, watch: Watch) -> dict[Any, sizes.Message]:
    """Sizes of messages, from an earlier run of this plan where there was one."""
    path = folder / book.SIZES
    if path.exists():
        rows = json.loads(path.read_text())
        return {(row["rank"], row["way"], row["codec"]): sizes.Message(row["bytes"], row["lost"]) for row in rows}
    found = measure(stage, ranks, watch.sized)
    rows = [
        {"rank": rank, "way": way, "codec": word, "bytes": m.size, "lost": round(m.error, 6)}
        for (rank, way, word), m in found.items()
    ]
    write_durably(path, (json.dumps(rows, indent=0) + "\n").encode())
    return {key: message._replace(error=round(message.error, 6)) for key, message in found.items()}


def _in_time(search: Search, stage: Stage, options: Options, notes: Book, watch: Watch) -> Search:
    """With --budget-minutes: as many pilots and rounds as will fit, by the time that one takes.

    Once for a plan: one that goes on with another time has the lengths that it began with.
    """
    path = options.out / book.FITTED
    if path.exists():
        kept = json.loads(path.read_text())
        return search._replace(pilots=kept["pilots"], rungs=tuple(kept["rungs"]))
    if not options.budget_minutes or notes.results:
        return search
    job, started = Job(_any(list(search.pairs), search.since), 1), time.perf_counter()
    *_, last = pilot.train(stage, job, pilot.start(stage, job, b""))
    trained = time.perf_counter() - started
    pilot.found(stage, last)
    cost = Cost(trained, time.perf_counter() - started - trained, 60 * options.budget_minutes * options.jobs)
    search = fitted(search, cost)
    write_durably(path, json.dumps({"pilots": search.pilots, "rungs": search.rungs}).encode())
    watch.say(
        f"{options.budget_minutes:g} minutes: {search.pilots} pilots to begin with, {search.rungs[-1]} rounds at most"
    )
    return search


class Cost(NamedTuple):
    """Seconds of a round of a pilot, of an evaluation, and what there is in all."""

    round_s: float
    eval_s: float
    seconds: float


def fitted(search: Search, cost: Cost) -> Search:
    """The search with fewer pilots, then with fewer rounds, until it should be done in three quarters of the time."""
    while _takes(search, cost) > 0.75 * cost.seconds:
        if search.pilots > 6:
            search = search._replace(pilots=max(6, search.pilots * 3 // 4))
        elif search.rungs[-1] > 2:
            search = search._replace(rungs=halving.rungs(max(2, search.rungs[-1] * 2 // 3)))
        else:
            break
    return search


def _takes(search: Search, cost: Cost) -> float:
    """Seconds that a whole search takes, about."""
    count, done, total = len(halving.probed(search)) + search.pilots + 4 * halving.LEADERS, 0, 0.0
    for rounds in search.rungs:
        total += count * ((rounds - done) * cost.round_s + cost.eval_s)
        done, count = rounds, max(2, -(-count // halving.ETA))
    return total


def _about(options: Options, stage: Stage, budget: int) -> dict[str, Any]:
    """What the results depend on. The data counts by its sizes and first batches."""
    size = stage.bundle.manifest.batch_size
    marks = [
        (name, data.train.count, data.heldout.count, [a.tobytes() for a in training_batch(data.train, size, 0, 0)])
        for name, data in stage.devices.items()
    ]
    return {
        "bundle": stage.bundle.digest, "data": hashlib.sha256(repr(marks).encode()).hexdigest(),
        "bytes_per_round": budget, "clients": len(stage.devices), "cohort": stage.scene.cohort,
        "rounds": options.rounds, "steps": options.steps, "pilots": options.pilots, "seed": options.seed,
        "eval_batches": options.eval_batches,
    }  # fmt: skip


def _write(folder: Path, made: Plan, ended: bool) -> None:
    """The task file, all pilots as JSON, and the picture where matplotlib is installed."""
    rows = [
        {"rounds": job.rounds, **job.choice.to_json(), **book.to_json(found)} for job, found in made.results.items()
    ]
    chosen = {"rounds": made.chosen.rounds, **made.chosen.choice.to_json()}
    whole = {
        "budget": made.search.budget, "loss_before": made.before, "data": made.dealt, "complete": ended,
        "recommended": chosen, "pilots": rows,
    }  # fmt: skip
    write_durably(folder / TASK, made.text.encode())
    write_durably(folder / RESULT, (json.dumps(whole, indent=1) + "\n").encode())
    if chart.can_draw():
        chart.draw(folder / PICTURE, made.results, made.chosen, made.search.budget, made.before)


def _introduction(stage: Stage, how: str, runtime: str) -> str:
    manifest, scene = stage.bundle.manifest, stage.scene
    ranks = f", rank {' or '.join(map(str, manifest.ranks))}" if manifest.ranks else ""
    return (
        f"{manifest.model} on {runtime}: {manifest.layout.size:,} numbers{ranks}\n"
        f"{how}; {scene.cohort} a round, {scene.steps} steps each"
    )


def _one_rank(rank: int) -> str:
    have = f"has one rank, {rank}" if rank else "trains no LoRA"
    more = "; to have the rank chosen too, export it with --ranks 1,2,4,8" if rank else ""
    return f"the bundle {have}, so density and precision alone are searched{more}"


def _budget(fit: list[sizes.Pair], every: list[sizes.Pair], budget: int, before: float) -> str:
    return (
        f"{len(fit):,} of {len(every):,} combinations of rank and codecs take at most {size_text(budget)} a device and "
        f"round, up and down; held-out loss before: {before:.4f}"
    )


def _nothing(search: Search, results: halving.Results) -> str:
    worst = min((found.worst for found in results.values() if math.isfinite(found.loss)), default=0)
    if not worst:
        return "no pilot has ended with a loss that is a number: look at the data, or give it more --budget-minutes"
    return (
        f"every pilot took more than {size_text(search.budget)} in some round, {worst:,} bytes at least (devices "
        "that miss rounds download more): raise --bytes-per-round"
    )


def with_quick(options: Options, given: set[str]) -> Options:
    """A plan of a few minutes: what was not given is made small."""
    small: dict[str, Any] = {"clients": 4, "rounds": 6, "steps": 4, "pilots": 8, "eval_batches": 4}
    return replace(options, **{name: value for name, value in small.items() if name not in given})
