import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from covey_edge import trainers
from covey_edge.data import Batch, batch_of, build_dataset, evaluation_batches, training_batch
from covey_edge.texts import Document
from covey_edge.tokens import open_tokenizer
from covey_edge.trainers import MODULES, RUNTIMES, choose_runtime, missing_modules, open_trainer
from covey_shared.bundle import Bundle
from covey_shared.errors import BundleError, UsageError
from covey_shared.layout import Vector
from tests.helpers_edge import manifest_of

INSTALLED = [r for r in RUNTIMES if not missing_modules(r)]
TEXT = "The quick brown fox jumps over the lazy dog. " * 30


@pytest.fixture(scope="module")
def batch(lm: Bundle) -> Batch:
    data = build_dataset((Document("d", TEXT),), open_tokenizer(lm.manifest.text, lm.folder), lm.manifest, 0.2)
    return training_batch(data.train, lm.manifest.batch_size, 1, 0)


@pytest.fixture(scope="module")
def adapter(lm: Bundle) -> Vector:
    start = lm.start(3)
    return start + np.float32(0.05) * np.sin(np.arange(len(start))).astype(np.float32)


@pytest.mark.parametrize("runtime", INSTALLED)
def test_the_gradient_is_that_of_the_loss(runtime: str, lm: Bundle, batch: Batch, adapter: Vector) -> None:
    trainer = open_trainer(lm, runtime, threads=1)
    loss, gradient = trainer.loss_and_gradient(adapter, batch)
    lm.manifest.layout.check(gradient)
    direction = gradient / np.float32(np.linalg.norm(gradient))
    ends = [trainer.loss_and_gradient(adapter + np.float32(s * 0.05) * direction, batch)[0] for s in (1, -1)]
    assert (ends[0] - ends[1]) / 0.1 == pytest.approx(float(np.linalg.norm(gradient)), rel=0.02)
    assert loss == pytest.approx(np.log(259), abs=0.5)
    kept = gradient.copy()
    trainer.loss_and_gradient(adapter, training_like(batch))
    np.testing.assert_array_equal(gradient, kept)  # the caller may keep it


def training_like(batch: Batch) -> Batch:
    return Batch(batch.inputs[::-1].copy(), batch.labels[::-1].copy())


@pytest.mark.parametrize("runtime", INSTALLED)
def test_evaluate_and_logits_agree(runtime: str, lm: Bundle, batch: Batch, adapter: Vector) -> None:
    trainer = open_trainer(lm, runtime, threads=1)
    score, logits = trainer.evaluate(adapter, batch), trainer.logits(adapter, batch.inputs)
    assert logits.shape == (4, 32, 259)
    shifted = logits[:, :-1].astype(float)
    log_p = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    there = batch.labels[:, 1:]
    picked = np.take_along_axis(log_p, there[..., None], -1)
    assert score.tokens == there.size
    assert score.loss_sum == pytest.approx(-picked.sum(), rel=1e-5)
    assert score.correct == (log_p.argmax(-1) == there).sum()
    assert trainer.loss_and_gradient(adapter, batch)[0] == pytest.approx(score.loss_sum / score.tokens, rel=1e-5)


@pytest.mark.parametrize("runtime", INSTALLED[1:])
def test_runtimes_agree(runtime: str, lm: Bundle, batch: Batch, adapter: Vector) -> None:
    one, other = (open_trainer(lm, r, threads=1) for r in (INSTALLED[0], runtime))
    ours, theirs = (t.loss_and_gradient(adapter, batch) for t in (one, other))
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert np.linalg.norm(ours[1] - theirs[1]) <= 1e-5 * np.linalg.norm(ours[1])


@pytest.mark.parametrize("runtime", INSTALLED)
def test_ignored_labels_do_not_count(runtime: str, lm: Bundle, batch: Batch, adapter: Vector) -> None:
    """A partial batch is filled up with rows that no sum may see."""
    trainer = open_trainer(lm, runtime, threads=1)
    data = build_dataset((Document("d", TEXT),), open_tokenizer(lm.manifest.text, lm.folder), lm.manifest, 0.2)
    alone = trainer.evaluate(adapter, batch_of(data.heldout, np.array([0]), 4))
    twice = trainer.evaluate(adapter, batch_of(data.heldout, np.array([0, 0]), 4))
    assert (alone.tokens, twice.tokens) == (31, 62)
    assert twice.loss_sum == pytest.approx(2 * alone.loss_sum, rel=1e-6)


@pytest.mark.parametrize("runtime", INSTALLED)
def test_same_call_same_bits(runtime: str, lm: Bundle, batch: Batch, adapter: Vector) -> None:
    results = [open_trainer(lm, runtime, threads=1).loss_and_gradient(adapter, batch) for _ in range(2)]
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_classifier_learns_from_rows(classifier: Bundle) -> None:
    from covey_edge.local import begin, train
    from tests.helpers_edge import LOCAL

    rows = tuple(Document(f"d{i}", f"a very {w} film", w == "good") for i, w in enumerate(["good", "bad"] * 10))
    manifest = classifier.manifest
    data = build_dataset(rows, open_tokenizer(manifest.text, classifier.folder), manifest, 0.35)
    trainer = open_trainer(classifier, "onnx", threads=1)

    def evaluate(adapter: Vector) -> tuple[float, int, int]:
        scores = [trainer.evaluate(adapter, b) for b in evaluation_batches(data.heldout, 4, 0)]
        return sum(s.loss_sum for s in scores), sum(s.tokens for s in scores), sum(s.correct for s in scores)

    start = classifier.start(1)
    config = replace(LOCAL, steps=150, learning_rate=0.03)
    trained = list(train(trainer, data.train, 4, config, 3, begin(start, config)))[-1].adapter
    before, after = evaluate(start), evaluate(trained)
    assert before[1] == after[1] == data.heldout.count == 7
    assert after[0] < before[0] / 2
    assert after[2] == 7


def test_auto_takes_the_lightest_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    every = manifest_of(graphs={"torch": {}, "onnx": {}, "executorch": {}})
    absent: set[str] = set()
    monkeypatch.setattr(trainers, "find_spec", lambda name: None if name in absent else object())
    assert choose_runtime(every, "auto") == "onnx"
    absent.add("onnxruntime")
    assert choose_runtime(every, "auto") == "executorch"
    absent.add("executorch")
    assert choose_runtime(every, "auto") == "torch"
    with pytest.raises(UsageError, match=r"the runtime onnx needs onnxruntime, .*: pip install 'covey\[edge,onnx\]'"):
        choose_runtime(every, "onnx")
    with pytest.raises(UsageError, match=r"the bundle is for onnx, none of which is installed here"):
        choose_runtime(manifest_of(graphs={"onnx": {}}), "auto")
    absent.clear()
    with pytest.raises(BundleError, match="has no graphs for executorch, it has onnx, torch: use --runtime onnx"):
        choose_runtime(manifest_of(graphs={"onnx": {}, "torch": {}}), "executorch")


@pytest.mark.parametrize("runtime", INSTALLED)
def test_choosing_does_not_import(runtime: str) -> None:
    code = (
        "import sys; from covey_edge.trainers import missing_modules; "
        f"assert missing_modules({runtime!r}) == []; assert not set({MODULES[runtime]!r}) & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


DAMAGE = {"onnx": "onnx/train.onnx", "executorch": "executorch/model.pte", "torch": "torch/train.json"}


@pytest.mark.parametrize("runtime", INSTALLED)
def test_a_file_that_is_no_graph(runtime: str, lm: Bundle, batch: Batch, adapter: Vector, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(lm.folder, folder)
    (folder / DAMAGE[runtime]).write_bytes(b"this is no graph at all")
    damaged = Bundle(folder, lm.manifest, lm.digest)
    with pytest.raises(BundleError) as error:
        open_trainer(damaged, runtime, threads=1).loss_and_gradient(adapter, batch)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("runtime", INSTALLED)
def test_a_provider_that_is_not_there(runtime: str, lm: Bundle) -> None:
    with pytest.raises(UsageError):
        open_trainer(lm, runtime, provider="quantum")


@pytest.mark.skipif("torch" not in INSTALLED, reason="needs torch")
def test_a_program_may_not_write_into_its_arguments(lm: Bundle, batch: Batch, adapter: Vector, tmp_path: Path) -> None:
    folder = tmp_path / "b"
    shutil.copytree(lm.folder, folder)
    path = folder / "torch" / "train.json"
    program = json.loads(path.read_text())
    for node in program["nodes"]:
        if node["op"] == "aten.add.Tensor":
            node["op"] = "aten.add_.Tensor"
    path.write_text(json.dumps(program))
    with pytest.raises(BundleError, match="changes its arguments; programs may not"):
        open_trainer(Bundle(folder, lm.manifest, lm.digest), "torch").loss_and_gradient(adapter, batch)


@pytest.mark.parametrize("runtime", INSTALLED)
def test_opening_is_silent(runtime: str, lm: Bundle) -> None:
    code = (
        "import sys; from pathlib import Path; from covey_edge.trainers import open_trainer; "
        "from covey_shared.bundle import Bundle; import numpy as np; b = Bundle.open(Path(sys.argv[1])); "
        "t = open_trainer(b, sys.argv[2], 1); t.logits(b.start(0), np.ones((4, 32), np.int64))"
    )
    command = [sys.executable, "-c", code, str(lm.folder), runtime]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
