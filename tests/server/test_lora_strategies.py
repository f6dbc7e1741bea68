"""The strategies for LoRA against dense sums: the algebra that each of them promises."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from covey_server.lowrank import Product, singular_values
from covey_server.optimizers import nesterov, sgd
from covey_server.recipe import fold
from covey_server.strategies.base import Strategy
from covey_server.strategies.fdlora import fdlora
from covey_server.strategies.fedavg import fedavg
from covey_server.strategies.fedex import fedex
from covey_server.strategies.flora import flora
from covey_server.strategies.florist import florist
from covey_server.strategies.hetlora import hetlora
from covey_server.strategies.lora_fair import correction, lora_fair
from covey_server.strategies.rbla import rbla
from covey_server.strategies.space import Space
from covey_shared.entries import Entries
from covey_shared.errors import TaskFileError
from covey_shared.factors import pairs, products
from covey_shared.layout import Layout, Tensor, Vector

RANKS = (2, 4, 8)


def lora(module: str, m: int, n: int, rank: int, scale: float) -> tuple[Tensor, Tensor]:
    a = Tensor(name=f"{module}.A", shape=(rank, n), kind="lora_A", init="kaiming_uniform", module=module, rank=rank,
               scale=scale)  # fmt: skip
    b = Tensor(name=f"{module}.B", shape=(m, rank), kind="lora_B", init="zeros", module=module, rank=rank, scale=scale)
    return a, b


def space_of(second_rank: int = 0, *, mixed: bool = False) -> Space:
    """Two modules and a head; the second adapter has scale 1."""
    head = Tensor(name="head", shape=(3, 5), kind="head", init="zeros")
    first = Layout((*lora("q", 12, 10, 8, 2.0), *lora("v", 9, 11, 8, 0.5), head))
    if not second_rank:
        return Space(first, ranks=RANKS if mixed else ())
    second = Layout((*lora("q", 12, 10, second_rank, 1.0), *lora("v", 9, 11, second_rank, 1.0)))
    return Space(first, second, RANKS if mixed else ())


def start_of(space: Space, seed: int, *, zero_b: bool = False) -> Vector:
    """Some adapter in the middle of training, its second part 0; with `zero_b` a fresh one."""
    out = np.zeros(space.size, np.float32)
    rng = np.random.default_rng(seed)
    out[: space.layout.size] = rng.standard_normal(space.layout.size) / 3
    if zero_b:
        for pair in pairs(space.layout):
            out[pair.b] = 0
    return out


def change_of(space: Space, rank: int, seed: int, size: float = 1.0) -> Entries:
    """What a device of a rank sends: all coordinates that it has."""
    where = space.layout.positions(space.layout.at_rank(rank)).astype(np.uint32)
    values = np.random.default_rng(seed).standard_normal(len(where)) * size
    return Entries(space.size, where, values.astype(np.float32))


def run(strategy: Strategy, start: Vector, updates: Sequence[tuple[Entries, float]]) -> Vector:
    """The new whole vector, the server's step being 1."""
    state = strategy.init(start)
    for entries, weight in updates:
        state = strategy.add(state, entries, weight)
    change = strategy.finish(state)
    assert change.dtype == np.float32
    return start + change


Dense = dict[str, NDArray[np.float64]]


def model(space: Space, vector: Vector) -> Dense:
    """What is added to each module's weight by both adapters."""
    out = {pair.module: matrix for pair, matrix in products(space.layout, vector[: space.layout.size])}
    if space.second:
        for pair, matrix in products(space.second, vector[space.layout.size :]):
            out[pair.module] = out[pair.module] + matrix
    return out


def mean_model(space: Space, start: Vector, updates: Sequence[tuple[Entries, float]]) -> Dense:
    """The weighted mean of the models that the devices ended with, the slow way."""
    total = sum(weight for _, weight in updates)
    out: Dense = {}
    for entries, weight in updates:
        trained = start.copy()
        if space.mixed:
            trained[: space.layout.size] = 0
            trained[entries.where] = start[entries.where]
        for module, matrix in model(space, trained + entries.dense()).items():
            out[module] = out.get(module, 0) + weight / total * matrix
    return out


def check_models(got: Dense, wanted: Dense, tolerance: float = 1e-6) -> None:
    assert got.keys() == wanted.keys()
    for module, matrix in wanted.items():
        error = np.linalg.norm(got[module] - matrix) / np.linalg.norm(matrix)
        assert error < tolerance, f"{module}: {error}"


MIXED = [(8, 1, 3.0), (4, 2, 1.0), (2, 3, 2.0)]


def mixed_updates(space: Space) -> list[tuple[Entries, float]]:
    return [(change_of(space, rank, seed), weight) for rank, seed, weight in MIXED]


def equal_updates(space: Space, count: int = 3) -> list[tuple[Entries, float]]:
    return [(change_of(space, 8, seed), seed + 1.0) for seed in range(count)]


def test_flora_is_the_exact_sum_of_mixed_ranks() -> None:
    space = space_of(32, mixed=True)
    start = start_of(space, 0, zero_b=True)
    updates = mixed_updates(space)
    new = run(flora(space, 1.0), start, updates)
    fresh = new.copy()
    fresh[: space.layout.size] = start[: space.layout.size]
    check_models(model(space, fresh), mean_model(space, start, updates))


def test_flora_adds_to_what_was_learned_and_drops_the_least() -> None:
    space = space_of(32, mixed=True)
    start = start_of(space, 0, zero_b=True)
    first = run(flora(space, 1.0), start, mixed_updates(space))
    second = run(flora(space, 1.0), first, [(change_of(space, 8, 9), 1.0)])
    learned = model(space, np.concatenate([start[: space.layout.size], first[space.layout.size :]]))
    alone = model(Space(space.layout), (start + change_of(space, 8, 9).dense())[: space.layout.size])
    wanted = {module: learned[module] + alone[module] for module in alone}
    got = model(space, np.concatenate([start[: space.layout.size], second[space.layout.size :]]))
    check_models(got, wanted)
    thin = space_of(4, mixed=True)
    thin_start = start_of(thin, 0, zero_b=True)
    cut = run(flora(thin, 1.0), thin_start, mixed_updates(thin))
    cut[: thin.layout.size] = thin_start[: thin.layout.size]
    for module, matrix in model(thin, cut).items():
        whole = mean_model(thin, thin_start, mixed_updates(thin))[module]
        s = np.linalg.svd(whole, compute_uv=False)
        assert np.linalg.norm(whole - matrix) == pytest.approx(np.sqrt(np.square(s[4:]).sum()), rel=1e-5)


def test_flora_averages_heads_and_ignores_a_device_without_b() -> None:
    space = space_of(32)
    start = start_of(space, 0, zero_b=True)
    updates = equal_updates(space)
    new = run(flora(space, 1.0), start, updates)
    head = slice(space.layout.size - 15, space.layout.size)
    wanted = sum(w * e.dense()[head] for e, w in updates) / 6
    assert np.allclose(new[head] - start[head], wanted, atol=1e-6)
    silent = change_of(space, 8, 4).dense()
    for pair in pairs(space.layout):
        silent[pair.b] = 0
    one = run(flora(space, 1.0), start, [(Entries(space.size, slice(0, space.size), silent), 1.0)])
    assert not np.any(one[space.layout.size :])


def test_fedex_is_the_exact_mean_model_round_after_round() -> None:
    space = space_of(32)
    vector = start_of(space, 0)
    for round_ in range(3):
        updates = [(change_of(space, 8, 10 * round_ + k, 0.3), k + 1.0) for k in range(3)]
        wanted = mean_model(space, vector, updates)
        vector = run(fedex(space), vector, updates)
        check_models(model(space, vector), wanted)


def test_fedex_residual_has_rank_of_the_devices_but_one() -> None:
    space = space_of(11)
    start = start_of(space, 0)
    updates = [(change_of(space, 2, seed), 1.0) for seed in range(3)]
    new = run(fedex(space), start, updates)
    second = {pair.module: pair.of(new[space.layout.size :]) for pair in pairs(space.second)}  # type: ignore[arg-type]
    for a, b in second.values():
        values = singular_values(Product(a, b))
        assert np.count_nonzero(values > 1e-5 * values[0]) == (3 - 1) * 2


def test_truncated_fedex_is_nearer_than_fedavg() -> None:
    thin = space_of(2)
    start = start_of(thin, 0)
    updates = equal_updates(thin)
    wanted = mean_model(thin, start, updates)
    got, naive = model(thin, run(fedex(thin), start, updates)), model(thin, run(fedavg(), start, updates))
    for module, matrix in wanted.items():
        assert np.linalg.norm(got[module] - matrix) < np.linalg.norm(naive[module] - matrix)


def test_lora_fair_solves_its_ridge_problem() -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((4, 10))
    missed = [Product(rng.standard_normal((4, 10)), rng.standard_normal((12, 4))) for _ in range(3)]
    weights, ridge = [0.5, 0.5, -1.0], 0.1
    wanted = sum((w * p.dense() for w, p in zip(weights, missed, strict=True)), np.zeros((12, 10)))
    damping = ridge * np.square(a).sum() / 4

    def loss(d: NDArray[np.float64]) -> float:
        return float(np.square(wanted - d @ a).sum() + damping * np.square(d).sum())

    best = correction(a, missed, weights, ridge)
    for _ in range(50):
        assert loss(best) <= loss(best + 1e-3 * rng.standard_normal(best.shape))


def test_lora_fair_is_nearer_to_the_mean_model_than_fedavg() -> None:
    space = space_of()
    start = start_of(space, 0)
    updates = equal_updates(space)
    wanted = mean_model(space, start, updates)
    fair = model(space, run(lora_fair(space, 0.01), start, updates))
    naive = model(space, run(fedavg(), start, updates))
    for module, matrix in wanted.items():
        assert np.linalg.norm(fair[module] - matrix) < np.linalg.norm(naive[module] - matrix)


def test_florist_is_the_best_adapter_of_its_rank() -> None:
    space = space_of()
    start = start_of(space, 0)
    updates = equal_updates(space)
    wanted, got = mean_model(space, start, updates), model(space, run(florist(space, 1.0), start, updates))
    for module, matrix in wanted.items():
        s = np.linalg.svd(matrix, compute_uv=False)
        assert np.linalg.norm(got[module] - matrix) == pytest.approx(np.sqrt(np.square(s[8:]).sum()), rel=1e-4)


def energies(space: Space, vector: Vector) -> NDArray[np.float64]:
    """The singular values of each module."""
    return np.stack([singular_values(Product(*pair.of(vector))) for pair in pairs(space.layout)])


def test_ranks_do_not_collapse() -> None:
    """Devices that change nothing: with products averaged whole what only high ranks have would fade."""
    space = space_of(mixed=True)
    start = run(florist(space, 1.0), start_of(space, 0), [(change_of(space, 8, 1, 0.0), 1.0)])
    vector = start
    for _ in range(10):
        idle = [(change_of(space, rank, 0, 0.0), 1.0) for rank in (8, 4, 2)]
        vector = run(florist(space, 1.0), vector, idle)
    assert np.allclose(energies(space, vector), energies(space, start), rtol=1e-4)
    faded = start
    for _ in range(10):
        faded = run(hetlora(space), faded, [(change_of(space, rank, 0, 0.0), 1.0) for rank in (8, 4, 2)])
    assert (energies(space, faded)[:, 7] < 0.05 * energies(space, start)[:, 7]).all(), "padding dilutes"
    kept = run(rbla(space), start, [(change_of(space, rank, 0, 0.0), 1.0) for rank in (8, 4, 2)])
    assert np.array_equal(kept, start)


def test_florist_learns_from_mixed_ranks() -> None:
    """One device of low rank alone: its change arrives whole, beside what it does not have."""
    space = space_of(mixed=True)
    start = run(florist(space, 1.0), start_of(space, 0), [(change_of(space, 8, 1, 0.0), 1.0)])
    update = change_of(space, 2, 5, 0.01)
    held = model(space, start)
    small = np.zeros_like(start)
    small[update.where] = start[update.where]
    given = model(space, small)
    trained = model(space, small + update.dense())
    got = model(space, run(florist(space, 1.0), start, [(update, 1.0)]))
    for module, before in held.items():
        wanted = before + trained[module] - given[module]
        s = np.linalg.svd(wanted, compute_uv=False)
        assert np.linalg.norm(got[module] - wanted) <= np.sqrt(np.square(s[8:]).sum()) * 1.001 + 1e-6


def test_hetlora_by_hand() -> None:
    """One module of rank 2 and 1 x 1 weights: two devices, one of rank 1."""
    layout = Layout(lora("q", 1, 1, 2, 1.0))
    space = Space(layout, ranks=(1, 2))
    start = np.array([1, 1, 0, 0], np.float32)  # A = [1; 1], B = [0, 0]
    whole = Entries(4, np.arange(4, dtype=np.uint32), np.array([0, 0, 3, 4], np.float32))
    low = Entries(4, np.array([0, 2], np.uint32), np.array([1, 1], np.float32))
    new = run(hetlora(space), start, [(whole, 1.0), (low, 1.0)])
    # Products: 3 * 1 + 4 * 1 = 7 and 2 * 1 = 2, so the weights are 7/9 and 2/9; the second row of the low one is 0.
    assert np.allclose(new, [(7 * 1 + 2 * 2) / 9, 7 / 9, (7 * 3 + 2 * 1) / 9, 28 / 9])


def test_rbla_by_hand() -> None:
    space = Space(Layout(lora("q", 1, 1, 2, 1.0)), ranks=(1, 2))
    start = np.array([1, 1, 0, 0], np.float32)
    whole = Entries(4, np.arange(4, dtype=np.uint32), np.array([0, 2, 3, 4], np.float32))
    low = Entries(4, np.array([0, 2], np.uint32), np.array([1, 1], np.float32))
    assert run(rbla(space), start, [(whole, 1.0), (low, 3.0)]).tolist() == [1.75, 3, 1.5, 4]


ONE_RANK = {
    "flora": lambda: (space_of(32), flora(space_of(32), 1.0)),
    "florist": lambda: (space_of(), florist(space_of(), 1.0)),
    "fedex": lambda: (space_of(32), fedex(space_of(32))),
    "lora-fair": lambda: (space_of(), lora_fair(space_of(), 0.01)),
    "hetlora": lambda: (space_of(), hetlora(space_of())),
    "rbla": lambda: (space_of(), rbla(space_of())),
}  # fmt: skip


@pytest.mark.parametrize("name", ONE_RANK)
def test_a_round_of_one_device_is_that_device(name: str) -> None:
    space, strategy = ONE_RANK[name]()
    start = start_of(space, 0, zero_b=name == "flora")
    updates = [(change_of(space, 8, 3, 0.2), 5.0)]
    new = run(strategy, start, updates)
    if name == "flora":
        new[: space.layout.size] = start[: space.layout.size]
    check_models(model(space, new), mean_model(space, start, updates), 1e-5)


@pytest.mark.parametrize("name", ONE_RANK)
def test_the_order_of_devices_does_not_matter(name: str) -> None:
    space, strategy = ONE_RANK[name]()
    start = start_of(space, 0, zero_b=name == "flora")
    results = [model(space, run(strategy, start, order)) for order in itertools.permutations(equal_updates(space))]
    for other in results[1:]:
        check_models(other, results[0], 1e-5)


def test_fdlora_s_outer_step() -> None:
    """With rate 1 and no momentum it is averaging; where nobody moves any more the shared adapter comes to rest."""
    n, rng = 40, np.random.default_rng(0)
    changes = [rng.standard_normal(n).astype(np.float32) for _ in range(3)]
    updates = [(Entries(n, slice(0, n), change), 7) for change in changes]
    mean = fold(fdlora("factorwise", 5), n, updates)
    assert np.allclose(mean, fold(fedavg(), n, updates), atol=1e-6)
    start = rng.standard_normal(n).astype(np.float32)
    plain = nesterov(1.0, 0.0)
    assert np.array_equal(plain.step(plain.init(n), start, mean)[1], sgd(1.0).step({}, start, mean)[1])
    outer = nesterov(1.0, 0.5)
    state, w = outer.step(outer.init(n), start, mean)
    moved = []
    for _ in range(30):
        state, after = outer.step(state, w, np.zeros(n, np.float32))
        moved.append(float(np.linalg.norm(after - w)))
        w = after
    assert all(later < earlier for earlier, later in itertools.pairwise(moved[:15])), "the momentum decays"
    assert moved[-1] < 1e-6


@pytest.mark.parametrize("name", ["florist", "fedex", "lora-fair", "hetlora", "rbla"])
def test_nothing_changes_nothing(name: str) -> None:
    space, strategy = ONE_RANK[name]()
    start = start_of(space, 0)
    idle = [(change_of(space, 8, 3, 0.0), 1.0), (change_of(space, 8, 4, 0.0), 2.0)]
    check_models(model(space, run(strategy, start, idle)), model(space, start), 1e-5)


@pytest.mark.parametrize("make", [lambda s: flora(s, 1.0), fedex])
def test_needs_a_second_adapter(make: object) -> None:
    with pytest.raises(TaskFileError, match="--frozen-rank"):
        make(space_of())  # type: ignore[operator]


def test_needs_lora() -> None:
    blocks = Space(Layout((Tensor(name="w", shape=(3,), kind="block", init="stored"),)))
    for make in (hetlora, fedex, lambda s: florist(s, 1.0), lambda s: lora_fair(s, 0.1)):
        with pytest.raises(TaskFileError, match="about LoRA"):
            make(blocks)
