"""Getting a bundle: the manifest first, then by content digest only the files that this runtime needs.

A bundle lives in the cache under its own digest. A file is written as `NAME.part`, goes on from where it was after a
cut, is checked against its digest and only then gets its name. Devices on one machine share a cache: one downloads,
the others wait for it.
"""

import asyncio
import hashlib
import os
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from functools import partial
from pathlib import Path
from typing import BinaryIO

from covey_edge.calls import BUNDLE, get_manifest
from covey_edge.locks import locked_when_free
from covey_edge.transport import Refused, Transport
from covey_shared import __version__
from covey_shared.bundle import MANIFEST, Bundle, file_digest
from covey_shared.errors import BundleError, UsageError
from covey_shared.manifest import File, Manifest
from covey_shared.messages import Task

Report = Callable[[int, int], None]  # bytes there, bytes in all


async def fetch_manifest(transport: Transport, task: Task) -> tuple[Manifest, bytes]:
    """The manifest of the task's bundle and its bytes; refuses another bundle, layout or a newer client's."""
    data = await get_manifest(transport)
    if hashlib.sha256(data).hexdigest() != task.bundle:
        raise BundleError(
            f"the server's manifest is not the one of bundle {task.bundle[:12]} that its task names; "
            "something between changed it, or the server's bundle was replaced"
        )
    manifest = Manifest.from_bytes(data)
    if manifest.layout.digest != task.layout:
        raise BundleError(f"the bundle's layout is {manifest.layout.digest[:12]}, the task's is {task.layout[:12]}")
    if version_key(manifest.minimum_client) > version_key(__version__):
        raise BundleError(
            f"the bundle needs covey {manifest.minimum_client} or newer, this is {__version__}: pip install -U covey"
        )
    return manifest, data


def version_key(text: str) -> tuple[int, ...]:
    """A version as numbers to compare; what is not a number counts as 0.

    >>> version_key("0.10.0") > version_key("0.9.1")
    True
    """
    return tuple(int(p) if p.isdecimal() else 0 for p in text.split("."))


async def fetch_bundle(transport: Transport, data: bytes, target: str, cache: Path, report: Report) -> Bundle:
    """The bundle in the cache, complete for one runtime and with every file's digest checked."""
    manifest = Manifest.from_bytes(data)
    files = manifest.files_for(target)
    require_listed(manifest, target, files)
    digest = hashlib.sha256(data).hexdigest()
    folder = cache / digest
    folder.mkdir(parents=True, exist_ok=True)
    async with locked_when_free(cache / f"{digest}.lock"):
        (folder / MANIFEST).write_bytes(data)
        await fetch_files(transport, files, folder, report)
    return Bundle(folder, manifest, digest)


def require_listed(manifest: Manifest, target: str, files: dict[str, File]) -> None:
    """Refuses a manifest that points at a path outside its own files: a runtime would open whatever lies there."""
    tokenizer = manifest.tokenizer.path if manifest.tokenizer else ""
    for path in (*manifest.graphs[target].values(), tokenizer, manifest.start):
        if path and path not in files:
            raise BundleError(f"the bundle's manifest points at {path!r}, which is not among its files for {target}")


async def fetch_files(transport: Transport, files: dict[str, File], folder: Path, report: Report) -> None:
    """Download what is missing or damaged."""
    absent = {name: f for name, f in files.items() if not await asyncio.to_thread(intact, folder / name, f)}
    total = sum(f.bytes for f in absent.values())
    free = shutil.disk_usage(folder).free
    if total > free:
        raise UsageError(
            f"the bundle's files need {total / 1e6:.1f} MB, {folder} has {free / 1e6:.1f} MB left: "
            "free some, or choose another place with --cache"
        )
    done = 0
    for name, file in absent.items():
        await fetch_file(transport, file, folder / name, partial(_report_sum, report, done, total))
        done += file.bytes


def _report_sum(report: Report, done: int, total: int, got: int) -> None:
    report(done + got, total)


def intact(path: Path, file: File) -> bool:
    """Whether a file is there with the right bytes."""
    return path.is_file() and path.stat().st_size == file.bytes and file_digest(path) == file.sha256


async def fetch_file(transport: Transport, file: File, path: Path, report: Callable[[int], None]) -> None:
    """One file, from where an earlier try was cut; a damaged earlier part is thrown away and fetched again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    resumed = part.is_file()
    await _download(transport, file, part, report)
    if resumed and not await asyncio.to_thread(intact, part, file):
        part.unlink()
        await _download(transport, file, part, report)
    if not await asyncio.to_thread(intact, part, file):
        part.unlink()
        raise BundleError(
            f"{path.name} came with another digest than the bundle's manifest states; it was thrown away: try again, "
            "and if it stays so, the server's bundle is damaged"
        )
    with part.open("rb") as whole:
        os.fsync(whole.fileno())
    part.replace(path)


async def _download(transport: Transport, file: File, part: Path, report: Callable[[int], None]) -> None:
    async def attempt() -> None:
        first = part.stat().st_size if part.is_file() else 0
        if first and first >= file.bytes:
            return
        with part.open("r+b" if first else "wb") as out:
            if file.bytes:
                async with aclosing(transport.stream(f"/v1/blobs/{file.sha256}", first, BUNDLE)) as pieces:
                    await write_pieces(pieces, out, file, report)

    try:
        await transport.retried(attempt)
    except Refused as error:
        raise BundleError(f"the server does not give the bundle's file {part.stem}: {error}") from None
    except BundleError:
        part.unlink()
        raise


async def write_pieces(
    pieces: AsyncIterator[tuple[int, bytes]], out: BinaryIO, file: File, report: Callable[[int], None]
) -> None:
    """Each piece at its place; refuses to write beyond the size that the manifest states."""
    async for first, piece in pieces:
        end = first + len(piece)
        if end > file.bytes:
            raise BundleError(
                f"the server sends more than the {file.bytes:,} bytes that the manifest states for a file"
            )
        out.seek(first)
        out.truncate()  # a server that ignores the range starts over
        out.write(piece)
        report(end)
    if out.tell() < file.bytes:
        raise ConnectionError("the file was cut")
