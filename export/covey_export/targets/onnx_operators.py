"""The operators of training graphs in ONNX: a row of `TABLE` for each, and a test that runs each row.

`Gemm` takes its transposes as flags, so that the gradients of linear layers need no Transpose.
"""

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import fx

from covey_export.passes import Node, calls_to
from covey_export.quantise import DEQUANTISE, zeros

aten = torch.ops.aten
TYPES = {
    torch.float32: TensorProto.FLOAT, torch.float16: TensorProto.FLOAT16, torch.float64: TensorProto.DOUBLE,
    torch.int64: TensorProto.INT64, torch.int32: TensorProto.INT32, torch.int8: TensorProto.INT8,
    torch.uint8: TensorProto.UINT8, torch.bool: TensorProto.BOOL,
}  # fmt: skip
LARGEST = np.iinfo(np.int64).max


class Builder:
    """The nodes and constants of one ONNX graph as they come about. A value is its name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, torch.Tensor] = {}
        self.names: dict[Node, Any] = {}
        self._zeros: dict[Node, str] = {}
        self._count = 0

    def op(self, kind: str, *inputs: str, outputs: int = 1, **attributes: Any) -> Any:
        """Append one node; returns the name of its output, or a tuple of them."""
        self._count += 1
        names = [f"{kind}_{self._count}" + (f"_{i}" if i else "") for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name=names[0], **attributes))
        return names[0] if outputs == 1 else tuple(names)

    def constant(self, value: Any, dtype: torch.dtype = torch.int64) -> str:
        """The name of a constant, shared with others of the same value."""
        tensor = torch.as_tensor(value, dtype=dtype)
        name = f"c_{str(dtype)[6:]}_{list(tensor.shape)}_{tensor.tolist()}".replace(" ", "")
        if len(name) > 60:
            name = f"c_{hashlib.sha256(name.encode()).hexdigest()[:16]}"
        self.constants[name] = tensor
        return name

    def value(self, x: Any, dtype: torch.dtype | None = None) -> str:
        """The name of an argument: a node, cast to `dtype` where it has another, or a number as a constant."""
        if not isinstance(x, fx.Node):
            return self.constant(x, dtype or torch.float32)
        name: str = self.names[x]
        return name if dtype in (None, dtype_of(x)) else self.op("Cast", name, to=TYPES[dtype])

    def shaped(self, name: str, shape: list[int]) -> str:
        """A value in another shape; a constant as another constant of the same bytes, which are stored once."""
        value = self.constants.get(name)
        if value is None:
            return str(self.op("Reshape", name, self.constant(shape)))
        if list(value.shape) == shape:
            return name
        other = f"{name}_as_{'x'.join(map(str, shape))}"
        self.constants[other] = value.reshape(shape)
        return other

    def zero_of(self, node: Node | None) -> str:
        """A 0 that cannot be had before `node` is computed, float32 [1]; no name for no node."""
        if node is None:
            return ""
        if node not in self._zeros:
            flat = self.op("Reshape", self.names[node], self.constant([-1]))
            first = self.op("Slice", flat, self.constant([0]), self.constant([1]))
            bounds = [self.constant(0.0, torch.float32)] * 2
            self._zeros[node] = self.op("Clip", first, *bounds)
        return self._zeros[node]


Translate = Callable[[Builder, Node], Any]


def dtype_of(node: Node) -> torch.dtype:
    """What a node holds."""
    return node.meta["val"].dtype


def shape_of(node: Node) -> list[int]:
    """Its shape."""
    return [int(d) for d in node.meta["val"].shape]


def _arg(node: Node, index: int, name: str, default: Any = None) -> Any:
    return node.args[index] if len(node.args) > index else node.kwargs.get(name, default)


def _unary(kind: str) -> Translate:
    return lambda b, n: b.op(kind, b.value(n.args[0], dtype_of(n)))


def _binary(kind: str) -> Translate:
    def translate(b: Builder, n: Node) -> str:
        left, right = (b.value(x, dtype_of(n)) for x in n.args[:2])
        if (alpha := n.kwargs.get("alpha", 1)) != 1:
            right = b.op("Mul", right, b.constant(alpha, dtype_of(n)))
        return str(b.op(kind, left, right))

    return translate


def _compare(kind: str, negate: bool = False) -> Translate:
    def translate(b: Builder, n: Node) -> str:
        common = torch.result_type(*(x.meta["val"] if isinstance(x, fx.Node) else x for x in n.args[:2]))
        out = b.op(kind, *(b.value(x, common) for x in n.args[:2]))
        return str(b.op("Not", out) if negate else out)

    return translate


def _logical(kind: str) -> Translate:
    def translate(b: Builder, n: Node) -> str:
        return str(b.op(kind, *(b.value(x, torch.bool) for x in n.args[:2])))

    return translate


def _product(b: Builder, n: Node, bias: Any = None) -> str:
    """A matrix product whose transposes are flags."""
    (left, ta), (right, tb) = (_untransposed(x) for x in n.args[-2:])
    extra = [] if bias is None else [b.value(bias)]
    return str(b.op("Gemm", b.value(left), b.value(right), *extra, transA=ta, transB=tb))


def _untransposed(x: Node) -> tuple[Node, int]:
    if calls_to(x, aten.permute.default) and [i % len(x.args[1]) for i in x.args[1]] == [1, 0]:
        return x.args[0], 1
    return x, 0


def _addmm(b: Builder, n: Node) -> str:
    if n.kwargs:
        product = b.op("Mul", _product(b, n), b.constant(n.kwargs.get("alpha", 1), dtype_of(n)))
        scaled = b.op("Mul", b.value(n.args[0]), b.constant(n.kwargs.get("beta", 1), dtype_of(n)))
        return str(b.op("Add", product, scaled))
    return _product(b, n, n.args[0])


def _reshape(b: Builder, n: Node) -> str:
    return str(b.op("Reshape", b.value(n.args[0]), b.constant(shape_of(n))))


def _expand(b: Builder, n: Node) -> str:
    return str(b.op("Expand", b.value(n.args[0]), b.constant(shape_of(n))))


def _full(b: Builder, n: Node) -> str:
    value = b.constant(n.args[1], dtype_of(n))
    return str(b.op("Expand", value, b.constant(shape_of(n)))) if shape_of(n) else value


def _slice(b: Builder, n: Node) -> str:
    dim, start, end, step = (_arg(n, i, k, d) for i, k, d in
                             ((1, "dim", 0), (2, "start", 0), (3, "end", LARGEST), (4, "step", 1)))  # fmt: skip
    if (whole := b.constants.get(b.names[n.args[0]])) is not None and dim == 0 and step == 1:
        name = f"{b.names[n.args[0]]}_rows_{start}_{end}"  # its bytes lie among the whole's in the weights file
        b.constants[name] = whole[start:end]
        return name
    bounds = ([start or 0], [LARGEST if end is None else end], [dim], [step])
    return str(b.op("Slice", b.value(n.args[0]), *(b.constant(x) for x in bounds)))


def _slice_scatter(b: Builder, n: Node) -> str:
    """A part of a tensor replaced, as the concatenation of what is before, the part, and what is after."""
    base, part = n.args[:2]
    dim, start, end, step = (_arg(n, i, k, d) for i, k, d in
                             ((2, "dim", 0), (3, "start", 0), (4, "end", LARGEST), (5, "step", 1)))  # fmt: skip
    size = shape_of(base)[dim]
    start, end, _ = slice(start, end, step).indices(size)
    if step != 1:
        return _strided_scatter(b, n, dim % len(shape_of(base)), range(start, end, step))
    pieces = [b.value(part)]
    if start > 0:
        head = b.op("Slice", b.value(base), *(b.constant([x]) for x in (0, start, dim)))
        pieces.insert(0, head)
    if end < size:
        pieces.append(b.op("Slice", b.value(base), *(b.constant([x]) for x in (end, size, dim))))
    return str(b.op("Concat", *pieces, axis=dim)) if len(pieces) > 1 else pieces[0]


def _strided_scatter(b: Builder, n: Node, dim: int, places: range) -> str:
    """Every so many: the part spread out along the dimension, and taken where it belongs."""
    size = shape_of(n)[dim]
    source = [min(max(i - places.start, 0) // places.step, len(places) - 1) for i in range(size)]
    spread = b.op("Gather", b.value(n.args[1]), b.constant(source), axis=dim)
    mask = torch.tensor([i in places for i in range(size)]).reshape([-1] + [1] * (len(shape_of(n)) - 1 - dim))
    return str(b.op("Where", b.constant(mask.tolist(), torch.bool), spread, b.value(n.args[0])))


def _split(b: Builder, n: Node) -> Any:
    sizes = n.args[1]
    names = b.op("Split", b.value(n.args[0]), b.constant(sizes), outputs=len(sizes), axis=_arg(n, 2, "dim", 0))
    return names if isinstance(names, tuple) else (names,)


def _reduce(kind: str) -> Translate:
    def translate(b: Builder, n: Node) -> str:
        dims, keep = _arg(n, 1, "dim"), int(bool(_arg(n, 2, "keepdim", False)))
        dims = [dims] if isinstance(dims, int) else dims
        axes = [b.constant(list(dims))] if dims else []
        return str(b.op(kind, b.value(n.args[0], dtype_of(n)), *axes, keepdims=keep))

    return translate


def _arg_reduce(kind: str) -> Translate:
    def translate(b: Builder, n: Node) -> str:
        return str(b.op(kind, b.value(n.args[0]), axis=n.args[1], keepdims=int(bool(_arg(n, 2, "keepdim", False)))))

    return translate


def _softmax(kind: str) -> Translate:
    return lambda b, n: b.op(kind, b.value(n.args[0]), axis=n.args[1])


def _gather(b: Builder, n: Node) -> str:
    return str(b.op("GatherElements", b.value(n.args[0]), b.value(n.args[2]), axis=n.args[1]))


def _select(b: Builder, n: Node) -> str:
    return str(b.op("Gather", b.value(n.args[0]), b.constant(n.args[2]), axis=n.args[1]))


def _scatter_value(b: Builder, n: Node) -> str:
    x, dim, index, value = n.args[:4]
    updates = b.op("Expand", b.constant(value, dtype_of(n)), b.constant(shape_of(index)))
    return str(b.op("ScatterElements", b.value(x), b.value(index), updates, axis=dim))


def _scatter_add(b: Builder, n: Node) -> str:
    x, dim, index, source = n.args[:4]
    return str(b.op("ScatterElements", b.value(x), b.value(index), b.value(source), axis=dim, reduction="add"))


def _pad(b: Builder, n: Node) -> str:
    rank, pads = len(shape_of(n)), list(n.args[1])
    pads += [0] * (2 * rank - len(pads))  # from the last dimension on, before and after
    ends = [pads[2 * (rank - 1 - i) : 2 * (rank - i)] for i in range(rank)]
    amounts = b.constant([e[0] for e in ends] + [e[1] for e in ends])
    return str(b.op("Pad", b.value(n.args[0]), amounts, b.constant(_arg(n, 2, "value", 0) or 0, dtype_of(n))))


def _clamp(b: Builder, n: Node) -> str:
    out = b.value(n.args[0], dtype_of(n))
    for kind, bound in (("Max", _arg(n, 1, "min")), ("Min", _arg(n, 2, "max"))):
        out = out if bound is None else b.op(kind, out, b.constant(bound, dtype_of(n)))
    return out


def _layer_norm(b: Builder, n: Node) -> Any:
    x, shape, weight, bias, epsilon = n.args
    scale = b.value(weight) if weight is not None else b.constant(np.ones(shape).tolist(), torch.float32)
    inputs = [b.value(x), scale, *([b.value(bias)] if bias is not None else [])]
    return b.op("LayerNormalization", *inputs, outputs=3, axis=-len(shape), epsilon=epsilon)


def _rsqrt(b: Builder, n: Node) -> str:
    return str(b.op("Reciprocal", b.op("Sqrt", b.value(n.args[0]))))


def _cat(b: Builder, n: Node) -> str:
    return str(b.op("Concat", *(b.value(x, dtype_of(n)) for x in n.args[0]), axis=_arg(n, 1, "dim", 0)))


def _bitwise(kind: str) -> Translate:
    def translate(b: Builder, n: Node) -> str:
        if dtype_of(n) is not torch.bool:
            raise NotImplementedError(f"{n.target} on integers")
        return str(b.op(kind, *(b.value(x) for x in n.args)))

    return translate


def _index(b: Builder, n: Node) -> str:
    """x[i, j, ...] with index tensors for the first dimensions."""
    return str(b.op("GatherND", b.value(n.args[0]), _coordinates(b, n.args[1])))


def _index_put(b: Builder, n: Node) -> str:
    x, indices, values = n.args[:3]
    shape = [*torch.broadcast_shapes(*(i.meta["val"].shape for i in indices)), *shape_of(x)[len(indices) :]]
    updates = b.op("Expand", b.value(values), b.constant(shape))
    reduction = "add" if _arg(n, 3, "accumulate", False) else "none"
    return str(b.op("ScatterND", b.value(x), _coordinates(b, indices), updates, reduction=reduction))


def _coordinates(b: Builder, indices: Any) -> str:
    """The index tensors as one whose last dimension runs over them."""
    if any(i is None or dtype_of(i) is torch.bool for i in indices):
        raise NotImplementedError("index with masks or gaps")
    shape = torch.broadcast_shapes(*(i.meta["val"].shape for i in indices))
    parts = [b.op("Expand", b.value(i, torch.int64), b.constant([*shape])) for i in indices]
    parts = [b.op("Unsqueeze", p, b.constant([len(shape)])) for p in parts]
    return str(b.op("Concat", *parts, axis=len(shape)))


def _dequantise(b: Builder, n: Node) -> str:
    """Groups as the rows of a matrix, which is ten times as fast as `block_size`.

    What depends on constants alone ONNX Runtime would compute once and keep, in float32. So `after` goes in: one of its
    numbers, cut down to 0, is added to the scales.
    """
    codes, scales, after = n.args
    groups = shape_of(scales)[-1]
    rows = [int(np.prod(shape_of(n)[:-1])) * groups, shape_of(n)[-1] // groups]
    nothing = b.zero_of(after)
    if dtype_of(codes) is torch.uint8:
        whole = _nibbles(b, b.value(codes), nothing)
        pattern = zeros(codes.meta["val"], scales.meta["val"]).flatten().to(torch.uint8)
        zero = [b.constant(pattern.repeat(rows[0] // groups), torch.uint8)]
    else:
        whole, zero = b.value(codes), []
    factor = b.shaped(b.value(scales), rows[:1])
    factor = b.op("Add", factor, nothing) if nothing else factor
    out = b.op("DequantizeLinear", b.shaped(whole, rows), factor, *zero, axis=0)
    return str(b.shaped(out, shape_of(n)))


def _nibbles(b: Builder, packed: str, nothing: str) -> str:
    masks = [b.constant([mask], torch.uint8) for mask in (15, 240)]
    if nothing:
        masks = [b.op("BitwiseOr", mask, b.op("Cast", nothing, to=TensorProto.UINT8)) for mask in masks]
    return str(b.op("Concat", *(b.op("BitwiseAnd", packed, mask) for mask in masks), axis=-1))


def _convolution(b: Builder, n: Node) -> str:
    x, weight, bias, stride, padding, dilation, transposed, left, groups = n.args
    inputs = [b.value(v) for v in (x, weight, bias) if v is not None]
    more = {"output_padding": left} if transposed else {}
    return str(
        b.op(
            "ConvTranspose" if transposed else "Conv", *inputs, strides=stride, pads=[*padding, *padding],
            dilations=dilation, group=groups, **more,
        )
    )  # fmt: skip


def _batch_norm(b: Builder, n: Node) -> Any:
    """With the statistics of the checkpoint; the two other results are empty, and nobody reads them."""
    x, weight, bias, mean, variance, _, epsilon = n.args
    count = shape_of(mean)
    given = [b.value(v) if v is not None else b.constant([d] * count[0], torch.float32)
             for v, d in ((weight, 1.0), (bias, 0.0))]  # fmt: skip
    return b.op("BatchNormalization", b.value(x), *given, b.value(mean), b.value(variance), epsilon=epsilon), "", ""


def _group_norm(b: Builder, n: Node) -> Any:
    """By hand: the gradient needs mean and 1/deviation of each group, which ONNX's own does not give."""
    x, weight, bias, batch, channels, _, groups, epsilon = n.args
    rows = b.op("Reshape", b.value(x), b.constant([batch, groups, -1]))
    last = b.constant([2])
    mean = b.op("ReduceMean", rows, last)
    centred = b.op("Sub", rows, mean)
    variance = b.op("ReduceMean", b.op("Mul", centred, centred), last)
    scale = b.op("Reciprocal", b.op("Sqrt", b.op("Add", variance, b.constant(epsilon, torch.float32))))
    out = b.op("Reshape", b.op("Mul", centred, scale), b.constant(shape_of(x)))
    spread = b.constant([channels] + [1] * (len(shape_of(x)) - 2))
    for kind, value in (("Mul", weight), ("Add", bias)):
        out = out if value is None else b.op(kind, out, b.op("Reshape", b.value(value), spread))
    return out, *(b.op("Reshape", v, b.constant([batch, groups])) for v in (mean, scale))


def _vector_norm(b: Builder, n: Node) -> str:
    """The L2 norm, or the L1 norm, over some dimensions."""
    order, dims, keep = _arg(n, 1, "ord", 2), _arg(n, 2, "dim"), bool(_arg(n, 3, "keepdim", False))
    if order not in (1, 2):
        raise NotImplementedError(f"norms of order {order}")
    axes = [b.constant([dims] if isinstance(dims, int) else list(dims))] if dims is not None else []
    return str(b.op(f"ReduceL{int(order)}", b.value(n.args[0]), *axes, keepdims=int(keep)))


def _max_pool(b: Builder, n: Node) -> Any:
    """The maxima, and where in its plane each is: ONNX counts through the whole tensor, PyTorch through each plane."""
    stride = _arg(n, 2, "stride") or n.args[1]
    padding, dilation = _arg(n, 3, "padding", [0, 0]), _arg(n, 4, "dilation", [1, 1])
    shape = shape_of(n.args[0])
    values, where = b.op(
        "MaxPool", b.value(n.args[0]), outputs=2, kernel_shape=n.args[1], strides=stride, pads=[*padding, *padding],
        dilations=dilation, ceil_mode=int(bool(_arg(n, 5, "ceil_mode", False))),
    )  # fmt: skip
    return values, b.op("Mod", where, b.constant(shape[-1] * shape[-2]))


TABLE: dict[Any, Translate] = {
    aten.convolution.default: _convolution,
    aten.max_pool2d_with_indices.default: _max_pool,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
    aten.native_group_norm.default: _group_norm,
    aten.linalg_vector_norm.default: _vector_norm,
    aten.index_select.default: lambda b, n: b.op("Gather", b.value(n.args[0]), b.value(n.args[2]), axis=n.args[1]),
    DEQUANTISE: _dequantise,
    aten.mm.default: _product,
    aten.addmm.default: _addmm,
    aten.bmm.default: lambda b, n: b.op("MatMul", b.value(n.args[0]), b.value(n.args[1])),
    aten.permute.default: lambda b, n: b.op(
        "Transpose", b.value(n.args[0]), perm=[i % len(n.args[1]) for i in n.args[1]]
    ),
    **dict.fromkeys((aten.reshape.default, aten.squeeze.dims, aten.squeeze.dim, aten.unsqueeze.default), _reshape),
    aten.expand.default: _expand,
    aten.full.default: _full,
    aten.slice.Tensor: _slice,
    aten.slice_scatter.default: _slice_scatter,
    aten.split_with_sizes.default: _split,
    aten.cat.default: _cat,
    aten.embedding.default: lambda b, n: b.op("Gather", b.value(n.args[0]), b.value(n.args[1])),
    aten.gather.default: _gather,
    aten.select.int: _select,
    aten.scatter.value: _scatter_value,
    aten.scatter_add.default: _scatter_add,
    aten.constant_pad_nd.default: _pad,
    aten.clamp.default: _clamp,
    aten.native_layer_norm.default: _layer_norm,
    aten.rsqrt.default: _rsqrt,
    aten._softmax.default: _softmax("Softmax"),
    aten._log_softmax.default: _softmax("LogSoftmax"),
    aten.gelu.default: lambda b, n: b.op("Gelu", b.value(n.args[0]), approximate=n.kwargs.get("approximate", "none")),
    aten._to_copy.default: lambda b, n: b.value(n.args[0], dtype_of(n)),
    aten.where.self: lambda b, n: b.op(
        "Where", b.value(n.args[0], torch.bool), *(b.value(x, dtype_of(n)) for x in n.args[1:])
    ),
    aten.argmax.default: _arg_reduce("ArgMax"),
    **dict.fromkeys((aten.sum.dim_IntList, aten.sum.default), _reduce("ReduceSum")),
    aten.mean.dim: _reduce("ReduceMean"),
    aten.amax.default: _reduce("ReduceMax"),
    **{getattr(aten, name).default: _unary(kind) for name, kind in (
        ("neg", "Neg"), ("exp", "Exp"), ("log", "Log"), ("sigmoid", "Sigmoid"), ("tanh", "Tanh"), ("erf", "Erf"),
        ("sqrt", "Sqrt"), ("reciprocal", "Reciprocal"), ("cos", "Cos"), ("sin", "Sin"), ("abs", "Abs"),
        ("relu", "Relu"), ("sign", "Sign"), ("floor", "Floor"), ("ceil", "Ceil"),
    )},
    **{getattr(getattr(aten, name), overload): _binary(kind) for name, kind in (
        ("add", "Add"), ("sub", "Sub"), ("mul", "Mul"), ("div", "Div"),
    ) for overload in ("Tensor", "Scalar")},
    aten.pow.Tensor_Scalar: _binary("Pow"),
    aten.maximum.default: _binary("Max"),
    aten.minimum.default: _binary("Min"),
    **{getattr(getattr(aten, name), overload): _compare(kind, negate) for name, kind, negate in (
        ("eq", "Equal", False), ("ne", "Equal", True), ("lt", "Less", False), ("le", "LessOrEqual", False),
        ("gt", "Greater", False), ("ge", "GreaterOrEqual", False),
    ) for overload in ("Tensor", "Scalar")},
    aten.logical_not.default: lambda b, n: b.op("Not", b.value(n.args[0], torch.bool)),
    aten.logical_and.default: _logical("And"),
    aten.logical_or.default: _logical("Or"),
    aten.bitwise_and.Tensor: _bitwise("And"),
    aten.bitwise_or.Tensor: _bitwise("Or"),
    aten.bitwise_not.default: _bitwise("Not"),
    aten.index.Tensor: _index,
    aten.index_put.default: _index_put,
    aten.cumsum.default: lambda b, n: b.op("CumSum", b.value(n.args[0], dtype_of(n)), b.constant(n.args[1])),
}  # fmt: skip
