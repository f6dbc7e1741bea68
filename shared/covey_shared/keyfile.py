"""Key files: a private key that only its owner may read, and public keys as text on a command line or in a file.

A private key is PKCS 8 in PEM, mode 0600; one that others may read is refused, since nobody can tell who did. Beside it
lies `FILE.pub`: the public key's text on one line, which is what other people get.
"""

import contextlib
import os
import stat
from pathlib import Path

from covey_shared.errors import SignatureError, UsageError
from covey_shared.keys import PrivateKey, PublicKey

MAX_FILE = 4096  # bytes: either kind of key file is far smaller
PUBLIC = ".pub"


def write_key(path: Path, key: PrivateKey) -> Path:
    """Write both halves; returns the public half's file. What is there already is never replaced."""
    public = path.with_name(path.name + PUBLIC)
    for each in (path, public):
        if each.exists() or each.is_symlink():
            raise UsageError(f"{each} exists; a key is never replaced: choose another file")
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_new(path, key.to_pem(), 0o600)
    _write_new(public, f"{key.public.text}\n".encode(), 0o644)
    return public


def _write_new(path: Path, data: bytes, mode: int) -> None:
    """Write a file that was not there, durably, with its mode from the first instant on."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with open(descriptor, "wb") as out:
        out.write(data)
        out.flush()
        os.fsync(out.fileno())


def read_key(path: Path) -> PrivateKey:
    """The private key in a file; refuses one that group or others may read, and what is no key."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise UsageError(f"{path} can be read by others (mode {mode:04o}): chmod 600 {path}, and think of who read it")
    try:
        return PrivateKey.from_pem(_read(path))
    except UsageError as error:
        raise UsageError(f"{path}: {error}; make one with: covey keys new {path}") from None


def read_public(text: str) -> PublicKey:
    """A public key from its text, `ed25519:...`, or from a file that holds it: a `.pub` file, or a private key's."""
    if text.startswith(("ed25519:", "p256:")):
        return _public(text, "")
    path = Path(text).expanduser()
    if not path.is_file():
        raise UsageError(f"{text!r} is neither a public key (ed25519:...) nor a file with one")
    data = _read(path)
    if b"PRIVATE KEY" in data:
        return read_key(path).public
    with contextlib.suppress(UnicodeDecodeError):
        return _public(data.decode("ascii").strip(), f"{path}: ")
    raise UsageError(f"{path} is not a public key's file")


def _public(text: str, where: str) -> PublicKey:
    try:
        return PublicKey.from_text(text)
    except SignatureError as error:
        raise UsageError(f"{where}{error}") from None


def _read(path: Path) -> bytes:
    with path.open("rb") as stream:
        data = stream.read(MAX_FILE + 1)
    if len(data) > MAX_FILE:
        raise UsageError(f"{path} is too long to be a key's file")
    return data
