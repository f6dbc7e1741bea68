"""One round's arithmetic: folds by hand, FLASC against a transcription of its paper, views against devices."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from covey_server.optimizers import adamw, sgd
from covey_server.recipe import Recipe, ServerState, advance, apply_step, first, fold, whole
from covey_server.strategies import MAKERS, Strategy, fedavg, flasc, make_strategy
from covey_shared.codec import codec_from_spec, presets
from covey_shared.entries import Entries
from covey_shared.errors import CodecError
from covey_shared.layout import Layout, Tensor, Vector, vector_digest
from covey_shared.messages import Spec, StageSpec

LAYOUT = Layout(
    (
        Tensor(name="a", shape=(8, 10), kind="lora_A", init="kaiming_uniform", rank=8),
        Tensor(name="b", shape=(6, 8), kind="lora_B", init="zeros", rank=8),
    )
)
N = LAYOUT.size


def vec(*values: float) -> Vector:
    return np.array(values, np.float32)


def some(size: int, where: list[int], *values: float) -> Entries:
    return Entries(size, np.array(where, np.uint32), vec(*values))


def whole_of(*values: float) -> Entries:
    return Entries(len(values), slice(0, len(values)), vec(*values))


def test_fedavg_by_hand() -> None:
    updates = [(whole_of(1, 2, 3), 1), (whole_of(4, 0, -3), 3)]
    assert fold(fedavg(), 3, updates).tolist() == [(1 + 12) / 4, 2 / 4, (3 - 9) / 4]


def test_fedavg_counts_what_was_not_sent_as_zero() -> None:
    assert fold(fedavg(), 3, [(some(3, [0, 2], 4, 8), 1), (some(3, [2], 4), 3)]).tolist() == [1.0, 0.0, (8 + 12) / 4]


@pytest.mark.parametrize("mode", ["paper", "covey"])
def test_flasc_is_unweighted_and_divides_by_all(mode: str) -> None:
    updates = [(some(3, [0], 9), 1000), (some(3, [2], 3), 1), (some(3, [0], 3), 1)]
    assert fold(flasc(mode), 3, updates).tolist() == [4.0, 0.0, 1.0]


STRATEGY_TABLE = [
    make_strategy("fedavg", {}),
    *(make_strategy("flasc", {"mode": m}) for m in ("paper", "covey")),
    *(make_strategy(name, {"attackers": 0.2}) for name in ("trimmed-mean", "median", "krum")),
    *(make_strategy(name, {}) for name in ("ffa-lora", "rolora")),
    make_strategy("cohorts", {"count": 2, "tensors": "*"}),
    make_strategy("fdlora", {"fusion": "factorwise", "sync_every": 5}),
]


def test_every_strategy_is_under_the_laws() -> None:
    of_lora = {"flora", "florist", "fedex", "lora-fair", "hetlora", "rbla"}  # test_lora_strategies.py
    assert {s.name for s in STRATEGY_TABLE} == MAKERS.keys() - of_lora


@pytest.mark.parametrize("strategy", STRATEGY_TABLE, ids=lambda s: f"{s.name}-{s.absolute}")
def test_fold_laws(strategy: Strategy) -> None:
    one = whole_of(1, -2, 0.5)
    assert fold(strategy, 3, [(one, 7)]).tolist() == one.values.tolist(), "the mean of one is that one"
    assert fold(strategy, 3, [(one, 7)] * 3).tolist() == one.values.tolist(), "the mean of equals is that value"
    assert fold(strategy, 3, [(some(3, [], *()), 2)]).tolist() == [0, 0, 0]
    assert fold(strategy, 3, [(one, 1)]).dtype == np.float32
    updates = [(whole_of(0.1 * i, 1 / 3, 1e-8 * i), i + 1) for i in range(4)]
    results = {fold(strategy, 3, list(order)).tobytes() for order in itertools.permutations(updates)}
    assert all(np.allclose(np.frombuffer(r, np.float32), fold(strategy, 3, updates), rtol=1e-6) for r in results)


def test_one_update_is_in_memory_at_a_time() -> None:
    alive = 0

    def updates() -> Iterator[tuple[Entries, int]]:
        nonlocal alive
        for _ in range(5):
            alive += 1
            yield whole_of(1, 2), 1
            alive -= 1
            assert alive == 0

    assert fold(fedavg(), 2, updates()).tolist() == [1, 2]


def mask_top(values: NDArray[Any], density: float) -> NDArray[Any]:
    """The paper's mask: the floor(P d) largest magnitudes of the whole flattened vector."""
    k = int(len(values) * density)
    out = np.zeros_like(values)
    out[np.argsort(-np.abs(values), kind="stable")[:k]] = 1
    return out


def test_flasc_paper_mode_is_the_paper_over_three_rounds() -> None:
    """Against a straight transcription of the authors' algorithm, devices included."""
    down, up, rate, rounds = 0.25, 0.1, 1e-3, 3
    codec_down, codec_up = (codec_from_spec(presets.flasc(d), LAYOUT) for d in (down, up))
    recipe = Recipe(flasc("paper"), adamw(rate, 0.9, 0.999, 1e-8, 0.01), codec_down)
    start = LAYOUT.start(11)
    goals = [np.random.default_rng(i).standard_normal(N).astype(np.float32) for i in range(4)]

    w = start.astype(np.float64)
    m, v = np.zeros(N), np.zeros(N)
    state, _ = first(recipe, start, 0)
    for t in range(1, rounds + 1):
        mask = mask_top(state.w, down)
        received = state.w * mask
        assert np.array_equal(state.view, received), "devices start from w * M, zeros elsewhere"
        total, updates = np.zeros(N), []
        for goal in goals:
            end = received + np.float32(0.1) * (goal - received)  # dense local training
            pseudo_gradient = received - end
            total += pseudo_gradient * mask_top(pseudo_gradient, up)
            parts, _ = codec_up.encode(end - received, codec_up.init(0))
            updates.append((codec_up.decode(parts), 1 + t))
            assert updates[-1][0].count == int(N * up)
        gradient = total / len(goals)  # zeros count, examples do not
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        w = w * (1 - rate * 0.01) - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        state, step = advance(recipe, state, fold(recipe.strategy, N, updates))
        np.testing.assert_allclose(state.w, w, rtol=3e-6, atol=1e-8)
        assert codec_down.decode(step.parts).count == int(N * down)
    assert np.count_nonzero(state.w) > N * 0.5, "the server's own weights stay dense"


def spec(*stages: StageSpec) -> Spec:
    return stages


CODECS = {
    "dense": presets.dense(),
    "sign": presets.sign(),
    "levels": presets.levels(0.3),
    "topk": presets.flasc(0.2),
    "segment": spec(StageSpec(name="segment", args={"count": 4}), StageSpec(name="pack", args={"values": "sign"})),
}


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("name", CODECS)
def test_devices_hold_the_view_bit_for_bit(name: str, absolute: bool) -> None:
    codec = codec_from_spec(CODECS[name], LAYOUT)
    recipe = Recipe(flasc("paper" if absolute else "covey"), sgd(1.0), codec)
    start = LAYOUT.start(1)
    state, step = first(recipe, start, 1)
    assert (step is not None) == absolute
    device = start
    for round_ in range(1, 6):
        change = np.random.default_rng(round_).standard_normal(N).astype(np.float32)
        state, step = advance(recipe, state, change)
        assert step.version == state.version == round_
        device = apply_step(np.zeros(N, np.float32) if absolute else device, codec, step)
        assert vector_digest(device) == vector_digest(state.view)
        again = whole(state.view, round_, codec_from_spec(presets.dense(), LAYOUT))
        assert again is not None
        exact = codec_from_spec(again.codec, LAYOUT)
        assert apply_step(np.zeros(N, np.float32), exact, again).tobytes() == state.view.tobytes()


@pytest.mark.parametrize("name", ["dense", "sign", "levels", "topk"])
def test_a_version_coded_from_the_start_is_one_step_from_anywhere(name: str) -> None:
    codec, start = codec_from_spec(CODECS[name], LAYOUT), LAYOUT.start(1)
    recipe = Recipe(fedavg(), sgd(1.0), codec, origin=start)
    state, step = first(recipe, start, 1)
    assert step is None
    for round_ in range(1, 5):
        change = np.random.default_rng(round_).standard_normal(N).astype(np.float32)
        before = state
        state, step = advance(recipe, state, change)
        assert recipe.base(state.version) == 0
        assert np.array_equal(state.w, before.w + change)  # no error of a broadcast reaches the weights
        assert vector_digest(apply_step(start, codec, step)) == vector_digest(state.view)


def test_what_the_broadcast_drops_is_sent_later() -> None:
    recipe = Recipe(fedavg(), sgd(1.0), codec_from_spec(presets.flasc(0.25), LAYOUT))
    state, _ = first(recipe, LAYOUT.start(1), 1)
    state, _ = advance(recipe, state, np.random.default_rng(0).standard_normal(N).astype(np.float32))
    gaps = [float(np.linalg.norm(state.w - state.view))]
    for _ in range(5):
        state, _ = advance(recipe, state, np.zeros(N, np.float32))
        gaps.append(float(np.linalg.norm(state.w - state.view)))
    assert gaps[0] > 1
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-6


def test_a_state_survives_its_bytes() -> None:
    recipe = Recipe(fedavg(), adamw(1e-3, 0.9, 0.999, 1e-8, 0.01), codec_from_spec(CODECS["segment"], LAYOUT))
    state, _ = advance(recipe, first(recipe, LAYOUT.start(1), 3)[0], np.ones(N, np.float32))
    loaded = ServerState.from_bytes(state.to_bytes())
    assert loaded.to_bytes() == state.to_bytes()
    change = np.random.default_rng(0).standard_normal(N).astype(np.float32)
    (one, step_one), (two, step_two) = advance(recipe, state, change), advance(recipe, loaded, change)
    assert (one.to_bytes(), step_one.to_bytes()) == (two.to_bytes(), step_two.to_bytes())


def test_a_whole_that_is_not_the_same_bits_is_not_offered() -> None:
    exact = codec_from_spec(presets.dense(), LAYOUT)
    view = np.zeros(N, np.float32)
    assert whole(view, 1, exact) is not None
    view[3] = -0.0
    assert whole(view, 1, exact) is None


def test_weights_that_are_not_finite_are_refused_and_nothing_is_published() -> None:
    recipe = Recipe(fedavg(), sgd(1e30), codec_from_spec(presets.dense(), LAYOUT))
    state, _ = first(recipe, LAYOUT.start(1), 1)
    with pytest.raises(CodecError, match="only finite numbers can be sent"):
        advance(recipe, state, np.full(N, 1e30, np.float32))


@given(st.permutations(["d", "a", "c", "b"]), st.integers(0, 2**32))
def test_sorted_order_gives_the_same_bits_whatever_the_arrival(order: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    changes = {name: rng.standard_normal(50).astype(np.float32) for name in "abcd"}
    arrived = {name: (Entries(50, slice(0, 50), changes[name]), 1 + i) for i, name in enumerate("abcd")}
    folded = fold(fedavg(), 50, [arrived[name] for name in sorted(order)])
    assert folded.tobytes() == fold(fedavg(), 50, [arrived[name] for name in "abcd"]).tobytes()
