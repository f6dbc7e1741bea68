"""`covey join`: its options. Imports light; the client itself is imported when it runs."""

import argparse
import asyncio
import sys
from contextlib import ExitStack
from pathlib import Path

from covey_shared.cli import Command
from covey_shared.errors import CoveyError

HELP = "train on this device's own data and take part in a task"
DESCRIPTION = """\
Takes part in the task of one server with this device's own data: downloads what its
runtime needs, trains, uploads small updates, and says what the model learnt. The data
stays here. Stop it at any time; the same command goes on where it was."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Fill the parser."""
    parser.description = DESCRIPTION
    add = parser.add_argument
    add("server", metavar="SERVER_URL", help="as `covey serve` prints it, https://HOST:PORT")
    add("--data", required=True, type=Path, metavar="PATH", help="a text file, a folder of text, or a .jsonl(.gz) file")
    add("--bundle-key", action="append", default=[], metavar="KEY",
        help="insist that this key (ed25519:..., or its file) signed the bundle; several: any of them")  # fmt: skip
    add("--runtime", default="auto", choices=["auto", "onnx", "executorch", "torch"],
        help="what runs the model (default: the first of these that is installed and in the bundle)")  # fmt: skip
    add("--name", default="", help="this device's name for the server (default: a random one, kept)")
    add("--rank", type=int, default=0, metavar="R",
        help="train this LoRA rank, one of those that the task offers (default: the largest)")  # fmt: skip
    add("--tier", default="", metavar="NAME",
        help="upload as devices of this tier do, where the task has tiers (ask its operator)")  # fmt: skip
    add("--code", default="", help="the operator's one-time code, at the first use (or URL#CODE as the address)")
    add("--ca", type=Path, metavar="FILE", help="PEM file of the authorities to trust, instead of the system's")
    add("--insecure-http", action="store_true",
        help="take an http:// address beyond this machine: who is on the way can read what passes")  # fmt: skip
    add("--vault-passphrase", type=Path, metavar="FILE",
        help="back up this device's own tensors at the server, encrypted with FILE's first line")  # fmt: skip
    add("--vault-name", default="", metavar="NAME",
        help="whose they are, the same on a new device (default: this device's name)")  # fmt: skip
    add("--forget-vault", action="store_true", help="delete that backup at the server, and make no new one")
    add("--state", type=Path, metavar="DIR", help="where this device remembers (default: ~/.local/state/covey/...)")
    add("--cache", type=Path, metavar="DIR", help="where bundles are kept (default: ~/.cache/covey)")
    add("--text-field", default="text", metavar="FIELD", help="of a .jsonl record (default: text)")
    add("--label-field", default="label", metavar="FIELD", help="of a .jsonl record, for a classifier (default: label)")
    add("--holdout", type=float, default=0.2, metavar="SHARE", help="of the data, kept back to evaluate (default: 0.2)")
    add("--eval-every", type=int, default=1, metavar="N",
        help="evaluate every N-th version; 0 = the first and the last only (default: 1)")  # fmt: skip
    add("--eval-batches", type=int, default=16, metavar="N", help="of an evaluation at most; 0 = all (default: 16)")
    add("--once", action="store_true", help="stop after one acknowledged update")
    add("--threads", type=int, default=0, metavar="N", help="of the CPU (default: the runtime's choice)")
    add("--provider", default="", metavar="NAME", help="the runtime's device: cuda, tensorrt, ..., auto (default: cpu)")
    add("--checkpoint", type=float, default=2.0, metavar="SECONDS", dest="checkpoint_s",
        help="between two saves of a round in progress; 0 = after each step (default: 2)")  # fmt: skip
    add("--wait", type=float, default=10.0, metavar="SECONDS", dest="wait_s",
        help="for the server to answer at the start (default: 10)")  # fmt: skip
    add("--events", type=Path, metavar="FILE", help="append one line of JSON for each thing that happens")
    add("--save-heldout", type=Path, metavar="FILE",
        help="write the held-out windows to this .npz on this device, to check a loss elsewhere")  # fmt: skip
    add("--quiet", action="store_true", help="no progress, only the result")


def run(args: argparse.Namespace) -> int:
    """Join; the result goes to standard output, all else to standard error."""
    from covey_edge.events import open_events
    from covey_edge.join import Options, default_state, join, summary_text
    from covey_edge.transport import server_url

    chosen = {k: v for k, v in vars(args).items() if k not in ("command", "events", "quiet")}
    options = Options(**chosen)
    folder = options.state or default_state(server_url(options.server, insecure_http=True), options.data)
    with ExitStack() as stack:
        events = open_events(stack, sys.stderr, quiet=args.quiet, path=args.events)
        try:
            result = asyncio.run(join(options, events))
        except CoveyError as error:
            events.emit("error", message=str(error))
            raise
    print(summary_text(result, folder))
    return 0


JOIN = Command(HELP, configure, run, "edge,onnx")
