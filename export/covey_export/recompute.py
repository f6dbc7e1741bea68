"""Activations computed twice instead of kept: after Chen et al., "Training deep nets with sublinear memory cost", 2016.

The forward pass is cut wherever a single large tensor passes from what was computed to what is to come: after each
residual sum of a transformer. Those tensors are kept. What the backward pass needs from between two of them is computed
again when the gradient has come that far. The copies start from `kept + 0`, where the 0 is cut from that gradient: so
no runtime can compute them earlier, or find that it has done so before.
"""

import operator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from covey_export.graph import Graph
from covey_export.passes import Node, before

aten = torch.ops.aten
SMALL = 64  # times smaller than the largest tensor
WORTH = 3  # a piece is computed again if that frees so many times what is kept for it


class Piece(NamedTuple):
    """Forward nodes between two kept tensors; `needed` are those that the backward pass uses."""

    start: Node
    nodes: set[Node]
    needed: list[Node]


def recompute(graph: Graph) -> int:
    """Rewrite the training graph; returns how many pieces are computed again."""
    nodes = list(graph.module.graph.nodes)
    place = {n: i for i, n in enumerate(nodes)}
    batch = _of_batch(graph, nodes)
    ordered = _forward([n for n in nodes if n in batch], _ancestors(nodes[-1].args[0][0]))
    forward, large = set(ordered), _large(ordered)
    pieces = _pieces(_cuts(ordered, large), ordered, forward, large)
    done = sum(_again(piece, forward, place) for piece in pieces)
    graph.module.graph.eliminate_dead_code()
    graph.module.graph.lint()
    graph.module.recompile()
    return done


def _ancestors(node: Node) -> set[Node]:
    found, todo = {node}, [node]
    while todo:
        new = set(todo.pop().all_input_nodes) - found
        found |= new
        todo += new
    return found


def _forward(batch: list[Node], for_loss: set[Node]) -> list[Node]:
    """The nodes before the first that is of no use for the loss, where the backward pass begins.

    What an operator gives beside the result that the loss needs, a norm's statistics, belongs to the forward pass too.
    """
    beside = {n for n in batch if n.target is operator.getitem and n.args[0] in for_loss}
    known = for_loss | beside
    end = next((i for i, n in enumerate(batch) if n not in known and n.op == "call_function"), len(batch))
    return batch[:end]


def _of_batch(graph: Graph, nodes: list[Node]) -> set[Node]:
    """Nodes that depend on the batch, and so not on the adapter and constants alone."""
    inputs = [n for n in nodes if n.op == "placeholder" and n.name not in graph.constants]
    adapters = sum(name in ("adapter", "frozen") for name in graph.inputs)
    found = set(inputs[adapters:])
    for node in nodes:
        if node.op == "call_function" and any(s in found for s in node.all_input_nodes):
            found.add(node)
    return found


def _large(forward: list[Node]) -> set[Node]:
    """What is worth a thought: not LoRA's narrow products, nor what all layers use, such as a mask."""
    place = {n: i for i, n in enumerate(forward)}
    least = max((_bytes(n) for n in forward), default=0) / SMALL
    return {
        n for n in forward
        if n.op == "call_function" and _bytes(n) > least and _last(n, place) - place[n] < len(forward) / 2
    }  # fmt: skip


def _last(node: Node, place: dict[Node, int]) -> int:
    """Where the forward pass uses a node for the last time, -1 for nowhere."""
    return max((place[u] for u in node.users if u in place), default=-1)


def _bytes(node: Node) -> int:
    value = node.meta["val"]
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return 0
    return value.numel() * value.element_size()


def _cuts(forward: list[Node], large: set[Node]) -> list[Node]:
    """The tensors that at some point are all that the rest of the forward pass needs of what is large."""
    place = {n: i for i, n in enumerate(forward)}
    last = {n: _last(n, place) for n in large}
    cuts: list[Node] = []
    live: set[Node] = set()
    for i, node in enumerate(forward):
        live = {n for n in live if last[n] > i}
        if node in large and last[node] > i:
            live.add(node)
        if len(live) == 1 and cuts[-1:] != [*live]:
            cuts += live
    return cuts


def _pieces(cuts: list[Node], forward: list[Node], known: set[Node], large: set[Node]) -> list[Piece]:
    """What lies between the cuts, but for the last piece: its gradient comes at once. Small pieces become one."""
    place = {n: i for i, n in enumerate(forward)}
    pieces: list[Piece] = []
    start = 0
    for end in range(1, len(cuts)):
        between = set(forward[place[cuts[start]] + 1 : place[cuts[end]]])
        needed = [n for n in between & large if any(u not in known for u in n.users)]
        if sum(map(_bytes, needed)) >= WORTH * _bytes(cuts[start]):
            pieces.append(Piece(cuts[start], between, needed))
            start = end
    return pieces[:-1]


def _again(piece: Piece, forward: set[Node], place: dict[Node, int]) -> bool:
    """Copy what is needed before its first use in the backward pass, and let the backward pass use the copies.

    Not so where no gradient has arrived by then.
    """
    users = [u for n in piece.needed for u in n.users if u not in forward and u in place]
    first = min(users, key=place.__getitem__)
    gradient = _arriving(users, first, forward, place)
    if gradient is None:
        return False
    copies: dict[Node, Node] = {piece.start: _delayed(first, piece.start, gradient)}
    wanted = sorted(_within(piece), key=place.__getitem__)
    for node in wanted:
        copies[node] = before(
            first, node.target, *torch.fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: copies.get(n, n))
        )
    for node in piece.needed:
        for user in [u for u in node.users if u not in forward and u in place]:
            user.replace_input_with(node, copies[node])
    return True


def _arriving(users: list[Node], first: Node, forward: set[Node], place: dict[Node, int]) -> Node | None:
    """The latest of what the backward pass has computed for these users when the first of them has its turn."""
    sources = set().union(*map(_ancestors, users)) - forward
    early = [s for s in sources if s.op == "call_function" and place.get(s, len(place)) < place[first] and _bytes(s)]
    start = max(place[n] for n in forward)
    return max((s for s in early if place[s] > start), key=place.__getitem__, default=None)


def _within(piece: Piece) -> set[Node]:
    """The nodes of the piece that the needed ones are computed from; small ones that are kept are not asked for."""
    found: set[Node] = set()
    todo: list[Any] = list(piece.needed)
    while todo:
        node = todo.pop()
        if node in found or node not in piece.nodes:
            continue
        found.add(node)
        todo += node.all_input_nodes
    return found


def _delayed(here: Node, kept: Node, gradient: Node) -> Node:
    flat = before(here, aten.reshape.default, (gradient, [-1]))
    number = before(here, aten.slice.Tensor, (flat, 0, 0, 1))
    nothing = before(here, aten.clamp.default, (number, 0.0, 0.0))
    return before(here, aten.add.Tensor, (kept, nothing))
