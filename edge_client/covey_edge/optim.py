"""Local optimisers as pure functions on flat float32 vectors: state in, state out.

SGD with momentum in torch.optim.SGD's form (the velocity starts at the first gradient; weight decay is coupled), and
AdamW (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101). Vectors are float32; the scalar factors of a step
are computed in double precision and rounded once, so that another language gets the same steps to the last bits but
for the order of its own rounding. Nothing here knows batches, losses or files.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from covey_shared.layout import Vector
from covey_shared.messages import LocalConfig


class OptimizerState(NamedTuple):
    """`step`: steps taken. `moments`: float32 [n] each: one (velocity) for SGD, two (mean, mean square) for AdamW."""

    step: int
    moments: tuple[Vector, ...]


class Optimizer(NamedTuple):
    """`init(n)` is the state before the first step; `update(adapter, gradient, state)` the next adapter and state."""

    init: Callable[[int], OptimizerState]
    update: Callable[[Vector, Vector, OptimizerState], tuple[Vector, OptimizerState]]


def sgd(learning_rate: float, momentum: float = 0.0, weight_decay: float = 0.0) -> Optimizer:
    """Stochastic gradient descent: v <- momentum * v + (g + weight_decay * x), x <- x - learning_rate * v.

    >>> rule = sgd(0.5)
    >>> rule.update(np.float32([1, 2]), np.float32([2, 0]), rule.init(2))[0]
    array([0., 2.], dtype=float32)
    """
    rate, mass, decay = np.float32(learning_rate), np.float32(momentum), np.float32(weight_decay)

    def update(adapter: Vector, gradient: Vector, state: OptimizerState) -> tuple[Vector, OptimizerState]:
        gradient = gradient + decay * adapter if weight_decay else gradient
        velocity = mass * state.moments[0] + gradient
        return adapter - rate * velocity, OptimizerState(state.step + 1, (velocity,))

    return Optimizer(lambda size: OptimizerState(0, (np.zeros(size, np.float32),)), update)


def adamw(
    learning_rate: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8, weight_decay: float = 0.0
) -> Optimizer:
    """Adam with decoupled weight decay: x <- x (1 - rate * decay) - rate * mean / (sqrt(square) + eps), bias-corrected.

    >>> rule = adamw(0.1)
    >>> rule.update(np.float32([1, 2]), np.float32([4, -1]), rule.init(2))[0].round(3)
    array([0.9, 2.1], dtype=float32)
    """
    keep1, new1 = np.float32(beta1), np.float32(1 - beta1)
    keep2, new2 = np.float32(beta2), np.float32(1 - beta2)
    shrink, floor = np.float32(1 - learning_rate * weight_decay), np.float32(eps)

    def update(adapter: Vector, gradient: Vector, state: OptimizerState) -> tuple[Vector, OptimizerState]:
        step = state.step + 1
        mean = keep1 * state.moments[0] + new1 * gradient
        square = keep2 * state.moments[1] + new2 * gradient * gradient
        rate = np.float32(learning_rate / (1 - beta1**step))
        scale = np.float32(1 / math.sqrt(1 - beta2**step))
        adapter = shrink * adapter - rate * mean / (np.sqrt(square) * scale + floor)
        return adapter, OptimizerState(step, (mean, square))

    def init(size: int) -> OptimizerState:
        return OptimizerState(0, (np.zeros(size, np.float32), np.zeros(size, np.float32)))

    return Optimizer(init, update)


def from_config(config: LocalConfig) -> Optimizer:
    """The optimiser that a task asks for."""
    if config.optimizer == "sgd":
        return sgd(config.learning_rate, config.momentum, config.weight_decay)
    return adamw(config.learning_rate, config.beta1, config.beta2, config.eps, config.weight_decay)


def clip(gradient: Vector, limit: float) -> Vector:
    """The gradient scaled so that its L2 norm is at most `limit`; 0 leaves it as it is. Norm in double precision.

    >>> clip(np.float32([3, 4]), 1.0)
    array([0.6, 0.8], dtype=float32)
    """
    if limit == 0:
        return gradient
    norm = math.sqrt(float(np.sum(np.square(gradient, dtype=np.float64))))
    return gradient * np.float32(limit / norm) if norm > limit else gradient
