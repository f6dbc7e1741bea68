"""A few real clients of the bigram model against the real server, each with a text of its own."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from covey_edge import calls
from covey_edge.agent import Agent
from covey_edge.data import Dataset, build_dataset
from covey_edge.device import Device, task_name
from covey_edge.events import Events
from covey_edge.identity import open_key
from covey_edge.plan import Wishes
from covey_edge.state import Client, new_client, open_folder
from covey_edge.texts import Document
from covey_edge.tokens import bytes_coder
from covey_edge.trainers import Trainer
from covey_edge.transport import Backoff, Traffic, connect
from covey_shared.bundle import Bundle
from covey_shared.manifest import File
from tests.helpers_edge import BYTES, BigramTrainer, manifest_of

TEXTS = {
    "ann": "the cat sat on the mat and the dog lay on the log; ",
    "bob": "a stitch in time saves nine and haste makes waste; ",
    "cid": "still waters run deep while the early bird gets the worm; ",
}


class Ended(NamedTuple):
    """What a device remembers in the end, and what happened."""

    record: Client
    log: list[dict[str, Any]]


def bigram_bundle(folder: Path, more: Mapping[str, bytes] = {}, **changes: object) -> Bundle:
    """A bundle of the bigram model on disk; `more` are the contents of further files."""
    contents, files = {"onnx/train.onnx": b"", **more}, {}
    for name, data in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        files[name] = File(sha256=hashlib.sha256(data).hexdigest(), bytes=len(data))
    (folder / "manifest.json").write_bytes(manifest_of(files=files, **changes).to_bytes())
    return Bundle.open(folder)


async def take_part(
    url: str, name: str, folder: Path, bundle: Bundle, *, rank: int = 0, trainer: Trainer | None = None, text: str = "",
    once: bool = False, dataset: Dataset | None = None, tier: str = "",
) -> Ended:  # fmt: skip
    """One device until the task is done, going on from what its folder remembers."""
    log: list[dict[str, Any]] = []
    document = Document("d", (text or TEXTS.get(name, name)) * 20)
    dataset = dataset or build_dataset((document,), bytes_coder(BYTES), bundle.manifest, 0.2)
    with open_folder(folder / name) as state:
        record, _ = state.load_client()
        async with connect(url, open_key(state.path), Traffic()) as transport:
            transport.backoff = Backoff(0.01, 0.05)
            assert await calls.enroll(transport, name, "") == name
            task = await calls.get_task(transport, tier)
            device = Device(
                task, bundle, dataset, trainer or BigramTrainer(), "onnx", Wishes(1, once), 4, 0.0, rank
            )  # fmt: skip
            record = record or new_client(name, task_name(task))
            return Ended(await Agent(device, transport, state, record, Events(log.append)).run(), log)


def fleet(
    url: str, folder: Path, bundle: Bundle, ranks: Mapping[str, int] | None = None,
    trainer: Callable[[], Trainer] = BigramTrainer,
) -> dict[str, Ended]:  # fmt: skip
    """All devices at once."""

    async def everyone() -> list[Ended]:
        every = ((name, (ranks or {}).get(name, 0)) for name in TEXTS)
        return await asyncio.gather(
            *(take_part(url, name, folder, bundle, rank=rank, trainer=trainer()) for name, rank in every)
        )

    return dict(zip(TEXTS, asyncio.run(everyone()), strict=True))
