"""What a training step costs on each runtime, against eager PyTorch and PEFT.

    python benchmarks/step.py [--quick] [--model FOLDER] [--task causal-lm] [--batch 4] [--seq-len 64] [--turns 5]

Exports the model, then lets the runtimes take turns, each turn in a process of its own that takes some steps on the
bundle's fixed shapes. A step's time is the median of CPU times on one thread, so that a busy machine disturbs the
ratios little, beside the wall time; memory is the growth of the process's peak. Without --model it is a Llama of 6
layers and hidden size 288 with random weights. Prints a table and writes benchmarks/results/step.json.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from report import write_report

from covey_export.probe import resident_bytes
from covey_export.quiet import quiet
from covey_export.recipe import Recipe
from covey_export.runtimes import load_library, open_role
from covey_export.terminal import export_with_progress
from covey_export.threads import wait_passively
from covey_shared.bundle import Bundle

LLAMA = {
    "vocab_size": 4096, "hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6,
    "num_key_value_heads": 6, "max_position_embeddings": 512, "pad_token_id": 0, "eos_token_id": 1,
    "bos_token_id": None,
}  # fmt: skip
TINY = {"vocab_size": 259, "hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 1}
EAGER = "eager"
THREADS = 1  # so that CPU times can be compared: threads that wait cost some too
Row = dict[str, Any]


def save_llama(folder: Path, **changes: Any) -> Path:
    """A Llama with random weights and a byte tokenizer."""
    import torch
    from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**LLAMA, **changes})).save_pretrained(folder)
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    return folder


def batch_of(bundle: Bundle) -> dict[str, np.ndarray]:
    """One fixed batch."""
    manifest, rng = bundle.manifest, np.random.default_rng(0)
    ids = rng.integers(1, manifest.text.vocab_size, (manifest.batch_size, manifest.seq_len))
    labels = rng.integers(0, len(manifest.labels), manifest.batch_size) if manifest.labels else ids
    return {"adapter": bundle.start(0), "input_ids": ids, "labels": labels}


def eager_step(bundle: Bundle, model: str) -> Callable[[Mapping[str, np.ndarray]], Any]:
    """Forward and backward of the PEFT model, as one would write it."""
    import torch

    from covey_export.adapter import adapt
    from covey_export.base import load_base
    from covey_export.tasks import TASKS, arguments

    manifest = bundle.manifest
    recipe = Recipe(model=model, task=manifest.task, rank=manifest.rank, num_labels=len(manifest.labels))
    adapted, task = adapt(load_base(recipe), recipe), TASKS[manifest.task]

    def step(inputs: Mapping[str, np.ndarray]) -> None:
        ids, labels = (torch.from_numpy(inputs[name]) for name in ("input_ids", "labels"))
        adapted.model.zero_grad(set_to_none=True)
        adapted.model(**arguments(task, ids, manifest.text.pad_id), labels=labels).loss.backward()

    return step


def turn(kind: str, folder: str, model: str, steps: int) -> None:
    """In a process of its own: some steps on one runtime; prints CPU and wall seconds of each and the peak's growth."""
    wait_passively()
    bundle = Bundle.open(Path(folder), verify=False)
    inputs = batch_of(bundle)
    if kind == EAGER:
        import peft  # noqa: F401  what the libraries weigh is not the step's
        import torch

        torch.set_num_threads(THREADS)
        before = resident_bytes("VmRSS")
        run = eager_step(bundle, model)
    else:
        load_library(kind)
        before = resident_bytes("VmRSS")
        run = open_role(kind, bundle.folder, bundle.manifest.graphs[kind], "train", THREADS)
    run(inputs)
    times = [_timed(run, inputs) for _ in range(steps)]
    peak = resident_bytes("VmHWM") - before
    print(json.dumps({"cpu": [t[0] for t in times], "wall": [t[1] for t in times], "peak": peak}))


def _timed(run: Callable[[Any], Any], inputs: Any) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    run(inputs)
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(bundle: Bundle, model: str, turns: int, steps: int) -> list[Row]:
    """One row a runtime, eager PyTorch first."""
    seen: dict[str, list[dict[str, Any]]] = {kind: [] for kind in (EAGER, *bundle.manifest.graphs)}
    for _ in range(turns):
        for kind, results in seen.items():
            command = [sys.executable, __file__, "--turn", kind, str(bundle.folder), model, str(steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
    base = median(t for r in seen[EAGER] for t in r["cpu"])
    return [_row(kind, results, base) for kind, results in seen.items()]


def _row(kind: str, results: list[dict[str, Any]], base: float) -> Row:
    cpu, wall = (median(t for r in results for t in r[clock]) for clock in ("cpu", "wall"))
    return {
        "runtime": kind, "cpu_ms": round(1000 * cpu, 2), "wall_ms": round(1000 * wall, 2),
        "cpu_of_eager": round(cpu / base, 3), "peak_mb": round(median(r["peak"] for r in results) / 1e6, 1),
    }  # fmt: skip


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny model, two turns; nothing is written")
    parser.add_argument("--model", default="", help="a Hugging Face folder (default: a random 6-layer Llama)")
    parser.add_argument("--task", default="causal-lm")
    parser.add_argument("--num-labels", type=int, default=0)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--seq-len", type=int, default=64)
    parser.add_argument("--targets", default="onnx,executorch,torch")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10, help="steps a turn")
    return parser.parse_args()


def main() -> None:
    args = options()
    with tempfile.TemporaryDirectory() as place:
        model = args.model
        if not model:
            with quiet():
                model = str(save_llama(Path(place) / "llama", **(TINY if args.quick else {})))
        recipe = Recipe(
            model=model, task=args.task, num_labels=args.num_labels, batch_size=args.batch, seq_len=args.seq_len,
            targets=tuple(args.targets.split(",")),
        )  # fmt: skip
        bundle = export_with_progress(recipe, Path(place) / "bundle", force=False)
        rows = measure(bundle, model, 2 if args.quick else args.turns, args.steps)
    print("runtime        CPU ms   wall ms   CPU of eager   peak MB")
    for r in rows:
        print(f"{r['runtime']:<11} {r['cpu_ms']:>9} {r['wall_ms']:>9} {r['cpu_of_eager']:>14} {r['peak_mb']:>9}")
    if not args.quick:
        shape = {"model": bundle.manifest.model, "batch": args.batch, "seq_len": args.seq_len}
        write_report("step", {**shape, "n": bundle.manifest.layout.size, "turns": args.turns}, rows)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--turn"]:
        turn(sys.argv[2], sys.argv[3], sys.argv[4], int(sys.argv[5]))
    else:
        main()
