"""A sample dealt out to a few simulated devices, so that pilots see data as uneven as real devices have.

By who owns it, where the sample says so: a field of its records, the sub-folders of a folder, or, for plain text, its
files. Else labelled examples are dealt out by a Dirichlet distribution over classes (Hsu et al. 2019), the usual
stand-in for devices that differ, and one long text is cut into as many stretches as there are devices.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from covey_edge.data import Dataset, Examples, rows, split, split_blocks, windows
from covey_edge.images import read_images
from covey_edge.texts import Document, read_texts
from covey_edge.tokens import Coder, open_tokenizer
from covey_shared.bundle import Bundle
from covey_shared.errors import UsageError
from covey_shared.manifest import Manifest
from covey_shared.prng import derive, permutation

LEAST = 4  # examples of a device: one to hold out and a few to train on


class Sample(NamedTuple):
    """Where the data is and how it is read and dealt. `alpha`: of the Dirichlet distribution."""

    path: Path
    clients: int
    seed: int = 0
    alpha: float = 0.5
    holdout: float = 0.2
    text_field: str = "text"
    label_field: str = "label"
    client_field: str = ""


class Dealt(NamedTuple):
    """The devices' data by name, and a sentence on how it was dealt out (and what was left out)."""

    devices: dict[str, Dataset]
    how: str


def deal(sample: Sample, bundle: Bundle) -> Dealt:
    """The simulated devices; raises UsageError where there is nothing to deal out."""
    manifest = bundle.manifest
    if not sample.path.exists():
        raise UsageError(f"there is nothing at {sample.path}: give text, records or images with --data")
    if manifest.image is not None:
        pictures = read_images(sample.path, manifest.image, manifest.labels)
        return _by_class(sample, pictures.examples, pictures.skipped)
    texts = read_texts(
        sample.path, records=manifest.task != "causal-lm", text_field=sample.text_field,
        label_field=sample.label_field, owner_field=sample.client_field,
    )  # fmt: skip
    coder, skipped = open_tokenizer(manifest.text, bundle.folder), texts.skipped_sentence()
    owned = owners(texts.documents, sample, manifest)
    if len(owned) > 1:
        return _by_owner(sample, owned, partial(examples_of, coder=coder, manifest=manifest), manifest, skipped)
    if manifest.task != "causal-lm":
        return _by_class(sample, rows(texts.documents, coder, manifest), skipped)
    return _by_stretch(sample, examples_of(texts.documents, coder, manifest), skipped)


def owners(documents: Sequence[Document], sample: Sample, manifest: Manifest) -> dict[str, list[Document]]:
    """The documents by whose they are; one group where nothing says so."""
    out: dict[str, list[Document]] = {}
    folders = {_folder(d.name) for d in documents if sample.path.is_dir()} - {""}
    for document in documents:
        out.setdefault(_owner(document, sample, len(folders) > 1, manifest), []).append(document)
    return out


def _owner(document: Document, sample: Sample, by_folder: bool, manifest: Manifest) -> str:
    if sample.client_field:
        return document.owner
    if by_folder:
        return _folder(document.name)
    # files of labelled records are the parts of a data set, those of plain text are somebody's documents
    return document.name.partition(", line ")[0] if manifest.task == "causal-lm" else ""


def _folder(name: str) -> str:
    """The first folder in a document's name, or nothing."""
    return name.partition("/")[0] if "/" in name else ""


def examples_of(documents: Sequence[Document], coder: Coder, manifest: Manifest) -> Examples:
    """Documents as examples, as `covey join` makes them."""
    if manifest.task != "causal-lm":
        return rows(tuple(documents), coder, manifest)
    tokens = np.concatenate([coder.document(d.text) for d in documents])
    return windows(tokens, manifest.seq_len, manifest.text.pad_id)


def _by_owner(
    sample: Sample, owned: dict[str, list[Document]], make: Callable[[Sequence[Document]], Examples],
    manifest: Manifest, skipped: str,
) -> Dealt:  # fmt: skip
    """Some owners, drawn by the seed; one with too little for a device is passed over."""
    names = sorted(owned)
    wanted: dict[str, Dataset] = {}
    blocks = split_blocks if manifest.task == "causal-lm" else None
    for name, examples in _in_turn(names, sample.seed, lambda n: make(owned[n])):
        if examples.count >= max(LEAST, manifest.batch_size):
            wanted[name] = split(examples, sample.holdout, "examples", blocks)
        if len(wanted) == sample.clients:
            break
    by = f"field {sample.client_field!r}" if sample.client_field else "its folders or files"
    how = f"{len(wanted)} of the {len(names):,} owners that the sample has by {by}"
    return _checked(dict(sorted(wanted.items())), how, skipped)


def _in_turn(names: Sequence[str], seed: int, make: Callable[[str], Examples]) -> Iterator[tuple[str, Examples]]:
    for at in permutation(derive(seed, "owners"), len(names)):
        yield names[at], make(names[at])


def _by_class(sample: Sample, examples: Examples, skipped: str) -> Dealt:
    """By class in proportions drawn from a Dirichlet distribution."""
    labels = examples.batch(np.arange(examples.count)).labels
    dealt = dirichlet(labels, sample.clients, sample.alpha, sample.seed)
    parts = {f"device-{i:02d}": examples.take(mine) for i, mine in enumerate(dealt) if len(mine) >= LEAST}
    devices = {name: split(part, sample.holdout, "examples") for name, part in parts.items()}
    how = (
        f"{len(devices)} devices, {examples.count:,} examples dealt out by a Dirichlet of {sample.alpha:g} over classes"
    )
    return _checked(devices, how, skipped)


def dirichlet(labels: NDArray[np.int64], count: int, alpha: float, seed: int) -> list[NDArray[np.int64]]:
    """Positions of each device's examples: each class is shared out in proportions drawn anew. All are dealt, once."""
    rng = np.random.default_rng(derive(seed, "dirichlet"))
    mine: list[list[NDArray[np.int64]]] = [[] for _ in range(count)]
    for label in np.unique(labels):
        where = rng.permutation(np.flatnonzero(labels == label))
        ends = np.floor(np.cumsum(rng.dirichlet([alpha] * count)) * len(where) + 0.5).astype(int)
        for device, part in zip(mine, np.split(where, ends[:-1]), strict=True):
            device.append(part)
    return [np.sort(np.concatenate(parts)) for parts in mine]


def _by_stretch(sample: Sample, examples: Examples, skipped: str) -> Dealt:
    """Contiguous stretches of one text."""
    parts = np.array_split(np.arange(examples.count), min(sample.clients, max(1, examples.count // LEAST)))
    devices = {
        f"device-{i:02d}": split(examples.take(part), sample.holdout, "windows", split_blocks)
        for i, part in enumerate(parts) if len(part) >= LEAST
    }  # fmt: skip
    return _checked(devices, f"{len(devices)} stretches of one text of {examples.count:,} windows", skipped)


def _checked(devices: dict[str, Dataset], how: str, skipped: str) -> Dealt:
    if len(devices) < 2:
        raise UsageError(
            f"the sample is enough for {len(devices)} devices, and a federation has at least 2: give more --data, or a "
            "field that says whose a record is with --client-field"
        )
    return Dealt(devices, f"{how}; {skipped}" if skipped else how)
