"""From the kept runs to results/flasc.json, the plots and docs/evidence.md: every number there comes from here.

python benchmarks/flasc/evidence.py
"""

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from federation import Method
from plots import draw, draw_shape
from report import put_table, read_rows, write_report
from run import KEPT, Ledger, methods
from tables import DENSE, across, over_http, settings, table, verdict
from tasks import TASKS

SHARE = 0.99  # of dense LoRA's accuracy, the target that bytes are counted to


class Summary(NamedTuple):
    """A method on a task over its seeds. Bytes are means over seeds; `to_target` is where the mean curve got there.

    `accuracy` and `loss` are of the last version on the larger part of the test set, `spread` the standard deviation of
    the accuracy over seeds (None for one seed). `best` is the best watched accuracy.
    """

    method: Method
    seeds: int
    rates: tuple[float, float]
    loss: float
    accuracy: float
    spread: float | None
    loss_spread: float | None
    best: float
    up: float
    down: float
    rounds: int
    to_target: float | None
    failed: str


def summary(method: Method, lines: Sequence[Mapping[str, Any]], target: float) -> Summary:
    """What the runs of a method on a task came to; `target` is an accuracy on the watched part."""
    good = [line for line in lines if not line["failed"]]
    if not good:
        nan = math.nan
        rates = tuple(lines[0]["rates"])
        return Summary(method, 0, rates, nan, nan, None, None, nan, nan, nan, 0, None, lines[0]["failed"])
    ends = [line["points"][-1] for line in good]
    return Summary(
        method=method, seeds=len(good), rates=tuple(good[0]["rates"]), loss=fmean(e[1] for e in ends),
        accuracy=fmean(e[2] for e in ends), spread=stdev(e[2] for e in ends) if len(good) > 1 else None,
        loss_spread=stdev(e[1] for e in ends) if len(good) > 1 else None,
        best=fmean(max(p[2] for p in line["points"][:-1]) for line in good), up=fmean(e[3] for e in ends),
        down=fmean(e[4] for e in ends), rounds=good[0]["rounds"],
        to_target=_reached(_mean([line["points"][:-1] for line in good]), target), failed="",
    )  # fmt: skip


def _mean(curves: Sequence[Sequence[Sequence[float]]]) -> list[list[float]]:
    """The mean of the seeds' watched points."""
    return [[fmean(values) for values in zip(*points, strict=True)] for points in zip(*curves, strict=True)]


def _reached(points: Sequence[Sequence[float]], target: float) -> float | None:
    """Bytes of both ways when the accuracy was first at the target."""
    return next((p[3] + p[4] for p in points if p[2] >= target), None)


def equal(mine: Summary, dense: Summary, what: str = "accuracy") -> bool:
    """Whether a method's mean is no worse than dense LoRA's by more than the standard error of dense LoRA's mean.

    The method's own spread does not count: what differs a lot from seed to seed is not the more equal for it.
    """
    error = (getattr(dense, "spread" if what == "accuracy" else "loss_spread") or 0.0) / math.sqrt(dense.seeds)
    gap = getattr(mine, what) - getattr(dense, what)
    return bool(gap >= -error if what == "accuracy" else gap <= error)


def summaries(ledger: Ledger, task: str) -> list[Summary]:
    """All methods that ran on a task, dense LoRA first."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for line in ledger.lines.values():
        method = ledger.methods.get(line["method"])
        if method is None or line["task"] != task or line["tuning"]:
            continue
        if ledger.best(task, method) == tuple(line["rates"]):
            runs.setdefault(line["method"], []).append(line)
    if DENSE not in runs:
        return []
    target = SHARE * fmean(line["points"][-2][2] for line in runs[DENSE])
    order = [name for name in ledger.methods if name in runs]
    return [summary(ledger.methods[name], runs[name], target) for name in order]


def row(task: str, mine: Summary, dense: Summary, beside: float) -> dict[str, Any]:
    """A row of results/flasc.json. `beside`: what a client's round takes on the socket beside bodies, in bytes."""
    total, base = mine.up + mine.down, dense.up + dense.down
    more = beside * TASKS[task].cohort
    on_socket = (base + more * dense.rounds) / (total + more * mine.rounds) if total == total else None
    ratio = base / total if total == total else None
    reached = dense.to_target / mine.to_target if dense.to_target and mine.to_target else None
    return {
        "task": task, "method": mine.method.name, "title": mine.method.title, "family": mine.method.family,
        "rank": mine.method.rank, "client_rate": mine.rates[0], "server_rate": mine.rates[1], "seeds": mine.seeds,
        "rounds": mine.rounds, "loss": _short(mine.loss), "accuracy": _short(mine.accuracy),
        "accuracy_sd": _short(mine.spread), "loss_sd": _short(mine.loss_spread), "best_accuracy": _short(mine.best),
        "bytes_up": _short(mine.up), "bytes_down": _short(mine.down), "bytes_to_target": _short(mine.to_target),
        "target_ratio_fp32": _short(reached), "target_ratio_bf16": _short(reached and reached / 2),
        "total_ratio_fp32": _short(ratio), "total_ratio_bf16": _short(ratio and ratio / 2),
        "socket_ratio_fp32": _short(on_socket), "equal_to_dense": equal(mine, dense) if mine.seeds else False,
        "equal_loss": equal(mine, dense, "loss") if mine.seeds else False, "failed": mine.failed,
    }  # fmt: skip


def _short(value: float | None) -> float | None:
    return None if value is None or value != value else float(f"{value:.6g}")


def main() -> None:
    ledger = Ledger(KEPT, methods())
    http = read_rows("flasc/http")
    beside = float(http[0]["beside_bodies_a_client_round"])
    rows: list[dict[str, Any]] = []
    verdicts = []
    for task in TASKS:
        found = summaries(ledger, task)
        if not found:
            continue
        mine = [row(task, s, found[0], beside) for s in found]
        rows += mine
        put_table("evidence.md", f"flasc {task}", table(mine))
        verdicts.append(verdict(task, mine))
        draw(task, mine, _curves(ledger, task))
    head = (
        "| task | dense, rank 16 | equal, three seeds | accuracy | fewer bytes (bf16) | with headers | loss equal |",
        "|---|---|---|---|---|---|---|",
    )
    put_table("evidence.md", "flasc verdict", [*head, *verdicts])
    for mark, names in groups(ledger.methods).items():
        put_table("evidence.md", f"flasc {mark}", across(rows, names, ledger.methods))
    draw_shape(rows)
    put_table("evidence.md", "flasc settings", settings())
    put_table("evidence.md", "flasc http", over_http(http))
    write_report("flasc", {"settings": {name: _setting(name) for name in TASKS}, "share": SHARE}, rows)


def groups(known: Mapping[str, Method]) -> dict[str, list[str]]:
    """The methods of each table that goes over all tasks."""

    def of(*families: str) -> list[str]:
        return [name for name, method in known.items() if method.family in families]

    return {
        "shape": [DENSE, *of("flasc-paper", "flasc-covey", "pruning")],
        "ablation": [DENSE, "covey-r2", *of("ablation")],
        "tiers": [DENSE, "topk16-r16", *of("tiers")],
    }


def _setting(name: str) -> dict[str, Any]:
    task = TASKS[name]
    return {k: v for k, v in task._asdict().items() if k not in ("name", "optimizers", "rates")}


def _curves(ledger: Ledger, task: str) -> dict[str, list[list[float]]]:
    """The watched points of each method's first seed."""
    lines = {k: v for k, v in ledger.lines.items() if k[0] == task and not k[4] and k[3] == 0 and not v["failed"]}
    return {k[1]: line["points"][:-1] for k, line in lines.items()}


if __name__ == "__main__":
    main()
