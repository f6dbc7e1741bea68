import importlib.util
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_edge.optim import Optimizer, adamw, clip, from_config, sgd
from covey_shared.layout import Vector
from tests.helpers_edge import LOCAL


def vec(*values: float) -> Vector:
    return np.array(values, np.float32)


RULES: dict[str, tuple[Optimizer, str, dict[str, Any]]] = {
    "sgd": (sgd(0.1), "SGD", {"lr": 0.1}),
    "momentum": (sgd(0.1, 0.9), "SGD", {"lr": 0.1, "momentum": 0.9}),
    "momentum-decay": (sgd(0.1, 0.9, 0.01), "SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    "adam": (adamw(0.01), "AdamW", {"lr": 0.01, "weight_decay": 0.0}),
    "adamw": (adamw(0.01, 0.8, 0.95, 1e-6, 0.1), "AdamW",
              {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}),
}  # fmt: skip


def run(rule: Optimizer, start: Vector, gradients: list[Vector]) -> Vector:
    state = rule.init(len(start))
    for g in gradients:
        start, state = rule.update(start, g, state)
    assert state.step == len(gradients)
    return start


@pytest.mark.skipif(not importlib.util.find_spec("torch"), reason="compares with torch.optim")
@pytest.mark.parametrize("name", RULES)
def test_equals_torch(name: str) -> None:
    import torch

    rule, torch_name, settings = RULES[name]
    rng = np.random.default_rng(1)
    start = rng.standard_normal(1000, np.float32)
    gradients = [rng.standard_normal(1000, np.float32) * 10.0 ** float(-i) for i in range(8)]
    parameter = torch.from_numpy(start.copy())
    optimizer = getattr(torch.optim, torch_name)([parameter], **settings)
    for g in gradients:
        parameter.grad = torch.from_numpy(g.astype(np.float32))
        optimizer.step()
    ours = run(rule, start, [g.astype(np.float32) for g in gradients])
    np.testing.assert_allclose(ours, parameter.numpy(), rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("name", RULES)
def test_is_pure_and_float32(name: str) -> None:
    rule = RULES[name][0]
    adapter, gradient, state = vec(1, -2), vec(3, 4), rule.init(2)
    first = rule.update(adapter, gradient, state)
    second = rule.update(adapter, gradient, state)
    assert adapter.tolist() == [1, -2]
    assert gradient.tolist() == [3, 4]
    assert [first[0].dtype, *(m.dtype for m in first[1].moments)] == [np.float32] * (1 + len(first[1].moments))
    np.testing.assert_array_equal(first[0], second[0])


def test_momentum_by_hand() -> None:
    assert run(sgd(1.0, 0.5), vec(0), [vec(1)] * 3).tolist() == [-(1 + 1.5 + 1.75)]


def test_config_chooses() -> None:
    start, gradient = vec(1, 2), [vec(4, -1)]
    by_config = run(from_config(LOCAL), start, gradient)
    np.testing.assert_array_equal(by_config, run(adamw(0.05, 0.9, 0.99), start, gradient))


@given(
    st.lists(st.floats(-(2.0**50), 2.0**50, width=32, allow_subnormal=False), min_size=1, max_size=20),
    st.floats(0.001, 1e6),
)
def test_clip_bounds_the_norm_and_keeps_the_direction(values: list[float], limit: float) -> None:
    gradient = vec(*values)
    clipped = clip(gradient, limit)
    norm = float(np.linalg.norm(gradient.astype(float)))
    if norm <= limit:
        assert clipped is gradient
    else:
        np.testing.assert_allclose(np.linalg.norm(clipped.astype(float)), limit, rtol=1e-5)
        np.testing.assert_allclose(clipped * np.float32(norm / limit), gradient, rtol=1e-4, atol=1e-30 + 1e-6 * norm)
    assert clip(gradient, 0) is gradient
