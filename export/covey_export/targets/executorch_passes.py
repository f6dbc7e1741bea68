"""Rewrites for ExecuTorch, whose operators copy: a permuted view is a pass over memory, and `addmm` is a plain loop."""

from typing import Any

import torch

from covey_export.graph import Graph
from covey_export.passes import Node, add_constant, before, calls, calls_to, duplicate, replace, share_constants
from covey_export.quantise import multiply_out, scale_activations

aten = torch.ops.aten


def suit_executorch(graph: Graph) -> Graph:
    """A copy of the graph with the rewrites of this file; the copy shares the constants."""
    ours = duplicate(graph)
    for rewrite in (
        scale_activations,
        multiply_out,
        linear,
        add_later,
        transpose_the_small,
        products,
        row_sums,
        numbers,
        own_factors,
    ):
        rewrite(ours)
        ours.module.graph.eliminate_dead_code()
    ours.module.graph.lint()
    ours.module.recompile()
    return ours


def linear(graph: Graph) -> None:
    """x @ W^T as `linear`, which takes W as it is stored. A transpose would cost time, and folding it a second W."""
    for node in calls(graph):
        *bias, x, factor = node.args if _is_product(node) else (None, None)
        if (weight := _transposed(factor)) and all(b.meta["val"].ndim == 1 for b in bias):
            replace(node, aten.linear.default, (x, weight, *bias))


def add_later(graph: Graph) -> None:
    """`addmm` as `mm` and `add`."""
    for node in calls(graph):
        if node.target is aten.addmm.default and not node.kwargs:
            product = before(node, aten.mm.default, tuple(node.args[1:3]))
            replace(node, aten.add.Tensor, (product, node.args[0]))


def transpose_the_small(graph: Graph) -> None:
    """A^T @ B with a large A as (B^T @ A)^T: LoRA's gradients, whose other factor has the width of the rank."""
    for node in calls(graph):
        large = _transposed(node.args[0]) if node.target is aten.mm.default else None
        if large is None or _size(node.args[1]) + _size(node) >= _size(large):
            continue
        small = before(node, aten.permute.default, (node.args[1], [1, 0]))
        product = before(node, aten.mm.default, (small, large))
        replace(node, aten.permute.default, (product, [1, 0]))


def products(graph: Graph) -> None:
    """Other products in the two forms that XNNPACK takes with any factors: `linear` for a small one, else `bmm`."""
    for node in calls(graph):
        if node.target is not aten.mm.default:
            continue
        left, right = node.args
        if 4 * _size(right) <= _size(left):
            turned = before(node, aten.permute.default, (right, [1, 0]))
            replace(node, aten.linear.default, (left, turned))
        else:
            pair = [before(node, aten.reshape.default, (x, [1, *x.meta["val"].shape])) for x in (left, right)]
            product = before(node, aten.bmm.default, tuple(pair))
            replace(node, aten.reshape.default, (product, list(node.meta["val"].shape)))


def row_sums(graph: Graph) -> None:
    """Sums and means over the last dimension as products with a row of ones: XNNPACK has no others."""
    for node in calls(graph):
        if node.target not in (aten.sum.dim_IntList, aten.mean.dim) or node.kwargs or len(node.args) < 3:
            continue
        x, dims, keep = node.args
        value = x.meta["val"]
        if not keep or len(dims) != 1 or dims[0] % value.ndim != value.ndim - 1 or value.dtype is not torch.float32:
            continue
        width = value.shape[-1]
        one = 1.0 if node.target is aten.sum.dim_IntList else 1.0 / width
        replace(node, aten.linear.default, (x, add_constant(graph, node, torch.full((1, width), one))))
    share_constants(graph)


def numbers(graph: Graph) -> None:
    """Products with a number, and reciprocals, as the operators that XNNPACK has."""
    for node in calls(graph):
        if node.target is aten.mul.Scalar:
            replace(node, aten.mul.Tensor, node.args)
        elif node.target in (aten.div.Scalar, aten.div.Tensor) and isinstance(node.args[1], int | float):
            replace(node, aten.mul.Tensor, (node.args[0], 1.0 / node.args[1]))


def own_factors(graph: Graph) -> None:
    """Each convolution its own weight and bias: XNNPACK packs them, forward and transposed in different layouts."""
    for node in calls(graph):
        if node.target is not aten.convolution.default:
            continue
        for i, factor in enumerate(node.args[1:3], 1):
            if factor is not None and factor.name in graph.constants and len(factor.users) > 1:
                node.update_arg(i, add_constant(graph, node, graph.constants[factor.name].clone()))


def _is_product(node: Node) -> bool:
    return node.target in (aten.mm.default, aten.addmm.default) and not node.kwargs


def _transposed(x: Any) -> Node | None:
    """The matrix that x is the transpose of."""
    swapped = calls_to(x, aten.permute.default) and [i % len(x.args[1]) for i in x.args[1]] == [1, 0]
    return x.args[0] if swapped else None


def _size(x: Any) -> int:
    return int(x.meta["val"].numel())
