"""Published adapters in PEFT's own format: `v{N}/adapter_model.safetensors` and `adapter_config.json`, and `latest`.

`PeftModel.from_pretrained(base, folder)` loads one. The tensors are slices of the vector that devices hold, so what is
published is bit for bit what was trained. A folder appears whole, by a rename; `latest` is a symbolic link that is
replaced, so a reader sees one version or the next.
"""

import os
import shutil
from pathlib import Path

from covey_server.blobs import sync_folder, write_durably
from covey_server.failpoints import failpoint
from covey_shared.bundle import Bundle
from covey_shared.layout import Vector
from covey_shared.peft_folder import peft_files


def publish_adapter(
    folder: Path, bundle: Bundle, task: str, version: int, vector: Vector, latest: int | None = None
) -> Path:
    """Write one version and point `latest` at it; returns its folder. What is already there is left as it is.

    `latest` is the version that a publisher has pinned: then that is the one pointed at.
    """
    final = folder / f"v{version}"
    folder.mkdir(parents=True, exist_ok=True)
    if not final.exists():
        _write_folder(folder, final, bundle, task, version, vector)
    point_latest(folder, version if latest is None else latest)
    return final


def _write_folder(folder: Path, final: Path, bundle: Bundle, task: str, version: int, vector: Vector) -> None:
    temporary = folder / f".v{version}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        origin = {"task": task, "version": version}
        for name, data in peft_files(bundle, bundle.manifest.layout, vector, origin).items():
            write_durably(temporary / name, data)
        sync_folder(temporary)
        failpoint("adapter-written")
        temporary.replace(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder)


def point_latest(folder: Path, version: int) -> None:
    """Replace the link `latest`."""
    link = folder / f".latest.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(f"v{version}")
    failpoint("adapter-linked")
    link.replace(folder / "latest")
    sync_folder(folder)
