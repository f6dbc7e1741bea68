"""A device's own tensors, backed up in its vault at the server and brought back on a new device."""

from http import HTTPStatus
from pathlib import Path
from typing import NamedTuple

import numpy as np

from covey_edge import calls, vault
from covey_edge.device import Device
from covey_edge.state import Client, vector_of
from covey_edge.transport import Refused, Transport
from covey_shared.errors import RemoteError, UsageError


class Backup(NamedTuple):
    """Where a device's vault is, and what opens it. `name`: of whose tensors they are, the same on the next device."""

    transport: Transport
    task: str
    name: str
    passphrase: str

    @property
    def address(self) -> str:
        """The vault's address at the server."""
        return vault.address(self.passphrase, self.task, self.name)


def read_passphrase(path: Path) -> str:
    """The first line of a file that nobody else should read."""
    try:
        return path.read_text("utf-8").split("\n", 1)[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the passphrase cannot be read from {path}: {error}") from None


async def restore(backup: Backup, device: Device, record: Client) -> bytes:
    """What the record has, else the vault's content; raises RemoteError for a vault that does not fit or open."""
    if record.own:
        return record.own
    try:
        sealed = await calls.get_vault(backup.transport, backup.address, vault.sealed_size(_bytes(device)))
    except Refused as error:
        if error.status == HTTPStatus.NOT_FOUND:
            return b""
        raise
    kept = vault.open_vault(sealed, backup.passphrase, backup.task, backup.name)
    if len(kept.content) != _bytes(device) or not np.isfinite(vector_of(kept.content)).all():
        raise RemoteError(
            f"the vault holds {len(kept.content):,} bytes, this task's own tensors have {_bytes(device):,}"
        )
    return kept.content


async def store(backup: Backup, record: Client) -> None:
    """Put what the record has into the vault, in the place of what was there."""
    if record.own:
        kept = vault.Kept(record.own, record.rounds)
        sealed = vault.seal(kept, backup.passphrase, backup.task, backup.name)
        await calls.put_vault(backup.transport, backup.address, sealed)


def _bytes(device: Device) -> int:
    """Bytes of this device's own tensors."""
    personal = device.share.division.personal(device.share.rank)
    own = device.bundle.manifest.layout.size if device.task.sharing.fusion else personal.size if personal else 0
    return 4 * own
