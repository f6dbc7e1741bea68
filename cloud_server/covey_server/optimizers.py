"""Server optimizers on flat vectors: pure, `(state, w, mean change) -> (state, new w)`.

The mean change of a round, trained minus started, enters as the negative of a gradient, as in "Adaptive Federated
Optimization" (Reddi et al. 2021, arXiv 2003.00295). `sgd` with learning rate 1 is plain averaging. `adam` and `adamw`
are torch.optim's, bias correction included, so `adamw` with its defaults is what FLASC steps; `momentum` is
torch.optim.SGD's; `yogi` is FedYogi of the paper above, algorithm 2, without bias correction and with v starting at
eps squared.

Averaging is safe with any codec; the adaptive ones bring sparse means, zero nearly everywhere, to one scale.

Vectors are float32 [n] and all arithmetic on them is float32, elementwise, hence the same bits wherever IEEE 754 holds.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

from covey_shared.layout import Vector

State = dict[str, Vector | int]


class Optimizer(NamedTuple):
    """`init(n)`: the first state. `step(state, w, mean_change)`: the next state and the next w; nothing is changed."""

    init: Callable[[int], State]
    step: Callable[[State, Vector, Vector], tuple[State, Vector]]


def sgd(learning_rate: float) -> Optimizer:
    """w + learning_rate * change.

    >>> step = sgd(0.5).step
    >>> step({}, np.zeros(2, np.float32), np.array([2, -4], np.float32))[1]
    array([ 1., -2.], dtype=float32)
    """

    def step(state: State, w: Vector, change: Vector) -> tuple[State, Vector]:
        return state, w + learning_rate * change

    return Optimizer(lambda n: {}, step)


def momentum(learning_rate: float, momentum: float) -> Optimizer:
    """buffer = momentum * buffer + change; w + learning_rate * buffer (FedAvgM, Hsu et al. 2019, arXiv 1909.06335)."""

    def step(state: State, w: Vector, change: Vector) -> tuple[State, Vector]:
        buffer = momentum * _vector(state, "buffer") + change
        return {"buffer": buffer}, w + learning_rate * buffer

    return Optimizer(lambda n: {"buffer": np.zeros(n, np.float32)}, step)


def nesterov(learning_rate: float, momentum: float) -> Optimizer:
    """buffer = momentum * buffer + change; w + learning_rate * (change + momentum * buffer), as torch.optim.SGD's.

    The outer step of DiLoCo (Douillard et al. 2023, arXiv 2311.08105) and FDLoRA; without momentum plain averaging.

    >>> rule = nesterov(1.0, 0.5)
    >>> rule.step(rule.init(1), np.zeros(1, np.float32), np.ones(1, np.float32))[1]
    array([1.5], dtype=float32)
    """

    def step(state: State, w: Vector, change: Vector) -> tuple[State, Vector]:
        buffer = momentum * _vector(state, "buffer") + change
        ahead: Vector = change + momentum * buffer
        return {"buffer": buffer}, w + learning_rate * ahead

    return Optimizer(lambda n: {"buffer": np.zeros(n, np.float32)}, step)


def adamw(learning_rate: float, beta1: float, beta2: float, eps: float, weight_decay: float) -> Optimizer:
    """Adam with decoupled weight decay on every entry (Loshchilov & Hutter 2019, arXiv 1711.05101)."""

    def step(state: State, w: Vector, change: Vector) -> tuple[State, Vector]:
        t = _count(state) + 1
        m: Vector = beta1 * _vector(state, "m") - (1 - beta1) * change
        v: Vector = beta2 * _vector(state, "v") + (1 - beta2) * (change * change)
        scale = _root(v) / math.sqrt(1 - math.pow(beta2, t)) + eps
        rate = learning_rate / (1 - math.pow(beta1, t))
        return {"t": t, "m": m, "v": v}, w * (1 - learning_rate * weight_decay) - rate * _ratio(m, scale)

    return Optimizer(lambda n: {"t": 0, "m": np.zeros(n, np.float32), "v": np.zeros(n, np.float32)}, step)


def adam(learning_rate: float, beta1: float, beta2: float, eps: float) -> Optimizer:
    """Adam (Kingma & Ba 2015, arXiv 1412.6980)."""
    return adamw(learning_rate, beta1, beta2, eps, weight_decay=0.0)


def yogi(learning_rate: float, beta1: float, beta2: float, eps: float) -> Optimizer:
    """FedYogi: v moves by the sign of its error, so that a few large changes do not shrink every later step."""

    def init(n: int) -> State:
        return {"m": np.zeros(n, np.float32), "v": np.full(n, np.float32(eps) ** 2, np.float32)}

    def step(state: State, w: Vector, change: Vector) -> tuple[State, Vector]:
        squared = change * change
        old = _vector(state, "v")
        m: Vector = beta1 * _vector(state, "m") + (1 - beta1) * change
        v: Vector = old - (1 - beta2) * squared * np.sign(old - squared)
        return {"m": m, "v": v}, w + learning_rate * _ratio(m, _root(v) + eps)

    return Optimizer(init, step)


OPTIMIZERS: dict[str, Callable[..., Optimizer]] = {
    "sgd": sgd,
    "momentum": momentum,
    "nesterov": nesterov,
    "adamw": adamw,
    "adam": adam,
    "yogi": yogi,
}


def make_optimizer(name: str, args: Mapping[str, object]) -> Optimizer:
    """The optimizer that a task names."""
    return OPTIMIZERS[name](**args)


def _root(x: Vector) -> Vector:
    root: Vector = np.sqrt(x)
    return root


def _ratio(x: Vector, y: Vector) -> Vector:
    ratio: Vector = np.divide(x, y)  # NumPy's stubs call the operator's result float64
    return ratio


def _vector(state: State, key: str) -> Vector:
    value = state[key]
    assert isinstance(value, np.ndarray)
    return value


def _count(state: State) -> int:
    value = state["t"]
    assert isinstance(value, int)
    return value
