"""What trains on a base model: LoRA by PEFT, whose own state dict says what the tensors are called, or whole blocks.

With LoRA everything is PEFT's: `modules_to_save` for what trains whole, `rank_pattern` and `alpha_pattern` for ranks
that differ, a second adapter for the frozen one. Whole blocks need no PEFT; their tensors have the base model's names.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils.constants import DUMMY_TARGET_MODULES
from torch import Tensor

from covey_export.base import Base
from covey_export.choice import Choice, block_names, choose, full_modules, is_norm
from covey_export.recipe import Recipe
from covey_export.tasks import TASKS
from covey_shared.errors import UsageError
from covey_shared.layout import Layout, Vector
from covey_shared.layout import Tensor as LayoutTensor

PREFIX = "base_model.model."
FROZEN = "frozen"  # PEFT's name of the second adapter; the first is "default"


class Adapted(NamedTuple):
    """A model in which some tensors train, their layout, and for each the name of its parameter in `inner`.

    `config` is PEFT's, None for a model without PEFT. `frozen` is the layout of the second adapter, if there is one,
    and `frozen_parameters` the names of its parameters in `inner`. `constants`: what PEFT saves with the adapter but
    does not train, by its names: the statistics of a batch normalisation whose weights train.
    """

    model: Any
    config: Any
    layout: Layout
    parameters: tuple[str, ...]
    start: Vector
    frozen: Layout | None = None
    frozen_parameters: tuple[str, ...] = ()
    constants: Mapping[str, Tensor] = MappingProxyType({})

    @property
    def lora(self) -> bool:
        """Whether any of it is LoRA."""
        return any(t.rank for t in self.layout.tensors)

    @property
    def inner(self) -> Any:
        """The model itself, without PEFT's wrappers around it."""
        return self.model if self.config is None else self.model.base_model.model


def adapt(base: Base, recipe: Recipe) -> Adapted:
    """Prepare the model, in place, for what a recipe trains."""
    return _blocks(base, recipe) if recipe.blocks else _lora(base, recipe)


def _lora(base: Base, recipe: Recipe) -> Adapted:
    choice = choose(base.model, recipe, base.fresh)
    if not choice.targets and not choice.full:
        raise UsageError("nothing would train: --target-modules none needs --train-full, or --num-labels (a new head)")
    torch.manual_seed(recipe.seed)
    try:
        model = get_peft_model(base.model, _config(recipe, choice))
    except (ValueError, TypeError, NotImplementedError) as error:
        raise UsageError(f"{recipe.model} takes no LoRA with these --target-modules: {error}") from None
    model.eval()
    names, parameters, constants = _names(model)
    tensors = tuple(_tensor(model, n, p) for n, p in zip(names, parameters, strict=True))
    start = np.concatenate([_array(model.get_parameter(p)).reshape(-1) for p in parameters])
    inner = tuple(p.removeprefix(PREFIX) for p in parameters)
    adapted = Adapted(model, model.peft_config["default"], Layout(tensors), inner, start, constants=constants)
    return _with_frozen(adapted, recipe) if recipe.frozen_rank else adapted


def _config(recipe: Recipe, choice: Choice) -> LoraConfig:
    return LoraConfig(
        r=recipe.largest_rank, lora_alpha=recipe.scaled_alpha, lora_dropout=0.0, bias="none",
        target_modules=choice.targets or DUMMY_TARGET_MODULES, modules_to_save=list(choice.full) or None,
        rank_pattern=choice.ranks, alpha_pattern={name: recipe.scale * r for name, r in choice.ranks.items()},
        task_type=TASKS[recipe.task].peft_type,
    )  # fmt: skip


def _with_frozen(adapted: Adapted, recipe: Recipe) -> Adapted:
    """A second LoRA on the same modules, of scale 1, active beside the first and not trained."""
    layers = {name.removeprefix(PREFIX): m for name, m in adapted.model.named_modules() if isinstance(m, LoraLayer)}
    config = LoraConfig(
        r=recipe.frozen_rank, lora_alpha=recipe.frozen_rank, lora_dropout=0.0, bias="none",
        target_modules=sorted(layers), task_type=TASKS[recipe.task].peft_type,
    )  # fmt: skip
    try:
        adapted.model.peft_config[FROZEN] = config
        adapted.model.base_model.inject_adapter(adapted.inner, FROZEN)
    except ValueError as error:
        raise UsageError(f"{recipe.model} takes no --frozen-rank {recipe.frozen_rank}: {error}") from None
    for layer in layers.values():
        layer.set_adapter(["default", FROZEN])
    pairs = [(t, p) for t, p in zip(adapted.layout.tensors, adapted.parameters, strict=True) if t.rank]
    parameters = tuple(p.replace(".default", f".{FROZEN}") for _, p in pairs)
    shapes = [adapted.inner.get_parameter(p).requires_grad_(False).shape for p in parameters]
    tensors = (
        LayoutTensor(name=t.name, shape=tuple(s), kind=t.kind, init="zeros", module=t.module, rank=recipe.frozen_rank)
        for (t, _), s in zip(pairs, shapes, strict=True)
    )
    return adapted._replace(frozen=Layout(tuple(tensors)), frozen_parameters=parameters)


def _blocks(base: Base, recipe: Recipe) -> Adapted:
    """Whole blocks, new heads, and what else is to train whole, under the base model's own names."""
    model = base.model.requires_grad_(False)
    blocks = tuple(block_names(model, recipe.blocks))
    others = {*base.fresh, *full_modules(model, recipe.train_full)}
    chosen = tuple(f"{name}." for name in (*blocks, *others))
    parameters = tuple(name for name, _ in model.named_parameters() if name.startswith(chosen))
    inside = tuple(f"{name}." for name in blocks)
    tensors = []
    for name in parameters:
        value = model.get_parameter(name).requires_grad_(True)
        module = name.rpartition(".")[0]
        kind = "block" if name.startswith(inside) else _whole_kind(model, module)
        tensors.append(LayoutTensor(name=name, shape=tuple(value.shape), kind=kind, init="stored", module=module))
    start = np.concatenate([_array(model.get_parameter(p)).reshape(-1) for p in parameters])
    return Adapted(model, None, Layout(tuple(tensors)), parameters, start)


def stored_start(adapted: Adapted) -> Vector:
    """The start values that no seed gives back, back to back: what the bundle's start file holds."""
    parts = [adapted.start[where] for tensor, where in adapted.layout.slices() if tensor.init == "stored"]
    return np.concatenate([np.empty(0, np.float32), *parts])


def load_adapter(adapted: Adapted, vector: Vector) -> None:
    """Put a vector into the model by the layout's names, with PEFT's own loader where PEFT is."""
    _load(adapted, adapted.layout, adapted.parameters, vector, "default")


def load_frozen(adapted: Adapted, vector: Vector) -> None:
    """The same for the second adapter."""
    assert adapted.frozen is not None
    _load(adapted, adapted.frozen, adapted.frozen_parameters, vector, FROZEN)


def _load(adapted: Adapted, layout: Layout, parameters: tuple[str, ...], vector: Vector, adapter: str) -> None:
    state = {name: torch.from_numpy(array.copy()) for name, array in layout.split(vector).items()}
    if adapted.config is None:
        with torch.no_grad():
            for name, value in zip(parameters, state.values(), strict=True):
                adapted.inner.get_parameter(name).copy_(value)
        return
    state |= adapted.constants if adapter == "default" else {}
    result = set_peft_model_state_dict(adapted.model, state, adapter_name=adapter)
    if result.unexpected_keys:
        raise UsageError(f"PEFT does not know the tensor {result.unexpected_keys[0]!r} of the layout")


def adapter_gradient(adapted: Adapted) -> Vector:
    """The gradients that a backward pass left, as PEFT names them, in the layout's order."""
    trained = {  # a module that the model never calls has no gradient
        n: torch.zeros_like(p) if p.grad is None else p.grad
        for n, p in adapted.model.named_parameters()
        if p.requires_grad
    }
    if adapted.config is not None:
        state = {**adapted.model.state_dict(), **trained}
        trained = get_peft_model_state_dict(adapted.model, state_dict=state, save_embedding_layers=False)
    return adapted.layout.join({t.name: _array(trained[t.name]) for t in adapted.layout.tensors})


def _names(model: Any) -> tuple[tuple[str, ...], tuple[str, ...], dict[str, Tensor]]:
    """PEFT's name in a saved file and in the model for each trained tensor, in the model's order; and the constants.

    PEFT's own function renames a state dict of marks, so nothing here knows how it names things.
    """
    state = model.state_dict()
    keys = list(state)
    marks = {name: torch.tensor(i) for i, name in enumerate(keys)}
    saved = get_peft_model_state_dict(model, state_dict=marks, save_embedding_layers=False)
    found = {keys[int(mark)]: name for name, mark in saved.items()}
    parameters = tuple(name for name, p in model.named_parameters() if p.requires_grad and name in found)
    constants = {name: state[key].clone() for key, name in found.items() if key not in parameters}
    return tuple(found[p] for p in parameters), parameters, constants


def _tensor(model: Any, name: str, parameter: str) -> LayoutTensor:
    value = model.get_parameter(parameter)
    kind = _lora_kind(name)
    module = name.removeprefix(PREFIX).rpartition(".")[0]
    rank, scale = 0, 1.0
    if kind:
        module = name.removeprefix(PREFIX).rpartition(".lora_")[0]
        layer = model.get_submodule(f"{PREFIX}{module}")
        rank, scale = int(layer.r["default"]), float(layer.scaling["default"])
    kind = kind or _whole_kind(model, parameter.rpartition(".")[0])
    return LayoutTensor(
        name=name, shape=tuple(value.shape), kind=kind, init=_init(name, value), module=module, rank=rank, scale=scale
    )


def _lora_kind(name: str) -> str:
    """Which factor a tensor is, or nothing for what is none."""
    for mark in ("lora_A", "lora_B"):
        if f".{mark}." in name or f".{mark.replace('lora_', 'lora_embedding_')}" in name:
            return mark
    return ""


def _whole_kind(model: Any, module: str) -> str:
    return "norm" if is_norm(model.get_submodule(module)) else "head"


def _init(name: str, value: Tensor) -> str:
    """How the start value comes about again. PEFT starts lora_A as Kaiming-uniform and lora_B as zeros."""
    if ".lora_A." in name:
        return "kaiming_uniform"
    return "zeros" if ".lora_" in name and not value.any() else "stored"


def _array(value: Tensor) -> Vector:
    return np.ascontiguousarray(value.detach().numpy(), np.float32)
