"""A program: a graph of tensor operators as plain data, for a runtime that has the operators but not the graph.

The `torch` target of a bundle holds its training graph in this form, since PyTorch's own archives are read by
unpickling, which runs whatever the sender put there. A program is a flat list of functional ATen calls over numbered
values; it can name an operator, a tensor and a number, and nothing else:

    {"format": 1, "inputs": ["adapter", "input_ids"], "constants": ["w"], "outputs": [{"v": 3}],
     "nodes": [{"op": "aten.mm.default", "args": [{"v": 0}, {"v": 2}], "kwargs": {}}]}

Values are numbered: first the inputs, then the constants, then one for each node. An argument is a number, a boolean,
null, `{"v": i}`, `{"f": "inf"}` for what JSON cannot write, `{"dtype": "float32"}`, `{"device": ""}` (wherever the
program runs), a list of arguments, or one of a few words. `item` is the one operator that is not ATen's: it takes an
element of the sequence that a node returned. Pure: this module imports no tensor library.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from covey_shared.errors import BundleError

FORMAT = 1
ITEM = "item"
WORDS = ("none", "tanh", "mean", "sum")  # the only strings that an operator may be given: no file names
DTYPES = ("bool", "uint8", "int8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
FLOATS = {"inf": float("inf"), "-inf": float("-inf"), "nan": float("nan")}
MAX_DEPTH = 4
_OPERATOR = re.compile(r"aten\.[a-z0-9_]+\.[A-Za-z0-9_]+")


@dataclass(frozen=True, slots=True)
class Value:
    """The result of an earlier node, an input or a constant, by number."""

    index: int


@dataclass(frozen=True, slots=True)
class Literal:
    """Something that only the runtime can name: `("dtype", "float32")` or `("device", "")`."""

    kind: str
    name: str


class Node(NamedTuple):
    """One call: the operator's name and its arguments, which are numbers, Values, Literals and lists of them."""

    op: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Inputs and constants by name, nodes in order, and the values that come out."""

    inputs: tuple[str, ...]
    constants: tuple[str, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[Value, ...]

    def to_bytes(self) -> bytes:
        """The JSON text, one node a line."""
        head = {"format": FORMAT, "inputs": self.inputs, "constants": self.constants}
        lines = ",\n".join(json.dumps(_node_json(n), allow_nan=False) for n in self.nodes)
        outputs = json.dumps([_json(v) for v in self.outputs])
        return f'{json.dumps(head)[:-1]}, "outputs": {outputs}, "nodes": [\n{lines}\n]}}\n'.encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Program":
        """The inverse of `to_bytes`; raises BundleError for whatever is not a program, before anything runs."""
        try:
            raw = json.loads(data)
            if raw["format"] != FORMAT:
                raise BundleError(f"the program has format {raw['format']!r}, this version of covey reads {FORMAT}")
            inputs, constants = (_names(raw[k]) for k in ("inputs", "constants"))
            first = len(inputs) + len(constants)
            nodes = tuple(_node(n, first + i) for i, n in enumerate(raw["nodes"]))
            outputs = tuple(_argument(o, first + len(nodes), 0) for o in raw["outputs"])
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise BundleError(f"the program is damaged: {error!r}") from None
        if len({*inputs, *constants}) != first:
            raise BundleError("the program names one of its inputs or constants twice")
        if not all(isinstance(o, Value) for o in outputs):
            raise BundleError("an output of the program is not one of its values")
        return cls(inputs=inputs, constants=constants, nodes=nodes, outputs=outputs)


def compile_program(
    program: Program, operator: Callable[[str], Callable[..., Any]], literal: Callable[[str, str], Any]
) -> Callable[[Mapping[str, Any]], list[Any]]:
    """A function from inputs and constants by name to the outputs.

    `operator` finds a callable by its ATen name and `literal` a dtype or the device; both are called here, once each
    time that they occur. A value is dropped after its last use, so the peak is that of the graph and not its sum.
    """
    names = program.inputs + program.constants
    dying = _last_uses(program)
    calls = [
        (_item if n.op == ITEM else operator(n.op), _resolve(n.args, literal), _resolve(n.kwargs, literal), dying[i])
        for i, n in enumerate(program.nodes)
    ]

    def run(given: Mapping[str, Any]) -> list[Any]:
        values = [given[name] for name in names]
        for function, args, kwargs, dead in calls:
            values.append(function(*_fill(args, values), **_fill(kwargs, values)))
            for index in dead:
                values[index] = None
        return [values[o.index] for o in program.outputs]

    return run


def _item(sequence: Sequence[Any], index: int) -> Any:
    return sequence[index]


def _resolve(x: Any, literal: Callable[[str, str], Any]) -> Any:
    """The arguments with every Literal replaced by what the runtime means by it."""
    if isinstance(x, Literal):
        return literal(x.kind, x.name)
    if isinstance(x, Mapping):
        return {k: _resolve(v, literal) for k, v in x.items()}
    return [_resolve(v, literal) for v in x] if isinstance(x, list | tuple) else x


def _fill(x: Any, values: list[Any]) -> Any:
    """The arguments with every Value replaced by the tensor that it stands for."""
    if isinstance(x, Value):
        return values[x.index]
    if isinstance(x, dict):
        return {k: _fill(v, values) for k, v in x.items()}
    return [_fill(v, values) for v in x] if isinstance(x, list) else x


def _values(x: Any) -> Iterator[Value]:
    if isinstance(x, Value):
        yield x
    elif isinstance(x, list | tuple | Mapping):
        for item in x.values() if isinstance(x, Mapping) else x:
            yield from _values(item)


def _last_uses(program: Program) -> list[tuple[int, ...]]:
    """For each node the values that nobody needs after it, the outputs excepted."""
    seen = set(program.outputs)
    out = []
    for node in reversed(program.nodes):
        fresh = set(_values([node.args, node.kwargs])) - seen
        out.append(tuple(sorted(v.index for v in fresh)))
        seen |= fresh
    return out[::-1]


def _json(x: Any) -> Any:
    if isinstance(x, Value):
        return {"v": x.index}
    if isinstance(x, Literal):
        return {x.kind: x.name}
    if isinstance(x, list | tuple):
        return [_json(v) for v in x]
    if isinstance(x, float) and (x != x or x in (float("inf"), float("-inf"))):
        return {"f": str(x)}
    return x


def _node_json(node: Node) -> dict[str, Any]:
    return {"op": node.op, "args": _json(node.args), "kwargs": {k: _json(v) for k, v in node.kwargs.items()}}


def _names(raw: Any) -> tuple[str, ...]:
    if not isinstance(raw, list) or not all(isinstance(name, str) for name in raw):
        raise BundleError("the inputs and constants of a program must be lists of names")
    return tuple(raw)


def _node(raw: Any, known: int) -> Node:
    op = raw["op"]
    if not isinstance(op, str) or not (op == ITEM or _OPERATOR.fullmatch(op)):
        raise BundleError(f"the program calls {str(op)[:60]!r}, which is not an ATen operator")
    if set(raw) != {"op", "args", "kwargs"} or not isinstance(raw["args"], list):
        raise BundleError(f"a call of {op} in the program has odd fields")
    args = tuple(_argument(a, known, 0) for a in raw["args"])
    return Node(op, args, {k: _argument(a, known, 0) for k, a in raw["kwargs"].items()})


def _argument(raw: Any, known: int, depth: int) -> Any:
    """One argument of the node whose value has number `known`: it may use the values before it."""
    if raw is None or isinstance(raw, bool | int | float) or (isinstance(raw, str) and raw in WORDS):
        return raw
    if isinstance(raw, list) and depth < MAX_DEPTH:
        return [_argument(a, known, depth + 1) for a in raw]
    if isinstance(raw, dict) and len(raw) == 1:
        ((kind, x),) = raw.items()
        if kind == "v" and type(x) is int and 0 <= x < known:
            return Value(x)
        if kind == "f" and isinstance(x, str) and x in FLOATS:
            return FLOATS[x]
        if (kind == "dtype" and x in DTYPES) or (kind == "device" and x == ""):
            return Literal(kind, x)
    raise BundleError(f"the program has the argument {str(raw)[:60]!r}, which it may not have")
