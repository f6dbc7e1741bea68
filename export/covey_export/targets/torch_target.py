"""The `torch` target: each graph as a program in JSON, the weights once as safetensors.

PyTorch's own archive is read by unpickling, so a device must not open one that came over the network. A program names
operators and numbers and nothing else (`covey_shared.program`), and the edge needs neither transformers nor PEFT.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import fx

from covey_export.graph import Graph
from covey_export.passes import Node as FxNode
from covey_export.passes import duplicate
from covey_export.quantise import multiply_out, scale_activations
from covey_shared.errors import UsageError
from covey_shared.program import ITEM, Literal, Node, Program, Value

WEIGHTS = "torch/weights.safetensors"
DROPPED = ("layout", "pin_memory", "memory_format")  # they change where numbers lie and not which they are


def write(graphs: Mapping[str, Graph], folder: Path) -> dict[str, str]:
    """Write `torch/{role}.json` and the weights that they share."""
    (folder / "torch").mkdir(parents=True, exist_ok=True)
    weights: dict[str, torch.Tensor] = {}
    paths = {"weights": WEIGHTS}
    for role, graph in ((role, suit_torch(graph)) for role, graph in graphs.items()):
        names = {name: _share(weights, name, value) for name, value in graph.constants.items()}
        paths[role] = f"torch/{role}.json"
        (folder / paths[role]).write_bytes(to_program(graph, names).to_bytes())
    save_file({name: value.contiguous() for name, value in weights.items()}, folder / WEIGHTS)
    return paths


def suit_torch(graph: Graph) -> Graph:
    """A copy of the graph in ATen's operators alone."""
    ours = duplicate(graph)
    for rewrite in (scale_activations, multiply_out):
        rewrite(ours)
        ours.module.graph.eliminate_dead_code()
    return ours


def to_program(graph: Graph, names: Mapping[str, str]) -> Program:
    """The graph as data; `names` gives the constants' names in the weights file."""
    nodes = list(graph.module.graph.nodes)
    placeholders = [n for n in nodes if n.op == "placeholder"]
    constants = [n for n in placeholders if n.name in graph.constants]
    inputs = [n for n in placeholders if n.name not in graph.constants]
    calls = [n for n in nodes if n.op == "call_function"]
    number = {node: Value(i) for i, node in enumerate([*inputs, *constants, *calls])}
    return Program(
        inputs=graph.inputs,
        constants=tuple(names[n.name] for n in constants),
        nodes=tuple(_node(n, number) for n in calls),
        outputs=tuple(number[n] for n in nodes[-1].args[0]),
    )


def _share(weights: dict[str, torch.Tensor], name: str, value: torch.Tensor) -> str:
    """The name under which these numbers are stored: that of an equal tensor, or a new one."""
    for known, other in weights.items():
        if other.dtype == value.dtype and other.shape == value.shape and torch.equal(other, value):
            return known
    free = name if name not in weights else f"{name}_{len(weights)}"
    weights[free] = value
    return free


def _node(node: FxNode, number: Mapping[FxNode, Value]) -> Node:
    kwargs = {k: _argument(v, number) for k, v in node.kwargs.items() if k not in DROPPED}
    return Node(_operator(node), tuple(_argument(a, number) for a in node.args), kwargs)


def _operator(node: FxNode) -> str:
    target: Any = node.target
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        return str(target)
    if getattr(target, "__name__", "") == "getitem":
        return ITEM
    raise UsageError(f"the model uses the operator {target}, which is not one of PyTorch's own, so no device has it")


def _argument(x: Any, number: Mapping[FxNode, Value]) -> Any:
    if isinstance(x, fx.Node):
        return number[x]
    if isinstance(x, torch.dtype):
        return Literal("dtype", str(x).removeprefix("torch."))
    if isinstance(x, torch.device):
        return Literal("device", "")
    return [_argument(v, number) for v in x] if isinstance(x, list | tuple) else x
