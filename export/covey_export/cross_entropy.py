"""The loss of a language model with a frozen output embedding W, without any copy as large as the vocabulary.

Autograd keeps logits, log-softmax and their gradient, [tokens, vocabulary] each, and reads and writes them about ten
times. But the loss is where the forward pass ends, so the gradient of the hidden states x can be had on the way:

    Z = x W^T,  e = exp(Z - max Z),  s = sum e
    loss of a row = max Z + log s - x . W[label],   gradient of x = weight * (e W / s - W[label])

and both sums run over the vocabulary in chunks, as FlashAttention's do (Dao et al., 2022): each chunk has its own
maximum, and the sums are brought to the largest at the end. No chunk of logits or of W outlives its turn.
"""

from typing import Any, NamedTuple

import torch

from covey_export.graph import Graph
from covey_export.passes import Node, before, calls, calls_to

aten = torch.ops.aten
CHUNK = 1 << 22  # numbers in the larger of a chunk's logits and its part of W


class Loss(NamedTuple):
    """The nodes of one cross-entropy: `gathered` holds the labels' log-probabilities, `gradient` the logits'."""

    log_softmax: Node
    x: Node
    weight: Node
    label: Node
    row_weight: Node
    gathered: Node
    gradients: list[Node]


def chunked_loss(graph: Graph) -> None:
    """Rewrite the losses of this form; others stay as they are."""
    for node in calls(graph):
        if node.target is aten._log_softmax.default and (loss := _match(graph, node)):
            _rewrite(loss)


def _match(graph: Graph, node: Node) -> Loss | None:
    product = node.args[0]
    if not calls_to(product, aten.mm.default) or not calls_to(product.args[1], aten.permute.default):
        return None
    weight, users = product.args[1].args[0], list(node.users)
    gathers = [u for u in users if u.target is aten.gather.default]
    exps = [u for u in users if u.target is aten.exp.default]
    if weight.name not in graph.constants or len(users) != 2 or not gathers or not exps or len(product.users) != 1:
        return None
    found = _backward(exps[0], weight)
    return found and Loss(node, product.args[0], weight, gathers[0].args[2], found[0], gathers[0], found[1])


def _backward(exp: Node, weight: Node) -> tuple[Node, list[Node]] | None:
    """The rows' weights and the products with W, of onehot * w - exp(log p) * sum(onehot * w), where onehot is -1."""
    scaled = _only_user(exp, aten.mul.Tensor)
    gradient = _only_user(scaled, aten.sub.Tensor)
    if scaled is None or gradient is None or gradient.args[1] is not scaled or gradient.kwargs:
        return None
    spread, total = gradient.args[0], scaled.args[1]
    scatter: Any = spread.args[0] if calls_to(spread, aten.mul.Tensor) else None
    if not calls_to(scatter, aten.scatter.value) or scatter.args[3] != -1 or not calls_to(total, aten.sum.dim_IntList):
        return None
    ends = list(gradient.users)
    if total.args[0] is not spread or any(u.target is not aten.mm.default or u.args[1] is not weight for u in ends):
        return None
    return spread.args[1], ends


def _only_user(node: Any, target: Any) -> Node | None:
    users = list(node.users) if node is not None else []
    return users[0] if len(users) == 1 and users[0].target is target else None


def _rewrite(loss: Loss) -> None:
    here = loss.log_softmax
    parts = [_chunk(here, loss.x, loss.weight, rows) for rows in _chunks(loss)]
    top, total, pulled = _joined(here, parts)
    label = before(loss.gathered, aten.reshape.default, (loss.label, [-1]))
    target = before(loss.gathered, aten.embedding.default, (loss.weight, label))
    agreement = before(loss.gathered, aten.mul.Tensor, (loss.x, target))
    agreement = before(loss.gathered, aten.sum.dim_IntList, (agreement, [1], True))
    entropy = before(loss.gathered, aten.add.Tensor, (top, before(loss.gathered, aten.log.default, (total,))))
    loss.gathered.replace_all_uses_with(before(loss.gathered, aten.sub.Tensor, (agreement, entropy)))
    for end in loss.gradients:
        mean = before(end, aten.mul.Tensor, (pulled, before(end, aten.reciprocal.default, (total,))))
        away = before(end, aten.sub.Tensor, (mean, target))
        end.replace_all_uses_with(before(end, aten.mul.Tensor, (away, loss.row_weight)))


def _chunks(loss: Loss) -> list[tuple[int, int] | None]:
    """Rows of W for each chunk, or None for all at once."""
    tokens, width = loss.x.meta["val"].shape
    rows = loss.weight.meta["val"].shape[0]
    count = -(-rows * max(tokens, width) // CHUNK)
    size = -(-rows // count)
    size += -size % 64
    return [(a, min(a + size, rows)) for a in range(0, rows, size)] if count > 1 else [None]


def _chunk(here: Node, x: Node, weight: Node, rows: tuple[int, int] | None) -> tuple[Node, Node, Node]:
    """The largest logit, the sum of exponentials and their product with W."""
    part = weight if rows is None else before(here, aten.slice.Tensor, (weight, 0, *rows))
    logits = before(here, aten.mm.default, (x, before(here, aten.permute.default, (part, [1, 0]))))
    top = before(here, aten.amax.default, (logits, [1], True))
    exps = before(here, aten.exp.default, (before(here, aten.sub.Tensor, (logits, top)),))
    total = before(here, aten.sum.dim_IntList, (exps, [1], True))
    return top, total, before(here, aten.mm.default, (exps, part))


def _joined(here: Node, parts: list[tuple[Node, Node, Node]]) -> tuple[Node, Node, Node]:
    """Two chunks become one, and so on: only one product with W waits for the next."""
    top, total, pulled = parts[0]
    for new_top, new_total, new_pulled in parts[1:]:
        highest = before(here, aten.maximum.default, (top, new_top))
        old, new = (
            before(here, aten.exp.default, (before(here, aten.sub.Tensor, (t, highest)),)) for t in (top, new_top)
        )
        total, pulled = (
            before(here, aten.add.Tensor, (
                before(here, aten.mul.Tensor, (a, old)), before(here, aten.mul.Tensor, (b, new))
            ))
            for a, b in ((total, new_total), (pulled, new_pulled))
        )  # fmt: skip
        top = highest
    return top, total, pulled
