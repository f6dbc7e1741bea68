"""A bundle as text and as data."""

import json
from pathlib import Path

import pytest

from covey_shared import cli
from covey_shared.bundle import Bundle
from covey_shared.bundle_signature import sign_folder
from covey_shared.keys import generate
from covey_shared.layout import Layout, Tensor
from covey_shared.show import group_layout
from tests.helpers_server import make_bundle


def lora(module: str, rank: int, rows: int = 4) -> list[Tensor]:
    name = f"base_model.model.{module}"
    return [
        Tensor(name=f"{name}.lora_A.weight", shape=(rank, 6), kind="lora_A", init="zeros", module=module, rank=rank),
        Tensor(name=f"{name}.lora_B.weight", shape=(rows, rank), kind="lora_B", init="zeros", module=module, rank=rank),
    ]


LAYOUT = Layout(
    (
        *(t for i in range(12) for t in lora(f"model.layers.{i}.q_proj", 2)),
        *lora("model.layers.12.q_proj", 1),
        *(Tensor(name=f"h{i}.norm.weight", shape=(6,), kind="norm", init="stored", module=f"h.{i}.norm2")
          for i in range(2)),
        Tensor(name="head.weight", shape=(3, 6), kind="head", init="stored"),
    )
)  # fmt: skip


def test_what_is_alike_is_one_row() -> None:
    rows = [tuple(group) for group in group_layout(LAYOUT)]
    assert rows == [
        ("lora", "model.layers.*.q_proj", 12, "A 2x6, B 4x2", "2", 240),
        ("lora", "model.layers.12.q_proj", 1, "A 1x6, B 4x1", "1", 10),
        ("norm", "h.*.norm2", 2, "6", "", 12),
        ("head", "head", 1, "3x6", "", 18),
    ]
    assert sum(group.numbers for group in group_layout(LAYOUT)) == LAYOUT.size


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


def test_show(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bundle", "show", str(bundle.folder), "--layout"]) == 0
    text = capsys.readouterr().out
    for expected in (bundle.digest[:12], "onnx/train.onnx", "none (covey bundle sign)", "offset"):
        assert expected in text
    for tensor in bundle.manifest.layout.tensors:
        assert tensor.name in text


def test_show_as_data(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    key = generate()
    sign_folder(bundle.folder, key)
    assert cli.main(["bundle", "show", str(bundle.folder), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["digest"], data["numbers"]) == (bundle.digest, bundle.manifest.layout.size)
    assert (data["signed_by"], data["signature_problem"]) == ([key.public.text], "")
    assert data["manifest"]["layout_digest"] == bundle.manifest.layout.digest
    (bundle.folder / "manifest.sig").write_bytes(b"x\n")
    assert cli.main(["bundle", "show", str(bundle.folder)]) == 0
    assert "signature file is damaged" in capsys.readouterr().out


def test_sign(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keys", "new", str(tmp_path / "k")]) == 0
    assert cli.main(["bundle", "sign", str(bundle.folder), "--key", str(tmp_path / "k")]) == 0
    assert "--bundle-key ed25519:" in capsys.readouterr().out
    (bundle.folder / "onnx/train.onnx").write_bytes(b"changed")
    assert cli.main(["bundle", "sign", str(bundle.folder), "--key", str(tmp_path / "k")]) == 1
    assert "another digest" in capsys.readouterr().err
