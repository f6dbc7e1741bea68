"""Rewrites of the training graph that every runtime gains from. Each keeps the meaning, up to rounding.

They work on core ATen graphs in which each node's `meta["val"]` holds its shape and type, and keep that up.
"""

import hashlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch._subclasses.fake_tensor import FakeTensorMode

from covey_export.graph import Graph

aten = torch.ops.aten
Node = Any  # an fx.Node, whose arguments are typed as one of seventeen things
FOLD_LIMIT = 4 << 20  # bytes: a constant larger than this is computed in the graph
LAYOUT_OPS = (aten.permute.default, aten.reshape.default, aten.expand.default, aten.unsqueeze.default)


def share_constants(graph: Graph) -> None:
    """One placeholder for equal tensors: tied embeddings arrive twice, and norms that training never moved."""
    first: dict[Any, Node] = {}
    for node in _constants(graph):
        value = graph.constants[node.name]
        digest = hashlib.sha256(value.numpy().tobytes()).digest()
        node.replace_all_uses_with(first.setdefault((digest, value.shape, value.dtype), node))


def normalise(graph: Graph) -> None:
    """`view` to `reshape`, which takes any strides; what has no kernel everywhere to what has."""
    for node in calls(graph):
        if node.target in (aten.view.default, aten._unsafe_view.default):
            node.target = aten.reshape.default
        elif node.target is aten.empty_permuted.default:  # only its shape is ever read
            replace(node, aten.full.default, (list(node.args[0]), 0.0), {"dtype": _val(node).dtype})
        elif node.target is aten.scalar_tensor.default:
            replace(node, aten.full.default, ([], node.args[0]), {"dtype": _val(node).dtype})
        elif node.target is aten.full_like.default:
            replace(node, aten.full.default, (list(_val(node).shape), node.args[1]), {"dtype": _val(node).dtype})


def drop_noops(graph: Graph) -> None:
    """Nodes that return their input as it is."""
    for node in calls(graph):
        if str(node.target).startswith("aten._assert"):
            graph.module.graph.erase_node(node)
        elif _is_noop(node):
            node.replace_all_uses_with(node.args[0])


def _is_noop(node: Node) -> bool:
    copies = (aten.alias.default, aten.detach.default, aten.clone.default, aten.lift_fresh_copy.default)
    if node.target in copies:
        return True
    if node.target is aten.slice.Tensor:
        return tuple(_val(node).shape) == tuple(_val(node.args[0]).shape) and len(node.args) < 5
    if node.target in (aten.reshape.default, aten.expand.default, aten._to_copy.default):
        before = _val(node.args[0])
        return _val(node).shape == before.shape and _val(node).dtype == before.dtype
    if node.target is aten.permute.default:
        return list(node.args[1]) == list(range(len(node.args[1])))
    by_one = (aten.mul.Tensor, aten.mul.Scalar, aten.div.Scalar, aten.pow.Tensor_Scalar)
    return node.target in by_one and node.args[1] == 1 and _val(node).dtype == _val(node.args[0]).dtype


def fold_constants(graph: Graph) -> None:
    """Compute what depends on no input: rotary tables, masks, positions. Frozen weights stay as they are.

    A result that merely repeats itself along its first dimensions is stored once, since its users broadcast.
    """
    values: dict[Node, Any] = {n: graph.constants[n.name] for n in _constants(graph)}
    for node in calls(graph):
        sources = node.all_input_nodes
        if not all(s in values for s in sources) or _is_weight_layout(node, values):
            continue
        args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: values[n])
        values[node] = node.target(*args, **kwargs)
    for node in calls(graph):
        value = values.get(node)
        used = any(user not in values for user in node.users)
        filled = node.target is aten.full.default  # one number, however large its shape
        if isinstance(value, Tensor) and used and _bytes(value) <= FOLD_LIMIT and not filled:
            _freeze(graph, node, value)


def _is_weight_layout(node: Node, values: dict[Node, Any]) -> bool:
    """A permuted weight is the same numbers again: the runtimes transpose as they multiply."""
    if node.target is not aten.permute.default:
        return False
    source = node.args[0]
    return source.op == "placeholder" and values[source].ndim == 2


def _freeze(graph: Graph, node: Node, value: Tensor) -> None:
    node.replace_all_uses_with(add_constant(graph, node, _unrepeated(node, value).contiguous().clone()))


def add_constant(graph: Graph, like: Node, value: Tensor) -> Node:
    """A new constant of the graph; `like` is any node of it."""
    name = next(n for i in itertools.count() if (n := f"folded_{i}") not in graph.constants)
    with like.graph.inserting_before(next(iter(like.graph.nodes))):
        placeholder = like.graph.placeholder(name)
    placeholder.meta["val"] = _mode(like).from_tensor(value, static_shapes=True)
    placeholder.target = placeholder.name = name
    constants = {name: value, **graph.constants}
    graph.constants.clear()
    graph.constants.update(constants)
    return placeholder


BROADCASTING = (aten.add.Tensor, aten.mul.Tensor, aten.sub.Tensor, aten.div.Tensor, aten.where.self)


def _unrepeated(node: Node, value: Tensor) -> Tensor:
    if not all(u.target in BROADCASTING and _val(u).ndim == value.ndim for u in node.users):
        return value
    for dim in range(value.ndim):
        once = value.narrow(dim, 0, 1)
        others = [_val(s).shape[dim] for u in node.users for s in u.all_input_nodes if s is not node and _val(s).ndim]
        if (
            value.shape[dim] > 1
            and all(o == value.shape[dim] for o in others)
            and torch.equal(once.expand_as(value), value)
        ):
            value = once
    return value


def powers(graph: Graph) -> None:
    """Small integer powers as products: a general power is slow everywhere."""
    for node in calls(graph):
        if node.target is not aten.pow.Tensor_Scalar or node.args[1] not in (2, 3):
            continue
        x, power = node.args
        if power == 3:
            x = before(node, aten.mul.Tensor, (x, x))
        replace(node, aten.mul.Tensor, (x, node.args[0]))


SCALING = (aten.mul.Scalar, aten.div.Scalar, aten.mul.Tensor, aten.div.Tensor)


def late_expand(graph: Graph) -> None:
    """Work on a small tensor before it is repeated, and repeat nothing that an operator repeats by itself.

    The gradient of a mean is a column, repeated and then divided.
    """
    for node in calls(graph):
        by_number = node.target in SCALING and isinstance(node.args[1], int | float)
        if by_number and calls_to(node.args[0], aten.expand.default):
            small, shape = node.args[0].args[:2]
            replace(node, aten.expand.default, (before(node, node.target, (small, *node.args[1:])), shape))
    for node in calls(graph):
        if node.target is aten.expand.default and all(_broadcasts(user, node) for user in node.users):
            node.replace_all_uses_with(node.args[0])


def _broadcasts(user: Node, repeated: Node) -> bool:
    """Whether the result of `user` would have the same shape without the repetition."""
    if user.target not in BROADCASTING or _val(user).ndim != _val(repeated).ndim:
        return False
    small, shape = _val(repeated.args[0]).shape, _val(user).shape
    others = [_val(s).shape for s in user.all_input_nodes if s is not repeated]
    return bool(others) and torch.broadcast_shapes(small, *others) == shape


def halves(graph: Graph) -> None:
    """The gradient of x[..., :h] and x[..., h:] as one concatenation, where autograd pads both and adds.

    The rotary embedding of each layer makes two of these, and a scatter is slow everywhere.
    """
    for node in calls(graph):
        if node.target is not aten.add.Tensor or node.kwargs:
            continue
        left, right = (_padded(x) for x in node.args[:2])
        if left is None or right is None or left[1] != right[1]:
            continue
        (a, dim, a0, a1), (b, _, b0, b1) = sorted((left, right), key=lambda p: p[2])
        if a0 == 0 and a1 == b0 and b1 == _val(node).shape[dim]:
            replace(node, aten.cat.default, ([a, b], dim))


def _padded(x: Any) -> tuple[Node, int, int, int] | None:
    """(inner, dimension, start, end) of a tensor that is zero outside a slice, and used only here."""
    if not calls_to(x, aten.slice_scatter.default) or len(x.users) > 1:
        return None
    base, inner, dim, start, end, step = (*x.args, *(0, 0, None, 1 << 62, 1)[len(x.args) - 1 :])[:6]
    if not _is_zeros(base) or step != 1:
        return None
    size = _val(x).shape[dim]
    start, end = (min(max(i + size if i < 0 else i, 0), size) for i in (start or 0, size if end is None else end))
    return inner, dim % _val(x).ndim, start, end


def _is_zeros(x: Any) -> bool:
    return calls_to(x, aten.full.default) and bool(x.args[1] == 0)


def permutes(graph: Graph) -> None:
    """Two permutations in a row as one, two reshapes as the last."""
    for node in calls(graph):
        source: Node = node.args[0] if node.args else None
        if not calls_to(source, node.target):
            continue
        if node.target is aten.permute.default:
            rank = len(source.args[1])
            order = [source.args[1][i % rank] % rank for i in node.args[1]]
            replace(node, aten.permute.default, (source.args[0], order))
        elif node.target is aten.reshape.default:
            replace(node, aten.reshape.default, (source.args[0], node.args[1]))
    drop_noops(graph)


def share_nodes(graph: Graph) -> None:
    """Compute the same thing once."""
    seen: dict[Any, Node] = {}
    for node in calls(graph):
        key = (node.target, repr(node.args), repr(sorted(node.kwargs.items())))
        first = seen.setdefault(key, node)
        if first is not node:
            node.replace_all_uses_with(first)


def replace(node: Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Node:
    """Put another call in a node's place; returns the new node."""
    new = before(node, target, args, kwargs or {})
    node.replace_all_uses_with(new)
    node.graph.erase_node(node)
    return new


def before(node: Node, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> Node:
    """A new call right before a node."""
    with node.graph.inserting_before(node):
        new = node.graph.call_function(target, args, kwargs or {})
    with _mode(node):
        fake = fx.node.map_arg((args, kwargs or {}), _val)
        new.meta["val"] = target(*fake[0], **fake[1])
    return new


def _val(node: Any) -> Any:
    return node.meta["val"]


def _mode(node: Node) -> FakeTensorMode:
    val = _val(node)
    return (val[0] if isinstance(val, tuple | list) else val).fake_mode


def calls(graph: Graph) -> Iterator[Node]:
    """The operators, as they were when it was called, so that the graph may change on the way."""
    return iter([n for n in graph.module.graph.nodes if n.op == "call_function"])


def calls_to(x: Any, target: Any) -> bool:
    """Whether x is a node that calls `target`."""
    return isinstance(x, fx.Node) and x.target is target


def duplicate(graph: Graph) -> Graph:
    """The same graph, to be rewritten for one runtime alone; the tensors are shared."""
    module = fx.GraphModule(graph.module, fx.Graph())
    copies: dict[Node, Node] = {}
    module.graph.output(module.graph.graph_copy(graph.module.graph, copies))
    for old, new in copies.items():
        if old.op == "placeholder":  # the constants are found by these names
            new.name = new.target = old.name
    return graph._replace(module=module, constants=dict(graph.constants))


def is_rows(x: Any) -> bool:
    """Whether x is a block of the first dimension of a constant."""
    return (
        calls_to(x, aten.slice.Tensor)
        and x.args[0].op == "placeholder"
        and len(x.args) == 4
        and x.args[1] == 0 <= x.args[2]
    )


def _constants(graph: Graph) -> list[Node]:
    return [n for n in graph.module.graph.nodes if n.op == "placeholder" and n.name in graph.constants]


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()


def drop_unused(graph: Graph) -> None:
    """Forget the constants that nothing uses."""
    for node in _constants(graph):
        if not node.users:
            graph.module.graph.erase_node(node)
            del graph.constants[node.name]
