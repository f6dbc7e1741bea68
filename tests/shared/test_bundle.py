"""A bundle on disk: every byte is checked against the manifest before it is used."""

import dataclasses
import hashlib
from pathlib import Path

import numpy as np
import pytest

from covey_shared.bundle import Bundle, file_digest
from covey_shared.errors import BundleError, LayoutError
from covey_shared.manifest import File
from tests.shared.test_manifest import MANIFEST

CONTENTS = {
    "onnx/train.onnx": b"graph",
    "torch/config.json": b"{}",
    "start.bin": np.array([0.5, -1.25, 3.0], "<f4").tobytes(),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {}
    for name, data in CONTENTS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        files[name] = File(sha256=digest, bytes=len(data), targets=MANIFEST.files[name].targets)
    (tmp_path / "manifest.json").write_bytes(dataclasses.replace(MANIFEST, files=files).to_bytes())
    return tmp_path


def test_open(folder: Path) -> None:
    bundle = Bundle.open(folder)
    assert bundle.digest == file_digest(folder / "manifest.json")
    assert bundle.path("onnx", "train") == folder / "onnx/train.onnx"
    assert bundle.path("torch", "folder") == folder / "torch"
    assert bundle.start(1)[-3:].tolist() == [0.5, -1.25, 3.0]
    with pytest.raises(BundleError, match="not for executorch"):
        bundle.path("executorch", "model")


@pytest.mark.parametrize("name", CONTENTS)
def test_a_changed_a_resized_and_a_missing_file(folder: Path, name: str) -> None:
    good = CONTENTS[name]
    for bad in (good[:-1] + bytes([good[-1] ^ 1]), good + b"\0", good[:-1], b""):
        (folder / name).write_bytes(bad)
        with pytest.raises(BundleError, match=f"{name} in the bundle .* has another digest"):
            Bundle.open(folder)
    (folder / name).unlink()
    with pytest.raises(BundleError, match=f"lacks the file {name}; export or download it again"):
        Bundle.open(folder)
    assert Bundle.open(folder, verify=False)


def test_one_target_needs_only_its_own_files(folder: Path) -> None:
    (folder / "torch/config.json").unlink()
    assert Bundle.open(folder, target="onnx")
    with pytest.raises(BundleError, match=r"lacks the file torch/config\.json"):
        Bundle.open(folder, target="torch")


def test_a_file_that_is_used_must_have_a_digest(folder: Path) -> None:
    manifest = Bundle.open(folder).manifest
    files = {name: file for name, file in manifest.files.items() if name != "onnx/train.onnx"}
    (folder / "manifest.json").write_bytes(dataclasses.replace(manifest, files=files).to_bytes())
    with pytest.raises(BundleError, match=r"needs onnx/train\.onnx but has no digest of it"):
        Bundle.open(folder)
    assert Bundle.open(folder, target="torch")


def test_not_a_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: it has no manifest.json; make one with: covey export"):
        Bundle.open(tmp_path)


def test_a_start_of_the_wrong_length(folder: Path) -> None:
    (folder / "start.bin").write_bytes(bytes(8))
    with pytest.raises(LayoutError, match="the start file has 2 entries, the layout stores 3"):
        Bundle.open(folder, verify=False).start(1)
