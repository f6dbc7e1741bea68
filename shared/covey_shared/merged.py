"""Two LoRA adapters on the same modules as one: factors side by side, the sum of products unchanged. Pure.

What devices hold as an adapter and a second one is published as a single adapter in PEFT's format, whose rank is the
sum of both and whose scale is 1.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from covey_shared.layout import Layout, Tensor, Vector


def merged(layout: Layout, adapter: Vector, second_layout: Layout, second: Vector) -> tuple[Layout, Vector]:
    """The layout and the vector of one adapter that adds what both add; tensors that are no factors are the first's."""
    first, beside = layout.split(adapter), second_layout.split(second)
    others = {(t.module, t.kind): t for t in second_layout.tensors}
    tensors, arrays = [], {}
    for tensor in layout.tensors:
        other = others.get((tensor.module, tensor.kind))
        array = first[tensor.name]
        if tensor.kind == "lora_A":
            array = array * np.float32(tensor.scale)
        if other is not None:
            more = beside[other.name] * np.float32(other.scale if tensor.kind == "lora_A" else 1)
            array = np.concatenate([array, more], axis=0 if tensor.kind == "lora_A" else 1)
        tensors.append(_sized(tensor, array.shape, other))
        arrays[tensor.name] = array
    whole = Layout(tuple(tensors))
    return whole, whole.join(arrays)


def merged_config(config: dict[str, Any], layout: Layout) -> dict[str, Any]:
    """PEFT's configuration of a merged adapter: each module's own rank, and alpha equal to it.

    >>> from covey_shared.layout import Tensor
    >>> a = Tensor(name="q.A", shape=(6, 2), kind="lora_A", init="zeros", module="q", rank=6)
    >>> merged_config({"r": 4, "lora_alpha": 8}, Layout((a,)))
    {'r': 6, 'lora_alpha': 6, 'rank_pattern': {'q': 6}, 'alpha_pattern': {'q': 6}, 'use_rslora': False}
    """
    ranks = {tensor.module: tensor.rank for tensor in layout.tensors if tensor.kind == "lora_A"}
    return {
        **config, "r": layout.rank, "lora_alpha": layout.rank, "rank_pattern": ranks, "alpha_pattern": dict(ranks),
        "use_rslora": False,
    }  # fmt: skip


def _sized(tensor: Tensor, shape: tuple[int, ...], other: Tensor | None) -> Tensor:
    if not tensor.rank:
        return tensor
    return replace(tensor, shape=shape, rank=tensor.rank + (other.rank if other else 0), scale=1.0)
