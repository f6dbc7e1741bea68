"""Personalisation policies by name: which tensors of an adapter a device keeps to itself. Pure.

    fedsa        lora_B: A learns what is common, B what is particular (FedSA-LoRA, Guo et al. 2025, arXiv 2410.01463)
    fedper       heads: a common representation, a classifier for each device (FedPer, Arivazhagan et al. 2019)
    last-blocks  the last blocks: what is near the output is particular
    lg           the first blocks: what is near the data is particular (LG-FedAvg, Liang et al. 2020, arXiv 2001.01523)
    tensors      whatever the patterns name

A personal tensor starts on a new device as everywhere: from the seed (lora_B as zeros) or from the bundle.
"""

import re

from covey_shared.errors import LayoutError
from covey_shared.layout import Layout

POLICIES = ("none", "fedsa", "fedper", "last-blocks", "lg", "tensors")


def patterns_of(policy: str, layout: Layout, blocks: int, tensors: str) -> tuple[str, ...]:
    """The patterns of a policy. `blocks` is of last-blocks and lg, `tensors` (separated by spaces) of tensors.

    Raises LayoutError where the layout has not so many blocks.
    """
    if policy == "tensors":
        return tuple(tensors.split())
    if policy in ("last-blocks", "lg"):
        return _blocks(layout, blocks, last=policy == "last-blocks")
    return {"none": (), "fedsa": ("kind:lora_B",), "fedper": ("kind:head",)}[policy]


def _blocks(layout: Layout, count: int, *, last: bool) -> tuple[str, ...]:
    """Patterns of the first or last modules of the longest numbered list, `layers.0`, `layers.1`, ..."""
    lists: dict[str, set[int]] = {}
    for tensor in layout.tensors:
        found = re.match(r"(.*?\.)(\d+)\.", tensor.name)
        if found:
            lists.setdefault(found[1], set()).add(int(found[2]))
    if not lists:
        raise LayoutError("the adapter has no numbered blocks; name its tensors with policy 'tensors'")
    prefix, numbers = max(lists.items(), key=lambda item: len(item[1]))
    if not 0 < count < len(numbers):
        raise LayoutError(f"of {len(numbers)} blocks 1 to {len(numbers) - 1} can be personal, not {count}")
    chosen = sorted(numbers)[-count:] if last else sorted(numbers)[:count]
    return tuple(f"{prefix}{number}.*" for number in chosen)
