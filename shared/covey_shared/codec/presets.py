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


def sign(rows: int = 0) -> Spec:
    """One bit an entry and a scale a tensor (Bernstein et al. 2018, signSGD, with scales): 32 times less than dense.

    Use it with error feedback. Best for AdamW clients, whose changes have nearly equal magnitudes. With `rows` each row
    of at least so many entries has a scale of its own: a classifier's head changes in the rows of a device's classes.
    """
    scaled = StageSpec(name="tensor_scale", args={"rows": rows} if rows else {})
    return (scaled, StageSpec(name="pack", args={"values": "sign"}))


def affine(bits: int) -> Spec:
    """A scale and an offset for each output channel, and 8, 4 or 2 bits an entry: FLoCoRA (arXiv 2406.14082)."""
    return (StageSpec(name="affine", args={"bits": bits}),)


def segments(count: int) -> Spec:
    """The signs of one of `count` segments, each in turn, with a scale a tensor: no index bytes.

    Use it with error feedback, where changes are flat: AdamW with few local steps.
    """
    return (StageSpec(name="segment", args={"count": count}), *sign())


def adaptive(density: float) -> Spec:
    """Top-k where the change has a few large entries, segments of signs where it is flat; like bytes either way.

    `density` is the share of entries that a top-k sends. Use it with error feedback.
    """
    pack = StageSpec(name="pack", args={"values": "auto", "error": 0.65})
    return (
        StageSpec(name="adaptive", args={"density": density}),
        StageSpec(name="tensor_scale", args={}),
        pack,
    )


def important(density: float) -> Spec:
    """Top-k by what an entry changes in the model (after FedSRD), values to a tenth of their norm."""
    pack = StageSpec(name="pack", args={"values": "auto", "error": 0.1})
    return (StageSpec(name="importance", args={"density": density}), pack)


def levels(error: float) -> Spec:
    """Every entry in a few bits; `error` is the relative L2 error of the whole vector: 0.5 takes about 1.3 bits."""
    return (StageSpec(name="levels", args={"error": error}),)
