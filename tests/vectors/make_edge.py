"""What a device computes by itself, as vectors that the Kotlin client reads as well: fusion, labelled rows, the vault.

python -m tests.vectors.make_edge writes `fusion.json` and `rows.json`, the same each time, and `vault.json`, which
draws new salts: what is in it must open, not be made again.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from covey_edge import vault
from covey_edge.data import rows as labelled_rows
from covey_edge.data import split_rows, training_batch
from covey_edge.fusion import concatenated, factorwise, search
from covey_edge.texts import Document
from covey_edge.tokens import bytes_coder
from covey_shared.errors import RemoteError
from covey_shared.layout import Layout, Tensor
from covey_shared.manifest import Manifest, Tokenizer
from tests.helpers_shared import float_bits
from tests.vectors.make import HERE, pretty

Json = dict[str, Any]
VALLEYS = [
    (0.7, 0.4, 1.0, 1.0, 0.0),
    (-0.3, 1.1, 2.0, 0.5, 0.25),
    (2.0, -2.0, 1.0, 3.0, 0.0),
    (0.5, 0.5, 1.0, 1.0, 1.9),
]


def pair(rank: int, scale: float) -> tuple[Tensor, Tensor]:
    """A module's factors."""
    a = Tensor(name="A", shape=(rank, 7), kind="lora_A", init="zeros", module="q", rank=rank, scale=scale)
    return a, Tensor(name="B", shape=(5, rank), kind="lora_B", init="zeros", module="q", rank=rank, scale=scale)


LAYOUT = Layout((*pair(3, 2.0), Tensor(name="h", shape=(3,), kind="head", init="zeros")))
SECOND = Layout(pair(4, 0.5))


def valley(a: float, b: float, p: float, q: float, r: float) -> Json:
    """A search over a quadratic loss: every point in order, and what is found."""
    points: list[tuple[float, float]] = []

    def loss(w1: float, w2: float) -> float:
        points.append((w1, w2))
        return p * (w1 - a) * (w1 - a) + q * (w2 - b) * (w2 - b) + r * (w1 - a) * (w2 - b) + 1.0

    return {"curve": [a, b, p, q, r], "found": search(loss)._asdict(), "points": [list(point) for point in points]}


def fusion_file() -> Json:
    """The search, point by point, and both ways to fuse, bit by bit."""
    shared, personal = (
        np.array([((i * step) % 23 - 11) / 8 for i in range(LAYOUT.size)], np.float32) for step in (7, 5)
    )
    mixed = []
    for w1, w2 in ((1.0, 0.0), (0.3, -1.2), (0.7, 0.45)):
        adapter, beside = concatenated(LAYOUT, SECOND, shared, personal, w1, w2)
        mixed.append({
            "weights": [w1, w2], "factorwise": float_bits(factorwise(shared, personal, w1, w2)),
            "adapter": float_bits(adapter), "second": float_bits(beside),
        })  # fmt: skip
    return {
        "about": "`search`: p (w1-a)^2 + q (w2-b)^2 + r (w1-a)(w2-b) + 1, at `points` in this order. `mixed`: "
        "two adapters fused, float32 bits.",
        "search": [valley(*curve) for curve in VALLEYS],
        "layout": LAYOUT.to_json(), "second_layout": SECOND.to_json(), "shared": float_bits(shared),
        "personal": float_bits(personal), "mixed": mixed,
    }  # fmt: skip


RECORDS: list[tuple[str, int | str]] = [
    ("good film", "good"), ("bad film", "bad"), ("fine, really", 1), ("dull", "0"), ("so so", "good"), ("ä", 0),
    ("long" * 9, "bad"),
]  # fmt: skip

SPLITS = [(2, 0.5), (7, 0.1), (50, 0.2)]


def rows_file() -> Json:
    """Labelled rows of a byte-level classifier: how they are split, and the batches of three steps."""
    spec = Tokenizer(kind="bytes", offset=3, vocab_size=259, pad_id=0, eos_id=1)
    manifest = Manifest(
        covey="0.1.0", model="m", revision="", licence="", architecture="", parameters=0,
        task="sequence-classification", labels=("bad", "good"), batch_size=4, seq_len=16, rank=3, alpha=6.0,
        target_modules=("q",), precision="float32", seed=0, layout=LAYOUT, tokenizer=spec, graphs={}, parity={},
        minimum_client="0.1.0",
    )  # fmt: skip
    documents = tuple(Document(f"line {i}", text, label) for i, (text, label) in enumerate(RECORDS, 1))
    examples = labelled_rows(documents, bytes_coder(spec), manifest)
    train, heldout = split_rows(examples.count, 0.3)
    batches = [training_batch(examples.take(train), 4, 5, step) for step in range(3)]
    return {
        "about": "Records of a classifier with byte tokens, rows of 16: the split by 0.3, batches of 4 with seed 5.",
        "labels": ["bad", "good"], "records": [list(record) for record in RECORDS], "train": train.tolist(),
        "heldout": heldout.tolist(),
        "batches": [{"inputs": b.inputs.tolist(), "labels": b.labels.tolist()} for b in batches],
        "splits": [{"count": n, "share": s, "heldout": split_rows(n, s)[1].tolist()} for n, s in SPLITS],
    }  # fmt: skip


VAULTS = [
    ("correct horse battery", "notes/0123", "phone-1", b"", 0),
    ("pässwörd 🔑🔑", "täsk/ff", "a", bytes(range(256)) * 5, 7),
]  # fmt: skip


def vault_file() -> Json:
    """Vaults that must open, their addresses, and some to refuse."""
    cases = []
    for words, task, client, content, sequence in VAULTS:
        sealed = vault.seal(vault.Kept(content, sequence), words, task, client)
        cases.append({
            "passphrase": words, "task": task, "client": client, "content": content.hex(), "sequence": sequence,
            "sealed": sealed.hex(), "address": vault.address(words, task, client),
        })  # fmt: skip
    sizes = [[n, vault.sealed_size(n)] for n in (0, 1000, 1008, 1009, 5000, 40_000, 1_000_000)]
    about = "Vaults by passphrase, task and device; under `bad` changes of the first that must be refused."
    return {"about": about, "cases": cases, "bad": list(bad_vaults(cases[0])), "sizes": sizes}


def bad_vaults(case: Json) -> Iterator[Json]:
    """Changes of a vault that opens."""
    sealed = bytes.fromhex(case["sealed"])
    changes: dict[str, Json] = {
        "cut": {"sealed": sealed[:-1]}, "empty": {"sealed": b""}, "another format": {"sealed": b"CVV2" + sealed[4:]},
        "another header": {"sealed": sealed[:4] + b"\1" + sealed[5:]},
        "scrypt that costs too much": {"sealed": sealed[:6] + b"\0\0\0\x40" + sealed[10:]},
        "scrypt that costs nothing": {"sealed": sealed[:6] + b"\2\0\0\0" + sealed[10:]},
        "a wrapped key with a bit changed": {"sealed": sealed[:50] + bytes([sealed[50] ^ 1]) + sealed[51:]},
        "content with a bit changed": {"sealed": sealed[:-20] + bytes([sealed[-20] ^ 1]) + sealed[-19:]},
        "another passphrase": {"passphrase": "correct horse batterz"}, "another task": {"task": "notes/0124"},
        "another device": {"client": "phone-2"},
    }  # fmt: skip
    for name, change in changes.items():
        changed = {**case, **{k: v.hex() if isinstance(v, bytes) else v for k, v in change.items()}}
        data = bytes.fromhex(changed["sealed"])
        try:
            vault.open_vault(data, changed["passphrase"], changed["task"], changed["client"])
        except RemoteError as error:
            kept = {k: changed[k] for k in ("passphrase", "task", "client", "sealed")}
            yield {"name": name, **kept, "error": str(error)}
        else:
            raise AssertionError(f"{name} is accepted")


def build() -> dict[str, Json]:
    """The files that come out the same each time."""
    return {"fusion.json": fusion_file(), "rows.json": rows_file()}


if __name__ == "__main__":
    for path, content in {**build(), "vault.json": vault_file()}.items():
        (HERE / path).write_text(pretty(content) + "\n")
