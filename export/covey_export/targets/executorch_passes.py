"""Rewrites for ExecuTorch, whose operators copy: a permuted view is a pass over memory, and `addmm` is a plain loop."""

from typing import Any

import torch

from covey_export.graph import Graph
from covey_export.passes import Node, before, calls, calls_to, duplicate, replace
from covey_export.quantise import multiply_out, scale_activations

aten = torch.ops.aten


def suit_executorch(graph: Graph) -> Graph:
    """A copy of the graph with the rewrites of this file; the copy shares the constants."""
    ours = duplicate(graph)
    for rewrite in (scale_activations, multiply_out, linear, add_later, transpose_the_small):
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


def _is_product(node: Node) -> bool:
    return node.target in (aten.mm.default, aten.addmm.default) and not node.kwargs


def _transposed(x: Any) -> Node | None:
    """The matrix that x is the transpose of."""
    swapped = calls_to(x, aten.permute.default) and [i % len(x.args[1]) for i in x.args[1]] == [1, 0]
    return x.args[0] if swapped else None


def _size(x: Any) -> int:
    return int(x.meta["val"].numel())
