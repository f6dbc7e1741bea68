"""Whose bundle a device trains: the signature is checked before any file but the manifest is downloaded.

With `--bundle-key` a device insists on these keys, and keeps them. Without it, it keeps the keys of the first signed
bundle that it sees and insists on them from then on (trust on first use, as ssh has it): whoever takes over the server
later cannot send another bundle, but whoever has it at the first time can. A bundle without a signature is taken as
long as nothing was kept. The keys lie in the state folder, one text a line.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from covey_edge import calls
from covey_edge.events import Events
from covey_edge.state import write_durably
from covey_edge.transport import Transport
from covey_shared.bundle_signature import check_all, require_signer
from covey_shared.errors import BundleError, SignatureError
from covey_shared.keyfile import read_public
from covey_shared.keys import PublicKey

KEPT = "bundle-keys"
ANY = "any"  # what --bundle-key takes to forget the keys that were kept


async def check_signer(
    transport: Transport, manifest: bytes, wanted: Sequence[str], folder: Path, events: Events
) -> None:
    """Refuse a manifest that none of the trusted keys signed, with BundleError; else remember whom to trust."""
    trusted = [read_public(text) for text in wanted if text != ANY]
    path = folder / KEPT
    if ANY in wanted:
        path.unlink(missing_ok=True)
        events.notice("the bundle's signature is not looked at, as --bundle-key any says")
        return
    signatures = await calls.get_signatures(transport)
    if trusted:
        key = require_signer(manifest, signatures, trusted)
        keep(path, trusted)
        events.notice(f"the bundle is signed by {key.text} (fingerprint {key.fingerprint}), as --bundle-key requires")
        return
    kept = read_kept(path)
    if kept:
        try:
            require_signer(manifest, signatures, kept)
        except BundleError as error:
            raise BundleError(
                f"{error}; this device has kept that key since it first saw it: if its owner did change it, join with "
                "--bundle-key and the new key"
            ) from None
        return
    signers = check_all(manifest, signatures)
    if signers:
        keep(path, signers)
        names = ", ".join(f"{k.text} (fingerprint {k.fingerprint})" for k in signers)
        events.notice(
            f"the bundle is signed by {names}, seen for the first time: trusted now and required from here on; with "
            "--bundle-key a device need not trust the first time"
        )


def keep(path: Path, keys: Iterable[PublicKey]) -> None:
    """Remember whom to trust."""
    write_durably(path, "".join(f"{key.text}\n" for key in keys).encode())


def read_kept(path: Path) -> list[PublicKey]:
    """The keys that were kept; a damaged file is an error, not an empty list, since it guards something."""
    if not path.is_file():
        return []
    try:
        keys = [PublicKey.from_text(line) for line in path.read_bytes().decode("ascii").split()]
    except (SignatureError, UnicodeDecodeError) as error:
        keys, cause = [], str(error)
    else:
        cause = "it is empty"
    if not keys:
        raise BundleError(f"{path} is damaged ({cause}): join with --bundle-key and the key to trust")
    return keys
