"""The training graph: forward and backward in one, the adapter an input and its gradient an output.

    train   (adapter f32[n], frozen f32[m]?, input_ids i64[B,T], labels) -> (loss f32[], grad f32[n])
    eval    (adapter, frozen?, input_ids, labels)  -> (loss_sum f32[], n_tokens i64[], n_correct i64[])
    forward (adapter, frozen?, input_ids)          -> (logits f32[B,T,V] or f32[B,labels],)

Image models take pixel_values f32[B,C,H,W] in place of input_ids. No weight is mutable, so an inference runtime can run
it. The model is called functionally: the adapter is split once (many overlapping slices make the backward pass crawl)
and the pieces stand in for the parameters that train.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from peft.tuners.lora import LoraLayer
from torch import Tensor, fx, nn
from torch._decomp import core_aten_decompositions
from torch.export import ExportedProgram, export
from torch.export.experimental import _export_forward_backward
from torch.export.graph_signature import InputKind

from covey_export.adapter import Adapted
from covey_export.blame import blamed
from covey_export.roles import ROLES, inputs_of
from covey_export.tasks import Task, arguments, mean_loss, statistics
from covey_shared.errors import UsageError
from covey_shared.layout import Layout
from covey_shared.layout import Tensor as LayoutTensor


class Graph(NamedTuple):
    """A graph of functional ATen operators. Its placeholders are the constants, by name, then the inputs, in order.

    `inputs` and `outputs` are the names of the inputs, of which `examples` are values, and of the outputs.
    """

    role: str
    module: fx.GraphModule
    constants: dict[str, Tensor]
    examples: tuple[Tensor, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


def trace(role: str, adapted: Adapted, task: Task, batch: dict[str, Tensor], pad_id: int) -> Graph:
    """Trace one role with the shapes of a batch."""
    given = {"adapter": torch.from_numpy(adapted.start.copy()), **batch}
    if adapted.frozen:
        given["frozen"] = torch.zeros(adapted.frozen.size)
    names = inputs_of(role, given)
    examples = tuple(given[name] for name in names)
    module = _Functional(adapted, _heads(task)[role], task, pad_id, names)
    for parameter in adapted.model.parameters():
        parameter.requires_grad_(False)
    with (
        _unscaled(adapted),
        blamed(f"{type(module.model).__name__} cannot be exported, tracing its {role} graph stops"),
    ):
        if role == "train":
            examples[0].requires_grad_()
            program = _export_forward_backward(export(module, examples))
        else:
            program = export(module, examples).run_decompositions(core_aten_decompositions())
    graph_module, constants = _lift(program)
    _refuse_foreign(graph_module.graph, type(module.model).__name__)
    return Graph(role, graph_module, constants, tuple(x.detach() for x in examples), names, ROLES[role])


def _refuse_foreign(graph: fx.Graph, model: str) -> None:
    """No device's runtime has complex numbers, or operators that are not PyTorch's own."""
    for node in graph.nodes:
        value, target = node.meta.get("val"), node.target
        if isinstance(value, Tensor) and value.is_complex():
            raise UsageError(f"{model} cannot be exported: it computes with complex numbers ({target})")
        if isinstance(target, torch._ops.OpOverload) and target.namespace not in ("aten", "prims"):
            raise UsageError(f"{model} cannot be exported: no device has its operator {target}")


def closed(graph: Graph) -> nn.Module:
    """The graph as a module that holds its constants and takes the inputs alone."""
    return _Closed(graph)


@contextlib.contextmanager
def _unscaled(adapted: Adapted) -> Iterator[None]:
    """Without LoRA's scale in the layers: `_Functional` puts it on lora_B, which is smaller than what it makes."""
    layers = [m for m in adapted.model.modules() if isinstance(m, LoraLayer)]
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            layer.scaling = dict.fromkeys(layer.scaling, 1.0)
        yield
    finally:
        for layer, scaling in zip(layers, before, strict=True):
            layer.scaling = scaling


Head = Callable[..., tuple[Tensor, ...]]


def _heads(task: Task) -> dict[str, Head]:
    """What becomes of the logits in each role."""
    return {
        "train": lambda logits, labels: (mean_loss(logits, task.aligned(labels)),),
        "eval": lambda logits, labels: statistics(logits, task.aligned(labels)),
        "forward": lambda logits: (logits,),
    }


class _Functional(nn.Module):
    """The model as a function of the adapter vector."""

    def __init__(self, adapted: Adapted, head: Head, task: Task, pad_id: int, inputs: tuple[str, ...]):
        super().__init__()
        self.model = adapted.inner
        self._adapted, self._inputs = adapted, inputs
        self._head, self._task, self._pad_id = head, task, pad_id

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self._inputs, inputs, strict=True))
        named = _pieces(given["adapter"], self._adapted.layout, self._adapted.parameters)
        if self._adapted.frozen:
            named |= _pieces(given["frozen"], self._adapted.frozen, self._adapted.frozen_parameters)
        kwargs = arguments(self._task, given[self._task.input], self._pad_id)
        logits = torch.func.functional_call(self.model, named, kwargs=kwargs).logits
        return self._head(logits, given["labels"]) if "labels" in given else self._head(logits)


def _pieces(vector: Tensor, layout: Layout, parameters: tuple[str, ...]) -> dict[str, Tensor]:
    """The parameters that a vector stands for, by their names in the model."""
    pieces = vector.split([t.size for t in layout.tensors])
    return {name: _piece(p, t) for name, p, t in zip(parameters, pieces, layout.tensors, strict=True)}


def _piece(piece: Tensor, tensor: LayoutTensor) -> Tensor:
    shaped = piece.view(tensor.shape)
    return shaped * tensor.scale if tensor.kind == "lora_B" and tensor.scale != 1 else shaped


class _Closed(nn.Module):
    def __init__(self, graph: Graph):
        super().__init__()
        self.graph_module = graph.module
        self._constants = tuple(graph.constants)
        for name, value in graph.constants.items():
            self.register_buffer(name, value)

    def forward(self, *inputs: Tensor) -> Any:
        return self.graph_module(*(getattr(self, name) for name in self._constants), *inputs)


def _lift(program: ExportedProgram) -> tuple[fx.GraphModule, dict[str, Tensor]]:
    """The program's graph with the tensors that it uses beside it; those that the adapter replaced are gone."""
    constants: dict[str, Tensor] = {}
    graph = program.graph_module.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for node, spec in zip(placeholders, program.graph_signature.input_specs, strict=True):
        if spec.kind is InputKind.USER_INPUT:
            continue
        if not node.users:
            graph.erase_node(node)
            continue
        tensors = program.constants if spec.target in program.constants else program.state_dict
        constants[node.name] = tensors[spec.target].detach()
    program.graph_module.recompile()
    return program.graph_module, constants
