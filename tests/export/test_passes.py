"""Each rewrite keeps what a graph computes, and does what it is for."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from covey_export import passes
from covey_export.clean import clean
from covey_export.graph import Graph, _lift
from covey_export.targets.executorch_passes import suit_executorch

pytestmark = pytest.mark.filterwarnings("ignore")


class Wrapped(nn.Module):
    def __init__(self, function: Callable[..., Any], weight: Tensor | None = None):
        super().__init__()
        self.function = function
        if weight is not None:
            self.register_buffer("weight", weight)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        extra = (self.weight,) if hasattr(self, "weight") else ()
        out = self.function(*inputs, *extra)
        return out if isinstance(out, tuple) else (out,)


def traced(function: Callable[..., Any], *inputs: Tensor, weight: Tensor | None = None) -> Graph:
    program = torch.export.export(Wrapped(function, weight), inputs).run_decompositions()
    module, constants = _lift(program)
    return Graph("any", module, constants, inputs, tuple(f"x{i}" for i in range(len(inputs))), ("y",))


def kinds(graph: Graph) -> Counter[str]:
    return Counter(n.target.overloadpacket.__name__ for n in passes.calls(graph) if hasattr(n.target, "overloadpacket"))


def rewritten(graph: Graph) -> Graph:
    """The cleaned graph, which still computes the same."""
    before = graph.module(*graph.constants.values(), *graph.examples)
    clean(graph)
    after = graph.module(*graph.constants.values(), *graph.examples)
    for a, b in zip(after, before, strict=True):
        torch.testing.assert_close(a, b)
    return graph


X = torch.linspace(-2, 2, 24).reshape(2, 3, 4)


def test_noops_go() -> None:
    graph = rewritten(traced(lambda x: (x.clone().view(2, 3, 4).expand(2, 3, 4) * 1.0).detach()[:] + 1, X))
    assert kinds(graph) == {"add": 1}


def test_powers_become_products() -> None:
    assert kinds(rewritten(traced(lambda x: x**2 + x**3, X))) == {"mul": 2, "add": 1}


def test_what_depends_on_no_input_is_computed() -> None:
    def rotary(x: Tensor) -> Tensor:
        angle = torch.arange(4.0)[None, :] / 3
        return x * torch.cos(angle) + torch.sin(angle)

    graph = rewritten(traced(rotary, X))
    assert kinds(graph) == {"mul": 1, "add": 1}
    assert len(graph.constants) == 2


def test_a_repeated_constant_is_stored_once() -> None:
    def mask(x: Tensor) -> Tensor:
        return x + torch.full((3, 4), -9.0).triu(1)[None].expand(2, 3, 4)

    (value,) = rewritten(traced(mask, X)).constants.values()
    assert value.shape == (1, 3, 4)


def test_frozen_weights_are_not_transposed_ahead() -> None:
    graph = rewritten(traced(lambda x, w: x @ w.T, X[0], weight=torch.randn(5, 4)))
    assert kinds(graph) == {"permute": 1, "mm": 1}
    assert [tuple(v.shape) for v in graph.constants.values()] == [(5, 4)]


def test_equal_constants_are_one() -> None:
    weight = torch.arange(4.0)
    assert len(rewritten(traced(lambda x, w: x * w + (w + 0.0), X, weight=weight)).constants) == 1


def test_halves_become_a_concatenation() -> None:
    """What autograd makes of the rotary embedding's x[..., :h] and x[..., h:]."""

    def padded(x: Tensor) -> Tensor:
        left = torch.slice_scatter(torch.zeros(2, 3, 8), x, 2, 0, 4)
        return left + torch.slice_scatter(torch.zeros(2, 3, 8), x * 2, 2, 4, 8)

    assert kinds(rewritten(traced(padded, X))) == {"mul": 1, "cat": 1}


def test_quarters_stay() -> None:
    def padded(x: Tensor) -> Tensor:
        left = torch.slice_scatter(torch.zeros(2, 3, 9), x, 2, 0, 4)
        return left + torch.slice_scatter(torch.zeros(2, 3, 9), x * 2, 2, 4, 8)

    assert kinds(rewritten(traced(padded, X)))["slice_scatter"] == 2


def test_small_things_are_repeated_late() -> None:
    def mean_gradient(x: Tensor) -> Tensor:
        return x + (x.sum(-1, keepdim=True).expand(2, 3, 4) / 4)

    assert "expand" not in kinds(rewritten(traced(mean_gradient, X)))


def test_an_expansion_that_gives_the_shape_stays() -> None:
    def both(x: Tensor) -> Tensor:
        column = x.sum(-1, keepdim=True)
        return column.expand(2, 3, 4) * column

    graph = rewritten(traced(both, X))
    assert graph.module(*graph.constants.values(), X)[0].shape == (2, 3, 4)


def test_permutes_meet() -> None:
    assert kinds(rewritten(traced(lambda x: x.permute(2, 0, 1).permute(1, 2, 0) + 1, X))) == {"add": 1}


def test_the_same_thing_is_computed_once() -> None:
    assert kinds(rewritten(traced(lambda x: x.exp() + x.exp(), X))) == {"exp": 1, "add": 1}


def test_executorch_gets_linear_and_small_transposes() -> None:
    def layer(x: Tensor, h: Tensor, weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return x @ weight.T, torch.addmm(torch.ones(5), x, weight.T), x.T @ h

    x, h = torch.randn(16, 4), torch.randn(16, 2)
    graph = clean(traced(layer, x, h, weight=torch.randn(5, 4)))
    ours = suit_executorch(graph)
    found = kinds(ours)
    assert found["linear"] == 2
    assert found["bmm"] == 1
    assert found["mm"] == found["addmm"] == 0
    transposed = [n.args[0].meta["val"].shape for n in passes.calls(ours) if "permute" in str(n.target)]
    assert (16, 4) not in transposed
    before = graph.module(*graph.constants.values(), x, h)
    after = ours.module(*ours.constants.values(), x, h)
    for a, b in zip(after, before, strict=True):
        torch.testing.assert_close(a, b)
