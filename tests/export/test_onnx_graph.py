"""The table of ONNX operators: each row as a small graph, run by ONNX Runtime and compared with PyTorch."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, fx

from covey_export.graph import Graph
from covey_export.quantise import DEQUANTISE, quantise
from covey_export.targets.onnx_graph import translate, unknown
from covey_export.targets.onnx_operators import TABLE

aten = torch.ops.aten
pytestmark = pytest.mark.filterwarnings("ignore")

X = torch.linspace(-2, 2, 24).reshape(2, 3, 4)
M, N = torch.linspace(-1, 1, 12).reshape(3, 4), torch.linspace(0.5, 2, 20).reshape(4, 5)
IMAGE, KERNEL = torch.linspace(-1, 1, 160).reshape(2, 4, 4, 5), torch.linspace(-1, 2, 48).reshape(2, 4, 3, 2)
TAPS, TURNED = KERNEL[:, :1].repeat(2, 1, 1, 1), KERNEL.permute(1, 0, 2, 3).contiguous()
I64 = torch.tensor([[0, 2, 1], [1, 1, 0]])
B = torch.tensor([[True, False, True], [False, False, True]])

# operator, inputs, further arguments, keyword arguments
ROWS: list[tuple[Any, tuple[Tensor | None, ...], tuple[Any, ...], dict[str, Any]]] = [
    (aten.mm.default, (M, N), (), {}),
    (aten.addmm.default, (torch.ones(5), M, N), (), {}),
    (aten.addmm.default, (torch.ones(5), M, N), (), {"alpha": 2, "beta": 3}),
    (aten.convolution.default, (IMAGE, KERNEL, torch.ones(2)), ([2, 1], [1, 0], [1, 2], False, [0, 0], 1), {}),
    (aten.convolution.default, (IMAGE, TAPS, None), ([1, 1], [1, 1], [1, 1], False, [0, 0], 4), {}),
    (aten.convolution.default, (IMAGE, TURNED, None), ([2, 2], [1, 1], [1, 1], True, [1, 0], 1), {}),
    (aten.bmm.default, (X, X.permute(0, 2, 1).contiguous()), (), {}),
    (aten.permute.default, (X,), ([2, 0, -2],), {}),
    (aten.reshape.default, (X,), ([6, -1],), {}),
    (aten.unsqueeze.default, (X,), (-1,), {}),
    (aten.squeeze.dims, (X[:1],), ([0],), {}),
    (aten.squeeze.dim, (X[:1],), (0,), {}),
    (aten.expand.default, (M,), ([2, 3, -1],), {}),
    (aten.slice.Tensor, (X,), (1, 1, 3), {}),
    (aten.slice.Tensor, (X,), (-1, -2), {}),
    (aten.slice.Tensor, (X,), (2, 0, 4, 2), {}),
    (aten.slice_scatter.default, (X, X[:, 1:2] * 3), (1, 1, 2), {}),
    (aten.slice_scatter.default, (X, X * 2), (0,), {}),
    (aten.slice_scatter.default, (X, X[:, :, -2:] * 3), (2, -2), {}),
    (aten.slice_scatter.default, (X, X[:, :, ::2] * 3), (2, 0, 4, 2), {}),
    (aten.slice_scatter.default, (X, X[:, 1::2] * 3), (-2, 1, 9, 2), {}),
    (aten.index_select.default, (X, torch.tensor([2, 0, 2])), (1, "input"), {}),
    (aten.linalg_vector_norm.default, (X,), (2, [-1], True), {}),
    (aten.linalg_vector_norm.default, (X,), (1, [0, 2]), {}),
    (aten.gather.default, (M, I64), (1, "input"), {}),
    (aten.select.int, (X,), (1, -1), {}),
    (aten.scatter.value, (M[:2, :3], I64), (1, "input", 7.0), {}),
    (aten.scatter_add.default, (M[:2, :3], I64, M[:2, :3]), (1, "input", "input"), {}),
    (aten.embedding.default, (N, I64), (), {}),
    (aten.index.Tensor, (X, torch.tensor([0, 1]), torch.tensor([2, 0])), ("inputs",), {}),
    (aten.index_put.default, (X, torch.tensor([0, 0]), torch.tensor([2, 2]), M[:2]), ("inputs", "input", True), {}),
    (aten.index_put.default, (X, torch.tensor([0, 1]), torch.tensor([2, 2]), M[:2]), ("inputs", "input"), {}),
    (aten.constant_pad_nd.default, (I64,), ([0, 1], -100), {}),
    (aten.constant_pad_nd.default, (X,), ([1, 2, 0, 1], 0.5), {}),
    (aten.clamp.default, (X,), (-0.5, 1.0), {}),
    (aten.clamp.default, (I64,), (1,), {}),
    (aten.native_layer_norm.default, (X, torch.ones(4) * 2, torch.ones(4)), ("norm",), {}),
    (aten.rsqrt.default, (X.abs() + 0.1,), (), {}),
    (aten._softmax.default, (X,), (-1, False), {}),
    (aten._log_softmax.default, (X,), (1, False), {}),
    (aten.gelu.default, (X,), (), {}),
    (aten.gelu.default, (X,), (), {"approximate": "tanh"}),
    (aten._to_copy.default, (I64,), (), {"dtype": torch.float32}),
    (aten._to_copy.default, (B,), (), {"dtype": torch.int64}),
    (aten.where.self, (B, M[:2, :3], -M[:2, :3]), (), {}),
    (aten.argmax.default, (X,), (-1,), {}),
    (aten.argmax.default, (X,), (1, True), {}),
    (aten.sum.dim_IntList, (X,), ([0, 2], True), {}),
    (aten.sum.dim_IntList, (B,), ([1],), {}),
    (aten.sum.default, (X,), (), {}),
    (aten.mean.dim, (X,), ([-1], True), {}),
    (aten.amax.default, (X,), ([1],), {}),
    (aten.cumsum.default, (I64,), (1,), {}),
    (aten.add.Tensor, (X, M), (), {"alpha": 3}),
    (aten.add.Tensor, (M[:2, :3], I64), (), {}),
    (aten.sub.Tensor, (X, M), (), {}),
    (aten.mul.Tensor, (X,), (2.5,), {}),
    (aten.mul.Scalar, (X,), (2,), {}),
    (aten.div.Tensor, (M[:2, :3], I64 + 1), (), {}),
    (aten.div.Scalar, (X,), (3,), {}),
    (aten.pow.Tensor_Scalar, (X.abs() + 0.1,), (-1.5,), {}),
    (aten.maximum.default, (X, -X), (), {}),
    (aten.minimum.default, (X, -X), (), {}),
    (aten.eq.Tensor, (I64, I64.flip(0)), (), {}),
    (aten.ne.Scalar, (I64,), (1,), {}),
    (aten.lt.Scalar, (I64,), (0.5,), {}),
    (DEQUANTISE, (*quantise(M, 8, 0), X), (), {}),
    (DEQUANTISE, (*quantise(torch.cat([M] * 4, 1), 8, 8), X), (), {}),
    (DEQUANTISE, (*quantise(torch.cat([M] * 8, 1), 4, 8), X), (), {}),
    (DEQUANTISE, (*quantise(torch.cat([M] * 8, 1), 4, 0),), (None,), {}),
    (aten.le.Tensor, (X, -X), (), {}),
    (aten.gt.Scalar, (X,), (0,), {}),
    (aten.ge.Scalar, (I64,), (1,), {}),
    (aten.logical_not.default, (B,), (), {}),
    (aten.logical_and.default, (B, ~B), (), {}),
    (aten.logical_or.default, (B, ~B), (), {}),
    (aten.bitwise_and.Tensor, (B, ~B), (), {}),
    (aten.bitwise_or.Tensor, (B, ~B), (), {}),
    (aten.bitwise_not.default, (B,), (), {}),
    *((getattr(aten, name).default, (X.abs() + 0.1,), (), {}) for name in (
        "neg", "exp", "log", "sigmoid", "tanh", "erf", "sqrt", "reciprocal", "cos", "sin", "abs", "relu", "sign",
        "floor", "ceil",
    )),
]  # fmt: skip
APART = {
    aten.max_pool2d_with_indices.default,
    aten._native_batch_norm_legit_no_training.default,
    aten.native_group_norm.default,
    aten.cat.default,
    aten.split_with_sizes.default,
    aten.full.default,
}  # below: their inputs are lists


def graph_of(build: Callable[[fx.Graph, list[Any]], Any], inputs: tuple[Tensor, ...]) -> Graph:
    """A graph with these inputs; every node knows what it holds."""
    graph = fx.Graph()
    nodes = [graph.placeholder(f"x{i}") for i in range(len(inputs))]
    graph.output((build(graph, nodes),))
    module = fx.GraphModule({}, graph)
    environment: dict[Any, Any] = dict(zip(nodes, inputs, strict=True))
    for node in graph.nodes:
        if node.op == "call_function":
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), environment.__getitem__)
            environment[node] = node.target(*args, **kwargs)
        if node.op != "output":
            node.meta["val"] = environment[node]
    names = tuple(f"x{i}" for i in range(len(inputs)))
    return Graph("any", module, {}, inputs, names, ("y",))


def results(graph: Graph) -> tuple[np.ndarray, np.ndarray]:
    """What ONNX Runtime and PyTorch say."""
    names = graph.inputs
    assert unknown(graph) == []
    session = onnxruntime.InferenceSession(translate(graph).SerializeToString(), providers=["CPUExecutionProvider"])
    seen = session.run(None, {n: x.numpy() for n, x in zip(names, graph.examples, strict=True)})[0]
    return seen, graph.module(*graph.examples)[0].numpy()


def assert_same(seen: np.ndarray, expected: np.ndarray) -> None:
    assert seen.dtype == expected.dtype
    assert seen.shape == expected.shape
    assert np.allclose(seen, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("op", "inputs", "more", "kwargs"), ROWS, ids=lambda x: str(x) if "Op" in repr(type(x)) else ""
)
def test_row(op: Any, inputs: tuple[Tensor | None, ...], more: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    def build(graph: fx.Graph, nodes: list[Any]) -> Any:
        tensors = iter(nodes)
        if more == ("norm",):
            call = graph.call_function(op, (nodes[0], [4], nodes[1], nodes[2], 1e-5))
            return graph.call_function(__import__("operator").getitem, (call, 0))
        if "inputs" in more:
            return graph.call_function(op, (nodes[0], nodes[1:3], *nodes[3:], *more[2:]))
        if "input" in more:
            rest = iter(nodes[1:])
            return graph.call_function(op, (nodes[0], *(next(rest) if m == "input" else m for m in more)))
        given = [None if x is None else next(tensors) for x in inputs]
        return graph.call_function(op, (*given, *more), kwargs)

    assert_same(*results(graph_of(build, tuple(x for x in inputs if x is not None))))


def test_table_is_tested() -> None:
    overloads = {op for op, *_ in ROWS} | APART
    packets = {op.overloadpacket for op in overloads}
    assert {op for op in TABLE if op.overloadpacket not in packets} == set()


def test_cat_split_and_full() -> None:
    def build(graph: fx.Graph, nodes: list[Any]) -> Any:
        parts = graph.call_function(aten.split_with_sizes.default, (nodes[0], [1, 3], 2))
        first, second = (graph.call_function(__import__("operator").getitem, (parts, i)) for i in (0, 1))
        ones = graph.call_function(aten.full.default, ([2, 3, 2], 1.5))
        return graph.call_function(aten.cat.default, ([second, ones, first], -1))

    assert_same(*results(graph_of(build, (X,))))


def test_batch_norm_with_the_statistics_of_the_checkpoint() -> None:
    def build(graph: fx.Graph, nodes: list[Any]) -> Any:
        call = graph.call_function(aten._native_batch_norm_legit_no_training.default, (*nodes, 0.1, 1e-3))
        return graph.call_function(__import__("operator").getitem, (call, 0))

    one = torch.linspace(0.5, 2, 4)
    assert_same(*results(graph_of(build, (IMAGE, one, -one, one * 0.3, one * 2))))


@pytest.mark.parametrize("item", [0, 1, 2])
def test_group_norm_gives_its_statistics_too(item: int) -> None:
    def build(graph: fx.Graph, nodes: list[Any]) -> Any:
        call = graph.call_function(aten.native_group_norm.default, (*nodes, 2, 4, 20, 2, 1e-3))
        return graph.call_function(__import__("operator").getitem, (call, item))

    one = torch.linspace(0.5, 2, 4)
    assert_same(*results(graph_of(build, (IMAGE, one, -one))))


@pytest.mark.parametrize("item", [0, 1])
def test_max_pool_counts_through_each_plane(item: int) -> None:
    def build(graph: fx.Graph, nodes: list[Any]) -> Any:
        pool = graph.call_function(aten.max_pool2d_with_indices.default, (nodes[0], [3, 3], [2, 2], [1, 1]))
        return graph.call_function(__import__("operator").getitem, (pool, item))

    assert_same(*results(graph_of(build, (torch.randn(2, 4, 7, 5),))))


def test_one_part_is_still_a_list() -> None:
    def build(graph: fx.Graph, nodes: list[Any]) -> Any:
        parts = graph.call_function(aten.split_with_sizes.default, (nodes[0], [4], 2))
        return graph.call_function(__import__("operator").getitem, (parts, 0))

    assert_same(*results(graph_of(build, (X,))))


@pytest.mark.parametrize(("left", "right"), [(False, True), (True, False), (True, True)])
def test_transposes_become_flags(left: bool, right: bool) -> None:
    def build(graph: fx.Graph, nodes: list[Any]) -> Any:
        flipped = [graph.call_function(aten.permute.default, (n, [1, 0])) for n in nodes]
        return graph.call_function(
            aten.mm.default, (flipped[0] if left else nodes[0], flipped[1] if right else nodes[1])
        )

    inputs = (M.T.contiguous() if left else M, N.T.contiguous() if right else N)
    graph = graph_of(build, inputs)
    assert_same(*results(graph))
    assert [n.op_type for n in translate(graph).graph.node] == ["Gemm", "Identity"]


def test_unknown_is_named() -> None:
    def build(graph: fx.Graph, nodes: list[Any]) -> Any:
        return graph.call_function(aten.lgamma.default, (nodes[0],))

    assert unknown(graph_of(build, (X,))) == ["aten.lgamma.default"]
