"""Published adapters in PEFT's own format: `v{N}/adapter_model.safetensors` and `adapter_config.json`, and `latest`.

`PeftModel.from_pretrained(base, folder)` loads one. The tensors are slices of the vector that devices hold, so what is
published is bit for bit what was trained. A folder appears whole, by a rename; `latest` is a symbolic link that is
replaced, so a reader sees one version or the next.
"""

import json
import os
import shutil
from pathlib import Path

from safetensors.numpy import save

from covey_server.blobs import sync_folder, write_durably
from covey_shared.bundle import Bundle
from covey_shared.errors import BundleError
from covey_shared.layout import Vector, vector_digest

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
BUNDLED_CONFIG = "peft/adapter_config.json"


def peft_config(bundle: Bundle) -> bytes:
    """The bundle's PEFT configuration; raises BundleError when it has none."""
    if BUNDLED_CONFIG not in bundle.manifest.files:
        raise BundleError(
            f"the bundle {bundle.folder} has no {BUNDLED_CONFIG}, which publishing needs; export it again"
        )
    return (bundle.folder / BUNDLED_CONFIG).read_bytes()


def publish_adapter(folder: Path, bundle: Bundle, task: str, version: int, vector: Vector) -> Path:
    """Write one version and point `latest` at it; returns its folder. What is already there is left as it is."""
    final = folder / f"v{version}"
    folder.mkdir(parents=True, exist_ok=True)
    if not final.exists():
        _write_folder(folder, final, bundle, task, version, vector)
    _point(folder, final.name)
    return final


def _write_folder(folder: Path, final: Path, bundle: Bundle, task: str, version: int, vector: Vector) -> None:
    temporary = folder / f".v{version}.{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        write_durably(temporary / WEIGHTS, save(bundle.manifest.layout.split(vector), {"format": "pt"}))
        write_durably(temporary / CONFIG, peft_config(bundle))
        write_durably(temporary / "covey.json", _origin(bundle, task, version, vector))
        sync_folder(temporary)
        temporary.replace(final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync_folder(folder)


def _origin(bundle: Bundle, task: str, version: int, vector: Vector) -> bytes:
    """Where an adapter comes from, for whoever finds the folder."""
    origin = {
        "task": task, "version": version, "digest": vector_digest(vector), "bundle": bundle.digest,
        "model": bundle.manifest.model, "revision": bundle.manifest.revision,
    }  # fmt: skip
    return (json.dumps(origin, indent=1) + "\n").encode()


def _point(folder: Path, name: str) -> None:
    """Replace the link `latest`."""
    link = folder / f".latest.{os.getpid()}"
    link.unlink(missing_ok=True)
    link.symlink_to(name)
    link.replace(folder / "latest")
    sync_folder(folder)
