"""Recomputation: the same loss and gradient, from copies that wait for the gradient, with less kept."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from covey_export.clean import clean
from covey_export.graph import Graph, _lift
from covey_export.passes import calls
from covey_export.recompute import recompute
from covey_export.targets.onnx_graph import translate
from covey_export.targets.torch_target import to_program
from covey_shared.program import Program, _last_uses, _values
from tests.helpers_export import export_tiny, recipe_of, run_export, save_model

pytestmark = pytest.mark.filterwarnings("ignore")
LAYERS, WIDTH, INNER = 6, 8, 64


class Residual(torch.nn.Module):
    """x + tanh(x A_i + 1) B, layer after layer, and the mean square at the end; the A_i are the adapter."""

    b: Tensor

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.register_buffer("b", torch.randn(INNER, WIDTH) / 8)

    def forward(self, adapter: Tensor, x: Tensor) -> tuple[Tensor]:
        for a in adapter.split([WIDTH * INNER] * LAYERS):
            x = x + torch.tanh(torch.exp(x @ a.view(WIDTH, INNER) / 8)) @ self.b
        return ((x * x).sum() / x.numel(),)


def joint() -> Graph:
    """Forward and backward of it in one graph."""
    from torch.export import export
    from torch.export.experimental import _export_forward_backward

    examples = (torch.randn(LAYERS * WIDTH * INNER).requires_grad_(), torch.randn(16, WIDTH))
    module, constants = _lift(_export_forward_backward(export(Residual(), examples)))
    given = tuple(e.detach() for e in examples)
    return clean(Graph("train", module, constants, given, ("adapter", "x"), ("loss", "grad")))


def peak(graph: Graph) -> int:
    """Numbers that are alive at most, as the programs of the torch target drop them."""
    program: Program = to_program(graph, {name: name for name in graph.constants})
    sizes = [n.meta["val"].numel() if isinstance(n.meta["val"], Tensor) else 0 for n in calls(graph)]
    first, alive, most = len(program.inputs) + len(program.constants), 0, 0
    used = {v.index for n in program.nodes for v in _values([n.args])} | {v.index for v in program.outputs}
    for i, dead in enumerate(_last_uses(program)):
        alive += sizes[i] if first + i in used else 0
        most = max(most, alive)
        alive -= sum(sizes[d - first] for d in dead if d >= first)
    return most


def test_the_gradient_is_the_same_and_less_is_kept() -> None:
    graph = joint()
    expected, before = graph.module(*graph.constants.values(), *graph.examples), peak(graph)
    assert recompute(graph) == LAYERS - 2
    seen = graph.module(*graph.constants.values(), *graph.examples)
    for a, b in zip(seen, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert peak(graph) < 0.8 * before


def test_copies_wait_for_the_gradient() -> None:
    """Each copied piece starts from something that the backward pass made, so that nothing finds it twice."""
    graph = joint()
    recompute(graph)
    clamps = [n for n in calls(graph) if n.target is torch.ops.aten.clamp.default]
    assert len(clamps) == LAYERS - 2
    assert sum(n.target is torch.ops.aten.tanh.default for n in calls(graph)) >= 2 * LAYERS - 2


def test_onnx_runtime_computes_twice(tmp_path: Path) -> None:
    """Its own search for common parts leaves the copies."""
    import onnx
    import onnxruntime

    graph = joint()
    expected = graph.module(*graph.constants.values(), *graph.examples)[1].numpy()
    recompute(graph)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = f"{tmp_path}/seen.onnx"
    session = onnxruntime.InferenceSession(translate(graph).SerializeToString(), options, ["CPUExecutionProvider"])
    given = {n: x.numpy() for n, x in zip(graph.inputs, graph.examples, strict=True)}
    assert np.allclose(session.run(None, given)[1], expected, rtol=1e-4, atol=1e-6)
    kinds = [n.op_type for n in onnx.load(f"{tmp_path}/seen.onnx").graph.node]
    assert kinds.count("Tanh") >= 2 * LAYERS - 2


@pytest.mark.parametrize("name", ["gpt2", pytest.param("qwen2", marks=pytest.mark.slow)])
def test_whole_models(name: str, tmp_path: Path) -> None:
    """The export holds what was recomputed to 1e-5 of PyTorch."""
    bundle = export_tiny(name, tmp_path, recompute=True, targets=("onnx", "torch"))
    assert bundle.manifest.recompute
    assert set(bundle.manifest.parity) == {"onnx", "torch"}


def test_an_encoder_is_recomputed_too(tmp_path: Path) -> None:
    """Its norms give statistics for the backward pass alone, which are no sign that the forward pass is over."""
    model = save_model("bert", tmp_path / "model", num_hidden_layers=3)
    recipe = recipe_of("bert", model, targets=("torch",), seq_len=16)
    plain, again = (
        (run_export(replace(recipe, recompute=flag), tmp_path / f"{flag}").folder / "torch" / "train.json").read_text()
        for flag in (False, True)
    )
    assert again.count("layer_norm") > plain.count("layer_norm") + 2
