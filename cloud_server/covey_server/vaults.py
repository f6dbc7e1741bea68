"""Vaults as files: `DEVICE.ADDRESS` in a folder of the run's, sealed by devices, opaque here. No HTTP in this file."""

import re
from pathlib import Path

from covey_server.blobs import sync_folder, write_durably

FOLDER = "vaults"
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}\.[0-9a-f]{64}")


def vaults_in(folder: Path) -> list[Path]:
    """The vaults in a folder, sorted; none where there is no folder. What a crash left half written is none."""
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name)) if folder.exists() else []


def keep(folder: Path, client: str, address: str, sealed: bytes) -> None:
    """Write a device's vault, in the place of the one that it had."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{client}.{address}"
    write_durably(path, sealed)
    for old in {*find(folder, address), *folder.glob(f"{client}.{'?' * 64}")} - {path}:
        old.unlink(missing_ok=True)
    sync_folder(folder)


def find(folder: Path, address: str) -> list[Path]:
    """The vaults at an address: one, or none."""
    return sorted(folder.glob(f"*.{address}"))


def delete(folder: Path, address: str) -> None:
    """Unlink a vault; one that is not there is no error."""
    for path in find(folder, address):
        path.unlink(missing_ok=True)
    if folder.exists():
        sync_folder(folder)
