"""Published adapters in PEFT's own format: `v{N}/adapter_model.safetensors` and `adapter_config.json`, and `latest`.

`PeftModel.from_pretrained(base, folder)` loads one. The tensors are slices of the vector that devices hold, so what is
published is bit for bit what was trained. A folder appears whole, by a rename; `latest` is a symbolic link that is
replaced, so a reader sees one version or the next.
"""

import json
import os
import shutil
from pathlib import Path

from covey_server.blobs import sync_folder, write_durably
from covey_server.failpoints import failpoint
from covey_shared.bundle import Bundle
from covey_shared.layout import Layout, Vector
from covey_shared.merged import merged, merged_config
from covey_shared.peft_folder import CONFIG, peft_files


def publish_adapter(
    folder: Path, bundle: Bundle, task: str, version: int, vector: Vector, second: Vector | None = None,
    latest: int | None = None, layout: Layout | None = None,
) -> Path:  # fmt: skip
    """Write one version and point `latest` at it; returns its folder. What is already there is left as it is.

    With a `second` adapter what is written is one adapter that adds what both add. `latest` is the version that a
    publisher has pinned: then that is the one pointed at. `layout` is the vector's, of a rank of the bundle; without it
    the bundle's.
    """
    final = folder / f"v{version}"
    folder.mkdir(parents=True, exist_ok=True)
    if not final.exists():
        _write_folder(folder, final, _files(bundle, task, version, vector, second, layout or bundle.manifest.layout))
    point_latest(folder, version if latest is None else latest)
    return final


def _files(
    bundle: Bundle, task: str, version: int, vector: Vector, second: Vector | None, layout: Layout
) -> dict[str, bytes]:  # fmt: skip
    origin, beside = {"task": task, "version": version}, bundle.manifest.frozen
    if second is None or beside is None:
        return peft_files(bundle, layout, vector, origin)
    whole, both = merged(layout, vector, beside, second)
    files = peft_files(bundle, whole, both, origin)
    if CONFIG in files:
        config = merged_config(json.loads(files[CONFIG]), whole)
        files[CONFIG] = (json.dumps(config, indent=2, sort_keys=True) + "\n").encode()
    return files


def _write_folder(folder: Path, final: Path, files: dict[str, bytes]) -> None:
    temporary = folder / f".{final.name}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        for name, data in files.items():
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
