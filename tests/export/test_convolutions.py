"""Gradients of convolutions and pooling, rewritten, against PyTorch's own autograd."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export.experimental import _export_forward_backward

from covey_export.clean import clean
from covey_export.convolutions import expand_convolutions
from covey_export.graph import Graph, _lift

aten = torch.ops.aten
pytestmark = pytest.mark.filterwarnings("ignore")


class Layer(nn.Module):
    """The loss of a layer whose weight is the first input; what the weight multiplies depends on it as well."""

    def __init__(self, shape: tuple[int, ...], **options: Any):
        super().__init__()
        self.shape, self.options = shape, options
        self.target = nn.Parameter(torch.randn(1), requires_grad=False)

    def forward(self, flat: Tensor, x: Tensor) -> Tensor:
        x = x * flat.mean() + self.target
        function = torch.nn.functional.conv1d if len(self.shape) == 3 else torch.nn.functional.conv2d
        bias = flat[: self.shape[0]]
        return (function(x, flat.view(self.shape), bias, **self.options) ** 3).mean()


def expanded(module: nn.Module, *inputs: Tensor) -> Graph:
    """The joint graph, without operators that runtimes lack."""
    inputs[0].requires_grad_()
    program = _export_forward_backward(torch.export.export(module, inputs))
    names = tuple(f"x{i}" for i in range(len(inputs)))
    graph = Graph("any", *_lift(program), tuple(x.detach() for x in inputs), names, ("loss", "grad"))
    return clean(expand_convolutions(graph))


def assert_same_gradient(module: nn.Module, *inputs: Tensor) -> None:
    graph = expanded(module, *inputs)
    found = {n.target for n in graph.module.graph.nodes}
    assert not found & {aten.convolution_backward.default, aten.max_pool2d_with_indices_backward.default}
    loss, gradient = graph.module(*graph.constants.values(), *graph.examples)
    expected = module(*inputs)
    expected.backward()
    torch.testing.assert_close(loss, expected.detach())
    torch.testing.assert_close(gradient, inputs[0].grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((4, 3, 3, 3), {"padding": 1}),
        ((4, 3, 3, 3), {"padding": 1, "stride": 2}),  # 7 x 6 is not a multiple: taps of the remainder are cut off
        ((4, 3, 1, 1), {"stride": 2}),
        ((4, 3, 2, 3), {"stride": (1, 2), "padding": (0, 1), "dilation": (2, 1)}),
        ((6, 1, 3, 3), {"groups": 3, "padding": 1}),
        ((6, 2, 3, 2), {"groups": 3, "stride": 2}),
        ((4, 3, 3), {"padding": 1, "stride": 2}),
        ((4, 1, 4), {"groups": 4, "padding": 3}),
    ],
)
def test_convolution(shape: tuple[int, ...], options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    channels = shape[1] * options.get("groups", 1)
    x = torch.randn(2, channels, *((7, 6) if len(shape) == 4 else (9,)))
    assert_same_gradient(Layer(shape, **options), torch.randn(torch.Size(shape).numel()) * 0.3, x)


@pytest.mark.parametrize("options", [{"kernel_size": 2}, {"kernel_size": 3, "stride": 2, "padding": 1}])
def test_max_pool(options: dict[str, Any]) -> None:
    class Pool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (torch.nn.functional.max_pool2d(x, **options) ** 3).mean()

    torch.manual_seed(0)
    assert_same_gradient(Pool(), torch.randn(2, 3, 7, 6))
