"""`covey bundle verify`, `train`, `generate` and `classify`: their options. Imports light.

They are the edge client's because they run a bundle as a device does: with one runtime, and without PyTorch unless
that is the runtime.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

from covey_shared.cli import Command

EXTRA = "edge,onnx"
RUNTIMES = ("auto", "onnx", "executorch", "torch")
TRAIN_HELP = "fine-tune on this machine's data, without a server"
TRAIN_TEXT = """\
Trains the bundle on data of this machine and writes the adapter: the quickest way to see that
a bundle works on a board. Stop it at any time; the same command goes on where it was, and
with more --steps it trains on."""
VERIFY_HELP = "check every byte, the signature, and that the runtimes here can open it"


def _bundle(parser: argparse.ArgumentParser) -> Any:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    return parser.add_argument


def _runtime(add: Any) -> None:
    add("--runtime", default="auto", choices=RUNTIMES,
        help="what runs the model (default: the first of these that is installed and in the bundle)")  # fmt: skip
    _device(add)


def _device(add: Any) -> None:
    add("--provider", default="", metavar="NAME",
        help="the runtime's device: cpu, cuda, tensorrt, ... or auto, the best one here (default: cpu)")  # fmt: skip
    add("--threads", type=int, default=0, metavar="N", help="of the CPU (default: the runtime's choice)")


def _configure_train(parser: argparse.ArgumentParser) -> None:
    parser.description = TRAIN_TEXT
    add = _bundle(parser)
    add("--data", required=True, type=Path, metavar="PATH", help="text, records or images, as `covey join` takes them")
    add("--steps", type=int, default=100, metavar="N", help="training steps in all (default: 100)")
    add("--out", type=Path, default=Path("adapter"), metavar="DIR", help="where the adapter goes (default: ./adapter)")
    _runtime(add)
    add("--optimizer", default="adamw", choices=("adamw", "sgd"), help="(default: adamw)")
    add("--learning-rate", "--lr", type=float, default=1e-3, metavar="RATE", help="(default: 0.001)")
    add(
        "--rank",
        type=int,
        default=0,
        metavar="R",
        help="one of the ranks that the bundle offers (default: the largest)",
    )
    add("--adapter", type=Path, metavar="PATH", help="start from this adapter instead of the bundle's start")
    add("--seed", type=int, default=0, help="of the start and of the order of examples (default: 0)")
    add("--text-field", default="text", metavar="FIELD", help="of a .jsonl record (default: text)")
    add("--label-field", default="label", metavar="FIELD", help="of a .jsonl record, for a classifier (default: label)")
    add("--holdout", type=float, default=0.2, metavar="SHARE", help="of the data, kept back to evaluate (default: 0.2)")
    add("--eval-batches", type=int, default=16, metavar="N", help="of an evaluation at most; 0 = all (default: 16)")
    add("--save-every", type=int, default=10, metavar="N", help="steps between two saves of the state (default: 10)")
    add("--plot", type=Path, metavar="FILE", help="also draw the loss; needs matplotlib")
    add("--force", action="store_true", help="forget what --out holds and start anew")


def _run_train(args: argparse.Namespace) -> int:
    from covey_edge.finetune import Options
    from covey_edge.finetune_terminal import run

    chosen = {k: v for k, v in vars(args).items() if k in Options.__dataclass_fields__}
    return run(Options(**chosen), sys.stdout, sys.stderr)


def _configure_verify(parser: argparse.ArgumentParser) -> None:
    add = _bundle(parser)
    add("--key", action="append", default=[], metavar="KEY",
        help="a public key, or its file, that must have signed it; more than one: any of them")  # fmt: skip
    add("--run", action="store_true", help="also take one training step on each runtime that is installed")
    _device(add)


def _run_verify(args: argparse.Namespace) -> int:
    from covey_edge.verify import verify

    return verify(args.bundle, args.key, run=args.run, provider=args.provider, threads=args.threads, say=print)


def _configure_use(parser: argparse.ArgumentParser) -> Any:
    add = _bundle(parser)
    add("--adapter", type=Path, metavar="PATH", help="a flat file, a PEFT folder or an .onnx_adapter (default: none)")
    _runtime(add)
    return add


def _configure_generate(parser: argparse.ArgumentParser) -> None:
    add = _configure_use(parser)
    add("--prompt", default="", metavar="TEXT", help="what to go on from (default: the beginning of a text)")
    add("--max-tokens", type=int, default=100, metavar="N", help="to write at most (default: 100)")
    add("--temperature", type=float, default=0.0, metavar="X", help="0 = always the likeliest token (default: 0)")
    add("--top-k", type=int, default=0, metavar="K", help="draw among the K likeliest tokens (default: all)")
    add("--top-p", type=float, default=1.0, metavar="P", help="draw among the fewest that make up P (default: 1)")
    add("--samples", type=int, default=1, metavar="N", help="texts to draw, at the price of one (default: 1)")
    add("--seed", type=int, default=0, help="of what is drawn (default: 0)")


def _model(args: argparse.Namespace) -> Any:
    from covey_edge.use import Model

    return Model(**{name: getattr(args, name) for name in Model.__dataclass_fields__})


def _run_generate(args: argparse.Namespace) -> int:
    from covey_edge.generate import Sampling
    from covey_edge.use import Request, generate

    how = Sampling(temperature=args.temperature, top_k=args.top_k, top_p=args.top_p, seed=args.seed)
    request = Request(prompt=args.prompt, max_tokens=args.max_tokens, samples=args.samples, sampling=how)
    return generate(_model(args), request, sys.stdout, sys.stderr)


def _configure_classify(parser: argparse.ArgumentParser) -> None:
    add = _configure_use(parser)
    add("--text", action="append", default=[], metavar="TEXT", help="to classify; may be given several times")
    add("--data", type=Path, metavar="PATH", help="labelled records or images: how often the model is right")
    add("--text-field", default="text", metavar="FIELD", help="of a .jsonl record (default: text)")
    add("--label-field", default="label", metavar="FIELD", help="of a .jsonl record (default: label)")


def _run_classify(args: argparse.Namespace) -> int:
    from covey_edge.use import classify

    return classify(_model(args), args.text, args.data, args.text_field, args.label_field, sys.stdout)


VERIFY = Command(VERIFY_HELP, _configure_verify, _run_verify, EXTRA)
TRAIN = Command(TRAIN_HELP, _configure_train, _run_train, EXTRA)
GENERATE = Command("text from a language model and an adapter", _configure_generate, _run_generate, EXTRA)
CLASSIFY = Command("classes from a classifier and an adapter", _configure_classify, _run_classify, EXTRA)
