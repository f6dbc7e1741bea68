"""Pictures of a task: accuracy on the way by bytes, and where every method ends."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

IMAGES = Path(__file__).parent.parent.parent / "docs" / "images"
COLOURS = {  # Okabe and Ito's, which colour-blind readers tell apart
    "dense": "#000000", "covey": "#D55E00", "flasc-covey": "#009E73", "flasc-paper": "#0072B2", "pruning": "#CC79A7",
    "quantised": "#E69F00", "ablation": "#56B4E9", "tiers": "#999999", "planned": "#F0E442",
}  # fmt: skip
NAMES = {
    "dense": "dense LoRA", "covey": "low rank, signs or levels", "flasc-covey": "FLASC, Covey's mode",
    "flasc-paper": "FLASC as published", "pruning": "pruning baselines", "quantised": "rank 16, quantised",
    "ablation": "ablations", "tiers": "tiers of devices",
    "planned": "what covey plan chose",
}  # fmt: skip
SHOWN = (
    "dense-r16", "dense-r4", "covey-r2", "covey-rows-r1", "covey-levels2-r1", "flasc-covey-both16",
    "flasc-paper-both16", "sign-r16", "int4-r16", "sparseadapter-fair16", "fedselect-fair16", "planned-cohort",
)  # fmt: skip
UNNAMED = ("ablation", "tiers")  # families whose points have no label; their tables say which is which
BELOW: dict[str, Any] = {"fontsize": 7, "loc": "upper center", "bbox_to_anchor": (0.5, -0.12), "ncols": 2}
STYLES = ("-", "--", ":", "-.")


def draw(task: str, rows: Sequence[Mapping[str, Any]], curves: Mapping[str, Sequence[Sequence[float]]]) -> Path:
    """Write docs/images/evidence_TASK.png."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 6.4), layout="constrained", sharey=True)
    _ways(left, rows, curves)
    _ends(right, rows)
    left.set_ylabel("test accuracy, %")
    figure.suptitle(f"{task}: accuracy by bytes of messages, up and down, all devices")
    path = IMAGES / f"evidence_{task}.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _ways(axes: Any, rows: Sequence[Mapping[str, Any]], curves: Mapping[str, Sequence[Sequence[float]]]) -> None:
    by_name = {r["method"]: r for r in rows}
    seen: dict[str, int] = {}
    for name in SHOWN:
        if name not in curves or name not in by_name:
            continue
        family = by_name[name]["family"]
        style = STYLES[seen.setdefault(family, 0) % len(STYLES)]
        seen[family] += 1
        points = [(p[3] + p[4], 100 * p[2]) for p in curves[name] if p[3] + p[4] > 0]
        axes.plot(
            *zip(*points, strict=True), style, marker=".", color=COLOURS[family], label=by_name[name]["title"], lw=1.6
        )
    axes.set(xscale="log", xlabel="bytes so far", title="on the way (first seed, the watched part of the test set)")
    axes.grid(alpha=0.25)
    axes.legend(**BELOW)


def _band(dense: Mapping[str, Any]) -> tuple[float, float]:
    """Dense LoRA's accuracy in percent, less and plus a standard error of its mean."""
    level, error = 100 * dense["accuracy"], 100 * (dense["accuracy_sd"] or 0) / max(dense["seeds"], 1) ** 0.5
    return level - error, level + error


def _ends(axes: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    dense = next(r for r in rows if r["method"] == "dense-r16")
    axes.axhspan(*_band(dense), color="black", alpha=0.12, label="dense, rank 16, ± a standard error")
    for family, colour in COLOURS.items():
        mine = [r for r in rows if r["family"] == family and not r["failed"]]
        if not mine:
            continue
        x = [r["bytes_up"] + r["bytes_down"] for r in mine]
        axes.scatter(x, [100 * r["accuracy"] for r in mine], color=colour, label=NAMES[family], s=34, zorder=3)
        for r, at in zip(mine, x, strict=True):
            if family in UNNAMED:
                continue
            axes.annotate(r["method"], (at, 100 * r["accuracy"]), fontsize=6, xytext=(3, 3), textcoords="offset points")
    axes.axvline((dense["bytes_up"] + dense["bytes_down"]) / 100, color="grey", ls=":", lw=1)
    axes.annotate(
        "a hundredth of dense", ((dense["bytes_up"] + dense["bytes_down"]) / 100, axes.get_ylim()[0]),
        fontsize=7, rotation=90, xytext=(-9, 6), textcoords="offset points", color="grey",
    )  # fmt: skip
    axes.set(xscale="log", xlabel="bytes of the whole run", title="at the end (mean over seeds, the judged part)")
    axes.grid(alpha=0.25)
    axes.legend(**BELOW)


def draw_shape(rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write docs/images/evidence_density.png: FLASC's claim itself, accuracy against density, a panel a task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    tasks = [t for t in ("shakespeare", "sst2", "newsgroups") if any(r["task"] == t for r in rows)]
    figure, panels = pyplot.subplots(
        1, len(tasks), figsize=(4.6 * len(tasks), 4.6), layout="constrained", squeeze=False
    )
    for axes, task in zip(panels[0], tasks, strict=True):
        axes.set(xscale="log", xlabel="density", title=task)
        _shape(axes, {r["method"]: r for r in rows if r["task"] == task and not r["failed"]})
    panels[0][0].set_ylabel("test accuracy, %")
    figure.legend(*panels[0][-1].get_legend_handles_labels(), fontsize=8, loc="outside lower center", ncols=4)
    path = IMAGES / "evidence_density.png"
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return path


def _shape(axes: Any, rows: Mapping[str, Mapping[str, Any]]) -> None:
    dense = rows["dense-r16"]
    axes.axhspan(*_band(dense), color="black", alpha=0.12)
    axes.axhline(100 * dense["accuracy"], color="black", lw=1, label="dense, rank 16, ± a standard error")
    for family in ("flasc-paper", "flasc-covey"):
        for way, style in (("both", "-o"), ("up", "--^"), ("down", ":v")):
            found = [(1 / k, rows.get(f"{family}-{way}{k}")) for k in (64, 16, 4)]
            points = [(x, 100 * r["accuracy"]) for x, r in found if r]
            if points:
                label = f"{NAMES[family]}, {way if way == 'both' else 'only ' + way}"
                axes.plot(*zip(*points, strict=True), style, color=COLOURS[family], label=label, lw=1.4, ms=5)
    for method, marker in (("sparseadapter", "s"), ("fedselect", "D"), ("lth", "P")):
        for kind, fill in (("paper", "none"), ("fair", COLOURS["pruning"])):
            r = rows.get(f"{method}-{kind}") or rows.get(f"{method}-{kind}16")
            if r:
                axes.plot(
                    1 / 16, 100 * r["accuracy"], marker, color=COLOURS["pruning"], mfc=fill, ms=6, ls="",
                    label=f"{r['title'].partition(',')[0].removesuffix(' to 1/16')}, {r['title'].rpartition(', ')[2]}",
                )  # fmt: skip
    axes.set_xticks([1 / 64, 1 / 16, 1 / 4], ["1/64", "1/16", "1/4"])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
