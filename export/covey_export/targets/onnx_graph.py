"""From a cleaned training graph to ONNX, operator by operator.

A table of our own (`onnx_operators`), and not PyTorch's exporter, for the operators that training graphs of language
models are made of: it takes a second instead of a minute, and writes each weight once. `unknown` tells what the table
lacks; such a graph goes through PyTorch's exporter.
"""

from typing import Any

import onnx
import torch
from onnx import TensorProto, helper

from covey_export.graph import Graph
from covey_export.passes import Node
from covey_export.targets.onnx_operators import TABLE, TYPES, Builder, dtype_of, shape_of

OPSET = 20
IR_VERSION = 10  # what ONNX Runtime 1.18 and later read


def unknown(graph: Graph) -> list[str]:
    """The operators that the table lacks."""
    calls = [n for n in graph.module.graph.nodes if n.op == "call_function"]
    return sorted({str(n.target) for n in calls if n.target not in TABLE and not _is_item(n)})


def translate(graph: Graph) -> onnx.ModelProto:
    """The ONNX model, with its weights inside."""
    builder = Builder()
    nodes = list(graph.module.graph.nodes)
    inputs = [n for n in nodes if n.op == "placeholder" and n.name not in graph.constants]
    builder.names |= dict(zip(inputs, graph.inputs, strict=True))
    for node in nodes:
        if node.op == "placeholder" and node.name in graph.constants:
            builder.names[node], builder.constants[node.name] = node.name, graph.constants[node.name]
        elif node.op == "call_function":
            builder.names[node] = _item(builder, node) if _is_item(node) else TABLE[node.target](builder, node)
    results = nodes[-1].args[0]
    for node, name in zip(results, graph.outputs, strict=True):
        builder.nodes.append(helper.make_node("Identity", [builder.names[node]], [name], name=name))
    return _model(
        graph.role, builder,
        [_info(name, node) for node, name in zip(inputs, graph.inputs, strict=True)],
        [_info(name, node) for node, name in zip(results, graph.outputs, strict=True)],
    )  # fmt: skip


def _model(role: str, builder: Builder, inputs: list[Any], outputs: list[Any]) -> onnx.ModelProto:
    """Only what the outputs need."""
    needed = {o.name for o in outputs}
    kept = []
    for node in reversed(builder.nodes):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    weights = [_tensor(name, value) for name, value in builder.constants.items() if name in needed]
    graph = helper.make_graph(kept[::-1], role, inputs, outputs, initializer=weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    model.producer_name = "covey"
    return model


def _tensor(name: str, value: torch.Tensor) -> TensorProto:
    return TensorProto(
        name=name, dims=value.shape, data_type=TYPES[value.dtype], raw_data=value.contiguous().numpy().tobytes()
    )


def _info(name: str, node: Node) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TYPES[dtype_of(node)], shape_of(node))


def _is_item(node: Node) -> bool:
    return getattr(node.target, "__name__", "") == "getitem"


def _item(b: Builder, node: Node) -> str:
    return str(b.names[node.args[0]][node.args[1]])
