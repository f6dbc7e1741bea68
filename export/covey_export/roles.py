"""The three graphs of a bundle: their inputs and outputs by name, in order. docs/export.md gives the shapes."""

from collections.abc import Iterable

INPUTS = ("adapter", "frozen", "input_ids", "pixel_values", "labels")  # of any graph, in the order that graphs have
ROLES = {
    "train": ("loss", "grad"),
    "eval": ("loss_sum", "n_tokens", "n_correct"),
    "forward": ("logits",),
}


def inputs_of(role: str, names: Iterable[str]) -> tuple[str, ...]:
    """Those of `names` that a role's graph takes, in its order.

    >>> inputs_of("forward", {"labels", "input_ids", "adapter"})
    ('adapter', 'input_ids')
    """
    given = set(names) - ({"labels"} if role == "forward" else set())
    return tuple(name for name in INPUTS if name in given)
