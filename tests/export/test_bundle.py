"""What lies in an exported bundle, and that it fits PEFT and the wire's layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covey_export.roles import inputs_of
from covey_export.runtimes import open_role
from covey_shared.bundle import Bundle
from covey_shared.errors import BundleError
from tests.helpers_export import export_model, export_tiny

pytestmark = pytest.mark.filterwarnings("ignore")  # torch, peft and onnxruntime run in here


def batch_of(bundle: Bundle) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    ids = rng.integers(4, 60, (bundle.manifest.batch_size, bundle.manifest.seq_len))
    return {"input_ids": ids, "labels": ids.copy()}


def adapter_of(bundle: Bundle) -> Any:
    n = bundle.manifest.layout.size
    return bundle.start(0) + np.float32(0.05) * np.random.default_rng(1).standard_normal(n, np.float32)


def run(bundle: Bundle, target: str, role: str, inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
    wanted = {name: inputs[name] for name in inputs_of(role, inputs)}
    return open_role(target, bundle.folder, bundle.manifest.graphs[target], role)(wanted)


def test_every_file_is_named_and_checked(llama: Bundle) -> None:
    llama.verify()
    on_disk = {p.relative_to(llama.folder).as_posix() for p in llama.folder.rglob("*") if p.is_file()}
    assert on_disk == {*llama.manifest.files, "manifest.json"}


def test_a_device_gets_its_runtime_only(llama: Bundle) -> None:
    common = {"peft/adapter_config.json", "tokenizer/tokenizer.json"}
    assert set(llama.manifest.files_for("executorch")) == {"executorch/model.pte", *common}
    assert set(llama.manifest.files_for("onnx")) == {
        "onnx/train.onnx", "onnx/eval.onnx", "onnx/forward.onnx", "onnx/weights.bin", *common,
    }  # fmt: skip


def test_frozen_weights_are_stored_once(llama: Bundle) -> None:
    base = 4 * llama.manifest.parameters
    for path in ("onnx/weights.bin", "torch/weights.safetensors"):
        assert llama.manifest.files[path].bytes < base + 60_000  # pages and names


def test_layout_is_in_the_models_order_with_a_before_b(llama: Bundle) -> None:
    tensors = llama.manifest.layout.tensors
    assert [t.kind for t in tensors[:4]] == ["lora_A", "lora_B", "lora_A", "lora_B"]
    assert tensors[0].name == "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert tensors[0].module == "model.layers.0.self_attn.q_proj"
    assert {(t.rank, t.scale) for t in tensors} == {(2, 2.0)}
    assert {t.init for t in tensors} == {"kaiming_uniform", "zeros"}
    assert llama.manifest.start == ""


def test_start_has_no_lora_b(llama: Bundle) -> None:
    start = llama.manifest.layout.split(llama.start(7))
    for tensor in llama.manifest.layout.tensors:
        assert np.any(start[tensor.name]) == (tensor.kind == "lora_A")


@pytest.mark.parametrize("target", ["onnx", "executorch", "torch"])
def test_loss_falls_in_fifteen_steps(llama: Bundle, target: str) -> None:
    """Plain gradient descent on one batch, on each runtime, from the seeded start."""
    adapter: Any = llama.start(0)
    batch = batch_of(llama)
    train = open_role(target, llama.folder, llama.manifest.graphs[target], "train")
    losses = []
    for _ in range(15):
        loss, grad = train({"adapter": adapter, **batch})
        losses.append(float(loss))
        adapter = adapter - np.float32(0.5) * grad
    assert losses[-1] < losses[0] - 0.1


def test_what_does_not_run_is_written_in_the_next_way(
    llama_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from covey_export import bundle, targets

    def broken(graphs: Any, folder: Path) -> dict[str, str]:
        paths = targets.writer("onnx")(graphs, folder)
        (folder / paths["train"]).write_bytes(b"no graph")
        return paths

    monkeypatch.setattr(bundle, "writers", lambda name: (broken, targets.writer(name)))
    assert export_model(llama_model, tmp_path / "b").manifest.parity["onnx"].gradient_error <= 1e-5


@pytest.mark.slow
def test_what_xnnpack_refuses_is_written_in_the_next_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here a ViT's convolution without its weights inside, which XNNPACK's exporter takes and its runtime refuses."""
    from covey_export import bundle, targets
    from covey_export.targets.executorch_partition import InOrder

    inside, tried = InOrder._inside, []

    def outside(self: InOrder, *args: Any) -> Any:
        return None if inside(self, *args) is None else []

    def told(way: Any) -> Any:
        def write(*args: Any) -> Any:
            tried.append(way)
            return way(*args)

        return write

    ways = tuple(told(way) for way in targets.writers("executorch"))
    monkeypatch.setattr(InOrder, "_inside", outside)
    monkeypatch.setattr(bundle, "writers", lambda name: ways)
    proven = export_tiny("vit", tmp_path, targets=("executorch",))
    assert len(tried) == 2
    assert proven.manifest.parity["executorch"].gradient_error <= 1e-5


def test_runtimes_agree(llama: Bundle) -> None:
    inputs = {"adapter": adapter_of(llama), **batch_of(llama)}
    results = [run(llama, target, "train", inputs) for target in ("onnx", "executorch", "torch")]
    for loss, grad in results[1:]:
        assert np.allclose(loss, results[0][0], rtol=1e-5)
        assert np.linalg.norm(grad - results[0][1]) <= 1e-5 * np.linalg.norm(grad)


def test_eval_counts_what_has_a_label(llama: Bundle) -> None:
    inputs = {"adapter": adapter_of(llama), **batch_of(llama)}
    inputs["labels"][0, :4] = -100
    total, tokens, correct = run(llama, "onnx", "eval", inputs)
    loss, _ = run(llama, "onnx", "train", inputs)
    assert tokens == 2 * 7 - 3  # the first label of a row has nothing before it to be predicted from
    assert 0 <= correct <= tokens
    assert np.isclose(total / tokens, loss, rtol=1e-5)


@pytest.mark.parametrize("target", ["onnx", "executorch", "torch"])
def test_a_batch_without_labels_does_no_harm(llama: Bundle, target: str) -> None:
    inputs = {"adapter": adapter_of(llama), **batch_of(llama)}
    inputs["labels"][:] = -100
    loss, grad = run(llama, target, "train", inputs)
    assert loss == 0
    assert not grad.any()


def test_padding_changes_nothing_for_a_classifier(bert: Bundle) -> None:
    ids = batch_of(bert)["input_ids"]
    ids[:, 5:] = bert.manifest.text.pad_id
    logits = run(bert, "onnx", "forward", {"adapter": adapter_of(bert), "input_ids": ids})[0]
    assert logits.shape == (2, 3)
    assert np.isfinite(logits).all()


def test_peft_loads_what_is_cut_from_the_vector(llama: Bundle, tmp_path: Path) -> None:
    """Publishing is slicing: the adapter of the proof, saved by names of the layout, in PEFT's own hands."""
    import torch
    from peft import PeftModel
    from safetensors.numpy import save_file
    from transformers import AutoModelForCausalLM

    adapter, batch = adapter_of(llama), batch_of(llama)
    (tmp_path / "adapter_config.json").write_bytes((llama.folder / "peft/adapter_config.json").read_bytes())
    save_file(
        {k: v.copy() for k, v in llama.manifest.layout.split(adapter).items()}, tmp_path / "adapter_model.safetensors"
    )
    base = AutoModelForCausalLM.from_pretrained(llama.folder.parent / "model")
    model = PeftModel.from_pretrained(base, tmp_path).eval()
    tensors = {k: torch.from_numpy(v) for k, v in batch.items()}
    with torch.no_grad():
        expected = float(model(**tensors).loss)
    assert np.isclose(run(llama, "onnx", "train", {"adapter": adapter, **batch})[0], expected, rtol=1e-5)


def test_manifest_and_adapter_config_hold_no_path_of_this_machine(llama: Bundle) -> None:
    for path in (*llama.folder.rglob("*.json"), *llama.folder.rglob("*.onnx")):
        assert str(llama.folder.parent.parent).encode() not in path.read_bytes(), path
    config = json.loads((llama.folder / "peft/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == llama.manifest.model == "model"


def test_the_same_export_gives_the_same_bytes(llama: Bundle, llama_model: Path, tmp_path: Path) -> None:
    again = export_model(llama_model, tmp_path / "again")
    for path in ("onnx/train.onnx", "onnx/weights.bin", "peft/adapter_config.json", "tokenizer/tokenizer.json"):
        assert again.manifest.files[path] == llama.manifest.files[path]


def test_a_changed_byte_is_found(llama: Bundle, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(llama.folder, tmp_path / "copy"))
    weights = bytearray((copy / "onnx/weights.bin").read_bytes())
    weights[100] ^= 1
    (copy / "onnx/weights.bin").write_bytes(weights)
    with pytest.raises(BundleError, match=r"onnx/weights\.bin .* has another digest"):
        Bundle.open(copy)
    Bundle.open(copy, target="executorch")
