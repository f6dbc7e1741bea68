"""`covey demo`."""

import argparse
from pathlib import Path

from covey_export.demo.corpus import DEVICE_PACKAGES
from covey_shared.cli import Command
from covey_shared.errors import UsageError

MODEL = Path(__file__).parent / "byte-llama-1.3m"
STRATEGY_HELP = """how changes are coded and averaged (default covey):
  covey        one sign bit an entry up, few-bit levels down, mean of the changes
  flasc        FLASC's top-k of a quarter both ways, on the difference from the seeded start
  flasc-paper  FLASC exactly as published
  dense        float32 both ways"""
EPILOG = """\
Each device gets one package of the Python standard library as its private text. The base model is a byte-level Llama
that was trained on the single-file modules and never saw the packages.

examples:
  covey demo                           eight devices, 16 rounds, about three minutes on two cores
  covey demo --compare-dense           the same again with dense float32 LoRA, side by side
  covey demo --strategy flasc          FLASC's top-k instead
  covey demo --model ./my-model        another causal LM: a Hugging Face folder or hub id
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """The options of `covey demo`."""
    add = parser.add_argument
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawTextHelpFormatter
    add("--model", default=str(MODEL), help="causal LM to fine-tune: a folder or a hub id (default: the one shipped)")
    add("--strategy", choices=("covey", "flasc", "flasc-paper", "dense"), default="covey", help=STRATEGY_HELP)
    add("--mode", choices=("sync", "async"), default="sync", help="rounds that wait for all devices, or buffers")
    add("--compare-dense", action="store_true", help="also run dense float32 LoRA and compare")
    add("--clients", type=int, default=8, help=f"devices, 1 to {len(DEVICE_PACKAGES)} (default 8)")
    add("--rounds", type=int, default=16, help="rounds (default 16)")
    add("--steps", type=int, default=10, help="local training steps a round (default 10)")
    add("--rank", type=int, default=8, help="LoRA rank (default 8)")
    add("--batch", type=int, default=4, help="windows a step (default 4)")
    add("--seq-len", type=int, default=128, help="tokens a window (default 128)")
    add("--learning-rate", type=float, default=2e-3, help="of the devices' AdamW (default 0.002)")
    add("--runtimes", default="onnx,executorch", help="runtimes that devices take in turn (default onnx,executorch)")
    add("--device-bytes", type=int, default=160_000, help="text on each device at most (default 160000)")
    add("--seed", type=int, default=0, help="seed of the task (default 0)")
    add("--prompt", default="async def ", help="what both models continue (default 'async def ')")
    add("--out", type=Path, default=Path("demo-output"), help="folder for everything it makes (default demo-output)")


def run(args: argparse.Namespace) -> int:
    """Check the options, then hand over."""
    from rich.console import Console

    from covey_export.demo.run import Options, run_demo

    runtimes = tuple(args.runtimes.split(","))
    unknown = [r for r in runtimes if r not in ("onnx", "executorch", "torch")]
    if unknown:
        raise UsageError(f"--runtimes has {unknown[0]!r}; known are onnx, executorch and torch")
    if not 1 <= args.clients <= len(DEVICE_PACKAGES):
        raise UsageError(f"--clients must be 1 to {len(DEVICE_PACKAGES)}, got {args.clients}")
    for name in ("rounds", "steps", "rank", "batch", "device_bytes"):
        if getattr(args, name) < 1:
            raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {getattr(args, name)}")
    options = Options(
        model=args.model, out=args.out, strategy=args.strategy, mode=args.mode,
        compare_dense=args.compare_dense, clients=args.clients,
        rounds=args.rounds, steps=args.steps, rank=args.rank, batch=args.batch, seq_len=args.seq_len,
        learning_rate=args.learning_rate, runtimes=runtimes, device_bytes=args.device_bytes, seed=args.seed,
        prompt=args.prompt,
    )  # fmt: skip
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=110)  # a log has no width of its own
    return run_demo(options, console)


DEMO = Command(
    help="run the whole chain on this machine and show what happened", configure=configure, run=run, extra="demo"
)
