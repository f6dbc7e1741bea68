"""Views by strides, as adaptive pooling leaves them, in operators that runtimes have."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from covey_export.graph import Graph
from covey_export.passes import Node, calls, replace

aten = torch.ops.aten


def plain_views(graph: Graph) -> Graph:
    """Rewrite the graph in place, and return it: what takes all entries in their order is a reshape."""
    for node in calls(graph):
        if node.target is aten.as_strided.default and _takes_all(node, node.args[1:], node.args[0]):
            replace(node, aten.reshape.default, (node.args[0], list(node.args[1])))
        elif node.target is aten.as_strided_scatter.default and _takes_all(node, node.args[2:], node.args[0]):
            replace(node, aten.reshape.default, (node.args[1], _shape(node)))
        elif node.target is aten.copy.default and _is_like(node.args[1], node):
            node.replace_all_uses_with(node.args[1])
    graph.module.graph.eliminate_dead_code()
    graph.module.recompile()
    return graph


def _takes_all(node: Node, view: Sequence[Any], base: Node) -> bool:
    """Whether sizes, strides and offset go through every entry of a tensor that lies in order, once and in order."""
    sizes, strides, offset = (*view, None)[:3]
    value = base.meta["val"]
    if offset or math.prod(sizes) != value.numel() or not value.is_contiguous():
        return False
    inner = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    return all(size == 1 or stride == want for size, stride, want in zip(sizes, strides, inner, strict=True))


def _is_like(source: Any, node: Node) -> bool:
    a, b = source.meta["val"], node.meta["val"]
    return bool(a.shape == b.shape and a.dtype == b.dtype)


def _shape(node: Node) -> list[int]:
    return [int(d) for d in node.meta["val"].shape]
