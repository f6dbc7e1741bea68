"""A bundle's detached signatures: `manifest.sig` beside `manifest.json`, which names every other file by its digest.

Text, one line a signature: the public key's text, a space, and base64 of the signature over `DOMAIN` and the manifest's
bytes. The domain keeps a signature of a manifest from standing for anything else that the same key signs. Several lines
are several signers; a reader who trusts one of them is content.

A manifest is trusted when a key that the reader already has signed it. Nothing in the file says whom to trust.
"""

import base64
import binascii
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from covey_shared.bundle import MANIFEST
from covey_shared.errors import BundleError, SignatureError
from covey_shared.keys import PrivateKey, PublicKey

SIGNATURE = "manifest.sig"
DOMAIN = b"covey bundle manifest v1\0"
MAX_SIGNERS = 16
MAX_BYTES = 4096


class Signed(NamedTuple):
    """One line of the file: who claims to have signed, and the signature, not checked yet."""

    key: PublicKey
    signature: bytes

    def holds(self, manifest: bytes) -> bool:
        """Whether the key's owner signed exactly this manifest."""
        try:
            self.key.verify(DOMAIN + manifest, self.signature)
        except SignatureError:
            return False
        return True


def sign(manifest: bytes, key: PrivateKey) -> Signed:
    """The signature of a manifest's bytes."""
    return Signed(key.public, key.sign(DOMAIN + manifest))


def to_bytes(signatures: Sequence[Signed]) -> bytes:
    """The file."""
    lines = (f"{s.key.text} {base64.b64encode(s.signature).decode()}\n" for s in signatures)
    return "".join(lines).encode("ascii")


def from_bytes(data: bytes) -> tuple[Signed, ...]:
    """The inverse of `to_bytes`; raises BundleError for anything that it does not write."""
    if len(data) > MAX_BYTES:
        raise BundleError(f"the bundle's signature file has more than {MAX_BYTES:,} bytes")
    try:
        lines = data.decode("ascii").split("\n")
        if lines.pop() or not 1 <= len(lines) <= MAX_SIGNERS:
            raise ValueError("it is cut, empty or too long")
        signatures = tuple(_line(line) for line in lines)
    except (ValueError, binascii.Error, SignatureError) as error:
        raise BundleError(f"the bundle's signature file is damaged: {error}") from None
    if to_bytes(signatures) != data or len({s.key for s in signatures}) != len(signatures):
        raise BundleError("the bundle's signature file is damaged: it is not in the one form that covey writes")
    return signatures


def _line(line: str) -> Signed:
    key, space, signature = line.partition(" ")
    if not space:
        raise ValueError("a line is not a key and a signature")
    return Signed(PublicKey.from_text(key), base64.b64decode(signature, validate=True))


def require_signer(manifest: bytes, signatures: bytes, trusted: Iterable[PublicKey]) -> PublicKey:
    """The trusted key that signed the manifest. Raises BundleError, with the next step, when none did.

    `signatures` is the file's content, empty where the bundle has none.
    """
    keys = tuple(trusted)
    names = " or ".join(k.text for k in keys)
    if not signatures:
        raise BundleError(f"the bundle is not signed, and {names} is required: covey bundle sign BUNDLE --key FILE")
    found = from_bytes(signatures)
    claimed = [s for s in found if s.key in keys]
    if not claimed:
        signers = ", ".join(s.key.text for s in found)
        raise BundleError(f"the bundle is signed by {signers}, and {names} is required: ask whoever exported it")
    for signed in claimed:
        if signed.holds(manifest):
            return signed.key
    raise BundleError(
        f"the bundle's signature by {claimed[0].key.text} does not hold: the manifest or the signature was changed "
        "after it was signed, so do not use this bundle"
    )


def check_all(manifest: bytes, signatures: bytes) -> tuple[PublicKey, ...]:
    """The keys of all signatures, for a bundle on one's own disk; raises BundleError when one does not hold."""
    found = from_bytes(signatures) if signatures else ()
    for signed in found:
        if not signed.holds(manifest):
            raise BundleError(
                f"the bundle's signature by {signed.key.text} does not hold: the manifest was changed after it was "
                "signed; export it again, or sign what you trust with: covey bundle sign BUNDLE --key FILE"
            )
    return tuple(s.key for s in found)


def read_signatures(folder: Path) -> bytes:
    """The content of a bundle's signature file, empty where it has none; not checked."""
    path = folder / SIGNATURE
    if not path.is_file():
        return b""
    with path.open("rb") as stream:
        return stream.read(MAX_BYTES + 1)


def sign_folder(folder: Path, key: PrivateKey) -> None:
    """Add a key's signature to a bundle's folder. Those of other keys are kept where they still hold."""
    manifest, data = (folder / MANIFEST).read_bytes(), read_signatures(folder)
    others = [s for s in (from_bytes(data) if data else ()) if s.key != key.public and s.holds(manifest)]
    if len(others) >= MAX_SIGNERS:
        raise BundleError(f"{folder} has {len(others)} signatures already, which is as many as fit: remove {SIGNATURE}")
    beside = folder / f".{SIGNATURE}.new"
    beside.write_bytes(to_bytes([*others, sign(manifest, key)]))
    beside.replace(folder / SIGNATURE)
