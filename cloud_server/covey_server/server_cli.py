"""`covey server backup` and `covey server restore`. Imports nothing heavy."""

import argparse
from pathlib import Path

from covey_shared.cli import Command, Group
from covey_shared.errors import UsageError

SERVER = Group("work on a server's run: backup and restore", "covey.server")


def configure_backup(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of `covey server backup`."""
    parser.add_argument("destination", type=Path, help="a folder that does not exist yet")
    _add_source(parser)
    _add_without(parser)


def configure_restore(parser: argparse.ArgumentParser) -> None:
    """Fill the parser of `covey server restore`."""
    parser.add_argument("backup", type=Path, help="the folder that covey server backup made")
    parser.add_argument("--data-dir", type=Path, required=True, help="where the run is to be: a folder without one")
    _add_without(parser)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-dir", type=Path, help="the run's folder, as given to covey serve")
    parser.add_argument("--task", type=Path, help="the task file, whose run lies beside it")


def _add_without(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--without-vaults", action="store_true", help="leave out what devices encrypted for themselves")


def backup(args: argparse.Namespace) -> int:
    """Copy a run, whether or not a server works in it."""
    from covey_server.backup import copy_run
    from covey_server.run import default_folder

    if (args.data_dir is None) == (args.task is None):
        raise UsageError("say which run with either --data-dir FOLDER or --task FILE")
    source = args.data_dir or default_folder(args.task)
    copied = copy_run(source, args.destination, vaults=not args.without_vaults)
    vaults = f" and {copied.vaults} vaults" if copied.vaults else ""
    print(
        f"{args.destination}: version {copied.version} and {copied.updates} updates that are not folded yet{vaults}, "
        f"{copied.bytes:,} bytes, every digest checked"
    )
    return 0


def restore(args: argparse.Namespace) -> int:
    """Make a run of a backup."""
    from covey_server.backup import copy_run

    copied = copy_run(args.backup, args.data_dir, vaults=not args.without_vaults)
    print(
        f"{args.data_dir}: version {copied.version} and {copied.updates} updates that are not folded yet; go on with "
        f"covey serve TASK --data-dir {args.data_dir}"
    )
    return 0


BACKUP = Command("copy a run to a folder, also while a server works in it", configure_backup, backup, "server")
RESTORE = Command("make a run of a backup", configure_restore, restore, "server")
