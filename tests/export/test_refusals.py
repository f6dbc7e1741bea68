"""What bad input gets: one sentence, and nothing half-written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covey_export import bundle as bundle_module
from covey_export.parity import relative
from covey_export.place import check_place, put, staged
from covey_export.recipe import Recipe
from covey_shared.bundle import Bundle
from covey_shared.errors import UsageError
from tests.helpers_export import export_model, save_model
from tests.helpers_families import CLASSIFIER, IMAGES

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"task": "causal"}, "'causal' is no task that covey exports; did you mean causal-lm?"),
        ({"targets": ("onx",)}, "'onx' is no target that covey exports; did you mean onnx?"),
        ({"targets": ()}, "--targets needs one or more"),
        ({"targets": ("onnx", "onnx")}, "each once"),
        ({"rank": 0}, "--rank is 0; it must be at least 1"),
        ({"alpha": float("nan")}, "--alpha is nan"),
        ({"alpha": -1.0}, "--alpha is -1.0"),
        ({"seq_len": 1}, "--batch is 4 and --seq-len is 1"),
        ({"batch_size": 0}, "--batch is 0"),
        ({"num_labels": 3}, "--num-labels and --labels are for --task sequence-classification or image-classification"),
        ({"labels": ("a", "b")}, "the task is causal-lm"),
        ({"task": CLASSIFIER, "labels": ("a", "a")}, "--labels needs two or more names, each once"),
        ({"task": CLASSIFIER, "labels": ("a", "b"), "num_labels": 3}, "--num-labels is 3, but --labels has 2 names"),
        ({"ranks": (4, 0)}, "--ranks is 0; it must be at least 1"),
        ({"rank_of": (("q_proj", 0),)}, "--rank-of q_proj is 0; it must be at least 1"),
        ({"ranks": (4, 8), "rank_of": (("q", 16),)}, "--rank-of q is more than the largest of --ranks"),
        ({"frozen_rank": -1}, "--frozen-rank is -1"),
        ({"blocks": (0,), "target_modules": ("q_proj",)}, "--block trains whole blocks and no LoRA"),
        ({"blocks": (0,), "frozen_rank": 4}, "are about LoRA, of which this export has none"),
        ({"target_modules": ("none",), "ranks": (4, 8)}, "are about LoRA, of which this export has none"),
        ({"image": (3, 32, 32)}, "--image options are for --task image-classification"),
        ({"task": IMAGES, "image": (2, 32, 32)}, "--image is 2x32x32; it must be 1 or 3 x height x width"),
        ({"task": CLASSIFIER, "num_labels": 1}, "needs at least 2"),
        ({"target_modules": ()}, "--target-modules needs names"),
    ],
)
def test_recipe(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        Recipe(model="m", **wrong)
    assert sentence in str(caught.value)


def refused(model: Path | str, out: Path, sentence: str, **changes: Any) -> None:
    """The export is refused with this sentence, of one line, and leaves its folder as it was."""
    before = sorted(out.parent.iterdir())
    with pytest.raises(UsageError) as caught:
        export_model(model, out, **changes)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(out.parent.iterdir()) == before


def test_no_such_folder(tmp_path: Path) -> None:
    refused("./nowhere", tmp_path / "b", "there is no folder ./nowhere; give a Hugging Face folder, or a hub id")


def test_unreachable_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    refused("nobody/no-such-model", tmp_path / "b", "is neither a folder here nor to be had from the Hugging Face hub")


def test_folder_without_a_model(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path / "b", "is not a Hugging Face model: it has no config.json")


def test_folder_without_weights(llama_model: Path, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_bytes((llama_model / "config.json").read_bytes())
    refused(tmp_path / "m", tmp_path / "b", "cannot be loaded for causal-lm")


def test_encoder_as_a_causal_lm(tmp_path: Path) -> None:
    save_model("bert", tmp_path / "m")
    refused(tmp_path / "m", tmp_path / "b", "is not a whole", task="causal-lm")


def test_half_a_checkpoint(llama_model: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    save_model("llama", tmp_path / "m")
    weights = load_file(tmp_path / "m/model.safetensors")
    weights.pop("model.layers.0.mlp.up_proj.weight")
    save_file(weights, tmp_path / "m/model.safetensors", {"format": "pt"})
    refused(tmp_path / "m", tmp_path / "b", "its weights lack 'model.layers.0.mlp.up_proj.weight'")


def test_target_modules_that_match_nothing(llama_model: Path, tmp_path: Path) -> None:
    refused(llama_model, tmp_path / "b", "it has q_proj", target_modules=("q_prj",))


def test_target_modules_that_take_no_lora(llama_model: Path, tmp_path: Path) -> None:
    refused(llama_model, tmp_path / "b", "takes no LoRA", target_modules=("input_layernorm",))


def test_more_tokens_than_positions(llama_model: Path, tmp_path: Path) -> None:
    refused(llama_model, tmp_path / "b", "has positions for 64 tokens only", seq_len=65)


def test_tokenizer_of_another_model(llama_model: Path, tmp_path: Path) -> None:
    save_model("llama", tmp_path / "m", vocab_size=30)
    refused(tmp_path / "m", tmp_path / "b", "they do not belong together")


def test_full_disk(llama_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    refused(llama_model, tmp_path / "b", "the bundle needs about")


def wrong_writer(change: Callable[[Any], None]) -> Callable[[str], Any]:
    """A writer of ONNX that changes a weight of each graph first."""
    from covey_export.targets import writer

    def pick(name: str) -> Any:
        def write(graphs: Any, folder: Path) -> Any:
            change(graphs["train"])
            return writer(name)(graphs, folder)

        return (write,)

    return pick


def test_a_graph_that_computes_something_else_is_no_bundle(
    llama_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(graph: Any) -> None:
        name = next(n for n in graph.constants if "down_proj" in n)
        graph.constants[name] = graph.constants[name] * 1.001

    monkeypatch.setattr(bundle_module, "writers", wrong_writer(change))
    refused(llama_model, tmp_path / "b", "the onnx graph does not compute what PyTorch does: its ")


def test_a_graph_that_does_not_run_is_no_bundle(
    llama_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(graph: Any) -> None:
        name = next(n for n in graph.constants if "down_proj" in n)
        graph.constants[name] = graph.constants[name][:5].clone()

    monkeypatch.setattr(bundle_module, "writers", wrong_writer(change))
    refused(llama_model, tmp_path / "b", "the onnx runtime cannot run the graph")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_interrupted(error: Any, llama_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise error

    monkeypatch.setattr(bundle_module, "prove", stop)
    with pytest.raises(BaseException, match=r"" if error is KeyboardInterrupt else "No space left"):
        export_model(llama_model, tmp_path / "b")
    assert not list(tmp_path.iterdir())


def test_relative_error() -> None:
    assert relative([1.0, 2.0], [1.0, 2.0]) == 0
    assert relative([3.0, 4.0], [0.0, 4.0]) == 0.75
    assert relative([1.0], [1.0, 2.0]) == float("inf")
    assert not relative([np.nan], [1.0]) <= 1e-5


def test_place_that_is_taken(llama: Bundle, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/a.txt").write_text("mine")
    with pytest.raises(UsageError, match="exists; choose another --out, or replace it with --force"):
        check_place(llama.folder, force=False)
    for force in (False, True):
        with pytest.raises(UsageError, match="exists and is not a bundle"):
            check_place(tmp_path / "notes", force=force)
    check_place(llama.folder, force=True)
    check_place(tmp_path / "free", force=False)
    assert (tmp_path / "notes/a.txt").read_text() == "mine"


def test_a_place_is_taken_whole_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "bundle"
    with staged(out) as folder:
        (folder / "manifest.json").write_text("one")
        put(folder, out)
    with staged(out) as folder:
        (folder / "manifest.json").write_text("two")
        put(folder, out)
    assert (out / "manifest.json").read_text() == "two"
    with staged(out) as folder:
        (folder / "manifest.json").write_text("three")
    assert (out / "manifest.json").read_text() == "two"
    assert [p.name for p in out.parent.iterdir()] == ["bundle"]


def test_adapter_config_is_json_that_peft_reads(bert: Bundle) -> None:
    config = json.loads((bert.folder / "peft/adapter_config.json").read_text())
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["inference_mode"] is True
