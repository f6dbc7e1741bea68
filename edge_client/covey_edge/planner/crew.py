"""Running pilots, one after another in this process or several at once in processes of their own; the same bits."""

import multiprocessing
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path

from covey_edge.planner import pilot
from covey_edge.planner.book import load_state_of, save_state_of
from covey_edge.planner.deal import Dealt, Sample, deal
from covey_edge.planner.halving import Found, Job
from covey_edge.planner.pilot import Running, Stage
from covey_edge.planner.space import Scene
from covey_edge.trainers import choose_runtime, open_trainer
from covey_shared.bundle import Bundle
from covey_shared.errors import CoveyError
from covey_shared.simulation import server

SAVE_S = 5.0  # between two saves of a pilot in progress: what a kill costs at most
Tell = Callable[[Job, int], None]  # a pilot, and its rounds done


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a process needs to open a stage: plain values, so that it can be handed to another process."""

    bundle: Path
    sample: Sample
    steps: int
    cohort: int
    eval_batches: int
    runtime: str = "auto"
    threads: int = 0
    provider: str = ""
    folder: Path = field(default_factory=Path)


def opened(setup: Setup) -> tuple[Stage, Dealt, str]:
    """The stage, how the sample was dealt, and the runtime. Raises UsageError for whatever is wrong."""
    bundle = Bundle.open(setup.bundle, verify=False)
    runtime = choose_runtime(bundle.manifest, setup.runtime)
    begin, dealt = server(), deal(setup.sample, bundle)
    bundle.verify(runtime)
    trainer = open_trainer(bundle, runtime, setup.threads, setup.provider)
    cohort = min(setup.cohort or len(dealt.devices), len(dealt.devices))
    scene = Scene(setup.steps, cohort, setup.sample.seed)
    return Stage(bundle, trainer, dealt.devices, scene, begin, setup.eval_batches), dealt, runtime


def execute(stage: Stage, folder: Path, job: Job, tell: Tell) -> Found:
    """A pilot from where it stands, kept every few seconds."""
    running, saved = _begun(stage, folder, job), time.monotonic()
    for after in pilot.train(stage, job, running):
        running = after
        tell(job, running.rounds)
        if time.monotonic() - saved > SAVE_S:
            save_state_of(folder, job.choice, running.to_bytes())
            saved = time.monotonic()
    if not running.failed:
        save_state_of(folder, job.choice, running.to_bytes())
    return pilot.found(stage, running)


def _begun(stage: Stage, folder: Path, job: Job) -> Running:
    """Where the pilot stands; what cannot be read, or is further than asked, counts as nothing."""
    data = load_state_of(folder, job.choice)
    try:
        running = pilot.start(stage, job, data)
    except (CoveyError, KeyError, TypeError, ValueError):
        if not data:
            raise
        return pilot.start(stage, job, b"")
    return running if running.rounds <= job.rounds else pilot.start(stage, job, b"")


def in_turn(stage: Stage, folder: Path, jobs: Sequence[Job], tell: Tell) -> Iterator[tuple[Job, Found]]:
    """One after another."""
    for job in jobs:
        yield job, execute(stage, folder, job, tell)


class Crew:
    """Processes that each hold a model; given back when the plan ends."""

    def __init__(self, setup: Setup, size: int):
        context = multiprocessing.get_context("spawn")  # runtimes have threads, which a fork does not survive
        self._pool = ProcessPoolExecutor(size, context, _open, (setup,))

    def at_once(self, jobs: Sequence[Job], tell: Tell) -> Iterator[tuple[Job, Found]]:
        """As many at a time as there are processes, each as it ends."""
        waiting = {self._pool.submit(_execute, job): job for job in jobs}
        for done in as_completed(waiting):
            job = waiting[done]
            tell(job, job.rounds)
            yield job, done.result()

    def close(self) -> None:
        """End the processes; pilots that have not begun are not run."""
        self._pool.shutdown(wait=True, cancel_futures=True)


_STAGE: list[tuple[Stage, Path]] = []  # of a worker process: what its initializer opened


def _open(setup: Setup) -> None:
    _STAGE.append((opened(setup)[0], setup.folder))


def _execute(job: Job) -> Found:
    stage, folder = _STAGE[0]
    return execute(stage, folder, job, lambda *_: None)
