"""`covey enroll` and `covey admin`: codes, devices and tokens of a run, beside its server or without one.

They write to the run's database, which a running server reads for each request, so what they do holds at once. Secrets
go to standard output, once, and nowhere else.
"""

import argparse
import getpass
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

from covey_shared.cli import Command, Group
from covey_shared.errors import UsageError

P = ParamSpec("P")
T = TypeVar("T")
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
WHERE = "the task file, or the run's folder (default: the only run in this folder)"


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", nargs="?", type=Path, metavar="RUN", help=WHERE)


def _configure_codes(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    add = parser.add_argument
    add("--count", type=int, default=1, metavar="N", help="how many codes, one for each device (default 1)")
    add("--ttl", default="24h", metavar="TIME", help="how long they are good: 90m, 24h, 7d (default 24h)")
    add("--name", default="", help="what the device will be called, whatever it asks for (with one code)")
    add("--label", default="", help="who hands them out; [defence] issuer_share bounds what a label weighs")
    add("--plain", action="store_true", help="print nothing but the codes, one a line")


def _configure_revoke(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="a device's name, or the first digits of an unused code's hash")
    _add_run(parser)


def _configure_token(parser: argparse.ArgumentParser) -> None:
    _add_run(parser)
    add = parser.add_argument
    add("--role", required=True, choices=("viewer", "operator", "publisher"), help="what its bearer may do")
    add("--label", required=True, help="whose it is, for `covey admin list` and `covey admin drop`")
    add("--ttl", default="90d", metavar="TIME", help="how long it is good: 8h, 30d (default 90d)")


def _configure_drop(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("label", metavar="LABEL", help="of the token to end")
    _add_run(parser)


def new_codes(args: argparse.Namespace) -> int:
    """`covey enroll new`."""
    from covey_server import access, store

    ttl_s = seconds(args.ttl)
    access.check_codes(args.count, ttl_s, args.name, args.label)
    now = time.time()
    said = access.codes_said(args.count, ttl_s, args.name, args.label)
    work = _audited(access.add_codes, "make codes", said)
    codes = _change(args.run, work, args.count, ttl_s, args.name, now, args.label, make=True)
    if args.plain:
        print(*codes, sep="\n")
        return 0
    url = _change(args.run, store.get_meta).get("url", "URL")
    print(
        f"{len(codes)} one-time codes, each for one device, good until {_when(now + ttl_s)}. They are shown this once."
    )
    print(*(f"  {code}" for code in codes), sep="\n")
    print("On each device, with a code of its own:")
    print(f"  covey join {url} --data FOLDER --code {codes[0]}")
    print("Address and code in one text, for a QR code or a message:")
    print(f"  {url}#{codes[0]}")
    return 0


def list_devices(args: argparse.Namespace) -> int:
    """`covey enroll list`."""
    from covey_server import access

    now = time.time()
    for device in _change(args.run, access.devices):
        state = f"revoked {_when(device.revoked)}" if device.revoked else "enrolled"
        label = f"  label {device.label}" if device.label else ""
        print(f"device  {device.name}  key {device.fingerprint}{label}  since {_when(device.enrolled)}  {state}")
    for code in _change(args.run, access.codes):
        state = f"used by {code.used_by}" if code.used_by else "unused" if code.expires > now else "expired"
        named = (f"  for {code.name}" if code.name else "") + (f"  label {code.label}" if code.label else "")
        print(f"code    {code.id}{named}  until {_when(code.expires)}  {state}")
    return 0


def revoke(args: argparse.Namespace) -> int:
    """`covey enroll revoke`."""
    from covey_server import access

    known = {device.name for device in _change(args.run, access.devices)}
    if args.name not in known and re.fullmatch("[0-9a-f]{8}", args.name):
        _change(args.run, _audited(access.drop_code, "drop code", args.name), args.name)
        print(f"the code {args.name} is good no more")
        return 0
    _change(args.run, _audited(access.revoke, "revoke device", args.name), args.name, time.time())
    print(f"{args.name} is refused from now on; what it delivered before stays counted")
    return 0


def new_token(args: argparse.Namespace) -> int:
    """`covey admin new`."""
    from covey_server import access

    ttl_s, now = seconds(args.ttl), time.time()
    access.check_label(args.label)
    work = _audited(access.add_token, "make token", f"{args.label}, {args.role}, good for {ttl_s / 3600:g} h")
    print(_change(args.run, work, args.role, args.label, ttl_s, now, make=True))
    return 0


def list_tokens(args: argparse.Namespace) -> int:
    """`covey admin list`."""
    from covey_server import access

    for token in _change(args.run, access.tokens):
        state = "good" if token.expires > time.time() else "expired"
        print(f"{token.label}  {token.role}  until {_when(token.expires)}  {state}")
    return 0


def drop_token(args: argparse.Namespace) -> int:
    """`covey admin drop`."""
    from covey_server import access

    _change(args.run, _audited(access.drop_token, "drop token", args.label), args.label)
    print(f"the token {args.label} is good no more")
    return 0


def show_log(args: argparse.Namespace) -> int:
    """`covey admin log`. Exit code 1 when an entry does not hold."""
    from covey_server import audit

    found = _change(args.run, audit.entries)
    for entry in found:
        print(f"{entry.number:>4}  {_when(entry.time)}  {entry.who}  {entry.did}  {entry.what}".rstrip())
    if (number := audit.broken(found)) is not None:
        print(f"entry {number} was changed, or one before it is missing: somebody has written to the run's database")
        return 1
    if found:
        print(f"every entry holds; the newest is {found[-1].chain}")
    return 0


def seconds(text: str) -> float:
    """A time as people write it.

    >>> seconds("24h"), seconds("90m"), seconds("1.5d")
    (86400.0, 5400.0, 129600.0)
    """
    found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,3})?)([smhd])", text.strip())
    if found is None:
        raise UsageError(f"{text!r} is no time: write a number with s, m, h or d, such as 24h")
    return float(found[1]) * UNITS[found[2]]


def run_folder(given: Path | None) -> Path:
    """The folder of a run, from its task file, from itself, or because there is no other one here."""
    from covey_server.run import default_folder

    if given is None:
        found = [path for path in sorted(Path().glob("*.run")) if (path / "covey.sqlite").exists()]
        if len(found) != 1:
            raise UsageError(f"there are {len(found)} runs in this folder: name the task file or the run's folder")
        return found[0]
    if given.is_dir():
        return given
    if not given.exists():
        raise UsageError(f"there is no task file and no run {given}")
    return default_folder(given)


def _change(given: Path | None, work: Callable[..., T], *args: Any, make: bool = False) -> T:
    """One transaction in a run's database. With `make` the database may be new: codes can come before the server."""
    from covey_server.database import connect
    from covey_server.schema import SCHEMA

    path = run_folder(given) / "covey.sqlite"
    if not path.exists():
        if not make:
            raise UsageError(f"there is no run in {path.parent}: `covey serve` begins one")
        path.parent.mkdir(parents=True, exist_ok=True)
    with closing(connect(path, SCHEMA)) as db:
        db.execute("BEGIN IMMEDIATE")
        result = work(db, *args)
        db.execute("COMMIT")
        return result


def _audited(work: Callable[Concatenate[sqlite3.Connection, P], T], did: str, what: str) -> Callable[..., T]:
    """A change that leaves an entry of who made it: whoever sits here."""
    from covey_server import audit

    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a process without a user's name, as in some containers
        user = "somebody"
    return audit.recorded(work, f"{user} on the server", did, what, time.time())


def _when(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%d %H:%M UTC")


ENROLL = Group("who may take part: one-time codes and enrolled devices", "covey.enroll")
ADMIN = Group("who may operate a server: tokens with roles", "covey.admin")
ENROLL_NEW = Command("make one-time codes for devices", _configure_codes, new_codes, "server")
ENROLL_LIST = Command("show devices and codes", _add_run, list_devices, "server")
ENROLL_REVOKE = Command("refuse a device, or forget an unused code", _configure_revoke, revoke, "server")
ADMIN_NEW = Command("make a token, shown once", _configure_token, new_token, "server")
ADMIN_LIST = Command("show tokens, without what would let anybody use them", _add_run, list_tokens, "server")
ADMIN_LOG = Command("show what operators did, and check that nobody changed it", _add_run, show_log, "server")
ADMIN_DROP = Command("end a token", _configure_drop, drop_token, "server")
