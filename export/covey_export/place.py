"""Where a bundle goes: a place that is free, a hidden folder until the bundle is whole, and then its name at once."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from covey_shared.bundle import MANIFEST
from covey_shared.errors import UsageError


def check_place(out: Path, force: bool) -> None:
    """Refuse a place that is taken, and with --force one that holds something other than a bundle."""
    if not out.exists() and not out.is_symlink():
        return
    replaceable = out.is_dir() and not out.is_symlink() and ((out / MANIFEST).is_file() or not any(out.iterdir()))
    if not replaceable:
        raise UsageError(f"{out} exists and is not a bundle; choose another --out")
    if not force:
        raise UsageError(f"{out} exists; choose another --out, or replace it with --force")


@contextlib.contextmanager
def staged(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that is gone afterwards, whatever happened."""
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def put(folder: Path, out: Path) -> None:
    """Give a staged folder its name. An old bundle steps aside first, and goes when the new one stands."""
    _settle(folder)
    aside = folder.with_name(f"{folder.name}.old")
    if out.exists():
        out.rename(aside)
    try:
        folder.rename(out)
    except BaseException:
        if aside.exists():
            aside.rename(out)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _settle(folder: Path) -> None:
    """Ordinary permissions, and every byte on the disk before the folder gets its name."""
    mask = os.umask(0)
    os.umask(mask)
    for path in (folder, *folder.rglob("*")):
        path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
