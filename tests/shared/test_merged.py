"""One adapter made of two adds what both add."""

import numpy as np

from covey_shared.factors import products
from covey_shared.layout import Layout, Tensor
from covey_shared.merged import merged, merged_config


def lora(module: str, rank: int, scale: float, *more: int) -> tuple[Tensor, Tensor]:
    a = Tensor(name=f"{module}.A", shape=(rank, 6, *more), kind="lora_A", init="zeros", module=module, rank=rank,
               scale=scale)  # fmt: skip
    b = Tensor(name=f"{module}.B", shape=(5, rank, *(1 for _ in more)), kind="lora_B", init="zeros", module=module,
               rank=rank, scale=scale)  # fmt: skip
    return a, b


def test_the_sum_of_products() -> None:
    head = Tensor(name="head", shape=(3,), kind="head", init="zeros")
    first = Layout((*lora("q", 2, 2.0), *lora("conv", 3, 0.5, 3, 3), head))
    second = Layout((*lora("conv", 4, 1.0, 3, 3), *lora("q", 5, 1.0)))
    rng = np.random.default_rng(0)
    one, two = (rng.standard_normal(layout.size).astype(np.float32) for layout in (first, second))
    layout, vector = merged(first, one, second, two)
    wanted = {pair.module: matrix for pair, matrix in products(first, one)}
    for pair, matrix in products(second, two):
        wanted[pair.module] = wanted[pair.module] + matrix
    for pair, matrix in products(layout, vector):
        assert pair.rank == {"q": 7, "conv": 7}[pair.module]
        assert np.allclose(matrix, wanted[pair.module], atol=1e-5)
    assert vector[-3:].tobytes() == one[-3:].tobytes()
    assert merged_config({"r": 2}, layout)["rank_pattern"] == {"q": 7, "conv": 7}
