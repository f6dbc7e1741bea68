"""`covey plan`: its options. Imports light."""

import argparse
import sys
from pathlib import Path

from covey_shared.cli import Command

HELP = "find the rank, the codecs and the rates that learn most from so many bytes"
TEXT = """\
Finds a task file for a budget of bytes. It deals a sample of data out to a few simulated devices
and trains short pilots of many tasks on them: ranks of the bundle, dense and sparse uploads, exact
values, levels and signs, learning rates of devices and server. The worst two thirds are dropped,
the rest goes on for three times the rounds, and again. What learned most is written as a complete
task file that `covey serve` takes as it is.

Bytes are those of real messages: the body of a device's upload and of its download in one round.
HTTP's headers, and the bundle, which a device downloads once, are not counted.

Kill it whenever you like: the same command goes on where it was.

  covey export ./my-llama --ranks 1,2,4,8 --out my.bundle
  covey plan my.bundle --data sample/ --bytes-per-round 50kB
  covey serve plan/task.toml
"""
FULL = {"clients": 8, "rounds": 18, "steps": 8, "pilots": 24, "eval_batches": 8}


def configure(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of `covey plan`."""
    parser.description = TEXT
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE", help="made by covey export; with --ranks the rank is chosen too")
    add(
        "--data", required=True, type=Path, metavar="PATH", help="the sample: text, records or images as for covey join"
    )
    add("--bytes-per-round", required=True, metavar="SIZE",
        help="what a device may send and receive in one round, together: 50kB, 0.5MB")  # fmt: skip
    add("--out", type=Path, default=Path("plan"), metavar="DIR", help="where everything goes (default: ./plan)")
    add("--quick", action="store_true", help="a first impression: few devices, pilots and rounds")
    add("--clients", type=int, metavar="N", help="simulated devices (default: 8; quick: 4)")
    add("--cohort", type=int, default=0, metavar="N",
        help="devices of a round (default: all). Fewer, where real ones come by once in many rounds")  # fmt: skip
    add("--rounds", type=int, metavar="N", help="of the longest pilots (default: 18; quick: 6)")
    add("--steps", type=int, metavar="N", help="local steps of a device and round (default: 8; quick: 4)")
    add("--pilots", type=int, metavar="N", help="choices to begin with (default: 24; quick: 8)")
    add("--eval-batches", type=int, metavar="N", help="of a device's evaluation at most, 0: all (default: 8; quick: 4)")
    add("--budget-minutes", type=float, default=0.0, metavar="M", help="fit pilots and rounds into so much time")
    add("--jobs", type=int, default=1, metavar="N", help="pilots at a time, each in a process with its own model")
    add("--seed", type=int, default=0, help="of devices, starts and draws (default: 0)")
    add("--client-field", default="", metavar="FIELD", help="of a .jsonl record: whose it is (author, role, ...)")
    add("--text-field", default="text", metavar="FIELD", help="of a .jsonl record (default: text)")
    add("--label-field", default="label", metavar="FIELD", help="of a .jsonl record, for a classifier (default: label)")
    add("--alpha", type=float, default=0.5, metavar="X",
        help="labelled data without owners: how even classes are on devices (default: 0.5)")  # fmt: skip
    add("--holdout", type=float, default=0.2, metavar="SHARE", help="of a device's data, to evaluate on (default: 0.2)")
    add("--runtime", default="auto", choices=("auto", "onnx", "executorch", "torch"), help="what runs the model")
    add("--provider", default="", metavar="NAME", help="the runtime's device: cpu, cuda, ... (default: cpu)")
    add(
        "--threads", type=int, default=0, metavar="N", help="of the CPU, for each pilot (default: the runtime's choice)"
    )
    add("--force", action="store_true", help="forget what --out holds and begin anew")


def run(args: argparse.Namespace) -> int:
    """Plan."""
    from covey_edge.planner.run import Options, with_quick
    from covey_edge.planner.terminal import run as go

    asked = {name: value for name, value in vars(args).items() if name in Options.__dataclass_fields__}
    given = {name for name in FULL if asked[name] is not None}
    options = Options(**{**asked, **{name: value for name, value in FULL.items() if name not in given}})
    return go(with_quick(options, given) if args.quick else options, sys.stdout, sys.stderr)


PLAN = Command(HELP, configure, run, "edge,onnx,server")
