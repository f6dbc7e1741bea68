"""Choosing what trains: names and patterns to modules, ranks, whole modules and blocks, and a second adapter."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from covey_edge.data import Batch
from covey_edge.trainers import open_trainer
from covey_edge.trainers.ranked import at_rank
from covey_export.choice import block_names, choose, full_modules
from covey_export.recipe import ALL_CONV, NO_LORA, NORMS, Recipe
from covey_shared.bundle import Bundle
from covey_shared.errors import BundleError, LayoutError, UsageError
from covey_shared.layout import Vector
from covey_shared.peft_folder import peft_files
from tests.helpers_export import export_model, export_tiny, save_model
from tests.helpers_families import CLASSIFIER, IMAGES

pytestmark = pytest.mark.filterwarnings("ignore")


class Toy(nn.Module):
    """A model of names: two layers, norms, a head."""

    base_model_prefix = "body"

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Module()
        self.body.layers = nn.ModuleList(self.layer() for _ in range(2))
        self.body.final = nn.ModuleDict({"up": nn.Conv2d(4, 4, 1)})
        self.body.grouped = nn.Conv2d(4, 4, 1, groups=2)
        self.classifier = nn.Linear(4, 2)

    @staticmethod
    def layer() -> nn.Module:
        mlp = nn.ModuleDict({"up": nn.Linear(4, 4)})
        return nn.ModuleDict({"q_proj": nn.Linear(4, 4), "mlp": mlp, "norm": nn.LayerNorm(4)})


def recipe(**changes: Any) -> Recipe:
    return Recipe(model="m", **{"task": CLASSIFIER, "rank": 8, **changes})


def test_all_linear_by_the_fewest_names() -> None:
    choice = choose(Toy(), recipe(), ())
    assert choice.targets == ["body.layers.0.mlp.up", "body.layers.1.mlp.up", "q_proj"]  # `up` is a convolution's too
    assert choice.full == ("classifier",)
    assert choice.ranks == {}


def test_convolutions_without_groups() -> None:
    assert choose(Toy(), recipe(target_modules=(ALL_CONV,)), ()).targets == ["body.final.up"]


def test_ranks_of_some() -> None:
    some = recipe(target_modules=("q_proj", "up"), rank_of=(("mlp", 2), (r".*layers\.1\.q_proj", 4), ("final", 8)))
    assert choose(Toy(), some, ()).ranks == {
        "body.layers.0.mlp.up": 2, "body.layers.1.mlp.up": 2, "body.layers.1.q_proj": 4
    }  # fmt: skip
    everywhere = recipe(target_modules=("q_proj", "up"), rank_of=(("q_proj", 4),))
    assert choose(Toy(), everywhere, ()).ranks == {"q_proj": 4}
    with pytest.raises(UsageError, match=r"--rank-of 'v_proj' matches none .* body\.layers\.0\.q_proj"):
        choose(Toy(), recipe(rank_of=(("v_proj", 4),)), ())


def test_modules_in_full() -> None:
    model = Toy()
    assert full_modules(model, (NORMS,)) == ["body.layers.0.norm", "body.layers.1.norm"]
    assert full_modules(model, (r".*\.1\.norm",)) == ["body.layers.1.norm"]
    assert choose(model, recipe(train_full=("mlp", "up")), ()).full[:2] == ("body.final.up", "body.layers.0.mlp")
    with pytest.raises(UsageError, match=r"--train-full 'nrm' matches no module of Toy .* it has norm"):
        full_modules(model, ("nrm",))
    with pytest.raises(UsageError, match=r"'\*' is no regular expression"):
        full_modules(model, ("*",))


def test_blocks() -> None:
    assert block_names(Toy(), (0, -1)) == ["body.layers.0", "body.layers.1"]
    with pytest.raises(UsageError, match=r"--block 2: body\.layers has the blocks 0 to 1"):
        block_names(Toy(), (2,))
    with pytest.raises(UsageError, match="Linear has no list of equal blocks"):
        block_names(nn.Linear(2, 2), (0,))


def test_scale_is_one_at_all_ranks() -> None:
    asked = Recipe(model="m", ranks=(16, 4), rank_of=(("q", 2),))
    assert (asked.all_ranks, asked.largest_rank, asked.scaled_alpha, asked.scale) == ((4, 16), 16, 32.0, 2.0)
    assert replace(asked, alpha=4.0).scale == 0.25
    assert Recipe(model="m", blocks=(0,)).all_ranks == ()


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A Llama with most of what there is to choose."""
    return export_tiny(
        "llama", tmp_path_factory.mktemp("rich"), ranks=(4, 1, 2), rank_of=(("up_proj", 2),), train_full=(NORMS,),
        frozen_rank=3,
    )  # fmt: skip


def batch_of(bundle: Bundle) -> Batch:
    ids = np.random.default_rng(0).integers(4, 60, (2, 8))
    return Batch(ids, ids.copy())


def noisy(vector: Vector, spread: float = 0.05) -> Vector:
    return vector + np.float32(spread) * np.random.default_rng(1).standard_normal(vector.size, np.float32)


def peft_model(bundle: Bundle, files: dict[str, bytes], folder: Path) -> Any:
    """The published files in PEFT's own hands, on the model that the bundle was made of."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder.mkdir()
    for name, data in files.items():
        (folder / name).write_bytes(data)
    base = AutoModelForCausalLM.from_pretrained(bundle.folder.parent / "model", attn_implementation="eager")
    return PeftModel.from_pretrained(base, folder, is_trainable=True).eval()


def eager(model: Any, batch: Batch) -> float:
    """PyTorch's loss; its gradients are left in the model."""
    import torch

    loss = model(input_ids=torch.from_numpy(batch.inputs), labels=torch.from_numpy(batch.labels)).loss
    loss.backward()
    return float(loss)


def test_the_manifest_says_what_trains(rich: Bundle) -> None:
    manifest = rich.manifest
    assert (manifest.rank, manifest.ranks, manifest.alpha) == (4, (1, 2, 4), 8.0)
    kinds = {t.kind for t in manifest.layout.tensors}
    assert kinds == {"lora_A", "lora_B", "norm"}
    ranks = {t.module.rpartition(".")[2]: t.rank for t in manifest.layout.tensors if t.kind == "lora_A"}
    assert ranks["up_proj"] == 2
    assert ranks["q_proj"] == 4
    assert {t.scale for t in manifest.layout.tensors if t.rank} == {2.0}
    assert manifest.frozen is not None
    assert {t.name for t in manifest.frozen.tensors} == {t.name for t in manifest.layout.tensors if t.rank}
    assert {(t.rank, t.scale, t.init) for t in manifest.frozen.tensors} == {(3, 1.0, "zeros")}


@pytest.mark.parametrize("rank", [1, 2, 4])
def test_each_rank_is_a_lora_of_that_rank(rich: Bundle, rank: int, tmp_path: Path) -> None:
    """The wrapped trainer of the largest rank against eager PyTorch with PEFT's own LoRA of the lower one."""
    sub = rich.manifest.layout.at_rank(rank)
    adapter, batch = noisy(rich.start(5, rank)), batch_of(rich)
    trainer = at_rank(open_trainer(rich, "onnx", threads=1), rich.manifest, rank)
    loss, gradient = trainer.loss_and_gradient(adapter, batch)
    model = peft_model(rich, peft_files(rich, sub, adapter, {}), tmp_path / "peft")
    assert model.peft_config["default"].r == rank
    assert loss == pytest.approx(eager(model, batch), rel=1e-5)
    wanted = {n.replace(".default", "").replace(".modules_to_save", ""): p.grad for n, p in model.named_parameters()}
    expected = sub.join({t.name: wanted[t.name].numpy() for t in sub.tensors})
    assert np.linalg.norm(gradient - expected) <= 1e-5 * np.linalg.norm(expected)
    score = trainer.evaluate(adapter, batch)
    assert score.loss_sum / score.tokens == pytest.approx(loss, rel=1e-5)
    assert trainer.logits(adapter, batch.inputs).shape == (2, 8, 80)


def test_lower_ranks_start_as_parts_of_one_start(rich: Bundle) -> None:
    layout = rich.manifest.layout
    for rank in (1, 2):
        np.testing.assert_array_equal(rich.start(5, rank), rich.start(5)[layout.positions(layout.at_rank(rank))])
    with pytest.raises(BundleError, match="the bundle has no rank 3, it has 1, 2, 4: export it with --ranks"):
        at_rank(open_trainer(rich, "onnx"), rich.manifest, 3)


def test_the_second_adapter_is_added_and_not_trained(rich: Bundle) -> None:
    """Twice the product B A of the first, at scale 1, is what the first adds at scale 2."""
    layout, frozen, batch = rich.manifest.layout, rich.manifest.frozen, batch_of(rich)
    assert frozen is not None
    trainer, rank = open_trainer(rich, "onnx", threads=1), 2
    first = np.zeros(layout.size, np.float32)
    sub = layout.at_rank(rank)
    first[layout.positions(sub)] = noisy(rich.start(5, rank))
    with_first = trainer.loss_and_gradient(first, batch)[0]
    parts, second = layout.split(first), {}
    for tensor in frozen.tensors:
        value = np.zeros(tensor.shape, np.float32)
        along = slice(rank)
        source = parts[tensor.name]
        if tensor.kind == "lora_A":
            value[along] = source[along]
        else:
            value[:, along] = 2 * source[:, along]
        second[tensor.name] = value
    moved = first.copy()
    for tensor, where in layout.slices():
        if tensor.kind == "lora_B":
            moved[where] = 0
    other = trainer.with_frozen(frozen.join(second))
    loss, gradient = other.loss_and_gradient(moved, batch)
    assert loss == pytest.approx(with_first, rel=1e-5)
    assert loss != pytest.approx(trainer.loss_and_gradient(moved, batch)[0], rel=1e-4)
    layout.check(gradient)
    assert other.run is trainer.run, "both share the loaded graphs"
    with pytest.raises(LayoutError):
        trainer.with_frozen(first)


def test_a_bundle_without_a_second_adapter_takes_none(llama: Bundle) -> None:
    with pytest.raises(BundleError, match="takes no second adapter: export it with --frozen-rank"):
        open_trainer(llama, "onnx").with_frozen(np.zeros(3, np.float32))


def test_a_block_in_full_is_published_under_the_models_own_names(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load
    from transformers import AutoModelForSequenceClassification

    folder = save_model("bert", tmp_path / "model", num_hidden_layers=2)
    bundle = export_model(folder, tmp_path / "bundle", task=CLASSIFIER, blocks=(-1,), num_labels=4)
    manifest = bundle.manifest
    assert {t.kind for t in manifest.layout.tensors} == {"block", "head"}
    assert {t.name.rpartition("layer.1.")[0] for t in manifest.layout.tensors if t.kind == "block"} == {"bert.encoder."}
    assert (manifest.rank, manifest.ranks, manifest.target_modules) == (0, (), ())
    assert "peft/adapter_config.json" not in manifest.files
    vector, ids = noisy(bundle.start(0), 0.01), batch_of(bundle).inputs
    batch = Batch(ids, np.array([0, 3]))
    files = peft_files(bundle, manifest.layout, vector, {"version": 1})
    assert set(files) == {"weights.safetensors", "covey.json"}
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=4, ignore_mismatched_sizes=True)
    found = model.load_state_dict(load(files["weights.safetensors"]), strict=False)
    assert not found.unexpected_keys
    tensors = {"input_ids": torch.from_numpy(ids), "labels": torch.from_numpy(batch.labels)}
    expected = float(model.eval()(**tensors, attention_mask=torch.ones(2, 8)).loss)
    assert open_trainer(bundle, "onnx", threads=1).loss_and_gradient(vector, batch)[0] == pytest.approx(
        expected, rel=1e-5
    )


def test_statistics_of_a_norm_are_published_with_it(tmp_path: Path) -> None:
    """PEFT's loader insists on them, and no device trains them."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForImageClassification

    bundle = export_tiny("resnet", tmp_path)
    assert {t.kind for t in bundle.manifest.layout.tensors} == {"lora_A", "lora_B", "norm", "head"}
    vector = noisy(bundle.start(0), 0.02)
    for name, data in peft_files(bundle, bundle.manifest.layout, vector, {}).items():
        (tmp_path / name).write_bytes(data)
    base = AutoModelForImageClassification.from_pretrained(tmp_path / "model")
    model = PeftModel.from_pretrained(base, tmp_path).eval()
    pixels = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
    with torch.no_grad():
        expected = model(pixel_values=torch.from_numpy(pixels)).logits.numpy()
    seen = open_trainer(bundle, "onnx", threads=1).logits(vector, pixels)
    np.testing.assert_allclose(seen, expected, rtol=1e-4, atol=1e-5)


def test_nothing_to_train_and_unknown_networks(llama_model: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing would train: --target-modules none needs --train-full"):
        export_model(llama_model, tmp_path / "b", target_modules=(NO_LORA,))
    with pytest.raises(
        UsageError, match=r"covey:resnet8, covey:resnet18, for --task image-classification; not covey:vgg"
    ):
        export_model("covey:vgg", tmp_path / "b", task=IMAGES)
    assert not list(tmp_path.iterdir())
