"""The `onnx` target: three graphs for plain `InferenceSession`s, and one weights file that they share.

The graphs are left as PyTorch writes them: ONNX Runtime optimises when it loads, for the machine that it is on, and
folds the transposes of frozen weights there, which in the file would double it.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

import onnx
import torch
from onnx import TensorProto

from covey_export.blame import blamed
from covey_export.graph import Graph, closed
from covey_export.passes import is_rows
from covey_export.quantise import DEQUANTISE
from covey_export.targets.onnx_graph import OPSET, translate, unknown
from covey_shared.errors import UsageError

WEIGHTS = "weights.bin"
ALIGNMENT = 4096  # a page, so that ONNX Runtime can map the weights instead of copying them
Places = dict[bytes, tuple[int, int]]  # digest -> offset and length
INLINE = 4096  # bytes: shapes and the like stay in the graph, where shape inference looks for them


def write(graphs: Mapping[str, Graph], folder: Path) -> dict[str, str]:
    """Write `onnx/{role}.onnx` and `onnx/weights.bin`."""
    (folder / "onnx").mkdir(parents=True, exist_ok=True)
    places: Places = {}
    paths = {}
    with (folder / "onnx" / WEIGHTS).open("wb") as weights:
        for graph in graphs.values():
            _place_constants(graph, weights, places)
        for role, graph in graphs.items():
            model = to_onnx(graph)
            _move_weights(model, weights, places)
            paths[role] = f"onnx/{role}.onnx"
            (folder / paths[role]).write_bytes(model.SerializeToString(deterministic=True))
    return paths


def to_onnx(graph: Graph) -> onnx.ModelProto:
    """One graph, with its weights inside: by our own table, or by PyTorch's exporter where that lacks something."""
    if not unknown(graph):
        try:
            return translate(graph)
        except NotImplementedError:
            pass
    if any(n.target is DEQUANTISE for n in graph.module.graph.nodes):
        raise UsageError(
            f"the table for ONNX lacks {', '.join(unknown(graph)) or 'a form of an operator'}, which a rounded "
            f"base needs; export with --base float32, or leave onnx out of --targets"
        )
    return _by_pytorch(graph)


def _by_pytorch(graph: Graph) -> onnx.ModelProto:
    with _lacking(graph):
        program = torch.onnx.export(
            torch.export.export(closed(graph), graph.examples),
            dynamo=True, opset_version=OPSET, optimize=True, verbose=False,
            input_names=list(graph.inputs), output_names=list(graph.outputs),
        )  # fmt: skip
    assert program is not None  # None is for the old exporter only
    model: onnx.ModelProto = program.model_proto
    model.producer_name, model.producer_version, model.doc_string = "covey", "", ""
    for node in model.graph.node:
        del node.metadata_props[:]  # stack traces, with the paths of this machine
        node.doc_string = ""
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        del value.metadata_props[:]
    del model.graph.metadata_props[:], model.metadata_props[:]
    return model


@contextlib.contextmanager
def _lacking(graph: Graph) -> Iterator[None]:
    """One sentence with the operator that neither the table nor PyTorch's exporter knows."""
    what = f"ONNX cannot hold this model's {graph.role} graph"
    try:
        with blamed(what):
            yield
    except UsageError as error:
        found = re.search(r"op='([\w.]+)'", str(error))
        if found is None:
            raise
        raise UsageError(f"{what}: it has no operator for {found[1]}; --targets can leave onnx out") from None


def _tensors(graph: onnx.GraphProto) -> Iterator[TensorProto]:
    """Initialisers, and the values of Constant nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t


def _place_constants(graph: Graph, weights: IO[bytes], places: Places) -> None:
    """Write the constants, and note where blocks of their rows lie that the graph takes out."""
    for node in graph.module.graph.nodes:
        if node.op == "placeholder" and node.name in graph.constants:
            value = graph.constants[node.name].contiguous()
            data = value.numpy().tobytes()
            if len(data) < INLINE:
                continue
            offset, _ = _place(data, weights, places)
            row = len(data) // value.shape[0]
            for user in (u for u in node.users if is_rows(u)):
                start, end = user.args[2] * row, user.args[3] * row
                places[hashlib.sha256(data[start:end]).digest()] = (offset + start, end - start)


def _place(data: bytes, weights: IO[bytes], places: Places) -> tuple[int, int]:
    """Where these bytes lie in the weights file, at the end of it if they are new."""
    key = hashlib.sha256(data).digest()
    if key not in places:
        weights.write(b"\0" * (-weights.tell() % ALIGNMENT))
        places[key] = (weights.tell(), len(data))
        weights.write(data)
    return places[key]


def _move_weights(model: onnx.ModelProto, weights: IO[bytes], places: Places) -> None:
    """Move each large tensor to the weights file, where equal bytes are stored once."""
    for tensor in _tensors(model.graph):
        if len(tensor.raw_data) < INLINE:
            continue
        offset, length = _place(tensor.raw_data, weights, places)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for name, value in (("location", WEIGHTS), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=name, value=value)
