"""`covey export`. Nothing heavy is imported before a command runs."""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from covey_shared.cli import Command
from covey_shared.manifest import TARGETS, TASKS

T = TypeVar("T")
EPILOG = """\
examples:
  covey export HuggingFaceTB/SmolLM2-135M --out bundle
  covey export ./my-bert --task sequence-classification --num-labels 4 --out bundle --targets onnx
  covey export ./my-llama --out bundle --target-modules q_proj,v_proj --ranks 4,8,16 --seq-len 256
  covey export covey:resnet8 --task image-classification --labels cat,dog,owl --out bundle --batch 32
"""


def _configure_export(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    add = parser.add_argument
    add("model", metavar="MODEL", help="a Hugging Face folder or hub id, or covey:resnet8, covey:resnet18")
    add("--out", type=Path, required=True, metavar="BUNDLE", help="the folder to write")
    add("--task", default="causal-lm", metavar="TASK", help=f"{' or '.join(TASKS)} (default causal-lm)")
    rank = parser.add_mutually_exclusive_group().add_argument
    rank("--rank", type=int, default=8, help="rank of the LoRA matrices (default 8)")
    rank(
        "--ranks", type=_numbers, default=(), metavar="N,N,...",
        help="several ranks in one bundle, each the first factors of the next",
    )  # fmt: skip
    add("--alpha", type=float, default=0.0, help="LoRA's alpha; updates are scaled by alpha/rank (default 2 * rank)")
    add(
        "--target-modules", type=_names, default=("all-linear",), metavar="NAMES",
        help="modules that get LoRA, with commas between, or one regular expression; all-linear, all-conv or none "
        "(default all-linear)",
    )  # fmt: skip
    add(
        "--rank-of", type=_ranks_of, default=(), metavar="NAME=N,...",
        help="other ranks for some modules; alpha/rank stays the same everywhere",
    )  # fmt: skip
    add(
        "--train-full", type=_names, default=(), metavar="NAMES",
        help="modules that train whole: names, a regular expression, or norms for all normalisation layers",
    )  # fmt: skip
    add(
        "--block", type=_numbers, default=(), metavar="N",
        help="train this transformer block whole, and no LoRA; several with commas between, -1 is the last",
    )  # fmt: skip
    add("--frozen-rank", type=int, default=0, metavar="N", help="take a second, frozen adapter of this rank as input")
    add(
        "--targets", type=_names, default=TARGETS, metavar="NAMES",
        help=f"runtimes to write for, with commas between (default {','.join(TARGETS)})",
    )  # fmt: skip
    add("--base", default="float32", metavar="TYPE", help="how frozen weights are held: float32, int8 or int4")
    add(
        "--group", type=int, default=0, metavar="N",
        help="inputs that share a scale: 32, 64 or 128 (default: all of a row for int8, 32 for int4)",
    )  # fmt: skip
    add("--sample", default="", metavar="FILE", help="text on which the loss of --base int8 or int4 is measured")
    add("--recompute", action="store_true", help="compute activations twice, a block at a time, and do not keep them")
    add("--batch", type=int, default=4, help="rows of a training step; fixed in the graph (default 4)")
    add("--seq-len", type=int, default=64, help="tokens of a row; fixed in the graph (default 64)")
    add("--num-labels", type=int, default=0, help="classes of a new head (default: what the checkpoint has)")
    add("--labels", type=_names, default=(), metavar="NAMES", help="names of a new head's classes, with commas between")
    add("--image", type=_image, default=None, metavar="CxHxW", help="shape of images (default: what the model states)")
    add("--image-mean", type=_fractions, default=(), metavar="X,X,X", help="taken from pixels / 255, for each channel")
    add("--image-std", type=_fractions, default=(), metavar="X,X,X", help="by which they are divided then")
    add("--model-id", default="", metavar="NAME", help="name in bundle and adapters (default: hub id or folder's name)")
    add("--seed", type=int, default=0, help="seed of a new head's weights (default 0)")
    add("--sign", type=Path, metavar="FILE", help="sign the bundle with this private key (covey keys new)")
    add("--force", action="store_true", help="replace an existing bundle")
    add(
        "--list-targets", action=_ListTargets, help="what can be written and run on this machine, and for which devices"
    )


class _ListTargets(argparse.Action):
    """Like --version: prints and exits, whatever else is missing on the command line."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str):
        super().__init__(option_strings, dest, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *unused: object) -> None:
        from covey_export.list_targets import list_targets

        print(list_targets())
        parser.exit(0)


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _numbers(text: str) -> tuple[int, ...]:
    return _parsed(text, "whole numbers with commas between", lambda t: tuple(int(n) for n in _names(t)))


def _fractions(text: str) -> tuple[float, ...]:
    return _parsed(text, "numbers with commas between", lambda t: tuple(float(n) for n in _names(t)))


def _ranks_of(text: str) -> tuple[tuple[str, int], ...]:
    def parse(given: str) -> tuple[tuple[str, int], ...]:
        pairs = (part.rpartition("=") for part in _names(given))
        return tuple((name, int(rank)) for name, _, rank in pairs)

    return _parsed(text, "NAME=RANK with commas between, q_proj=16,mlp=4 say", parse)


def _image(text: str) -> tuple[int, int, int]:
    def parse(given: str) -> tuple[int, int, int]:
        channels, height, width = map(int, given.split("x"))
        return channels, height, width

    return _parsed(text, "channels x height x width, 3x32x32 say", parse)


def _parsed(text: str, form: str, parse: Callable[[str], T]) -> T:
    """The value, or a sentence for what argparse would call invalid."""
    try:
        return parse(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not of the form {form}") from None


def _run_export(args: argparse.Namespace) -> int:
    from covey_export.recipe import Recipe

    recipe = Recipe(
        model=args.model, model_id=args.model_id, task=args.task, rank=args.rank, ranks=args.ranks, alpha=args.alpha,
        target_modules=args.target_modules, rank_of=args.rank_of, train_full=args.train_full, blocks=args.block,
        frozen_rank=args.frozen_rank, targets=args.targets, batch_size=args.batch, seq_len=args.seq_len,
        num_labels=args.num_labels, labels=args.labels, image=args.image, image_mean=args.image_mean,
        image_std=args.image_std, seed=args.seed, base=args.base, group=args.group, sample=args.sample,
        recompute=args.recompute,
    )  # fmt: skip
    from covey_export.terminal import export_with_progress
    from covey_shared.keyfile import read_key
    from covey_shared.show import show_bundle

    key = read_key(args.sign) if args.sign else None
    bundle = export_with_progress(recipe, args.out, force=args.force, key=key)
    print(show_bundle(bundle))
    print(f"\nTry it on any machine:\n  covey bundle train {args.out} --data PATH")
    print(f'Train it on devices: set bundle = "{args.out}" in a task file, then\n  covey serve TASK.toml')
    return 0


EXPORT = Command("make a training bundle for phones and boards", _configure_export, _run_export, "export")
