"""Which parts of a graph XNNPACK computes, and in what order the parts run.

ExecuTorch's own partitioner tries every pair of parts for a cycle, keeps no order, and packs frozen weights into a
second copy. This one goes through the graph once: an operator joins the latest part unless something outside that part
stands between, so there can be no cycle and nothing moves ahead of its turn. Weights are ordinary inputs of a part,
but for those that XNNPACK wants to have when it is loaded, as a convolution's: it packs them, and they go inside.
"""

from typing import Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.backends.xnnpack.xnnpack_preprocess import XnnpackBackend
from executorch.exir.backend.partitioner import DelegationSpec, Partitioner, PartitionResult
from executorch.exir.dialects._ops import ops
from torch import fx
from torch.export import ExportedProgram
from torch.fx.passes.infra.pass_base import PassResult

Node = Any
edge = ops.edge.aten
MULTIPLIED_OUT = 8 << 20  # bytes of weights that may stand multiplied out at a time, if it is more than one


class InOrder(Partitioner):
    """Parts of consecutive operators for XNNPACK."""

    def __init__(self) -> None:
        super().__init__()
        self._rules = XnnpackPartitioner().target_partitioner_configs

    def partition(self, exported_program: ExportedProgram) -> PartitionResult:
        """Tag each operator that XNNPACK takes with its part."""
        parts = _Parts()
        for node in exported_program.graph.nodes:
            if node.op == "call_function":
                parts.add(node, self._inside(node, exported_program))
        spec = DelegationSpec(XnnpackBackend.__name__, [])
        return PartitionResult(exported_program, dict.fromkeys(parts.tag(), spec))

    def _inside(self, node: Node, program: ExportedProgram) -> list[Node] | None:
        """The weights that XNNPACK must have inside to take this operator; None where it does not take it."""
        if not _is_float(node):
            return None
        if node.target in (edge.linear.default, edge.bmm.default):
            return []
        rule = self._rules.get(node.target.__name__.removeprefix("aten."))
        if rule is None or _is_view_of_weight(node) or node.target in (edge.mm.default, edge.addmm.default):
            return None
        if not rule.check_constraints(node, program):
            return None
        inside = [n for n in rule.get_node_and_deps(node, program) if n.op == "placeholder"]
        return inside if all(len(n.users) == 1 for n in inside) else None


class _Parts:
    """Numbers parts as they come: a part's operators wait for nothing outside that waits for the part."""

    def __init__(self) -> None:
        self._after: dict[Node, int] = {}  # the first part that may use a node
        self._members: dict[int, list[Node]] = {}
        self._inner: dict[int, list[Node]] = {}  # the weights inside each part
        self._open, self._bytes = 0, 0
        self._taken: set[Node] = set()

    def add(self, node: Node, inside: list[Node] | None) -> None:
        after = max((self._after.get(s, 0) for s in node.all_input_nodes), default=0)
        if inside is None:
            read = [s for s in node.all_input_nodes if s in self._taken]
            self._after[node] = max([after, *(self._after[s] + 1 for s in read)])
            return
        weights = sum(_bytes(s) for s in node.all_input_nodes if _is_multiplied_out(s))
        full = self._bytes and weights and self._bytes + weights > MULTIPLIED_OUT
        if after > self._open or full:
            self._open, self._bytes = self._open + 1, 0
        self._bytes += weights
        self._after[node] = self._open
        self._taken.add(node)
        self._members.setdefault(self._open, []).append(node)
        self._inner.setdefault(self._open, []).extend(inside)

    def tag(self) -> list[str]:
        """The tags of all parts but those that only move numbers."""
        tags = []
        for number, members in self._members.items():
            if any(m.target not in MOVES for m in members):
                tags.append(f"part_{number}")
                for node in (*members, *self._inner[number]):
                    node.meta["delegation_tag"] = tags[-1]
        return tags


MOVES = (edge.view_copy.default, edge.permute_copy.default, edge.unsqueeze_copy.default, edge.slice_copy.Tensor)


def _is_float(node: Node) -> bool:
    values = [n.meta.get("val") for n in (node, *node.all_input_nodes)]
    return all(isinstance(v, torch.Tensor) and v.dtype is torch.float32 and v.numel() for v in values)


def _is_multiplied_out(node: Node) -> bool:
    """Whether a node holds a weight in float32 that is stored in fewer bits."""
    if node.op != "call_function":
        return False
    if node.target is edge._to_copy.default:
        return node.args[0].meta["val"].dtype in (torch.int8, torch.uint8)
    return node.target in (edge.view_copy.default, *MOVES) and _is_multiplied_out(node.args[0])


def _is_view_of_weight(node: Node) -> bool:
    """Outside of a part a view costs nothing."""
    if node.target is not edge.view_copy.default:
        return False
    return node.args[0].op == "placeholder" or _is_multiplied_out(node.args[0])


def _bytes(node: Node) -> int:
    value = node.meta["val"]
    return int(value.numel() * value.element_size())


def just_in_time(module: fx.GraphModule) -> PassResult:
    """What depends on constants alone moves to right before its first use: weights are multiplied out in their turn."""
    nodes = list(module.graph.nodes)
    constant = {n for n in nodes if n.op in ("placeholder", "get_attr")}
    inputs = {n for n in nodes if n.op == "placeholder" and not _is_constant_input(n)}
    constant -= inputs
    movable = []
    for node in nodes:
        if node.op == "call_function" and node.all_input_nodes and all(s in constant for s in node.all_input_nodes):
            constant.add(node)
            movable.append(node)
    place = {n: float(i) for i, n in enumerate(nodes)}
    for node in reversed(movable):
        first = min(node.users, key=place.__getitem__, default=None)
        if first is not None and first.op != "output":
            first.prepend(node)
            place[node] = place[first] - 0.5
    module.recompile()
    return PassResult(module, True)


def _is_constant_input(node: Node) -> bool:
    return node.name.startswith(("b_", "p_", "c_"))
