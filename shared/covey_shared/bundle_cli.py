"""`covey bundle show` and `covey bundle sign`. What runs a bundle is contributed by the edge client."""

import argparse
from pathlib import Path

from covey_shared.cli import Command, Group

SHOW_HELP = "what a bundle holds, what it trains, and what its proof said"
SIGN_HELP = "sign a bundle, so that devices can tell it from somebody else's"


def _configure_show(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE")
    add("--layout", action="store_true", help="also every tensor that trains, with its place in the adapter's vector")
    add("--json", action="store_true", help="all of it for programs: the manifest with digest, sizes and signers")


def _run_show(args: argparse.Namespace) -> int:
    import json

    from covey_shared.bundle import Bundle
    from covey_shared.show import bundle_data, show_bundle

    bundle = Bundle.open(args.bundle, verify=False)
    print(json.dumps(bundle_data(bundle), indent=1) if args.json else show_bundle(bundle, layout=args.layout))
    return 0


def _configure_sign(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("bundle", type=Path, metavar="BUNDLE")
    add("--key", type=Path, required=True, metavar="FILE", help="the private key, as `covey keys new` makes it")


def _run_sign(args: argparse.Namespace) -> int:
    from covey_shared.bundle import Bundle
    from covey_shared.bundle_signature import sign_folder
    from covey_shared.keyfile import read_key

    key = read_key(args.key)
    bundle = Bundle.open(args.bundle)  # with every byte checked: nobody should sign what is damaged
    sign_folder(bundle.folder, key)
    print(f"{bundle.folder} ({bundle.digest[:12]}) is signed by {key.public.text}")
    print(f"Devices insist on it with: covey join URL --data PATH --bundle-key {key.public.text}")
    return 0


BUNDLE = Group("look at a bundle, check, sign, train or use it", "covey.bundle")
SHOW = Command(SHOW_HELP, _configure_show, _run_show, "edge,onnx")
SIGN = Command(SIGN_HELP, _configure_sign, _run_sign, "edge,onnx")
