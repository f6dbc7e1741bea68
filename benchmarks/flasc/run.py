"""FLASC's claim on real data: accuracy against the bytes of real messages, for every method in methods/.

    python benchmarks/flasc/run.py --data-root DATA --tasks shakespeare sst2 newsgroups --jobs 2
    python benchmarks/flasc/run.py --data-root DATA --quick      about five minutes, nothing kept
    python benchmarks/flasc/evidence.py                          tables, plots and docs/evidence.md from what there is

A method is a file: a rank, a task file of the product, and a ladder of learning rates. Tuning begins with three in the
middle of the ladder and goes on by one while the best is at an end; the rate with the least loss after a third of the
rounds, on a seed of its own, is taken for the runs that count. A run that has ended is a line in
results/flasc/TASK.jsonl and is not repeated; a run that was stopped begins anew. A line says what it was run with, so a
file that is changed is run again.

DATA holds the folders shakespeare, sst2, newsgroups20 and models. They are public data, in gzipped JSON lines: roles of
Shakespeare's plays ({client, text}), the Stanford Sentiment Treebank ({label, text}), 20 Newsgroups by date ({label,
subject, text}), and the language models stories260K and babyllama105 in Hugging Face's format.
"""

import argparse
import hashlib
import json
import math
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import lru_cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from federation import Mask, Method, Point, run
from report import RESULTS
from tasks import ADAMW_RATES, TASKS, Federation, Task, prepare
from tqdm import tqdm

from covey_shared.errors import CoveyError

HERE = Path(__file__).parent
KEPT = RESULTS / "flasc"
TUNING_SEED = 1000
QUICK = ("dense-r16", "flasc-covey-both16", "covey-r2")


class Job(NamedTuple):
    """One run. `tuning` runs are short and only choose rates."""

    task: str
    method: Method
    rates: tuple[float, float]
    seed: int
    tuning: bool

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes a run itself."""
        return (self.task, self.method.name, tuple(self.rates), self.seed, self.tuning)


def config_of(task: Task, method: Method) -> str:
    """A digest of everything that a run hangs on but rates and seed. Fields at their default do not count in it."""
    common = {**_set(task, "rates"), "optimizers": method.optimizers or task.optimizers}
    own = _set(method, "title", "family", "optimizers", "rates", "like", "tasks")
    own["mask"] = _set(method.mask) if method.mask else {}
    return hashlib.sha256(repr((sorted(common.items()), sorted(own.items()))).encode()).hexdigest()[:12]


def _set(given: Any, *without: str) -> dict[str, Any]:
    """The fields of a named tuple that have no default or another value."""
    defaults = given._field_defaults
    fields = given._asdict().items()
    return {k: v for k, v in fields if k not in without and not (k in defaults and defaults[k] == v)}


def methods(folder: Path = HERE / "methods") -> dict[str, Method]:
    """All methods, in the order of their files' names."""
    out = {}
    for path in sorted(folder.glob("*.toml")):
        data = tomllib.loads(path.read_text())
        mask = Mask(**data.pop("mask")) if "mask" in data else None
        lists: dict[str, Any] = {k: tuple(data.pop(k)) for k in ("ranks", "tasks") if k in data}
        rates = tuple((float(a), float(b)) for a, b in data.pop("rates", ()))
        name = path.stem.partition("-")[2]
        out[name] = Method(name=name, rates=rates, mask=mask, **lists, **data)
    return out


@lru_cache(maxsize=4)
def federation_of(task: Task, rank: int, ranks: tuple[int, ...], data_root: Path, cache: Path) -> Federation:
    """Prepared once in a process."""
    return prepare(task, rank, data_root, cache, ranks)


def work(job: Job, task: Task, data_root: Path, cache: Path) -> dict[str, Any]:
    """One run, as the line that is kept. The last of its points is on the larger part of the test set."""
    started, method = time.process_time(), job.method
    federation = federation_of(task, method.rank, method.ranks, data_root, cache)
    rounds = rounds_of(task, job)
    watched = task._replace(every=rounds, judge=0) if job.tuning else task
    federation = federation._replace(judge=federation.watch) if job.tuning else federation
    failed, points = "", list[Point]()
    try:
        points.extend(run(watched, method, federation, job.rates, job.seed, rounds))
    except CoveyError as error:  # rates at which training diverges are a result
        failed = f"{type(error).__name__}: {error}"
    return {
        "task": job.task, "method": method.name, "config": config_of(task, method), "rates": list(job.rates),
        "seed": job.seed, "tuning": job.tuning,
        "rounds": rounds, "failed": failed, "cpu_s": round(time.process_time() - started, 1),
        "points": [[p.round, round(p.loss, 5), round(p.accuracy, 5), p.up, p.down] for p in points],
    }  # fmt: skip


def rounds_of(task: Task, job: Job) -> int:
    """How long a run is: tuning takes a third."""
    return max(2, round(task.rounds * job.method.rounds) // (3 if job.tuning else 1))


def key_of(line: dict[str, Any]) -> tuple[Any, ...]:
    """A kept line's run."""
    return (line["task"], line["method"], tuple(line["rates"]), line["seed"], line["tuning"])


class Ledger:
    """The lines that are kept, each on disk as soon as its run has ended."""

    def __init__(self, folder: Path, known: dict[str, Method]):
        self.folder, self.methods = folder, known
        self.lines: dict[tuple[Any, ...], dict[str, Any]] = {}
        for path in sorted(folder.glob("*.jsonl")):
            for text in path.read_text().splitlines():
                line = json.loads(text)
                method = known.get(line["method"])
                if method and line["config"] == config_of(TASKS[line["task"]], method):
                    self.lines[key_of(line)] = line

    def add(self, line: dict[str, Any]) -> None:
        """Keep a line."""
        self.lines[key_of(line)] = line
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / f"{line['task']}.jsonl").open("a") as stream:
            stream.write(json.dumps(line) + "\n")

    def tried(self, task: str, method: Method) -> dict[tuple[float, float], dict[str, Any] | None]:
        """The rates that tuning looks at, with their lines, None for one that was not run yet.

        Three in the middle of the ladder, then one beyond while the best lies at an end.
        """
        ladder = method.rates or TASKS[task].rates
        low = max(0, (len(ladder) - 3) // 2)
        high = min(len(ladder), low + 3)
        while True:
            lines = {r: self.lines.get((task, method.name, r, TUNING_SEED, True)) for r in ladder[low:high]}
            best = min(lines, key=lambda r: _loss(lines[r]))
            if None in lines.values():
                return lines
            if best == ladder[low] and low:
                low -= 1
            elif best == ladder[high - 1] and high < len(ladder):
                high += 1
            else:
                return lines

    def best(self, task: str, method: Method) -> tuple[float, float] | None:
        """The rates with the least loss in tuning, once all were tried; those that failed come last."""
        if method.like:
            return self.best(task, self.methods[method.like])
        if len(method.rates) == 1:
            return method.rates[0]
        tried = self.tried(task, method)
        return None if None in tried.values() else min(tried, key=lambda r: _loss(tried[r]))


def _middle(ladder: tuple[tuple[float, float], ...]) -> tuple[tuple[float, float], ...]:
    return ladder[len(ladder) // 2 :][:1]


def _loss(line: dict[str, Any] | None) -> float:
    value = line["points"][-1][1] if line and not line["failed"] else math.inf
    return value if value == value else math.inf


def waiting(ledger: Ledger, order: Sequence[tuple[str, Method, int]], running: set[tuple[Any, ...]]) -> Iterator[Job]:
    """The runs that can start now, the first wanted first: a run that counts follows its tuning."""
    for task, method, seed in order:
        rates, tuned = ledger.best(task, method), ledger.methods.get(method.like, method)
        if rates is None:
            jobs = [Job(task, tuned, r, TUNING_SEED, True) for r in ledger.tried(task, tuned)]
        else:
            jobs = [Job(task, method, rates, seed, False)]
        yield from (job for job in jobs if job.key not in ledger.lines and job.key not in running)


def wanted(args: argparse.Namespace, known: dict[str, Method]) -> list[tuple[str, Method, int]]:
    """(task, method, seed) in the order of their worth: each task's methods, then further seeds of those named."""
    first = [(t, m, 0) for m in known.values() for t in args.tasks if not m.tasks or t in m.tasks]
    more = [(t, known[m], s) for s in range(1, args.seeds) for m in args.frontier for t in args.tasks if m in known]
    return [*first, *more]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, default=Path(), help="the folder with the data")
    parser.add_argument("--cache", type=Path, default=HERE / "cache", help="tokenised data and exported bundles")
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=[], help="only these, in this order")
    parser.add_argument("--frontier", nargs="+", default=[], help="methods that get all seeds")
    parser.add_argument("--seeds", type=int, default=3, help="of the frontier; others get one")
    parser.add_argument("--jobs", type=int, default=2, help="runs at the same time")
    parser.add_argument("--quick", action="store_true", help="three methods on one small task, nothing kept")
    args = parser.parse_args()
    known = methods()
    unknown = [m for m in (*args.methods, *args.frontier) if m not in known]
    if unknown:
        parser.error(f"there is no method {unknown[0]!r}; there are {', '.join(known)}")
    if args.quick:
        args.tasks, args.methods, args.frontier = ["shakespeare"], args.methods or list(QUICK), []
    chosen = {m: known[m] for m in args.methods} if args.methods else known
    tasks = {name: TASKS[name]._replace(rounds=9, clients=60) if args.quick else TASKS[name] for name in args.tasks}
    folder = Path(tempfile.mkdtemp()) if args.quick else KEPT
    if args.quick:
        known = {name: m._replace(like="", rates=_middle(m.rates or ADAMW_RATES)) for name, m in known.items()}
        chosen = {name: known[name] for name in chosen}
        args.cache = folder
    args.cache.mkdir(parents=True, exist_ok=True)
    ledger = Ledger(folder, known)
    for name, task in tasks.items():  # here, so that two processes do not export the same bundle
        for rank, ranks in sorted({(m.rank, m.ranks) for m in chosen.values() if not m.tasks or name in m.tasks}):
            prepare(task, rank, args.data_root, args.cache, ranks)
    go(args, ledger, wanted(args, {**known, **chosen} if args.frontier else chosen), tasks, chosen)
    if args.quick:
        show(ledger)
        shutil.rmtree(folder)


def go(
    args: argparse.Namespace, ledger: Ledger, order: list[tuple[str, Method, int]], tasks: dict[str, Task],
    chosen: dict[str, Method],
) -> None:  # fmt: skip
    """Run what is not there yet, `--jobs` at a time."""
    order = [(t, m, s) for t, m, s in order if m.name in chosen or m.name in args.frontier]
    total = sum(1 + (len(m.rates) if len(m.rates) > 1 and s == 0 else 0) for _, m, s in order)
    running: dict[Future[dict[str, Any]], Job] = {}
    with (
        ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool,
        tqdm(total=total, desc="runs", smoothing=0) as bar,
    ):
        bar.update(sum(1 for line in ledger.lines.values() if line["task"] in tasks and line["method"] in chosen))
        while True:
            for job in waiting(ledger, order, {j.key for j in running.values()}):
                if len(running) >= args.jobs:
                    break
                running[pool.submit(work, job, tasks[job.task], args.data_root, args.cache)] = job
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                job, line = running.pop(future), future.result()
                ledger.add(line)
                bar.update(1)
                bar.write(told(line))


def told(line: dict[str, Any]) -> str:
    """A run in one line."""
    what = f"{line['task']:12}{line['method']:28}{'tuning' if line['tuning'] else 'seed ' + str(line['seed']):8}"
    rates = "{:g}/{:g}".format(*line["rates"])
    if line["failed"] or not line["points"]:
        return f"{what} {rates:12} failed: {line['failed']}"
    _, loss, accuracy, up, down = line["points"][-1]
    return (
        f"{what} {rates:12} loss {loss:.4f} accuracy {accuracy:.4f} {(up + down) / 1e6:9.3f} MB {line['cpu_s']:.0f} s"
    )


def show(ledger: Ledger) -> None:
    """The bytes of each method against the first's."""
    ends = {k: line["points"][-1] for k, line in ledger.lines.items() if line["points"]}
    base = next((p for k, p in ends.items() if k[1] == QUICK[0]), None)
    for key, (_, loss, _, up, down) in ends.items():
        ratio = f"{(base[3] + base[4]) / (up + down):8.1f} times fewer bytes than {QUICK[0]}" if base else ""
        print(f"{key[1]:28} loss {loss:.4f} {ratio}")


if __name__ == "__main__":
    main()
