"""The training graph: forward and backward in one, the adapter an input and its gradient an output.

    train   (adapter f32[n], input_ids i64[B,T], labels) -> (loss f32[], grad f32[n])
    eval    (adapter, input_ids, labels)                 -> (loss_sum f32[], n_tokens i64[], n_correct i64[])
    forward (adapter, input_ids)                         -> (logits f32[B,T,V] or f32[B,labels],)

No weight is mutable, so an inference runtime can run it. The model is called functionally: the adapter is split once
(many overlapping slices make the backward pass crawl) and the pieces stand in for the LoRA parameters.
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
from covey_export.roles import ROLES
from covey_export.tasks import Task, arguments, mean_loss, statistics
from covey_shared.layout import Tensor as LayoutTensor


class Graph(NamedTuple):
    """A graph of functional ATen operators. Its placeholders are the constants, by name, then the inputs, in order."""

    role: str
    module: fx.GraphModule
    constants: dict[str, Tensor]
    examples: tuple[Tensor, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        """Names of the inputs."""
        return ROLES[self.role][0]

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the outputs."""
        return ROLES[self.role][1]


def trace(role: str, adapted: Adapted, task: Task, batch: dict[str, Tensor], pad_id: int) -> Graph:
    """Trace one role with the shapes of a batch."""
    inputs = {"adapter": torch.from_numpy(adapted.start.copy()), **batch}
    examples = tuple(inputs[name] for name in ROLES[role][0])
    module = _Functional(adapted, _heads(task)[role], task, pad_id)
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
    return _lift(role, program, tuple(x.detach() for x in examples))


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

    def __init__(self, adapted: Adapted, head: Head, task: Task, pad_id: int):
        super().__init__()
        self.model = adapted.model.base_model.model
        self._names = tuple(name.removeprefix("base_model.model.") for name in adapted.parameters)
        self._tensors = adapted.layout.tensors
        self._head, self._task, self._pad_id = head, task, pad_id

    def forward(self, adapter: Tensor, input_ids: Tensor, *labels: Tensor) -> tuple[Tensor, ...]:
        pieces = adapter.split([t.size for t in self._tensors])
        named = {n: _piece(p, t) for n, p, t in zip(self._names, pieces, self._tensors, strict=True)}
        kwargs: dict[str, Any] = {**arguments(self._task, input_ids, self._pad_id), "use_cache": False}
        if self._task.masked:
            del kwargs["use_cache"]
        logits = torch.func.functional_call(self.model, named, kwargs=kwargs).logits
        return self._head(logits, *labels)


def _piece(piece: Tensor, tensor: LayoutTensor) -> Tensor:
    shaped = piece.view(tensor.shape)
    return shaped * tensor.scale if tensor.kind == "lora_B" else shaped


class _Closed(nn.Module):
    def __init__(self, graph: Graph):
        super().__init__()
        self.graph_module = graph.module
        self._constants = tuple(graph.constants)
        for name, value in graph.constants.items():
            self.register_buffer(name, value)

    def forward(self, *inputs: Tensor) -> Any:
        return self.graph_module(*(getattr(self, name) for name in self._constants), *inputs)


def _lift(role: str, program: ExportedProgram, examples: tuple[Tensor, ...]) -> Graph:
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
    return Graph(role, program.graph_module, constants, examples)
