"""The vault end to end: a new phone gets its own tensors back, and the server never sees a float of them."""

import asyncio
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covey_edge import calls, vault
from covey_edge.backup import Backup, restore, store
from covey_edge.data import build_dataset
from covey_edge.device import Device, task_name
from covey_edge.identity import open_key
from covey_edge.plan import Wishes
from covey_edge.state import Client, bytes_of, new_client
from covey_edge.texts import Document
from covey_edge.tokens import bytes_coder
from covey_edge.transport import Refused, Traffic, connect
from covey_shared.bundle import Bundle
from covey_shared.cli import main
from covey_shared.errors import RemoteError
from tests.helpers_edge import BYTES, LAYOUT, BigramTrainer
from tests.helpers_edge_serving import serving
from tests.helpers_fleet import bigram_bundle

FEDSA = '[personal]\npolicy = "fedsa"\n'
WORDS = "a quiet covey on the moor"
PLANTED = np.full(LAYOUT.tensors[1].size, 0.123456, np.float32)


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vault, "COST", (2**14, 1, 1))


async def phone(url: str, folder: Path, name: str, bundle: Bundle, do: Any, words: str = WORDS) -> Any:
    """Run `do(backup, device, record)` as a phone of its own that is enrolled under `name`."""
    folder.mkdir(exist_ok=True)
    async with connect(url, open_key(folder), Traffic()) as transport:
        await calls.enroll(transport, name, "")
        task = await calls.get_task(transport)
        data = build_dataset((Document("d", "a b c " * 200),), bytes_coder(BYTES), bundle.manifest, 0.2)
        device = Device(task, bundle, data, BigramTrainer(), "onnx", Wishes(), 1)
        return await do(Backup(transport, task_name(task), "ann", words), device, new_client(name, task_name(task)))


def with_own(record: Client, own: np.ndarray) -> Client:
    from dataclasses import replace

    return replace(record, own=bytes_of(own), rounds=3)


def test_a_new_phone(tmp_path: Path) -> None:
    bundle = bigram_bundle(tmp_path / "bundle")

    async def keep(backup: Backup, device: Device, record: Client) -> None:
        await store(backup, with_own(record, np.zeros_like(PLANTED)))
        await store(backup, with_own(record, PLANTED))

    async def bring(backup: Backup, device: Device, record: Client) -> bytes:
        return await restore(backup, device, record)

    async def drop(backup: Backup, device: Device, record: Client) -> None:
        await calls.delete_vault(backup.transport, backup.address)
        await calls.delete_vault(backup.transport, backup.address)

    with serving(bundle, tmp_path / "server", rounds=2, target=1, more=FEDSA) as server:
        run = tmp_path / "server" / "run"

        def do(name: str, what: Any, words: str = WORDS) -> Any:
            return asyncio.run(phone(server.url, tmp_path / name, name, bundle, what, words))

        assert do("old", bring) == b"", "there is nothing yet"
        do("old", keep)
        assert do("new", bring) == bytes_of(PLANTED), "another key and another name, the same passphrase"
        assert do("stranger", bring, "a louder covey somewhere") == b""
        assert len(list((run / "vaults").iterdir())) == 1, "the newer one took the place of the older"
        seen = b"".join(p.read_bytes() for p in run.rglob("*") if p.is_file())
        for secret in (WORDS.encode(), struct.pack("<f", 0.123456) * 2):
            assert secret not in seen, "the server holds nothing that it could read"
        do("new", keep)
        assert len(list((run / "vaults").iterdir())) == 1
        do("new", drop)
        assert not list((run / "vaults").iterdir())
        assert do("old", bring) == b""


def test_a_vault_of_another_and_one_that_is_too_large(tmp_path: Path) -> None:
    bundle = bigram_bundle(tmp_path / "bundle")

    async def swap(backup: Backup, device: Device, record: Client) -> None:
        foreign = vault.seal(vault.Kept(bytes_of(PLANTED), 1), WORDS, backup.task, "bob")
        await calls.put_vault(backup.transport, backup.address, foreign)
        with pytest.raises(RemoteError, match="belongs to another device or task"):
            await restore(backup, device, record)
        longer = vault.seal(vault.Kept(b"\0" * 8, 1), WORDS, backup.task, "ann")
        await calls.put_vault(backup.transport, backup.address, longer)
        with pytest.raises(RemoteError, match="the vault holds 8 bytes"):
            await restore(backup, device, record)
        with pytest.raises(Refused, match="exceeds") as refused:
            await calls.put_vault(backup.transport, backup.address, bytes(4 * LAYOUT.size + 100_000))
        assert refused.value.status == 413
        with pytest.raises(Refused, match="64 lower-case hex digits"):
            await calls.put_vault(backup.transport, "E" * 64, b"")

    with serving(bundle, tmp_path / "server", more=FEDSA) as server:
        asyncio.run(phone(server.url, tmp_path / "ann", "ann", bundle, swap))


def test_nothing_to_keep(tmp_path: Path) -> None:
    bundle = bigram_bundle(tmp_path / "bundle")

    async def keep(backup: Backup, device: Device, record: Client) -> None:
        with pytest.raises(Refused, match="nothing of this task's adapter is personal"):
            await store(backup, with_own(record, PLANTED))

    with serving(bundle, tmp_path / "server") as server:
        asyncio.run(phone(server.url, tmp_path / "ann", "ann", bundle, keep))


def test_a_person_changes_phones(lm: Bundle, tmp_path: Path) -> None:
    """`covey join` on the old phone until the task is done, then on a new one with the same passphrase."""
    words, text = tmp_path / "passphrase", tmp_path / "text.txt"
    words.write_text(WORDS + "\n")
    text.write_text("the cat sat on the mat and the dog lay on the log. " * 60)

    def covey(name: str, *more: object) -> dict[str, Any]:
        places = ["--state", tmp_path / name, "--cache", tmp_path / "cache", "--threads", 1, "--name", name]
        options = ["--data", text, "--runtime", "onnx", "--quiet", "--vault-passphrase", words, *more]
        assert main(["join", server.url, *map(str, [*places, *options])]) == 0
        found: dict[str, Any] = json.loads((tmp_path / name / "result.json").read_text())
        return found

    with serving(lm, tmp_path / "server", rounds=2, target=1, more=FEDSA) as server:
        old = covey("old", "--vault-name", "ann")
        new = covey("new", "--vault-name", "ann")
        other = covey("other")
        assert new["rounds"] == 0, "the task was done before it came"
        assert new["loss_personal"] == pytest.approx(old["loss_personal"])
        assert other["loss_personal"] > old["loss_personal"] + 0.01, "without the vault it begins anew"
        covey("new", "--vault-name", "ann", "--forget-vault")
        assert not list((tmp_path / "server" / "run" / "vaults").iterdir())
