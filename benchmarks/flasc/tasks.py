"""The tasks of the experiments: data, clients and models. Data and bundles are made once and kept.

`newsgroups` and `sst2` are dealt out as FLASC's code does it (Kuo et al. 2024): a Dirichlet of 0.1 over classes for
each client, each class's shares scaled so that they add up to one, examples handed out in order. `shakespeare` and
`babyllama` have natural clients, the roles of 36 plays.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from clients import Setting, minilm, records, speeches
from numpy.typing import NDArray
from upper import numbered, upper_model

from covey_edge.data import Dataset, TokenExamples, windows
from covey_edge.tokens import open_tokenizer
from covey_edge.trainers import GraphTrainer, open_trainer
from covey_shared.bundle import Bundle

# Language models: AdamW on the device, the plain mean on the server. Classes dealt out by a Dirichlet of 0.1 leave most
# devices with one class: there SGD on the device and Adam on the server, as FLASC has it. Rates are ladders: tuning
# begins with three in the middle (see run.py).
ADAMW = '[server]\noptimizer = "sgd"\n[client]\noptimizer = "adamw"\n'
FEDADAM = '[server]\noptimizer = "adam"\n[client]\noptimizer = "sgd"\nmomentum = 0.9\n'
ADAMW_RATES = tuple((rate, 1.0) for rate in (3e-4, 1e-3, 3e-3, 1e-2, 3e-2))
FEDADAM_RATES = tuple((0.1, rate) for rate in (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2))
FASTER_RATES = tuple((0.1, rate) for rate in (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2))
ATTENTION = ("query", "key", "value", "attention.output.dense")
Ints = NDArray[np.int64]


class Task(NamedTuple):
    """One task. `watch` and `judge` are how many test examples the curve and the final score are measured on.

    `seq_len` is what devices train with, `test_len` what is tested with. Of an encoder the last `blocks` blocks have
    LoRA (see upper.py), and `examples` of the texts are dealt out, 0 for all. `optimizers` are sections of the task
    file for methods that have none of their own, `rates` a ladder of the devices' and the server's rate.
    """

    name: str
    model: str
    classes: int
    target_modules: tuple[str, ...]
    batch_size: int
    seq_len: int
    test_len: int
    clients: int
    rounds: int
    steps: int
    watch: int
    judge: int
    optimizers: str
    rates: tuple[tuple[float, float], ...]
    blocks: int = 0
    examples: int = 0
    cohort: int = 10
    every: int = 3


TASKS = {
    task.name: task
    for task in (
        Task("shakespeare", "stories260K", 0, ("all-linear",), 8, 64, 64, 400, 32, 8, 160, 640, ADAMW, ADAMW_RATES),
        Task("babyllama", "babyllama105", 0, ("all-linear",), 8, 64, 64, 400, 30, 8, 96, 320, ADAMW, ADAMW_RATES),
        Task(
            "sst2", "MiniLM", 2, ATTENTION, 8, 16, 48, 200, 72, 2, 256, 872, FEDADAM, FEDADAM_RATES, 2, 20_000, every=8
        ),
        Task(
            "newsgroups", "MiniLM", 20, ATTENTION, 8, 32, 32, 350, 72, 2, 320, 1600, FEDADAM, FASTER_RATES, 2, every=8
        ),
    )
}


class Federation(NamedTuple):
    """A task made ready: `clients` are all devices, `watch` and `judge` parts of the common test set."""

    setting: Setting
    names: tuple[str, ...]
    watch: TokenExamples
    judge: TokenExamples
    tester: GraphTrainer
    test_batch: int


def prepare(task: Task, rank: int, data_root: Path, cache: Path, ranks: Sequence[int] = ()) -> Federation:
    """The task at one rank, from the cache where it is there."""
    parts = _examples(task, data_root, cache)
    bundle = _bundle(task, rank, ranks, data_root, cache)
    trainer = tester = open_trainer(bundle, "onnx", 1)
    if task.test_len != task.seq_len:
        tester = open_trainer(_bundle(task._replace(seq_len=task.test_len), rank, ranks, data_root, cache), "onnx", 1)
    train, test = parts["train"], parts["test"][0]
    names = tuple(f"client-{i:04d}" for i in range(len(train)))
    data = {name: Dataset(mine, mine) for name, mine in zip(names, train, strict=True)}
    setting = Setting(bundle, trainer, data, task.rounds, task.steps, 0.0, 0, task.every)
    watch, judge = spread(test, task.watch), spread(test, task.judge)
    return Federation(setting, names, watch, judge, tester, task.batch_size)


def spread(examples: TokenExamples, count: int) -> TokenExamples:
    """`count` of the examples at equal distances, or all if there are fewer."""
    count = min(count, examples.count)
    return examples.take(np.arange(count, dtype=np.int64) * examples.count // count)


def dirichlet(labels: Ints, clients: int, alpha: float, seed: int) -> list[Ints]:
    """The positions that each client gets, as FLASC's code deals them; clients that get nothing are left out."""
    rng = np.random.default_rng(seed)
    classes = int(labels.max()) + 1
    shares = rng.dirichlet([alpha] * classes, clients)
    counts = np.rint(shares / shares.sum(0) * np.bincount(labels, minlength=classes)).astype(np.int64)
    dealt: list[list[Ints]] = [[] for _ in range(clients)]
    for label in range(classes):
        pool = rng.permutation(np.flatnonzero(labels == label))
        for client, part in enumerate(np.split(pool, np.cumsum(counts[:, label]))[:clients]):
            dealt[client].append(part)
    joined = [np.concatenate(parts) for parts in dealt]
    return [mine for mine in joined if len(mine)]


def _model(task: Task, data_root: Path) -> str:
    return minilm() if task.model == "MiniLM" else str(data_root / "models" / task.model)


def _bundle(task: Task, rank: int, ranks: Sequence[int], data_root: Path, cache: Path) -> Bundle:
    name = "_".join(map(str, ranks)) or str(rank)
    folder = cache / f"{task.name}-{task.seq_len}-rank-{name}"
    if not folder.exists():
        from covey_export.bundle import export
        from covey_export.quiet import quiet
        from covey_export.recipe import Recipe

        kind: dict[str, Any] = {"task": "sequence-classification", "num_labels": task.classes} if task.classes else {}
        wanted: dict[str, Any] = {"ranks": tuple(ranks)} if ranks else {"rank": rank}
        model = cache / f"{task.name}-upper" if task.blocks else _model(task, data_root)
        with quiet():
            export(
                Recipe(
                    model=str(model), model_id=task.model, target_modules=task.target_modules,
                    batch_size=task.batch_size, seq_len=task.seq_len, targets=("onnx",), **wanted, **kind,
                ),
                folder,
            )  # fmt: skip
    return Bundle.open(folder)


def _examples(task: Task, data_root: Path, cache: Path) -> dict[str, list[TokenExamples]]:
    """`train`: of each client; `test`: one for all."""
    path = cache / f"{task.name}.npz"
    if not path.exists():
        found = (_classified if task.blocks else _roles)(task, data_root, cache)
        sizes = {f"{part}_sizes": np.array([e.count for e in every]) for part, every in found.items()}
        arrays = {f"{part}_{key}": _joined(every, key) for part, every in found.items() for key in ("ids", "lengths")}
        classes = {f"{part}_classes": _joined(every, "classes") for part, every in found.items() if task.classes}
        np.savez_compressed(path, **sizes, **arrays, **classes)  # type: ignore[arg-type]
    with np.load(path) as kept:
        return {part: _parted(kept, part) for part in ("train", "test")}


def _joined(every: Sequence[TokenExamples], key: str) -> NDArray[Any]:
    return np.concatenate([getattr(examples, key) for examples in every])


def _parted(kept: Any, part: str) -> list[TokenExamples]:
    classes = kept.get(f"{part}_classes")
    whole = TokenExamples(kept[f"{part}_ids"], kept[f"{part}_lengths"], classes)
    ends = np.cumsum(kept[f"{part}_sizes"])
    return [whole.take(np.arange(end - n, end)) for end, n in zip(ends, kept[f"{part}_sizes"], strict=True)]


def _roles(task: Task, data_root: Path, cache: Path) -> dict[str, list[TokenExamples]]:
    """The roles that speak most, each as windows of its speeches; all their test speeches together."""
    bundle = _bundle(task, 16, (), data_root, cache)  # any rank: its tokenizer is wanted
    coder = open_tokenizer(bundle.manifest.text, bundle.folder)
    train, held = speeches(data_root, "train"), speeches(data_root, "test")
    roles = sorted(train, key=lambda role: (-sum(map(len, train[role])), role))[: task.clients]

    def cut(texts: list[str]) -> TokenExamples:
        return windows(coder.document("\n".join(texts)), task.seq_len, bundle.manifest.text.pad_id)

    test = [text for role in roles for text in held.get(role, [])]
    return {"train": [cut(train[role]) for role in roles], "test": [cut(test)]}


def _classified(task: Task, data_root: Path, cache: Path) -> dict[str, list[TokenExamples]]:
    """Labelled texts, dealt out by class, as what the lower blocks make of them."""
    from transformers import AutoTokenizer

    model = _model(task, data_root)
    tokenizer = AutoTokenizer.from_pretrained(model)
    folder = data_root / ("sst2" if task.name == "sst2" else "newsgroups20")
    held = "validation" if task.name == "sst2" else "test"
    train = _rows(tokenizer, records(folder / "train.jsonl.gz"), task.seq_len, task.examples)
    test = _rows(tokenizer, records(folder / f"{held}.jsonl.gz"), task.test_len, task.judge)
    texts = [(part.ids, part.lengths) for part in (train, test)]
    upper_model(model, task.blocks, texts, task.classes, cache / f"{task.name}-upper")
    train, test = _numbered(train, 1), _numbered(test, 1 + int(train.lengths.sum()))
    assert train.classes is not None
    return {"train": [train.take(mine) for mine in dirichlet(train.classes, task.clients, 0.1, 0)], "test": [test]}


def _rows(tokenizer: Any, found: list[dict[str, Any]], length: int, limit: int) -> TokenExamples:
    """Up to `limit` records, drawn at random, as tokens [N, length]."""
    chosen = [found[i] for i in np.random.default_rng(0).permutation(len(found))[: limit or None]]
    texts = [(f"{r['subject']}\n{r['text']}" if "subject" in r else r["text"])[:2000] for r in chosen]
    coded = tokenizer(texts, max_length=length, truncation=True, padding="max_length", return_tensors="np")
    lengths = coded["attention_mask"].sum(1).astype(np.int32)
    return TokenExamples(coded["input_ids"].astype(np.int32), lengths, np.array([r["label"] for r in chosen]))


def _numbered(examples: TokenExamples, first: int) -> TokenExamples:
    ids = numbered(examples.lengths, examples.ids.shape[1], first)
    return TokenExamples(ids, examples.lengths, examples.classes)
