"""Chains with a name. They hold no logic: what each sends can be written in a task file stage by stage."""

from covey_shared.messages import Spec, StageSpec


def dense() -> Spec:
    """Every entry as float32: the baseline, 32 bits an entry."""
    return (StageSpec(name="pack", args={"values": "f32"}),)


def flasc(density: float) -> Spec:
    """Global top-k with exact values (Kuo et al. 2024, arXiv 2406.05233): FLASC, its indices coded.

    `density` is the share of entries that is sent.
    """
    return (StageSpec(name="topk", args={"density": density}), StageSpec(name="pack", args={"values": "f32"}))


def sign() -> Spec:
    """One bit an entry and a scale a tensor (Bernstein et al. 2018, signSGD, with scales): 32 times less than dense.

    Use it with error feedback. Best for AdamW clients, whose changes have nearly equal magnitudes.
    """
    return (StageSpec(name="tensor_scale", args={}), StageSpec(name="pack", args={"values": "sign"}))


def levels(error: float) -> Spec:
    """Every entry in a few bits; `error` is the relative L2 error of the whole vector: 0.5 takes about 1.3 bits."""
    return (StageSpec(name="levels", args={"error": error}),)
