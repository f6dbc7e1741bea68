"""A frozen base in 8 or 4 bits: codes and scales in place of float32, and one operator that multiplies them out.

Weight-only and symmetric: w = code * scale, with one scale a group of neighbouring inputs (a whole row where there are
no groups). The model itself is rounded first, so that the reference and the graphs compute with the same numbers; the
graphs then hold the codes, and every use of a weight multiplies it out anew, for one layer at a time.

Four bits lie two in a byte, as code + 8: a row's first half in the low bits, its second half in the high ones. So rows
can be taken out whole, and the high codes are never shifted down: their scales are a sixteenth instead.
"""

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from covey_export.graph import Graph
from covey_export.passes import Node, add_constant, before, drop_unused, is_rows, replace, share_constants

aten = torch.ops.aten
LIMIT = {8: 127, 4: 7}  # the largest code
SHRINK = {8: (1.0,), 4: (1.0, 0.95, 0.9, 0.85, 0.8)}  # scales that are tried, of the one that cuts nothing off
LEAST_GROUP = 8
WEIGHTED = (nn.Linear, Conv1D, nn.Embedding, nn.Conv1d, nn.Conv2d)
Digest = bytes


class Codes(NamedTuple):
    """A weight as codes: int8 [out, in] or two to a byte uint8 [out, in / 2], and scales float32 [out, groups].

    `transposed` says that the weight itself is [in, out], as GPT-2 has it; `shape` is the weight's.
    """

    codes: Tensor
    scales: Tensor
    shape: tuple[int, ...]
    transposed: bool

    @property
    def numbers(self) -> int:
        """How many numbers the weight has."""
        return math.prod(self.shape)


@torch.library.custom_op("covey::dequantise", mutates_args=())
def dequantise(codes: Tensor, scales: Tensor, after: Tensor | None) -> Tensor:
    """Float32 [..., in] of codes [..., in] or [..., in / 2] and scales [..., groups].

    `after` is computed first and not used: without it a runtime is free to multiply out all weights at the start.
    """
    grouped = _whole(codes).unflatten(-1, (scales.shape[-1], -1))
    return ((grouped - zeros(codes, scales)) * scales.unsqueeze(-1)).flatten(-2)


@dequantise.register_fake
def _(codes: Tensor, scales: Tensor, after: Tensor | None) -> Tensor:
    width = codes.shape[-1] * (2 if codes.dtype is torch.uint8 else 1)
    return scales.new_empty((*codes.shape[:-1], width))


DEQUANTISE = torch.ops.covey.dequantise.default


def _whole(codes: Tensor) -> Tensor:
    if codes.dtype is torch.int8:
        return codes.to(torch.float32)
    return torch.cat([codes & 15, codes & 240], -1).to(torch.float32)


def zeros(codes: Tensor, scales: Tensor) -> Tensor:
    """What stands for zero in each group, float32 [groups, 1]."""
    groups = scales.shape[-1]
    if codes.dtype is torch.int8:
        return torch.zeros(groups, 1)
    return torch.tensor([8.0, 128.0]).repeat_interleave(groups // 2)[:, None]


def quantise(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """Codes and scales of a float32 matrix [out, in]. `group` 0 is one scale a row.

    Where the group does not divide the row, the next smaller number that does is taken.
    """
    out, width = weight.shape
    if bits == 4 and width % 2:
        bits = 8  # two to a byte do not fit
    part = width // 2 if bits == 4 else width
    size = next((g for g in range(min(group or part, part), LEAST_GROUP - 1, -1) if part % g == 0), part)
    codes, scales = _round(weight.reshape(-1, size), bits)
    codes, scales = codes.reshape(out, width), scales.reshape(out, -1)
    if bits == 8:
        return codes.to(torch.int8), scales
    low, high = (codes + 8).to(torch.uint8).chunk(2, -1)
    scales[:, scales.shape[1] // 2 :] /= 16
    return low | (high << 4), scales


def _round(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes as float32, and for each row the scale with the least squared error."""
    limit = LIMIT[bits]
    whole = (rows.abs().amax(1, keepdim=True) / limit).clamp(min=torch.finfo(torch.float32).tiny * 2**10)
    best = torch.full_like(whole, float("inf"))
    codes, scales = torch.zeros_like(rows), whole.clone()
    for shrink in SHRINK[bits]:
        tried = (rows / (whole * shrink)).round().clamp(-limit, limit)
        error = (tried * whole * shrink - rows).square().sum(1, keepdim=True)
        better = error < best
        codes, scales = torch.where(better, tried, codes), torch.where(better, whole * shrink, scales)
        best = torch.minimum(error, best)
    return codes, scales


def quantise_base(model: nn.Module, bits: int, group: int) -> dict[Digest, Codes]:
    """Round the model's large frozen weights, in place; returns their codes by the digest of what stands there now."""
    found: dict[Digest, Codes] = {}
    with torch.no_grad():
        for module, weight in _frozen_weights(model):
            rows = weight.T if isinstance(module, Conv1D) else weight.flatten(1)
            codes, scales = quantise(rows, bits, group)
            rounded = dequantise(codes, scales, None)
            weight.copy_(rounded.T if isinstance(module, Conv1D) else rounded.view(weight.shape))
            found[digest(weight)] = Codes(codes, scales, tuple(weight.shape), isinstance(module, Conv1D))
    return found


def _frozen_weights(model: nn.Module) -> Iterator[tuple[nn.Module, Tensor]]:
    seen: set[int] = set()  # tied weights are one
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, WEIGHTED) and isinstance(weight, Tensor) and not weight.requires_grad:
            if id(weight) not in seen:
                yield module, weight
            seen.add(id(weight))


def digest(value: Tensor) -> Digest:
    """Of the numbers as they lie in memory."""
    return hashlib.sha256(value.detach().numpy().tobytes()).digest()


Make = Callable[[Node], Node]  # a weight, in float32, right before the node that uses it


def hold_codes(graph: Graph, known: Mapping[Digest, Codes]) -> int:
    """Put codes in the place of the weights that were rounded; returns how many weights' numbers are codes now."""
    numbers = 0
    for node in [n for n in graph.module.graph.nodes if n.op == "placeholder" and n.name in graph.constants]:
        value = graph.constants[node.name]
        quantised = known.get(digest(value)) if value.dtype is torch.float32 and value.ndim > 1 else None
        if quantised is None or quantised.shape != tuple(value.shape):
            continue
        codes, scales = (add_constant(graph, node, x) for x in (quantised.codes, quantised.scales))
        _lower_uses(node, codes, scales, quantised)
        numbers += value.numel()
    graph.module.graph.eliminate_dead_code()
    drop_unused(graph)
    graph.module.recompile()
    return numbers


def _lower_uses(weight: Node, codes: Node, scales: Node, quantised: Codes) -> None:
    """Rows are looked up, and blocks of rows cut out, among the codes; any other use gets the weight in float32."""
    for user in list(weight.users):
        if user.target is aten.embedding.default and not quantised.transposed:
            rows = [before(user, aten.embedding.default, (x, user.args[1])) for x in (codes, scales)]
            replace(user, DEQUANTISE, (*rows, None))
        elif is_rows(user):
            if not quantised.transposed and len(quantised.shape) == 2:
                parts = [before(user, aten.slice.Tensor, (x, *user.args[1:])) for x in (codes, scales)]
                _put(user, _maker(parts[0], parts[1], quantised))
        else:
            _put_into(user, weight, _maker(codes, scales, quantised))


def _maker(codes: Node, scales: Node, quantised: Codes) -> Make:
    def make(user: Node) -> Node:
        others = [n for n in user.all_input_nodes if not _is_constant(n)]
        made = before(user, DEQUANTISE, (codes, scales, others[0] if others else None))
        if quantised.transposed:
            return before(user, aten.permute.default, (made, [1, 0]))
        return made if len(quantised.shape) == 2 else before(user, aten.reshape.default, (made, [*quantised.shape]))

    return make


def _is_constant(node: Node) -> bool:
    """Whether a node only shows a constant in another way, and so computes nothing to wait for."""
    if node.op == "placeholder":
        return True
    views = (aten.permute.default, aten.slice.Tensor, aten.reshape.default)
    return node.target in views and _is_constant(node.args[0])


def _put(view: Node, make: Make) -> None:
    """Give each user of a view of the weight its own."""
    for user in list(view.users):
        _put_into(user, view, make)


def _put_into(user: Node, old: Node, make: Make) -> None:
    """A transpose is made anew for each of its users, since it is a part of the product."""
    if user.target is aten.permute.default:
        order = user.args[1]
        _put(user, lambda later: before(later, aten.permute.default, (make(later), order)))
    else:
        user.replace_input_with(old, make(user))


def multiply_out(graph: Graph) -> None:
    """`dequantise` as ordinary operators, for runtimes that compute graphs as they stand."""
    for node in [n for n in graph.module.graph.nodes if n.target is DEQUANTISE]:
        codes, scales = node.args[:2]
        shape, groups = list(node.meta["val"].shape), scales.meta["val"].shape[-1]
        whole = codes
        if codes.meta["val"].dtype is torch.uint8:
            halves = [before(node, aten.bitwise_and.Scalar, (codes, mask)) for mask in (15, 240)]
            whole = before(node, aten.cat.default, (halves, -1))
        whole = before(node, aten._to_copy.default, (whole,), {"dtype": torch.float32})
        if groups > 1:
            whole = before(node, aten.reshape.default, (whole, [*shape[:-1], groups, shape[-1] // groups]))
            scales = before(node, aten.unsqueeze.default, (scales, -1))
        if codes.meta["val"].dtype is torch.uint8:
            zero = add_constant(graph, node, zeros(codes.meta["val"], node.args[1].meta["val"]))
            whole = before(node, aten.sub.Tensor, (whole, zero))
        whole = before(node, aten.mul.Tensor, (whole, scales))
        replace(node, aten.reshape.default, (whole, shape))
    share_constants(graph)
    graph.module.graph.eliminate_dead_code()
    drop_unused(graph)


def scale_activations(graph: Graph) -> None:
    """x (s W)^T as (x W^T) s, and y (s W) as (y s) W, where s has one number a row: less work than on the weight."""
    for node in [n for n in graph.module.graph.nodes if n.target in (aten.mm.default, aten.addmm.default)]:
        *bias, x, factor = node.args
        if node.kwargs or not isinstance(factor.args, tuple):
            continue
        turned = factor.target is aten.permute.default and list(factor.args[1]) == [1, 0]
        weight = factor.args[0] if turned else factor
        if weight.target is not DEQUANTISE or weight.args[1].meta["val"].shape[-1] != 1:
            continue
        codes = before(node, aten._to_copy.default, (weight.args[0],), {"dtype": torch.float32})
        scales = before(node, aten.reshape.default, (weight.args[1], [-1]))
        if turned:
            product = before(node, aten.mm.default, (x, before(node, aten.permute.default, (codes, [1, 0]))))
            product = before(node, aten.mul.Tensor, (product, scales))
        else:
            product = before(node, aten.mm.default, (before(node, aten.mul.Tensor, (x, scales)), codes))
        node.replace_all_uses_with(before(node, aten.add.Tensor, (product, bias[0])) if bias else product)


def codes_in(graph: Graph) -> Any:
    """Names of the constants that are codes."""
    uses = [n for n in graph.module.graph.nodes if n.target is DEQUANTISE]
    return {s.name for n in uses for s in n.all_input_nodes if s.op == "placeholder"}
