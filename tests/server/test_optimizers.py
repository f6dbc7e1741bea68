import importlib.util
from typing import Any

import numpy as np
import pytest

from covey_server.optimizers import OPTIMIZERS, Optimizer, adamw, make_optimizer, momentum, sgd, yogi
from covey_server.task_sections import OPTIMIZERS as DEFAULTS
from covey_shared.codec import dump_state, load_state
from covey_shared.layout import Vector


def vec(*values: float) -> Vector:
    return np.array(values, np.float32)


def run(optimizer: Optimizer, w: Vector, changes: list[Vector]) -> Vector:
    state = optimizer.init(len(w))
    for change in changes:
        state, w = optimizer.step(state, w, change)
    return w


def changes_of(n: int, rounds: int) -> list[Vector]:
    """Half of them sparse, as top-k leaves them."""
    rng = np.random.default_rng(3)
    dense = [rng.standard_normal(n).astype(np.float32) * np.float32(0.01) for _ in range(rounds)]
    return [np.where(rng.random(n) < 0.1, c, 0).astype(np.float32) if i % 2 else c for i, c in enumerate(dense)]


def test_sgd_with_rate_one_is_averaging() -> None:
    assert run(sgd(1.0), vec(1, 2), [vec(0.5, -1)]).tolist() == [1.5, 1.0]


def test_momentum_by_hand() -> None:
    assert run(momentum(1.0, 0.5), vec(0), [vec(1), vec(1), vec(0)]).tolist() == [1 + 1.5 + 0.75]


def test_the_first_adamw_step_is_the_sign_times_the_rate() -> None:
    w = run(adamw(0.1, 0.9, 0.999, 1e-12, 0.0), vec(0, 0, 0), [vec(3, -0.001, 0)])
    np.testing.assert_allclose(w, [0.1, -0.1, 0.0], rtol=1e-5)


def test_adamw_decays_what_nobody_sent() -> None:
    assert run(adamw(0.1, 0.9, 0.999, 1e-8, 0.5), vec(2.0), [vec(0)]).tolist() == [np.float32(2 * 0.95)]


def test_yogi_by_hand() -> None:
    # v0 = eps^2 = 0.01; change 1: v = 0.01 - 0.1 * 1 * sign(0.01 - 1) = 0.11, m = 0.5
    w = run(yogi(1.0, 0.5, 0.9, 0.1), vec(0), [vec(1)])
    np.testing.assert_allclose(w, [0.5 / (np.sqrt(0.11) + 0.1)], rtol=1e-6)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_laws(name: str) -> None:
    optimizer = make_optimizer(name, DEFAULTS[name])
    w, changes = np.linspace(-1, 1, 50, dtype=np.float32), changes_of(50, 6)
    kept = w.copy()
    state = optimizer.init(50)
    before = dump_state(state)
    next_state, out = optimizer.step(state, w, changes[0])
    assert out.dtype == np.float32
    assert np.array_equal(w, kept), "w was changed in place"
    assert dump_state(state) == before, "the state was changed in place"
    assert dump_state(load_state(dump_state(next_state))) == dump_state(next_state)
    assert float(out @ changes[0]) > float(w @ changes[0]), "the step goes along the change"
    assert run(optimizer, w, changes).tobytes() == run(optimizer, w, changes).tobytes()
    still = run(optimizer, np.zeros(5, np.float32), [np.zeros(5, np.float32)] * 3)
    assert not still.any()


TORCH: dict[str, tuple[str, dict[str, Any], dict[str, float]]] = {
    "sgd": ("SGD", {"lr": 0.5}, {"learning_rate": 0.5}),
    "momentum": ("SGD", {"lr": 0.5, "momentum": 0.9}, {"learning_rate": 0.5, "momentum": 0.9}),
    "adamw": ("AdamW", {"lr": 1e-3}, DEFAULTS["adamw"]),  # torch's defaults are ours, and FLASC's
    "adam": (
        "Adam",
        {"lr": 1e-2, "betas": (0.8, 0.95), "eps": 1e-6},
        {"learning_rate": 1e-2, "beta1": 0.8, "beta2": 0.95, "eps": 1e-6},
    ),
}


@pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
@pytest.mark.parametrize("name", TORCH)
def test_equals_torch(name: str) -> None:
    import torch

    kind, theirs, ours = TORCH[name]
    w, changes = np.linspace(-1, 1, 200, dtype=np.float32), changes_of(200, 40)
    parameter = torch.nn.Parameter(torch.from_numpy(w.copy()))
    reference = getattr(torch.optim, kind)([parameter], **theirs)
    for change in changes:
        parameter.grad = torch.from_numpy(-change)
        reference.step()
    expected = parameter.detach().numpy()
    np.testing.assert_allclose(run(make_optimizer(name, ours), w, changes), expected, rtol=2e-6, atol=1e-7)
