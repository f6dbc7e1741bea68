"""The `covey` command: finds the subcommands that the installed components register, and runs one.

A component offers a `Command` under the entry-point group `covey.commands`. Its module must import without the
component's heavy dependencies; `run` may import them, and a missing one is answered with the extra that brings it.
"""

import argparse
import os
import sys
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import NamedTuple

from covey_shared import __version__
from covey_shared.errors import CoveyError


class Command(NamedTuple):
    """A subcommand: its one-line help, how it fills its parser, what it does, and the extra that it needs."""

    help: str
    configure: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]
    extra: str


EPILOG = """\
The chain, from a base model to a personal one:
  covey export MODEL --out BUNDLE         make a training bundle for phones and boards
  covey serve TASK.toml                   run the aggregator
  covey join URL --data FOLDER            train on this device's own data

`covey COMMAND --help` explains each. `covey demo` runs all of it on this machine.
"""


def build_parser() -> tuple[argparse.ArgumentParser, dict[str, Command]]:
    """The whole parser, and the commands by name."""
    parser = argparse.ArgumentParser(
        prog="covey",
        description="Fine-tune one language model on many devices without their data leaving them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"covey {__version__}")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands: dict[str, Command] = {}
    for point in sorted(entry_points(group="covey.commands"), key=lambda p: p.name):
        command: Command = point.load()
        commands[point.name] = command
        sub = subparsers.add_parser(
            point.name,
            help=command.help,
            description=command.help,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.configure(sub)
    return parser, commands


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; errors that we raise on purpose become one sentence on stderr and exit code 1."""
    parser, commands = build_parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 2
    command = commands[args.command]
    try:
        return command.run(args)
    except CoveyError as error:
        print(f"covey {args.command}: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0].startswith("covey_"):
            raise
        print(
            f"covey {args.command} needs the module {error.name!r}, which is not installed: "
            f"pip install 'covey[{command.extra}]'",
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        print(f"covey {args.command}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"covey {args.command}: {error.strerror or error}{where}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
