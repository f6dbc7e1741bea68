"""From text to the fixed batches that the graphs take: windows for a causal LM, labelled rows for a classifier.

Images are in `images`; what they share with text, the split and the order of batches, is here.

A graph takes exactly B rows of T tokens. Text for a causal LM is packed: documents end to end, cut into windows that
overlap by one token, so that each token but the very first is predicted exactly once. Padding is never counted: its
label is -100.

The held-out part is a function of the data alone, so it stays held out over restarts and rounds; what a round trains
on is a function of (task seed, round, client).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from covey_edge.texts import Document
from covey_edge.tokens import Coder, Ids
from covey_shared.errors import UsageError
from covey_shared.manifest import Manifest
from covey_shared.prng import derive, permutation

IGNORED = -100  # the label of a position that does not count, as in Hugging Face's losses
BLOCKS = 8  # of held-out windows: contiguous, so that few of them share a sentence with the training part


class Batch(NamedTuple):
    """What a graph takes beside the adapter.

    `inputs`: tokens, int64 [B, T], or images, float32 [B, C, H, W]. `labels`: int64 [B, T] for a causal LM, [B] for a
    classifier; -100 is not counted.
    """

    inputs: NDArray[Any]
    labels: NDArray[np.int64]


class Examples(Protocol):
    """A device's examples, however they are held."""

    @property
    def count(self) -> int:
        """N, the number of examples."""

    def take(self, where: NDArray[np.int64]) -> "Examples":
        """The examples at these positions."""

    def batch(self, where: NDArray[np.int64]) -> Batch:
        """These examples as a graph takes them, all labels counted."""


@dataclass(frozen=True)
class TokenExamples:
    """`ids` int32 [N, T], padded; `lengths` int32 [N], tokens that are not padding.

    `classes` int64 [N] for a classifier; None for a causal LM, whose targets are its own tokens.
    """

    ids: Ids
    lengths: NDArray[np.int32]
    classes: NDArray[np.int64] | None

    @property
    def count(self) -> int:
        """N, the number of examples."""
        return len(self.lengths)

    def take(self, where: NDArray[np.int64]) -> "TokenExamples":
        """The examples at these positions."""
        classes = None if self.classes is None else self.classes[where]
        return TokenExamples(self.ids[where], self.lengths[where], classes)

    def batch(self, where: NDArray[np.int64]) -> Batch:
        """These examples, the labels of padding ignored."""
        ids = self.ids[where].astype(np.int64)
        if self.classes is not None:
            return Batch(ids, self.classes[where])
        return Batch(ids, np.where(np.arange(ids.shape[1]) < self.lengths[where][:, None], ids, IGNORED))


class Dataset(NamedTuple):
    """A device's own examples in two parts."""

    train: Examples
    heldout: Examples


Split = Callable[[int, float], tuple[NDArray[np.int64], NDArray[np.int64]]]


def build_dataset(documents: tuple[Document, ...], coder: Coder, manifest: Manifest, heldout_share: float) -> Dataset:
    """Tokenise, cut and split. Raises UsageError when a part would be empty or a label is unknown."""
    if manifest.task != "causal-lm":
        return split(rows(documents, coder, manifest), heldout_share, "labelled records")
    tokens = np.concatenate([coder.document(d.text) for d in documents])
    examples = windows(tokens, manifest.seq_len, manifest.text.pad_id)
    return split(examples, heldout_share, f"windows of {manifest.seq_len} tokens", split_blocks)


def split(examples: Examples, share: float, unit: str, positions: Split | None = None) -> Dataset:
    """The two parts of a device's examples; `unit` is what an example is called when there are too few."""
    train, heldout = (positions or split_rows)(examples.count, share)
    if not len(train) or not len(heldout):
        raise UsageError(
            f"too little data: it makes {examples.count} {unit}, and at least 2 are needed, one of them held out"
        )
    return Dataset(examples.take(train), examples.take(heldout))


def windows(tokens: Ids, seq_len: int, pad_id: int) -> TokenExamples:
    """Windows of `seq_len` tokens, each starting with the last token of the one before.

    >>> windows(np.arange(1, 7, dtype=np.int32), 4, 0).ids.tolist()
    [[1, 2, 3, 4], [4, 5, 6, 0]]
    """
    stride = seq_len - 1
    count = max(0, -(-(len(tokens) - 1) // stride))
    if count == 0:
        return TokenExamples(np.empty((0, seq_len), np.int32), np.empty(0, np.int32), None)
    padded = np.full(count * stride + 1, pad_id, np.int32)
    padded[: len(tokens)] = tokens
    lengths = np.minimum(seq_len, len(tokens) - np.arange(count) * stride).astype(np.int32)
    return TokenExamples(sliding_window_view(padded, seq_len)[::stride], lengths, None)


def rows(documents: tuple[Document, ...], coder: Coder, manifest: Manifest) -> TokenExamples:
    """One example a document, cut to the bundle's length and padded on the right."""
    ids = np.full((len(documents), manifest.seq_len), manifest.text.pad_id, np.int32)
    lengths = np.empty(len(documents), np.int32)
    for i, document in enumerate(documents):
        row = coder.row(document.text, manifest.seq_len)
        ids[i, : len(row)], lengths[i] = row, len(row)
    classes = np.array([class_of(d.label, d.name, manifest.labels, "; see --label-field") for d in documents], np.int64)
    return TokenExamples(ids, lengths, classes)


def class_of(label: int | str, name: str, labels: tuple[str, ...], hint: str = "") -> int:
    """The number of a class, given as that number or as its name; `name` is what has the label."""
    if label in labels:
        return labels.index(str(label))
    number = int(label) if isinstance(label, int) or label.strip().isdecimal() else -1
    if 0 <= number < len(labels):
        return number
    known = ", ".join(labels[:6]) + (", ..." if len(labels) > 6 else "")
    raise UsageError(
        f"{name} has the label {label!r}, this task has the classes 0 to {len(labels) - 1} ({known}){hint}"
    )


def split_blocks(count: int, share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions to train on and to hold out: up to eight equal stretches, the last part of each held out.

    `share` in (0, 0.5].

    >>> train, heldout = split_blocks(10, 0.2)
    >>> heldout.tolist()
    [4, 9]
    """
    held = min(max(1, round(count * share)), max(0, count - 1))
    out = np.zeros(count, bool)
    blocks = min(BLOCKS, held)
    for i in range(blocks):
        end, size = count * (i + 1) // blocks, held * (i + 1) // blocks - held * i // blocks
        out[end - size : end] = True
    return np.flatnonzero(~out), np.flatnonzero(out)


def split_rows(count: int, share: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions to train on and to hold out, drawn by a fixed stream: records may be sorted by class."""
    held = min(max(1, round(count * share)), max(0, count - 1))
    order = permutation(derive("holdout", count), count)
    return np.sort(order[held:]), np.sort(order[:held])


def batch_of(examples: Examples, where: NDArray[np.int64], batch_size: int) -> Batch:
    """The graph's batch of these examples; what is short of B is filled with copies whose labels do not count.

    Copies and not padding, so that no row is without a real token: some attention kernels answer that with NaN.
    """
    inputs, labels = examples.batch(np.resize(where, batch_size))
    labels = labels.copy()
    labels[len(where) :] = IGNORED
    return Batch(inputs, labels)


def training_batch(examples: Examples, batch_size: int, seed: int, step: int) -> Batch:
    """The batch of one step, step >= 0: B positions further along endless shuffles of the examples, each its own.

    Every example is seen once before any is seen twice, and a full batch never holds padding rows.
    """
    first = step * batch_size
    epochs = range(first // examples.count, (first + batch_size - 1) // examples.count + 1)
    order = np.concatenate([permutation(derive(seed, e), examples.count) for e in epochs])
    start = first - epochs[0] * examples.count
    return batch_of(examples, order[start : start + batch_size], batch_size)


def evaluation_batches(examples: Examples, batch_size: int, limit: int) -> Iterator[Batch]:
    """All examples in order, or `limit` batches of them taken at equal distances; 0 = all."""
    count = min(examples.count, limit * batch_size) if limit else examples.count
    chosen = np.arange(count, dtype=np.int64) * examples.count // count
    for start in range(0, count, batch_size):
        yield batch_of(examples, chosen[start : start + batch_size], batch_size)


def evaluation_count(examples: Examples, batch_size: int, limit: int) -> int:
    """How many batches `evaluation_batches` yields."""
    whole = -(-examples.count // batch_size)
    return min(whole, limit) if limit else whole
