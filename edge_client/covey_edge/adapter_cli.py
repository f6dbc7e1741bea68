"""`covey adapter convert` and `covey adapter show`. Imports light."""

import argparse
from pathlib import Path

from covey_shared.cli import Command, Group

CONVERT_HELP = "flat file, PEFT folder and ONNX Runtime adapter file, each into another"
CONVERT_TEXT = """\
Writes an adapter in another form, bit for bit:
  NAME.flat           what a device holds: 72 bytes and an array of float32
  NAME (a folder)     for PeftModel.from_pretrained
  NAME.onnx_adapter   for an application with ONNX Runtime"""


def _configure_convert(parser: argparse.ArgumentParser) -> None:
    parser.description = CONVERT_TEXT
    add = parser.add_argument
    add("source", type=Path, metavar="IN", help="the form is told by the content")
    add("target", type=Path, metavar="OUT", help="the form is told by the name")
    add("--bundle", type=Path, required=True, metavar="BUNDLE", help="the bundle that the adapter is for")
    add("--to", choices=("flat", "peft", "onnx"), help="the form of OUT, whatever its name")


def _run_convert(args: argparse.Namespace) -> int:
    from covey_edge.adapters import form_for, form_of, read_adapter, write_adapter
    from covey_shared.bundle import Bundle

    bundle = Bundle.open(args.bundle, verify=False)
    form = args.to or form_for(args.target)
    adapter = read_adapter(args.source, bundle)
    write_adapter(adapter, args.target, bundle, form)
    print(f"{args.target}: {adapter.layout.size:,} numbers, from {form_of(args.source)} to {form}")
    return 0


def _configure_show(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("adapter", type=Path, metavar="ADAPTER")
    parser.add_argument("--bundle", type=Path, required=True, metavar="BUNDLE", help="the bundle that it is for")


def _run_show(args: argparse.Namespace) -> int:
    from covey_edge.adapters import form_of, read_adapter, show_adapter
    from covey_shared.bundle import Bundle

    bundle = Bundle.open(args.bundle, verify=False)
    print(show_adapter(read_adapter(args.adapter, bundle), form_of(args.adapter), bundle))
    return 0


ADAPTER = Group("an adapter's forms: look at one, convert it", "covey.adapter")
CONVERT = Command(CONVERT_HELP, _configure_convert, _run_convert, "edge,onnx")
SHOW = Command("what an adapter holds, and how far it is from the start", _configure_show, _run_show, "edge,onnx")
