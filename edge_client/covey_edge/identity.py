"""The device's key: made here on first use, kept in the state folder for its owner alone, never sent.

The server knows a device by the public half. Whoever has the file `key` is this device; losing it means to enrol again
as another one.
"""

import contextlib
import os
from pathlib import Path

from covey_edge.state import write_durably
from covey_shared.errors import UsageError
from covey_shared.keys import PrivateKey, generate

FILE = "key"


def open_key(folder: Path) -> PrivateKey:
    """The key in a state folder, made if there is none. Refuses one that others may read or that is damaged."""
    path = folder / FILE
    try:
        data, mode = path.read_bytes(), path.stat().st_mode & 0o777
    except FileNotFoundError:
        return _make(path)
    if mode & 0o077:
        raise UsageError(
            f"{path} may be read by others (mode {mode:04o}): chmod 600 {path}, and think of who could have copied it"
        )
    try:
        return PrivateKey.from_pem(data)
    except UsageError:
        raise UsageError(
            f"{path} is damaged, so this device cannot prove who it is: move it away and enrol with a new code"
        ) from None


def _make(path: Path) -> PrivateKey:
    key = generate()
    previous = os.umask(0o177)  # nobody else can read it, not even for an instant
    try:
        write_durably(path, key.to_pem())
    finally:
        os.umask(previous)
    with contextlib.suppress(OSError):
        path.chmod(0o600)
    return key
