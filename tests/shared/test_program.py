"""Programs: they round trip, run with any operators, free what they no longer need, and refuse what is hostile."""

import json
import operator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_shared.errors import BundleError
from covey_shared.program import DTYPES, ITEM, Literal, Node, Program, Value, compile_program

PROGRAM = Program(
    inputs=("a", "b"),
    constants=("w",),
    nodes=(
        Node("aten.add.Tensor", (Value(0), Value(2)), {}),
        Node("aten.mul.Tensor", (Value(3), Value(1)), {"rate": 0.5, "dtype": Literal("dtype", "float32")}),
        Node("aten.pair.default", ([Value(3), Value(4)], float("-inf"), Literal("device", "")), {}),
        Node(ITEM, (Value(5), 1), {}),
    ),
    outputs=(Value(6), Value(3)),
)
OPERATORS: dict[str, Any] = {
    "aten.add.Tensor": operator.add,
    "aten.mul.Tensor": lambda x, y, rate, dtype: (x * y * rate, dtype),
    "aten.pair.default": lambda pair, low, device: (pair[0], (pair[1], low, device)),
}


def test_round_trip() -> None:
    assert Program.from_bytes(PROGRAM.to_bytes()).to_bytes() == PROGRAM.to_bytes()


def test_runs_with_the_operators_that_it_is_given() -> None:
    program = Program.from_bytes(PROGRAM.to_bytes())
    run = compile_program(program, OPERATORS.__getitem__, lambda kind, name: f"<{kind} {name}>")
    (pair, low, device), total = run({"a": 1, "b": 10, "w": 2, "unused": 3})
    assert pair == (15.0, "<dtype float32>")
    assert (low, device, total) == (float("-inf"), "<device >", 3)


def test_values_are_dropped_after_their_last_use() -> None:
    alive: list[int] = []

    class Counted:
        def __init__(self) -> None:
            alive.append(1)

        def __del__(self) -> None:
            alive.pop()

    most = 0

    def step(before: Any) -> Counted:
        nonlocal most
        most = max(most, len(alive))
        return Counted()

    nodes = tuple(Node("aten.step.default", (Value(i),), {}) for i in range(20))
    program = Program(inputs=("a",), constants=(), nodes=nodes, outputs=(Value(20),))
    compile_program(program, lambda name: step, lambda kind, name: None)({"a": 0})
    assert most == 1


def changed(path: list[Any], value: Any) -> bytes:
    raw = json.loads(PROGRAM.to_bytes())
    place = raw
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(raw).encode()


@pytest.mark.parametrize(
    ("path", "value", "sentence"),
    [
        (["format"], 2, "the program has format 2"),
        (["nodes", 0, "op"], "os.system", "calls 'os.system', which is not an ATen operator"),
        (["nodes", 0, "op"], "aten.add.Tensor; import os", "is not an ATen operator"),
        (["nodes", 0, "op"], "aten.__class__.x.y", "is not an ATen operator"),
        (["nodes", 0, "op"], 3, "is not an ATen operator"),
        (["nodes", 0, "args", 0], "/etc/passwd", "the argument '/etc/passwd', which it may not have"),
        (["nodes", 0, "args", 0], {"v": 3}, "which it may not have"),  # its own result
        (["nodes", 0, "args", 0], {"v": -1}, "which it may not have"),
        (["nodes", 0, "args", 0], {"v": True}, "which it may not have"),
        (["nodes", 0, "args", 0], {"v": 0, "w": 1}, "which it may not have"),
        (["nodes", 0, "args", 0], {"f": "1e5"}, "which it may not have"),
        (["nodes", 1, "kwargs", "dtype"], {"dtype": "save"}, "which it may not have"),
        (["nodes", 2, "args", 2], {"device": "cuda:0"}, "which it may not have"),
        (["nodes", 2, "args", 0], [[[[[[1]]]]]], "which it may not have"),
        (["nodes", 0, "more"], 1, "odd fields"),
        (["nodes", 0, "args"], {}, "odd fields"),
        (["nodes"], 7, "the program is damaged"),
        (["nodes", 0], [], "the program is damaged"),
        (["outputs"], [1], "an output of the program is not one of its values"),
        (["outputs"], [{"v": 99}], "which it may not have"),
        (["inputs"], ["a", "a"], "names one of its inputs or constants twice"),
        (["inputs"], "ab", "must be lists of names"),
        (["constants"], [1], "must be lists of names"),
    ],
)
def test_hostile(path: list[Any], value: Any, sentence: str) -> None:
    with pytest.raises(BundleError) as caught:
        Program.from_bytes(changed(path, value))
    assert sentence in str(caught.value)
    assert len(str(caught.value)) < 300


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(BundleError):
        Program.from_bytes(data)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.floats() | st.sampled_from(["none", "v", "a", *DTYPES]),
    lambda x: st.lists(x, max_size=3) | st.dictionaries(st.sampled_from(["v", "f", "op", "dtype"]), x, max_size=2),
    max_leaves=12,
)


@given(st.sampled_from([("nodes", 0), ("nodes", 1), ("nodes",), ("outputs",), ("inputs",), ("format",)]), JSON)
def test_any_json_is_a_program_or_refused(path: tuple[Any, ...], value: Any) -> None:
    try:
        program = Program.from_bytes(changed(list(path), value))
    except BundleError:
        return
    assert Program.from_bytes(program.to_bytes()).to_bytes() == program.to_bytes()
