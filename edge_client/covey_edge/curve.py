"""A loss curve in one line of text, and as a picture where matplotlib is installed."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

BARS = "▁▂▃▄▅▆▇█"
WIDTH = 60


def sparkline(values: Sequence[float], width: int = WIDTH) -> str:
    """The curve as at most `width` bars, each the mean of its stretch; the lowest bar is the lowest mean.

    >>> sparkline([4, 3, 2, 1])
    '█▆▃▁'
    """
    if not len(values):
        return ""
    means = [float(np.mean(part)) for part in np.array_split(np.asarray(values, float), min(width, len(values)))]
    low, high = min(means), max(means)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((m - low) * scale)] for m in means)


def plot(path: Path, losses: Sequence[float], heldout: Sequence[tuple[int, float]], title: str) -> None:
    """Training losses by step, and the held-out ones as (step, loss), in nats. Needs matplotlib."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(range(1, len(losses) + 1), losses, linewidth=1, label="training, each step")
    axes.plot(*zip(*heldout, strict=True), "o", label="held out")
    axes.set(xlabel="step", ylabel="loss (nats)", title=title)
    axes.legend()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
