"""A base in 8 or 4 bits: what rounding costs, that graphs hold codes, and that no runtime unfolds them for good."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor

from covey_export.passes import calls
from covey_export.quantise import (
    DEQUANTISE,
    Codes,
    dequantise,
    digest,
    hold_codes,
    multiply_out,
    quantise,
    quantise_base,
    scale_activations,
)
from covey_shared.bundle import Bundle
from covey_shared.errors import UsageError
from tests.export.test_passes import X, traced
from tests.helpers_export import export_model, export_tiny, save_model

pytestmark = pytest.mark.filterwarnings("ignore")  # torch, peft and onnxruntime run in here
TARGETS = ("onnx", "executorch", "torch")


def weight(out: int = 6, width: int = 64) -> Tensor:
    return torch.randn(out, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("bits", "group", "worst"), [(8, 0, 1 / 127), (8, 32, 1 / 127), (4, 32, 1 / 7), (4, 0, 1 / 7)])
def test_rounding_is_within_a_step(bits: int, group: int, worst: float) -> None:
    w = weight()
    codes, scales = quantise(w, bits, group)
    assert codes.dtype == (torch.int8 if bits == 8 else torch.uint8)
    assert codes.numel() * codes.element_size() == w.numel() * bits // 8
    error = (dequantise(codes, scales, None) - w).abs().amax(1)
    assert bool((error <= worst * w.abs().amax(1)).all())


def test_smaller_groups_are_closer() -> None:
    w = weight(8, 128) * torch.logspace(-1, 1, 128)
    errors = [(dequantise(*quantise(w, 4, group), None) - w).square().sum() for group in (16, 32, 64)]
    assert errors == sorted(errors)


@pytest.mark.parametrize(("width", "groups"), [(60, 2), (64, 2), (288, 12)])
def test_a_group_that_does_not_divide_becomes_smaller(width: int, groups: int) -> None:
    assert quantise(weight(4, width), 4, 32)[1].shape == (4, groups)


def test_odd_rows_take_eight_bits() -> None:
    codes, scales = quantise(weight(4, 27), 4, 32)
    assert codes.dtype is torch.int8
    assert scales.shape == (4, 1)


def test_a_row_of_zeros_stays_zero() -> None:
    assert not dequantise(*quantise(torch.zeros(2, 16), 8, 0), None).any()


def rounded(bits: int, group: int, shape: tuple[int, int], transposed: bool = False) -> tuple[Tensor, Codes]:
    codes, scales = quantise(weight(*shape), bits, group)
    value = dequantise(codes, scales, None)
    value = value.T.contiguous() if transposed else value
    return value, Codes(codes, scales, tuple(value.shape), transposed)


@pytest.mark.parametrize("bits", [8, 4])
def test_every_use_multiplies_out_its_own(bits: int) -> None:
    """Forward, backward and looked-up rows from one tensor of codes; in plain operators the same numbers."""
    value, codes = rounded(bits, 0, (4, 8))

    def layer(x: Tensor, ids: Tensor, w: Tensor) -> tuple[Tensor, ...]:
        hidden = x @ w
        return hidden @ w.t(), torch.nn.functional.embedding(ids, w), hidden

    graph = traced(layer, X[0], torch.tensor([3, 0, 2]), weight=value)
    before = graph.module(*graph.constants.values(), *graph.examples)
    assert hold_codes(graph, {digest(value): codes}) == 32
    assert {v.dtype for v in graph.constants.values()} == {codes.codes.dtype, torch.float32}
    uses = [n for n in calls(graph) if n.target is DEQUANTISE]
    assert len(uses) == 3
    assert sum(n.args[2] is not None for n in uses) == 1  # the first product waits for nothing but inputs
    for rewrite in (lambda g: None, scale_activations, multiply_out):
        rewrite(graph)
        graph.module.graph.eliminate_dead_code()
        graph.module.recompile()
        for a, b in zip(graph.module(*graph.constants.values(), *graph.examples), before, strict=True):
            torch.testing.assert_close(a, b)
    assert all("covey" not in str(n.target) for n in calls(graph))


def test_a_transposed_weight() -> None:
    value, codes = rounded(8, 0, (5, 4), transposed=True)
    graph = traced(lambda x, w: x @ w, X, weight=value)
    before = graph.module(*graph.constants.values(), *graph.examples)
    assert hold_codes(graph, {digest(value): codes}) == 20
    torch.testing.assert_close(graph.module(*graph.constants.values(), *graph.examples), before)


def test_what_trains_and_norms_are_not_rounded() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 4))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("2"))
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert len(quantise_base(model, 8, 0)) == 1
    changed = [name for name, p in model.named_parameters() if not torch.equal(p, before[name])]
    assert changed == ["0.weight"]


@pytest.fixture(scope="module")
def int4(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Tied embeddings: rows looked up, and the output's product in chunks, from the same codes."""
    settings = {"hidden_size": 64, "intermediate_size": 96, "vocab_size": 400, "tie_word_embeddings": True}
    model = save_model("llama", tmp_path_factory.mktemp("q") / "model", **settings)
    return export_model(model, model.parent / "bundle", base="int4", targets=TARGETS)


def test_int4_on_all_runtimes(int4: Bundle) -> None:
    """The export itself holds each runtime to 1e-5 of PyTorch with the same rounded weights."""
    manifest = int4.manifest
    assert set(manifest.parity) == set(TARGETS)
    assert manifest.precision == "int4"
    record = manifest.quantisation
    assert record is not None
    assert (record.bits, record.group, record.measured_on) == (4, 32, "batch")
    assert 0.95 * manifest.parameters < record.parameters < manifest.parameters
    assert 0 < abs(record.loss_difference) < 0.2
    assert Bundle.open(int4.folder).manifest.quantisation == record
    for path in ("onnx/weights.bin", "executorch/model.pte", "torch/weights.safetensors"):
        assert manifest.files[path].bytes < 4 * manifest.parameters * (0.35 if "onnx" in path else 4), path


@pytest.mark.parametrize("level", ["ORT_ENABLE_BASIC", "ORT_ENABLE_ALL"])
def test_onnx_runtime_keeps_the_codes(int4: Bundle, level: str, tmp_path: Path) -> None:
    """What its optimiser made of the graph holds no weight in float32."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.optimized_model_filepath = str(tmp_path / "seen.onnx")
    onnxruntime.InferenceSession(int4.folder / "onnx/train.onnx", options, providers=["CPUExecutionProvider"])
    graph = onnx.load(tmp_path / "seen.onnx", load_external_data=False).graph
    floats = sum(np.prod(t.dims) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    assert floats < int4.manifest.parameters / 8
    assert sum(n.op_type == "DequantizeLinear" for n in graph.node) > 12


def test_int8_of_transposed_weights_and_a_classifier(tmp_path: Path) -> None:
    gpt2 = export_tiny("gpt2", tmp_path / "gpt2", base="int8", targets=("onnx", "torch"))
    bert = export_tiny("bert", tmp_path / "bert", base="int8", group=32, targets=("onnx", "torch"))
    for bundle, share in ((gpt2, 0.8), (bert, 0.8)):
        assert bundle.manifest.quantisation is not None
        assert bundle.manifest.quantisation.parameters > share * bundle.manifest.parameters


def test_a_sample_is_measured_on(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("a b c d e f g " * 40)
    bundle = export_tiny("llama", tmp_path, base="int8", sample=str(tmp_path / "text.txt"))
    assert bundle.manifest.quantisation is not None
    assert bundle.manifest.quantisation.measured_on == "sample"
    assert bundle.manifest.quantisation.tokens == 2 * 7 * 16
    (tmp_path / "short.txt").write_text("a b")
    with pytest.raises(UsageError, match="too few for one batch of 16"):
        export_model(tmp_path / "model", tmp_path / "b", base="int8", sample=str(tmp_path / "short.txt"))
    with pytest.raises(UsageError, match=r"none\.txt cannot be read: No such file"):
        export_model(tmp_path / "model", tmp_path / "b", base="int8", sample=str(tmp_path / "none.txt"))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"base": "int2"}, "'int2' is no base that covey exports"),
        ({"group": 32}, "--group is 32 with --base float32; it is 32, 64, 128 with int8 or int4"),
        ({"base": "int8", "group": 7}, "--group is 7 with --base int8"),
        ({"sample": "x"}, "--sample is text for --base int8 or int4"),
    ],
)
def test_refusals(changes: dict[str, object], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=sentence):
        export_model(tmp_path, tmp_path / "b", **changes)


DEEP = {"vocab_size": 64, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 8}


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
def test_resident_memory_shows_that_no_runtime_unfolds_the_base(tmp_path: Path, target: str) -> None:
    """What a process gains from before loading to the peak of a step, as the proof measures it.

    The float32 base alone is 134 MB, one layer of it 17 MB, and the activations of a row of 8 tokens are small: a base
    that was unfolded for good would be seen.
    """
    model = save_model("llama", tmp_path / "model", **DEEP)
    grown, unfolded = {}, 0
    for base in ("float32", "int8"):
        bundle = export_model(model, tmp_path / base, base=base, batch_size=1, targets=(target,))
        grown[base], unfolded = bundle.manifest.parity[target].peak_bytes, 4 * bundle.manifest.parameters
    print(f"{target}: a float32 base of {unfolded:,} bytes, grown by {grown}")
    assert grown["float32"] > 0.9 * unfolded
    assert grown["int8"] < 0.75 * unfolded
