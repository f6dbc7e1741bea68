"""Fewer passes over activations: sums inside products, and gradients of activations in their shortest form."""

from typing import Any

import torch

from covey_export.graph import Graph
from covey_export.passes import Node, before, calls, calls_to, replace

aten = torch.ops.aten


def add_in_product(graph: Graph) -> None:
    """x W^T + (x A^T) B^T with the sum in the second product: `addmm`, which all runtimes but ExecuTorch have whole."""
    for node in calls(graph):
        if node.target is not aten.add.Tensor or node.kwargs or not _same_shape(node):
            continue
        free = [i for i in (1, 0) if _free_product(node.args[i])]
        if not free:
            continue
        one = min(free, key=lambda i: _through_reshapes(node.args[i])[0].args[0].meta["val"].shape[1])  # LoRA's
        product, rest = _through_reshapes(node.args[one])[0], node.args[1 - one]
        shape = list(product.meta["val"].shape)
        if _through_reshapes(rest)[0].meta["val"].shape == product.meta["val"].shape:
            rest = _through_reshapes(rest)[0]
        else:
            rest = before(node, aten.reshape.default, (rest, shape))
        total = before(node, aten.addmm.default, (rest, *product.args))
        replace(node, aten.reshape.default, (total, list(node.meta["val"].shape)))


def _same_shape(node: Node) -> bool:
    return all(hasattr(x, "meta") and x.meta["val"].shape == node.meta["val"].shape for x in node.args[:2])


def _through_reshapes(x: Any) -> tuple[Node, list[Node]]:
    passed = []
    while calls_to(x, aten.reshape.default):
        passed.append(x)
        x = x.args[0]
    return x, passed


def _free_product(x: Any) -> bool:
    """Whether x is a product, perhaps in another shape, that only this sum sees."""
    product, shapes = _through_reshapes(x)
    return calls_to(product, aten.mm.default) and all(len(n.users) == 1 for n in (product, *shapes))


def short_silu(graph: Graph) -> None:
    """The derivative of y = x sigmoid(x) as s + y (1 - s), where autograd computes s (1 + x (1 - s)).

    Both s and y are there from the forward pass.
    """
    for node in calls(graph):
        if node.target is not aten.mul.Tensor or not calls_to(node.args[0], aten.sigmoid.default):
            continue
        s, plus = node.args
        if not (calls_to(plus, aten.add.Scalar) and plus.args[1] == 1 and calls_to(plus.args[0], aten.mul.Tensor)):
            continue
        x, rest = plus.args[0].args
        if s.args[0] is not x or not _is_one_minus(rest, s):
            continue
        y = next((u for u in x.users if u.target is aten.mul.Tensor and set(u.args) == {x, s}), None)
        if y is not None:
            gate = before(node, aten.mul.Tensor, (y, rest))
            replace(node, aten.add.Tensor, (s, gate))


def _is_one_minus(node: Any, s: Node) -> bool:
    if not calls_to(node, aten.sub.Tensor) or node.args[1] is not s:
        return False
    one = node.args[0]
    return one == 1 or (calls_to(one, aten.full.default) and one.args[1] == 1)


def small_full(graph: Graph) -> None:
    """A tensor of one number as that number's scalar, where it is broadcast anyway."""
    for node in calls(graph):
        if node.target is not aten.full.default or not node.args[0]:
            continue
        for user in list(node.users):
            others = [x for x in user.all_input_nodes if x is not node]
            if user.target in (aten.sub.Tensor, aten.add.Tensor, aten.mul.Tensor, aten.div.Tensor) and any(
                x.meta["val"].shape == user.meta["val"].shape and x.meta["val"].dtype == user.meta["val"].dtype
                for x in others
            ):
                user.replace_input_with(node, before(node, aten.full.default, ([], node.args[1]), dict(node.kwargs)))
