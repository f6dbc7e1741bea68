"""LoRA on a base model: PEFT puts it in, and PEFT's own state dict says what the tensors are called."""

from difflib import get_close_matches
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from covey_export.base import Base
from covey_export.recipe import ALL_LINEAR, Recipe
from covey_export.tasks import TASKS
from covey_shared.errors import UsageError
from covey_shared.layout import Layout, Vector
from covey_shared.layout import Tensor as LayoutTensor

REGEX = set("*+?()[]|^$\\")  # a target with one of these is a pattern for the whole name of a module


class Adapted(NamedTuple):
    """A PEFT model, the layout of what trains, and for each tensor of the layout the name of its parameter."""

    model: Any
    layout: Layout
    parameters: tuple[str, ...]
    start: Vector

    @property
    def config(self) -> Any:
        """PEFT's LoraConfig."""
        return self.model.peft_config["default"]


def adapt(base: Base, recipe: Recipe) -> Adapted:
    """Put LoRA into the model, in place; new heads are trained whole."""
    config = LoraConfig(
        r=recipe.rank, lora_alpha=recipe.scaled_alpha, lora_dropout=0.0, bias="none",
        target_modules=_targets(base.model, recipe, base.fresh), modules_to_save=list(base.fresh) or None,
        task_type=TASKS[recipe.task].peft_type,
    )  # fmt: skip
    torch.manual_seed(recipe.seed)
    try:
        model = get_peft_model(base.model, config)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{recipe.model} takes no LoRA with these --target-modules: {error}") from None
    model.eval()
    names, parameters = _names(model)
    tensors = tuple(_tensor(model, n, p) for n, p in zip(names, parameters, strict=True))
    start = np.concatenate([_array(model.get_parameter(p)).reshape(-1) for p in parameters])
    return Adapted(model, Layout(tensors), parameters, start)


def stored_start(adapted: Adapted) -> Vector:
    """The start values that no seed gives back, back to back: what the bundle's start file holds."""
    parts = [adapted.start[where] for tensor, where in adapted.layout.slices() if tensor.init == "stored"]
    return np.concatenate([np.empty(0, np.float32), *parts])


def load_adapter(adapted: Adapted, vector: Vector) -> None:
    """Put a vector into the model by the layout's names and PEFT's own loader."""
    state = {name: torch.from_numpy(array.copy()) for name, array in adapted.layout.split(vector).items()}
    result = set_peft_model_state_dict(adapted.model, state)
    if result.unexpected_keys:
        raise UsageError(f"PEFT does not know the tensor {result.unexpected_keys[0]!r} of the layout")


def adapter_gradient(adapted: Adapted) -> Vector:
    """The gradients that a backward pass left, as PEFT names them, in the layout's order."""
    trained = {  # a module that the model never calls has no gradient
        n: torch.zeros_like(p) if p.grad is None else p.grad
        for n, p in adapted.model.named_parameters()
        if p.requires_grad
    }
    saved = get_peft_model_state_dict(adapted.model, state_dict=trained, save_embedding_layers=False)
    return adapted.layout.join({name: _array(value) for name, value in saved.items()})


def _targets(model: Any, recipe: Recipe, fresh: tuple[str, ...]) -> list[str] | str:
    linear = _linear_modules(model, fresh, recipe)
    wanted = recipe.target_modules
    if wanted == (ALL_LINEAR,):
        if not linear:
            raise UsageError(f"{type(model).__name__} has no linear layers that LoRA could go into")
        return sorted({name.rpartition(".")[2] for name in linear})
    if len(wanted) == 1 and REGEX & set(wanted[0]):
        return wanted[0]
    leaves = sorted({name.rpartition(".")[2] for name, _ in model.named_modules() if name})
    for target in wanted:
        if not any(name == target or name.endswith(f".{target}") for name, _ in model.named_modules()):
            near = get_close_matches(target, leaves, 3, 0.4) or sorted({n.rpartition(".")[2] for n in linear})
            raise UsageError(
                f"--target-modules {target!r} matches no module of {type(model).__name__}; it has {', '.join(near)}"
            )
    return sorted(wanted)


def _linear_modules(model: Any, fresh: tuple[str, ...], recipe: Recipe) -> list[str]:
    """Names of the linear layers but for the output embedding, which is tied or huge, and the new heads."""
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    return [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output and not _is_head(name, fresh, recipe)
    ]


def _is_head(name: str, fresh: tuple[str, ...], recipe: Recipe) -> bool:
    """Whether PEFT trains the module whole: it looks for heads by how names end, so `pre_classifier` is one too."""
    heads = ("classifier", "score") if recipe.task == "sequence-classification" else ()
    return any(name == f or name.startswith(f"{f}.") for f in fresh) or any(
        part.endswith(heads) for part in name.split(".") if heads
    )


def _names(model: Any) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """PEFT's name in a saved file and in the model for each trained tensor, in the model's order.

    PEFT's own function renames a state dict of marks, so nothing here knows how it names things.
    """
    parameters = [name for name, p in model.named_parameters() if p.requires_grad]
    marks = {name: torch.tensor(i) for i, name in enumerate(parameters)}
    saved = get_peft_model_state_dict(model, state_dict=marks, save_embedding_layers=False)
    order = sorted(saved, key=lambda name: int(saved[name]))
    return tuple(order), tuple(parameters[int(saved[name])] for name in order)


def _tensor(model: Any, name: str, parameter: str) -> LayoutTensor:
    value = model.get_parameter(parameter)
    kind = _kind(name)
    module = name.removeprefix("base_model.model.").rpartition(".")[0]
    rank, scale = 0, 1.0
    if kind in ("lora_A", "lora_B"):
        module = module.rpartition(".lora_")[0]
        layer = model.get_submodule(f"base_model.model.{module}")
        rank, scale = int(layer.r["default"]), float(layer.scaling["default"])
    return LayoutTensor(
        name=name, shape=tuple(value.shape), kind=kind, init=_init(name, value), module=module, rank=rank, scale=scale
    )


def _kind(name: str) -> str:
    for kind, mark in (("lora_A", ".lora_A."), ("lora_B", ".lora_B."), ("lora_A", ".lora_embedding_A")):
        if mark in name:
            return kind
    return "lora_B" if ".lora_embedding_B" in name else "head"


def _init(name: str, value: Tensor) -> str:
    """How the start value comes about again. PEFT starts lora_A as Kaiming-uniform and lora_B as zeros."""
    if ".lora_A." in name:
        return "kaiming_uniform"
    return "zeros" if ".lora_" in name and not value.any() else "stored"


def _array(value: Tensor) -> Vector:
    return np.ascontiguousarray(value.detach().numpy(), np.float32)
