"""`covey join` from the first request to the result: getting ready, taking part, and saying what came of it."""

import asyncio
import hashlib
import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from covey_edge import bundles, calls
from covey_edge.agent import Agent
from covey_edge.backup import Backup, read_passphrase, restore, store
from covey_edge.data import evaluation_batches
from covey_edge.device import Device, task_name
from covey_edge.events import Events
from covey_edge.identity import open_key
from covey_edge.parts import check_share
from covey_edge.plan import Wishes
from covey_edge.signers import check_signer
from covey_edge.sources import read_source
from covey_edge.state import Client, StateFolder, new_client, open_folder, write_durably
from covey_edge.trainers import choose_runtime, open_trainer, require_runtime
from covey_edge.transport import Backoff, Traffic, Transport, connect, server_url
from covey_shared.errors import UsageError
from covey_shared.messages import Task
from covey_shared.schema import check_name


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a person can choose. `state` and `cache` empty = the usual places of the system."""

    server: str
    data: Path
    bundle_key: Sequence[str] = ()
    runtime: str = "auto"
    name: str = ""
    code: str = ""
    ca: Path | None = None
    insecure_http: bool = False
    state: Path | None = None
    cache: Path | None = None
    text_field: str = "text"
    label_field: str = "label"
    holdout: float = 0.2
    once: bool = False
    threads: int = 0
    provider: str = ""
    eval_every: int = 1
    eval_batches: int = 16
    checkpoint_s: float = 2.0
    wait_s: float = 10.0
    save_heldout: Path | None = None
    rank: int = 0
    tier: str = ""
    vault_passphrase: Path | None = None
    vault_name: str = ""
    forget_vault: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.holdout <= 0.5:
            raise UsageError(
                f"--holdout is the share kept back for evaluation, above 0 and at most 0.5: {self.holdout}"
            )
        for name in ("threads", "eval_every", "eval_batches", "checkpoint_s", "wait_s", "rank"):
            if getattr(self, name) < 0:
                raise UsageError(f"--{name.removesuffix('_s').replace('_', '-')} must not be negative")
        if self.name:
            check_name("--name", self.name)
        if self.tier:
            check_name("--tier", self.tier)
        if self.vault_name:
            check_name("--vault-name", self.vault_name)
        if (self.vault_name or self.forget_vault) and self.vault_passphrase is None:
            raise UsageError("--vault-name and --forget-vault need --vault-passphrase, which the vault is found by")


async def join(options: Options, events: Events) -> dict[str, Any]:
    """Take part in the server's task; the result, which also lies in the state folder as `result.json`."""
    url = server_url(options.server, insecure_http=options.insecure_http)
    code = options.code or options.server.partition("#")[2]
    if not options.data.exists():
        raise UsageError(
            f"there is nothing at {options.data}: give a text file, a folder of text, a .jsonl file or images"
        )
    if options.runtime != "auto":
        require_runtime(options.runtime)
    with open_folder(options.state or default_state(url, options.data)) as folder:
        record, sentence = folder.load_client()
        events.notice(sentence)
        if record is None:
            record = new_client(options.name, "")
        async with connect(url, open_key(folder.path), Traffic(), options.ca) as transport:
            transport.notice = events.notice
            transport.backoff = Backoff(patience_s=options.wait_s)
            name = await calls.enroll(transport, options.name or record.client, code)
            record = named(record, name, options.name, events)
            transport.backoff = Backoff()  # from here on the device is patient: what it has is saved
            return await take_part(options, transport, folder, record, events)


def named(record: Client, name: str, wish: str, events: Events) -> Client:
    """The record under the name that the server has for this device's key."""
    if wish not in ("", name):
        events.notice(f"this device is enrolled as {name}; --name {wish} is not used")
    return record if name == record.client else new_client(name, "")


async def take_part(
    options: Options, transport: Transport, folder: StateFolder, record: Client, events: Events
) -> dict[str, Any]:
    """Get ready, run the agent, write the result."""
    started = time.monotonic()
    task = await calls.get_task(transport, options.tier)
    record = record_for(task, record, events)
    for kind in {*record.sent, *record.received}:
        transport.traffic.add(kind, record.sent.get(kind, 0), record.received.get(kind, 0))
    device = await get_ready(options, transport, task, folder, events)
    events.emit(
        "joined", task=task.name, client=record.client, model=device.bundle.manifest.model, runtime=device.runtime,
        examples=device.dataset.train.count, heldout=device.dataset.heldout.count, rounds=task.rounds,
    )  # fmt: skip
    if options.save_heldout:
        save_heldout(device, options.save_heldout)
    vault = vault_of(options, transport, record)
    if vault and options.forget_vault:
        await calls.delete_vault(transport, vault.address)
        vault = None
    if vault:
        record = replace(record, own=await restore(vault, device, record))
    record = await Agent(device, transport, folder, record, events).run()
    if vault:
        await store(vault, record)
    result = summarise(device, record, time.monotonic() - started)
    write_durably(folder.path / "result.json", (json.dumps(result, indent=1) + "\n").encode())
    events.emit("done", **result)
    return result


def vault_of(options: Options, transport: Transport, record: Client) -> Backup | None:
    """Where this device's own tensors are backed up, if a passphrase is given."""
    if options.vault_passphrase is None:
        return None
    words = read_passphrase(options.vault_passphrase)
    return Backup(transport, record.task, options.vault_name or record.client, words)


def record_for(task: Task, record: Client, events: Events) -> Client:
    """What is remembered, if it is of this task; else a fresh start under the same name."""
    if record.task == task_name(task):
        return record
    if record.task:
        events.notice(f"the server's task is another one than before (now {task.name}): starting afresh")
    return new_client(record.client, task_name(task))


async def get_ready(options: Options, transport: Transport, task: Task, folder: StateFolder, events: Events) -> Device:
    """Bundle, data and trainer. Data is read before anything large is downloaded: it is the likelier to be wrong."""
    manifest, data = await bundles.fetch_manifest(transport, task)
    await check_signer(transport, data, options.bundle_key, folder.path, events)
    runtime = choose_runtime(manifest, options.runtime)
    source = await asyncio.to_thread(
        read_source, options.data, manifest, options.holdout,
        text_field=options.text_field, label_field=options.label_field,
    )  # fmt: skip
    events.notice(source.skipped)
    before = transport.traffic.received.get(calls.BUNDLE, 0)
    check_share(manifest, task.sharing, options.rank)
    bundle = await bundles.fetch_bundle(
        transport, data, runtime, options.cache or default_cache(),
        lambda done, total: events.emit("piece", what="downloading the bundle", done=done, total=total),
    )  # fmt: skip
    events.emit("bundle", bytes=transport.traffic.received.get(calls.BUNDLE, 0) - before, digest=bundle.digest)
    dataset = await asyncio.to_thread(source.dataset, bundle.folder)
    trainer = await asyncio.to_thread(
        open_trainer, bundle, runtime, options.threads, options.provider, notice=events.notice
    )
    wishes = Wishes(options.eval_every, options.once)
    return Device(
        task, bundle, dataset, trainer, runtime, wishes, options.eval_batches, options.checkpoint_s, options.rank
    )


def save_heldout(device: Device, path: Path) -> None:
    """What this device evaluates on, `input_ids` or `pixel_values` and `labels`, in an .npz on this device."""
    size, examples = device.bundle.manifest.batch_size, device.dataset.heldout
    batches = list(evaluation_batches(examples, size, device.eval_batches))
    *_, name = device.bundle.manifest.inputs("forward")
    inputs, labels = (np.concatenate(arrays) for arrays in zip(*batches, strict=True))
    arrays: dict[str, Any] = {name: inputs, "labels": labels}
    np.savez(path, **arrays)


def summarise(device: Device, record: Client, seconds: float) -> dict[str, Any]:
    """What came of it: the first and the last evaluation, and what it cost."""
    first, last = record.score_of(0), record.history[-1] if record.history else None
    size = device.bundle.manifest.layout.size
    manifest = device.bundle.manifest
    plain_bytes = manifest.task == "causal-lm" and manifest.text.kind == "bytes"
    result: dict[str, Any] = {
        "client": record.client, "task": device.task.name, "runtime": device.runtime, "rounds": record.rounds,
        "version": last.version if last else record.held, "seconds": round(seconds, 3),
        "train_seconds": round(record.train_seconds, 3), "tokens": record.trained_tokens,
        "examples": device.dataset.train.count, "heldout": device.dataset.heldout.count,
        "upload_bytes": record.sent.get(calls.UPDATE, 0), "download_bytes": record.received.get(calls.ADAPTER, 0),
        "bundle_bytes": record.received.get(calls.BUNDLE, 0), "dense_adapter_bytes": 4 * size,
        "sent": record.sent, "received": record.received,
    }  # fmt: skip
    own = record.own_history[-1] if record.own_history else None
    for when, score in (("before", first), ("after", last), ("personal", own)):
        result[f"loss_{when}"] = score.loss if score else None
        result[f"accuracy_{when}"] = score.correct / score.tokens if score else None
        result[f"bits_per_byte_{when}"] = score.loss / math.log(2) if score and plain_bytes else None
    return result


def summary_text(result: dict[str, Any], folder: Path) -> str:
    """The result for a person, in a few lines."""
    lines = [f"{result['task']}: {result['rounds']} updates of {result['client']} were counted ({result['runtime']})"]
    if result["loss_after"] is not None:
        before, after = result["loss_before"], result["loss_after"]
        lines.append(f"  held-out loss    {before:.4f} -> {after:.4f} nats ({100 * (after / before - 1):+.1f} %)")
    if result["bits_per_byte_after"] is not None:
        lines.append(f"  bits per byte    {result['bits_per_byte_before']:.4f} -> {result['bits_per_byte_after']:.4f}")
    elif result["accuracy_after"] is not None:
        lines.append(f"  accuracy         {result['accuracy_before']:.1%} -> {result['accuracy_after']:.1%}")
    if result["loss_personal"] is not None:
        lines.append(f"  with own tensors {result['loss_personal']:.4f} nats")
    lines += [
        f"  updates sent     {result['upload_bytes']:,} bytes, adapters received {result['download_bytes']:,} bytes"
        f" (one dense float32 adapter: {result['dense_adapter_bytes']:,})",
        f"  result           {folder / 'result.json'}",
    ]
    return "\n".join(lines)


def default_state(url: str, data: Path) -> Path:
    """A folder for this server and this data, so that the same command goes on where it was."""
    parts = urlsplit(url)
    where = f"{parts.hostname}-{parts.port or parts.scheme}".replace(":", "-")
    mark = hashlib.sha256(f"{url} {data.resolve()}".encode()).hexdigest()[:8]
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "covey" / f"{where}-{mark}"


def default_cache() -> Path:
    """Where bundles are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "covey"
