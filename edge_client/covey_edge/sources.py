"""A person's data, read before anything large is downloaded, and made into examples once the bundle is there.

It is the likelier of the two to be wrong, so it is looked at first; text needs the bundle's tokenizer to become
examples, images need nothing more.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from covey_edge.data import Dataset, build_dataset, split
from covey_edge.images import read_images
from covey_edge.texts import Document, read_texts
from covey_edge.tokens import open_tokenizer
from covey_shared.errors import UsageError
from covey_shared.manifest import Manifest


class Source(NamedTuple):
    """`skipped`: one sentence about files that were left out, or nothing. `dataset(bundle's folder)`: the examples."""

    skipped: str
    dataset: Callable[[Path], Dataset]


def read_source(
    path: Path, manifest: Manifest, heldout_share: float, *, text_field: str = "text", label_field: str = "label"
) -> Source:
    """Read what a bundle's task needs: text, labelled records or images. Raises UsageError where they are not sound."""
    if not path.exists():
        raise UsageError(f"there is nothing at {path}: give a text file, a folder of text, a .jsonl file, or images")
    if manifest.image is not None:
        pictures = read_images(path, manifest.image, manifest.labels)
        return Source(pictures.skipped, lambda folder: split(pictures.examples, heldout_share, "labelled images"))
    texts = read_texts(
        path, records=manifest.task != "causal-lm", text_field=text_field, label_field=label_field
    )  # fmt: skip
    return Source(texts.skipped_sentence(), partial(_tokenised, texts.documents, manifest, heldout_share))


def _tokenised(documents: tuple[Document, ...], manifest: Manifest, heldout_share: float, folder: Path) -> Dataset:
    return build_dataset(documents, open_tokenizer(manifest.text, folder), manifest, heldout_share)
