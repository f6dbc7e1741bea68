"""The tables of docs/evidence.md, as lines of Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from federation import Method
from tasks import TASKS, Task

Row = Mapping[str, Any]
DENSE = "dense-r16"
TITLES = {
    "shakespeare": "Shakespeare",
    "babyllama": "Shakespeare, babyllama105",
    "sst2": "SST-2",
    "newsgroups": "20 Newsgroups",
}
ASIDE = ("ablation", "tiers")  # families that have tables of their own
HEAD = (
    "| method | seeds | accuracy | best | loss | MB up | MB down | fewer bytes | equal | to 99 %, fewer bytes |",
    "|---|---|---|---|---|---|---|---|---|---|",
)


def table(rows: Sequence[Row]) -> list[str]:
    """A task's methods, each family together, but for those with a table of their own."""
    families = dict.fromkeys(r["family"] for r in rows if r["family"] not in ASIDE)
    return [*HEAD, *(_line(r) for family in families for r in rows if r["family"] == family)]


def _line(r: Row) -> str:
    if r["failed"]:
        return f"| {_text(r['title'])} | 0 | training diverged | | | | | | no | |"
    reached = f"{r['target_ratio_fp32']:.1f}" if r["target_ratio_fp32"] else "not reached"
    cells = [
        _text(r["title"]), str(r["seeds"]), _spread(r), f"{100 * r['best_accuracy']:.1f}",
        f"{r['loss']:.3f}", f"{r['bytes_up'] / 1e6:.2f}", f"{r['bytes_down'] / 1e6:.2f}",
        f"{r['total_ratio_fp32']:.1f}", "yes" if r["equal_to_dense"] else "no", reached,
    ]  # fmt: skip
    return "| " + " | ".join(cells) + " |"


def _spread(r: Row) -> str:
    """The mean accuracy in percent, with its standard deviation over seeds where there are several."""
    return f"{100 * r['accuracy']:.1f}" + (f" ± {100 * r['accuracy_sd']:.1f}" if r["accuracy_sd"] is not None else "")


def verdict(task: str, rows: Sequence[Row]) -> str:
    """A task's best configuration in one line of a table."""
    dense = next(r for r in rows if r["method"] == DENSE)
    good = [r for r in rows if r["equal_to_dense"] and r["seeds"] >= 3 and r["method"] != DENSE]
    best = max(good, key=lambda r: r["total_ratio_fp32"], default=None)
    shown = _spread(dense)
    if best is None:
        return f"| {task} | {shown} | no other of three seeds is equal | | | | |"
    loss = "yes" if best["equal_loss"] else "no"
    return (
        f"| {task} | {shown} | {_text(best['title'])} | {_spread(best)} | {best['total_ratio_fp32']:.0f} "
        f"({best['total_ratio_bf16']:.0f}) | {best['socket_ratio_fp32']:.0f} | {loss} |"
    )


def _text(title: str) -> str:
    """A title in a cell: bars would end it."""
    return title.replace("|", "\\|")


def across(rows: Sequence[Row], names: Sequence[str], known: Mapping[str, Method]) -> list[str]:
    """Methods by tasks: the accuracy, in bold where it equals dense LoRA's, and how many times fewer bytes."""
    tasks = [task for task in TASKS if any(r["task"] == task and r["method"] in names for r in rows)]
    found = {(r["task"], r["method"]): r for r in rows}
    shown = [name for name in names if any((task, name) in found for task in tasks)]
    head = [f"| method | {' | '.join(TITLES[task] for task in tasks)} |", "|---" * (1 + len(tasks)) + "|"]
    cells = ((_text(known[n].title), *(_cell(found.get((t, n))) for t in tasks)) for n in shown)
    return [*head, *(f"| {' | '.join(line)} |" for line in cells)]


def _cell(r: Row | None) -> str:
    if r is None:
        return ""
    if r["failed"]:
        return "diverged"
    shown = f"**{_spread(r)}**" if r["equal_to_dense"] else _spread(r)
    return f"{shown}, {r['total_ratio_fp32']:.{0 if r['total_ratio_fp32'] >= 10 else 1}f}x"


def settings() -> list[str]:
    """The tasks as a table."""
    head = [
        "| task | model | LoRA on | devices | a round | local steps | rounds | batch | tokens | watched, judged |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    return [*head, *map(_described, TASKS.values())]


def _described(task: Task) -> str:
    modules = (
        "all linear layers" if task.target_modules == ("all-linear",) else "attention of the last two blocks, head"
    )
    cells = [
        task.name, task.model, modules, task.clients, task.cohort, task.steps, task.rounds, task.batch_size,
        task.seq_len if task.seq_len == task.test_len else f"{task.seq_len}, tested with {task.test_len}",
        f"{task.watch}, {task.judge}",
    ]  # fmt: skip
    return "| " + " | ".join(map(str, cells)) + " |"


def over_http(rows: Sequence[Row]) -> list[str]:
    """What over_http.py saw."""
    lines = [
        "| method | devices | rounds | versions, same bits | bodies | on sockets | beside bodies, a device and round |",
        "|---|---|---|---|---|---|---|",
    ]
    return lines + [
        f"| {r['method']} | {r['clients']} | {r['rounds']} | {r['versions']}, {'yes' if r['same_bits'] else 'NO'} | "
        f"{r['body_bytes'] / 1e3:.0f} kB | {r['socket_bytes'] / 1e3:.0f} kB | "
        f"{r['beside_bodies_a_client_round'] / 1e3:.1f} kB |"
        for r in rows
    ]
