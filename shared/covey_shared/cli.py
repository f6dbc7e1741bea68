"""The `covey` command: finds the subcommands that the installed components register, and runs one.

A component offers a `Command` under the entry-point group `covey.commands`. Its module must import without the
component's heavy dependencies; `run` may import them, and a missing one is answered with the extra that brings it.
A `Group` stands for several commands, `covey bundle show` say, which come from an entry-point group of its own: so each
component brings its actions, and one that needs no PyTorch runs without it.
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


class Group(NamedTuple):
    """A command with actions: its one-line help, and the entry-point group that the actions (Commands) come from."""

    help: str
    entry_points: str


EPILOG = """\
The chain, from a base model to a personal one:
  covey export MODEL --out BUNDLE         make a training bundle for phones and boards
  covey plan BUNDLE --data SAMPLE --bytes-per-round 50kB
                                          find rank, codecs and rates: writes a TASK.toml
  covey serve TASK.toml                   run the aggregator
  covey join URL --data FOLDER            train on this device's own data
To try a bundle on a board without a server:
  covey bundle train BUNDLE --data FOLDER --steps 100

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
    return parser, _add_commands(parser, "covey.commands", "command", "")


def _add_commands(parser: argparse.ArgumentParser, group: str, dest: str, prefix: str) -> dict[str, Command]:
    """A subparser for each command of an entry-point group; the commands by name, those of groups as `bundle show`."""
    subparsers = parser.add_subparsers(dest=dest, metavar=dest.upper())
    commands: dict[str, Command] = {}
    for point in sorted(entry_points(group=group), key=lambda p: p.name):
        command: Command | Group = point.load()
        sub = subparsers.add_parser(
            point.name,
            help=command.help,
            description=command.help,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        if isinstance(command, Group):
            commands |= _add_commands(sub, command.entry_points, "action", f"{prefix}{point.name} ")
            sub.set_defaults(parser=sub)
        else:
            command.configure(sub)
            commands[prefix + point.name] = command
    return commands


def main(argv: list[str] | None = None) -> int:
    """Run one subcommand; errors that we raise on purpose become one sentence on stderr and exit code 1."""
    parser, commands = build_parser()
    args = parser.parse_args(argv)
    name = " ".join(filter(None, (args.command, getattr(args, "action", ""))))
    if name not in commands:
        getattr(args, "parser", parser).print_help()
        return 2
    command = commands[name]
    try:
        return command.run(args)
    except CoveyError as error:
        print(f"covey {name}: {error}", file=sys.stderr)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0].startswith("covey_"):
            raise
        print(
            f"covey {name} needs the module {error.name!r}, which is not installed: "
            f"pip install 'covey[{command.extra}]'",
            file=sys.stderr,
        )
    except KeyboardInterrupt:
        print(f"covey {name}: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        print(f"covey {name}: {error.strerror or error}{where}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    from covey_shared import cli  # not this copy of it, whose classes are not the ones that commands are made of

    sys.exit(cli.main())
