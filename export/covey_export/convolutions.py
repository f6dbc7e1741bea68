"""Gradients of convolutions and of pooling in operators that inference runtimes have.

They have no `convolution_backward`. The gradient of the input is a transposed convolution with the same weight; that of
the weight is a convolution of the input with the output's gradient, batch and channels changing places and stride and
dilation too (Dumoulin and Visin 2016, https://arxiv.org/abs/1603.07285, section 4, has the arithmetic).
"""

import math
from collections.abc import Callable
from typing import Any

import torch

from covey_export.graph import Graph
from covey_export.passes import Node, before, calls, replace

aten = torch.ops.aten


def expand_convolutions(graph: Graph) -> Graph:
    """Rewrite the graph in place, and return it."""
    for node in calls(graph):
        if node.target is aten.convolution_backward.default and not node.args[7]:  # of a transposed one: left as it is
            _expand_backward(node)
        elif node.target is aten.max_pool2d_with_indices_backward.default:
            _expand_pool(node)
    graph.module.graph.eliminate_dead_code()
    graph.module.recompile()
    return graph


def _expand_backward(node: Node) -> None:
    """Each of the three results for itself; some are not asked for."""
    parts: tuple[Callable[..., Node], ...] = (_input_gradient, _weight_gradient, _bias_gradient)
    for user in list(node.users):
        user.replace_all_uses_with(parts[user.args[1]](user, *node.args[:3], *node.args[4:7], node.args[9]))
        node.graph.erase_node(user)
    node.graph.erase_node(node)


Sizes = list[int]


def _input_gradient(
    at: Node, grad: Node, x: Node, weight: Node, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Node:
    """[B, in, *size] as the transposed convolution; what the stride left over of the size is output padding."""
    left = [
        s - ((o - 1) * st - 2 * p + d * (k - 1) + 1)
        for s, o, st, p, d, k in zip(_size(x), _size(grad), stride, padding, dilation, _size(weight), strict=True)
    ]
    return before(at, aten.convolution.default, (grad, weight, None, stride, padding, dilation, True, left, groups))


def _weight_gradient(
    at: Node, grad: Node, x: Node, weight: Node, stride: Sizes, padding: Sizes, dilation: Sizes, groups: int
) -> Node:
    """[out, in / groups, *kernel]."""
    none = [0] * len(stride)
    if groups == 1:
        swap = [1, 0, *range(2, 2 + len(stride))]
        images, kernels = (before(at, aten.permute.default, (v, swap)) for v in (x, grad))
        product = before(
            at, aten.convolution.default, (images, kernels, None, dilation, padding, stride, False, none, 1)
        )
        return _cropped(at, before(at, aten.permute.default, (product, swap)), weight)
    images, kernels = _by_group(at, grad, x, groups)
    product = before(
        at, aten.convolution.default,
        (images, kernels, None, dilation, padding, stride, False, none, _shape(images)[1]),
    )  # fmt: skip
    tail = _size(product)
    each = before(at, aten.reshape.default, (product, [_shape(x)[0], math.prod(_shape(weight)[:2]), *tail]))
    summed = before(at, aten.sum.dim_IntList, (each, [0]))
    return _cropped(at, before(at, aten.reshape.default, (summed, [*_shape(weight)[:2], *tail])), weight)


def _by_group(at: Node, grad: Node, x: Node, groups: int) -> tuple[Node, Node]:
    """Each pair of an input and an output channel of one group as a channel: [1, B n, *size], and its kernels."""
    batch, inner = _shape(x)[:2]
    inner, outer = inner // groups, _shape(grad)[1] // groups
    out = []
    for value, split in ((x, [1, inner]), (grad, [outer, 1])):
        apart = before(at, aten.reshape.default, (value, [batch, groups, *split, *_size(value)]))
        out.append(before(at, aten.expand.default, (apart, [batch, groups, outer, inner, *_size(value)])))
    pairs = batch * groups * outer * inner
    images = before(at, aten.reshape.default, (out[0], [1, pairs, *_size(x)]))
    return images, before(at, aten.reshape.default, (out[1], [pairs, 1, *_size(grad)]))


def _cropped(at: Node, value: Node, weight: Node) -> Node:
    """Without the taps that a stride's remainder adds."""
    for dim, size in enumerate(_size(weight), 2):
        if _shape(value)[dim] > size:
            value = before(at, aten.slice.Tensor, (value, dim, 0, size))
    return value


def _bias_gradient(at: Node, grad: Node, *_: Any) -> Node:
    return before(at, aten.sum.dim_IntList, (grad, [d for d in range(len(_shape(grad))) if d != 1]))


def _expand_pool(node: Node) -> None:
    """Each output's gradient goes to where its maximum was, by the positions that the forward pass kept."""
    grad, x, indices = node.args[0], node.args[1], node.args[7]
    shape = _shape(x)
    planes = [*shape[:-2], math.prod(shape[-2:])]
    zeros = before(node, aten.full.default, (planes, 0.0), {"dtype": x.meta["val"].dtype})
    flat = [before(node, aten.reshape.default, (n, [*shape[:-2], -1])) for n in (indices, grad)]
    spread = before(node, aten.scatter_add.default, (zeros, len(planes) - 1, *flat))
    replace(node, aten.reshape.default, (spread, shape))


def _shape(node: Any) -> Sizes:
    return [int(d) for d in node.meta["val"].shape]


def _size(node: Any) -> Sizes:
    """The dimensions behind batch and channels."""
    return _shape(node)[2:]
