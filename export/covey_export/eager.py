"""Eager PyTorch and PEFT as a function of the flat adapter: what every runtime is compared with."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray

from covey_export.adapter import Adapted, adapt, adapter_gradient, load_adapter
from covey_export.base import load_base
from covey_export.recipe import Recipe
from covey_export.tasks import TASKS, Task, arguments
from covey_shared.layout import Vector

Step = Callable[[Vector, Any, NDArray[Any]], tuple[float, Vector]]
Update = Callable[[Vector, Vector, Any], tuple[Vector, Any]]


class Eager(NamedTuple):
    """A model with PEFT's adapter in it."""

    adapted: Adapted
    task: Task
    pad_id: int

    def step(self, adapter: Vector, inputs: NDArray[Any], labels: NDArray[Any]) -> tuple[float, Vector]:
        """Mean loss and its gradient, float32 [n], by PyTorch's own autograd."""
        load_adapter(self.adapted, adapter)
        self.adapted.model.zero_grad(set_to_none=True)
        kwargs = arguments(self.task, torch.from_numpy(inputs), self.pad_id)
        loss = self.adapted.model(**kwargs, labels=torch.from_numpy(labels)).loss
        loss.backward()
        return float(loss.detach()), adapter_gradient(self.adapted)


def open_eager(recipe: Recipe, pad_id: int) -> Eager:
    """Load the model again and adapt it as the export does."""
    base = load_base(recipe)
    return Eager(adapt(base, recipe), TASKS[recipe.task], pad_id)


def curve(step: Step, start: Vector, batches: Iterable[tuple[Any, Any]], update: Update, state: Any) -> list[float]:
    """The loss before each update, over the batches: (inputs, labels) each."""
    losses, adapter = [], start
    for inputs, labels in batches:
        loss, gradient = step(adapter, inputs, labels)
        losses.append(loss)
        adapter, state = update(adapter, gradient, state)
    return losses
