"""`covey keys`: making keys that sign, and showing the public half of one."""

import argparse
from pathlib import Path

from covey_shared.cli import Command, Group

NEW_HELP = "make a key that signs bundles, for this machine's owner alone"
SHOW_HELP = "the public half of a key, which others may have"


def _configure_new(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="where the private key goes; FILE.pub is the public one"
    )
    parser.add_argument(
        "--type", default="ed25519", choices=("ed25519", "p256"), dest="algorithm",
        help="p256 is for keys that live in hardware which has no Ed25519 (default ed25519)",
    )  # fmt: skip


def _run_new(args: argparse.Namespace) -> int:
    from covey_shared.keyfile import write_key
    from covey_shared.keys import generate

    key = generate(args.algorithm)
    public = write_key(args.file, key)
    print(f"private  {args.file} (yours alone, mode 0600; whoever has it can sign as you)")
    print(f"public   {public}")
    print(f"         {key.public.text}")
    print(f"         fingerprint {key.public.fingerprint}")
    return 0


def _configure_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("key", metavar="KEY", help="a key's file, private or public, or a public key's text")


def _run_show(args: argparse.Namespace) -> int:
    from covey_shared.keyfile import read_public

    key = read_public(args.key)
    print(key.text)
    print(f"fingerprint {key.fingerprint}")
    return 0


KEYS = Group("make and show keys that sign", "covey.keys")
NEW = Command(NEW_HELP, _configure_new, _run_new, "edge")
SHOW = Command(SHOW_HELP, _configure_show, _run_show, "edge")
