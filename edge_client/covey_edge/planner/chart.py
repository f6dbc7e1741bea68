"""The pilots as a picture and as a table: loss against bytes, and where the recommended one stands."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from covey_edge.planner.halving import Found, Job, Results, Search, longest
from covey_edge.planner.space import Choice

CURVES = 6  # that the picture shows
MARKS = {"all": "o", "top": "^", "important": "v", "segments": "s", "adaptive": "D"}


def can_draw() -> bool:
    """Whether matplotlib is installed."""
    return find_spec("matplotlib") is not None


def ends(results: Results) -> dict[Choice, tuple[int, Found]]:
    """Each choice's longest pilot: its rounds and what it came to."""
    out: dict[Choice, tuple[int, Found]] = {}
    for job, found in sorted(results.items(), key=lambda item: item[0].rounds):
        out[job.choice] = (job.rounds, found)
    return out


def draw(path: Path, results: Results, chosen: Job, budget: int, before: float) -> None:
    """Left: every choice, its bytes a round and its loss. Right: how the longest pilots learned, by bytes."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.6), layout="constrained", sharey=True)
    _scatter(left, results, chosen, budget, mpl.colormaps["viridis"])
    _curves(right, results, chosen, before)
    left.set_ylabel("held-out loss (nats)")
    figure.savefig(path, dpi=120)
    pyplot.close(figure)


def _scatter(axes: Any, results: Results, chosen: Job, budget: int, colours: Any) -> None:
    points, longest_ = ends(results), max(job.rounds for job in results)
    ranks = sorted({choice.rank for choice in points})
    for choice, (rounds, found) in points.items():
        shade = colours(ranks.index(choice.rank) / max(1, len(ranks) - 1))
        axes.scatter(
            found.worst, found.loss, marker=MARKS[choice.sends], s=18 + 60 * rounds / longest_, color=shade,
            alpha=0.35 if rounds < longest_ else 1.0,
        )  # fmt: skip
    axes.scatter(results[chosen].worst, results[chosen].loss, s=260, facecolors="none", edgecolors="red")
    axes.axvline(budget, color="grey", linestyle=":")
    axes.set(xscale="log", xlabel="bytes a device and round, up and down", title="every choice, its longest pilot")
    for which in (axes.xaxis.set_major_formatter, axes.xaxis.set_minor_formatter):
        which("{x:,.0f}")
    axes.tick_params(axis="x", which="both", labelsize=8)
    for kind in {choice.sends: None for choice in points}:
        axes.scatter([], [], marker=MARKS[kind], color="grey", label=kind)
    for rank in ranks if len(ranks) > 1 else ():
        shade = colours(ranks.index(rank) / max(1, len(ranks) - 1))
        axes.scatter([], [], marker="o", color=shade, label=f"rank {rank}")
    axes.legend(fontsize=8)


def _curves(axes: Any, results: Results, chosen: Job, before: float) -> None:
    axes.set_prop_cycle(color=["tab:blue", "tab:orange", "tab:green", "tab:purple", "tab:brown", "tab:cyan"])
    order = sorted((found.loss, job.choice) for job, found in results.items() if job.rounds == chosen.rounds)
    for choice in dict.fromkeys([*(choice for _, choice in order[:CURVES]), chosen.choice]):
        mine = sorted((job.rounds, found) for job, found in results.items() if job.choice == choice)
        xs = [0.0, *(rounds * (found.sent + found.received) / 1e3 for rounds, found in mine)]
        style = {"linewidth": 3.0, "color": "red"} if choice == chosen.choice else {"linewidth": 1.0}
        axes.plot(xs, [before, *(found.loss for _, found in mine)], marker=".", label=choice.words, **style)
    axes.set(xlabel="kB a device so far, up and down", title="the best of the longest pilots")
    axes.legend(fontsize=7)


def table(search: Search, results: Results, chosen: Job, rows: int = 8) -> str:
    """The longest pilots, the least loss first; an arrow stands at the recommended one."""
    final: Sequence[Job] = longest(search, results)
    shown = list(dict.fromkeys([*final[:rows], chosen]))
    lines = [f"  {'loss':>8} {'accuracy':>9} {'up':>9} {'down':>9} {'at most':>9}  after {chosen.rounds} rounds"]
    for job in shown:
        found, mark = results[job], "->" if job == chosen else "  "
        lines.append(
            f"{mark}{found.loss:8.4f} {found.accuracy:9.1%} {found.sent:9,.0f} {found.received:9,.0f} {found.worst:9,}"
            f"  {job.choice.words}"
        )
    return "\n".join(lines)
