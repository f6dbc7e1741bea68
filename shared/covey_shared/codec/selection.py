"""Two ways of choosing what to send besides the largest: by what it does to the model, and by the shape of the change.

Pure arithmetic for the stages `importance` and `adaptive`; docs/codec.md says when to use which.
"""

import math

import numpy as np

from covey_shared.factors import pairs
from covey_shared.layout import Layout, Vector

FLAT = 2.4  # kurtosis below which a segment's signs carry more of the energy than a top-k of as many bytes
SAMPLE = 1 << 18


def norms(layout: Layout, adapter: Vector) -> Vector:
    """For each LoRA pair |column j of B| for all j, then |row j of A|: float32 [sum of 2 r]."""
    out = [np.empty(0)]
    for pair in pairs(layout):
        a, b = pair.of(adapter)
        out += [np.linalg.norm(b, axis=0), np.linalg.norm(a, axis=1)]
    return np.concatenate(out).astype(np.float32)


def norms_size(layout: Layout) -> int:
    """How many numbers `norms` gives."""
    return sum(2 * pair.rank for pair in pairs(layout))


def importance(layout: Layout, factors: Vector) -> Vector:
    """What a change of each entry by 1 does to the model: float32 [n], from `norms`.

    To first order scale (dB A + B dA) is added to the weight, so an entry of B's column j counts |row j of A| and an
    entry of A's row j counts |column j of B|, both times the LoRA scale (after FedSRD). Other entries count 1.
    """
    out = np.ones(layout.size, np.float32)
    at = 0
    for pair in pairs(layout):
        of_a, of_b = factors[at : at + pair.rank], factors[at + pair.rank : at + 2 * pair.rank]
        scale = np.float32(abs(pair.scale))
        out[pair.a] = np.repeat(scale * of_a, (pair.a.stop - pair.a.start) // pair.rank)
        out[pair.b] = np.tile(scale * of_b, (pair.b.stop - pair.b.start) // pair.rank)
        at += 2 * pair.rank
    return out


def kurtosis(vector: Vector) -> float:
    """mean(v^4) / mean(v^2)^2 of float32 [n]: 3 for Gaussian values, 1 where all magnitudes are equal, infinity for 0.

    >>> kurtosis(np.array([1, -1, 1, 1], np.float32))
    1.0
    """
    sample = vector[:: max(1, len(vector) // SAMPLE) | 1]
    top = float(np.abs(sample).max(initial=0))
    if top == 0:
        return math.inf
    squares = np.square(sample.astype(np.float64) / top)
    return float(np.square(squares).mean() / squares.mean() ** 2)


def segments_for(density: float) -> int:
    """How many segments make one as long, in bytes of signs, as a top-k of this density with a sign an entry.

    A top-k takes H(density) / density bits for each index (H the binary entropy) and 1 for the sign.
    """
    entropy = 0.0 if density == 1 else -density * math.log2(density) - (1 - density) * math.log2(1 - density)
    return max(1, math.ceil(1 / min(1.0, entropy + density)))
