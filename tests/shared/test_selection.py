"""The sparsifiers beside top-k."""

import numpy as np
import pytest

from covey_shared.codec import codec_from_spec, dump_state, error_feedback, load_state, presets, selection
from covey_shared.errors import CodecError
from covey_shared.factors import pairs
from covey_shared.layout import Layout, Tensor, Vector


def layout_of(m: int, n: int, rank: int) -> Layout:
    a = Tensor(name="q.A", shape=(rank, n), kind="lora_A", init="kaiming_uniform", module="q", rank=rank, scale=2.0)
    b = Tensor(name="q.B", shape=(m, rank), kind="lora_B", init="zeros", module="q", rank=rank, scale=2.0)
    return Layout((a, b))


LAYOUT = layout_of(5, 7, 3)


def test_importance_is_the_first_order_change_of_the_model() -> None:
    rng = np.random.default_rng(0)
    adapter = rng.standard_normal(LAYOUT.size).astype(np.float32)
    (pair,) = pairs(LAYOUT)
    a, b = pair.of(adapter)
    got = selection.importance(LAYOUT, selection.norms(LAYOUT, adapter))
    for i in range(LAYOUT.size):
        step = np.zeros(LAYOUT.size, np.float32)
        step[i] = 1
        da, db = pair.of(step)
        assert got[i] == pytest.approx(pair.scale * np.linalg.norm(db @ a + b @ da), rel=1e-5)


def test_importance_prefers_what_moves_the_model() -> None:
    """Half of B's columns meet rows of A that are nearly zero; their changes are larger and worthless."""
    layout = layout_of(20, 20, 4)
    (pair,) = pairs(layout)
    rng = np.random.default_rng(1)
    a, b = rng.standard_normal((4, 20)), np.zeros((20, 4))
    a[2:] *= 1e-3
    adapter = np.zeros(layout.size, np.float32)
    pair.put(adapter, a, b)
    change = np.zeros(layout.size, np.float32)
    pair.put(change, np.zeros((4, 20)), rng.standard_normal((20, 4)) * [1, 1, 3, 3])

    def model_error(sent: Vector) -> float:
        db = pair.of(sent)[1] - pair.of(change)[1]
        return float(np.linalg.norm(db @ a))

    wise, plain = (codec_from_spec(p, layout) for p in (presets.important(0.25), presets.flasc(0.25)))
    state = wise.look(adapter, wise.init(0))
    assert model_error(wise.decode(wise.encode(change, state)[0]).dense()) < 0.3 * model_error(
        plain.decode(plain.encode(change, plain.init(0))[0]).dense()
    )


def test_unseen_adapter_means_plain_top_k() -> None:
    vector = np.random.default_rng(2).standard_normal(LAYOUT.size).astype(np.float32)
    wise = codec_from_spec(presets.important(0.2), LAYOUT)
    plain = codec_from_spec(presets.flasc(0.2), LAYOUT)
    got = wise.decode(wise.encode(vector, wise.init(0))[0]).where
    assert np.array_equal(got, plain.decode(plain.encode(vector, plain.init(0))[0]).where)  # type: ignore[arg-type]


def test_what_was_seen_survives_a_save_and_error_feedback() -> None:
    codec = error_feedback(codec_from_spec(presets.important(0.2), LAYOUT))
    adapter = np.random.default_rng(3).standard_normal(LAYOUT.size).astype(np.float32)
    state = codec.look(adapter, codec.init(0))
    again = load_state(dump_state(state))
    assert codec.encode(adapter, state)[0] == codec.encode(adapter, again)[0]


def test_importance_needs_both_factors() -> None:
    half = Layout(LAYOUT.tensors[:1])
    with pytest.raises(CodecError, match="cannot weigh this adapter"):
        codec_from_spec(presets.important(0.2), half)


def test_kurtosis() -> None:
    rng = np.random.default_rng(4)
    assert selection.kurtosis(rng.standard_normal(200_000).astype(np.float32)) == pytest.approx(3, abs=0.1)
    assert selection.kurtosis(rng.uniform(-1, 1, 200_000).astype(np.float32)) == pytest.approx(1.8, abs=0.05)
    assert selection.kurtosis(np.zeros(5, np.float32)) == np.inf
    assert selection.kurtosis(np.full(5, 1e-38, np.float32)) == 1


def energy(codec_name: str, vector: Vector, density: float) -> tuple[float, int]:
    """The share of the energy that arrives, and the bytes."""
    layout = Layout((Tensor(name="t", shape=(len(vector),), kind="block", init="zeros"),))
    spec = {"adaptive": presets.adaptive(density), "top-k": presets.adaptive(density)[1:]}[codec_name]
    if codec_name == "top-k":
        spec = (*presets.flasc(density)[:1], *spec)
    codec = codec_from_spec(spec, layout)
    parts, _ = codec.encode(vector, codec.init(0))
    left = vector - codec.decode(parts).dense()
    return 1 - float(np.square(left).sum() / np.square(vector).sum()), sum(map(len, parts.values()))


@pytest.mark.parametrize("density", [1 / 4, 1 / 16, 1 / 64])
def test_adaptive_takes_segments_of_flat_changes(density: float) -> None:
    vector = np.random.default_rng(5).uniform(-1, 1, 100_000).astype(np.float32)
    (arrived, size), (plain, plain_size) = (energy(name, vector, density) for name in ("adaptive", "top-k"))
    assert size < 1.1 * plain_size
    assert arrived > 1.2 * plain


def test_adaptive_takes_top_k_of_spiky_changes() -> None:
    vector = np.random.default_rng(6).standard_t(2, 100_000).astype(np.float32)
    assert energy("adaptive", vector, 1 / 16) == energy("top-k", vector, 1 / 16)


def test_adaptive_takes_segments_in_turn() -> None:
    codec = codec_from_spec(presets.adaptive(1 / 16), LAYOUT)
    vector = np.ones(LAYOUT.size, np.float32)
    state, seen = codec.init(0), np.zeros(LAYOUT.size)
    for _ in range(selection.segments_for(1 / 16)):
        parts, state = codec.encode(vector, state)
        seen[codec.decode(parts).where] += 1
    assert (seen == 1).all()
