"""What strategies.py found, as the tables of docs/strategies.md and a plot for each setting. Reads the JSON alone."""

import io
import tokenize
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from report import RESULTS, put_table, read_rows

Rows = Sequence[Mapping[str, Any]]
CODE = Path(__file__).parent.parent / "cloud_server" / "covey_server"
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7f3fbf", "#8c564b", "#e69f00", "#56b4e9")
MARKERS = "osD^vPX<>*"
REFERENCE = "dense FedAvg"
CODECS = ("sign", "top-k 1/16", "importance 1/16", "segments of signs", "adaptive 1/16", "FLoCoRA 8 bits",
          "FLoCoRA 4 bits", "FLoCoRA 2 bits", "FLASC", "FLASC, server rate x10", "FLASC, server sgd")  # fmt: skip
TITLES = {
    "shakespeare": "Shakespeare's roles, Llama of 260 k",
    "babyllama": "Shakespeare's roles, Llama of 940 k",
    "newsgroups20": "20 Newsgroups, MiniLM",
    "digits": "scikit-learn's digits, ResNet-8",
}


def render(methods: Sequence[str] | Mapping[str, Any]) -> None:
    """Tables and plots of all settings, in the order of `methods`."""
    rows = sorted(read_rows("strategies"), key=lambda r: list(methods).index(r["strategy"]))
    for setting in dict.fromkeys(r["setting"] for r in rows):
        mine = [r for r in rows if r["setting"] == setting]
        put_table("strategies.md", f"strategies {setting}", table(mine))
        plot(mine, setting)
    put_table("strategies.md", "strategy lines", line_counts())


def ends(rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    """The last version of each strategy, one for each seed."""
    out: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["cpu_s"] is not None:
            out.setdefault(str(row["strategy"]), []).append(row)
    return out


def table(rows: Rows) -> list[str]:
    """A Markdown table of one setting: means over seeds, and of losses the spread; kilobytes of a device in a round."""
    found = ends(rows)
    devices = {row["devices"] for row in rows}.pop()
    lines = [
        "| strategy | loss | own loss | accuracy | own accuracy | up kB | down kB | CPU s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, last in found.items():
        shown = [spread(last, "loss"), spread(last, "personal_loss"), mean(last, "accuracy", 3),
                 mean(last, "personal_accuracy", 3)]  # fmt: skip
        each = [np.mean([r[way] / r["version"] / devices / 1000 for r in last]) for way in ("up", "down")]
        sent = [f"{kilobytes:.1f}" if kilobytes else "" for kilobytes in each]
        lines.append(f"| {name} | " + " | ".join([*shown, *sent, mean(last, "cpu_s", 0)]) + " |")
    return lines


def mean(rows: Rows, key: str, digits: int) -> str:
    """The mean over seeds, or nothing."""
    values = [r[key] for r in rows if r[key] is not None]
    return f"{np.mean(values):.{digits}f}" if values else ""


def spread(rows: Rows, key: str) -> str:
    """Mean and, of several seeds, standard deviation."""
    values = [r[key] for r in rows if r[key] is not None]
    return mean(rows, key, 3) + (f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 else "")


def curve(rows: Rows, name: str, key: str) -> tuple[list[float], list[float]]:
    """Megabytes of one device, both ways, and the loss there; means over seeds of the versions that have one."""
    points: dict[int, list[tuple[float, float]]] = {}
    for r in rows:
        if r["strategy"] == name and r[key] is not None and r["up"] + r["down"] > 0:
            points.setdefault(r["version"], []).append(((r["up"] + r["down"]) / r["devices"] / 1e6, r[key]))
    xy = [np.mean(points[version], axis=0) for version in sorted(points)]
    return [float(x) for x, _ in xy], [float(y) for _, y in xy]


def plot(rows: Rows, setting: str) -> None:
    """Held-out loss by bytes: how updates are averaged, how they are coded, and what devices get for themselves."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    names = list(dict.fromkeys(str(r["strategy"]) for r in rows))
    own = [n for n in names if any(r["personal_loss"] is not None for r in rows if r["strategy"] == n)]
    shared = [n for n in names if n not in own and n not in CODECS and n != REFERENCE]
    fused = [n for n in own if n == "FDLoRA"]  # the other form of it has the same shared adapter
    every = (
        ("everybody's model: how updates are averaged", [REFERENCE, *shared, *fused], "loss"),
        ("everybody's model: how they are coded", [REFERENCE, *(n for n in names if n in CODECS)], "loss"),
        ("devices' own models", [n for n in own if n != "local only"], "personal_loss"),
    )
    panels = [p for p in every if any(len(curve(rows, n, p[2])[0]) for n in p[1] if n != REFERENCE)]
    figure, axes = pyplot.subplots(len(panels), 1, figsize=(11, 4.8 * len(panels)), squeeze=False)
    for ax, (title, wanted, key) in zip(axes[:, 0], panels, strict=True):
        lines = [(name, *curve(rows, name, key)) for name in wanted]
        drawn = sorted(
            (line for line in lines if line[1]), key=lambda line: -line[2][-1]
        )  # the legend from top to bottom
        for i, (name, x, y) in enumerate(drawn):
            style = ("-", "--", ":")[i // len(COLOURS)]
            colour = "black" if name == REFERENCE else COLOURS[i % len(COLOURS)]
            face = "white" if i % 2 else colour  # lines that cover each other stay visible
            ax.plot(x, y, style, color=colour, marker=MARKERS[i % len(MARKERS)], mfc=face, ms=7, lw=1.6, label=name)
        if key == "personal_loss":
            level(ax, rows, REFERENCE, "loss", "black", "-.")
            level(ax, rows, "local only", "personal_loss", "grey", ":")
        ax.set(xscale="log", ylabel="held-out loss, nats")
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.set_title(f"{TITLES[setting]} — {title}", loc="left", fontsize=11)
        ax.grid(True, which="both", alpha=0.25)
        zoom(ax, rows)
        ax.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    axes[-1, 0].set_xlabel("megabytes of one device, up and down, since the start")
    figure.tight_layout()
    figure.savefig(RESULTS / f"strategies_{setting}.png", dpi=110)
    pyplot.close(figure)


def level(ax: Any, rows: Rows, name: str, key: str, colour: str, style: str) -> None:
    """A horizontal line where a row ended."""
    last = ends(rows).get(name)
    if last:
        value = float(np.mean([r[key] for r in last]))
        ax.axhline(value, color=colour, linestyle=style, linewidth=1.2, label=f"{name}, at the end")


def zoom(ax: Any, rows: Rows) -> None:
    """Leaves out what lies above the loss at the start: a run that is lost there is named in the table."""
    start = [r["personal_loss"] for r in rows if r["strategy"] == "local only" and r["version"] == 0]
    if start and ax.get_ylim()[1] > start[0]:
        ax.set_ylim(top=start[0])


def line_counts() -> list[str]:
    """A Markdown table of the files that hold strategies: all lines, and those that are neither comment nor blank."""
    files = [
        *sorted((CODE / "strategies").glob("*.py")),
        *(CODE / f"{n}.py" for n in ("policies", "cohorts", "regroup")),
    ]
    lines = ["| file | lines | of code |", "| --- | ---: | ---: |"]
    for path in files:
        text = path.read_text()
        lines.append(f"| `{path.relative_to(CODE)}` | {len(text.splitlines())} | {code_lines(text)} |")
    return lines


def code_lines(text: str) -> int:
    """Lines with any token but comments and strings that stand alone as docstrings do."""
    numbers: set[int] = set()
    fresh = True  # at the beginning of a statement, where a string is a docstring
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.COMMENT, tokenize.NL, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER):
            continue
        if token.type == tokenize.NEWLINE:
            fresh = True
        elif token.type != tokenize.STRING or not fresh:
            numbers.update(range(token.start[0], token.end[0] + 1))
            fresh = False
    return len(numbers)
