"""Finding and reading a person's text: one file, a folder, or records in `.jsonl` (or `.jsonl.gz`).

Only reading: what a document means for training is decided in `data`. Every file that is left out is named with its
reason, so that nobody wonders why so little was used. Nothing here leaves the device.
"""

import gzip
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from covey_shared.errors import UsageError

MAX_TEXT_BYTES = 32 * 2**20  # of all text taken: held as 4-byte tokens, some copies of them, on a small board
SNIFF_BYTES = 8192  # a NUL byte among the first ones means binary, as git decides it
RECORDS = (".jsonl", ".jsonl.gz")


class Document(NamedTuple):
    """One piece of text, where it came from, its class as the record states it, a number or a name, and whose it is."""

    name: str
    text: str
    label: int | str = -1
    owner: str = ""


class Texts(NamedTuple):
    """What was read, and what was left out with the reason: (name, reason)."""

    documents: tuple[Document, ...]
    skipped: tuple[tuple[str, str], ...]

    def skipped_sentence(self) -> str:
        """One sentence about what was left out, or nothing."""
        return skipped_sentence(self.skipped)


def skipped_sentence(skipped: Sequence[tuple[str, str]]) -> str:
    """One sentence about the files that were left out, (name, reason) each, or nothing."""
    if not skipped:
        return ""
    counts: dict[str, int] = {}
    for _, reason in skipped:
        counts[reason] = counts.get(reason, 0) + 1
    why = ", ".join(f"{n} {reason}" for reason, n in sorted(counts.items()))
    names = ", ".join(name for name, _ in skipped[:3]) + (", ..." if len(skipped) > 3 else "")
    return f"skipped {len(skipped)} {'file' if len(skipped) == 1 else 'files'} ({why}): {names}"


class Fields(NamedTuple):
    """The fields of a record that count; an empty one is not looked for."""

    text: str
    label: str = ""
    owner: str = ""


def read_texts(
    path: Path, *, records: bool, text_field: str = "text", label_field: str = "label", owner_field: str = ""
) -> Texts:  # fmt: skip
    """All text at `path`; with `records`, only `.jsonl` files count, and each record must have a label.

    With `owner_field` each record also says whose it is. Raises UsageError when there is nothing to read or a record is
    not what it should be.
    """
    if not path.exists():
        raise UsageError(f"there is nothing at {path}: give a text file, a folder of text or a .jsonl file with --data")
    documents: list[Document] = []
    skipped: list[tuple[str, str]] = []
    left = MAX_TEXT_BYTES
    for file in _files(path):
        name = str(file.relative_to(path)) if path.is_dir() else file.name
        if records and not file.name.endswith(RECORDS):
            skipped.append((name, "not .jsonl"))
            continue
        try:
            found, reason = _read(file, name, Fields(text_field, label_field if records else "", owner_field), left)
        except UsageError:
            if records or not path.is_dir():
                raise
            found, reason = [], "records without text"  # one odd file must not keep a folder of text from training
        documents += found
        left -= sum(len(d.text) for d in found)
        if reason:
            skipped.append((name, reason))
    texts = Texts(tuple(documents), tuple(skipped))
    if not documents:
        kind = "labelled records (.jsonl)" if records else "text"
        raise UsageError(f"{path} holds no {kind}: {texts.skipped_sentence() or 'it is empty'}")
    return texts


def _files(path: Path) -> Iterator[Path]:
    """The files in the order of their names; hidden ones and caches left out, links to folders not followed."""
    if not path.is_dir():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(f for f in folders if not f.startswith((".", "__pycache__")))
        yield from (Path(folder) / name for name in sorted(names) if not name.startswith("."))


def _read(file: Path, name: str, fields: Fields, left: int) -> tuple[list[Document], str]:
    """The documents of one file, and why it was left out if it was."""
    if not file.is_file():
        return [], "not a regular file"
    if file.stat().st_size > left:
        return [], f"beyond {MAX_TEXT_BYTES >> 20} MB"
    if file.name.endswith(RECORDS):
        return _records(file, name, fields, left), ""
    text = decode(file.read_bytes())
    if text is None:
        return [], "binary"
    return ([Document(name, text)], "") if text.strip() else ([], "empty")


def decode(data: bytes) -> str | None:
    """Text in UTF-8, or in UTF-16 with a byte-order mark; None for anything else.

    >>> decode(b"caf\\xc3\\xa9"), decode(b"\\x7fELF\\x00\\x01")
    ('café', None)
    """
    try:
        if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
            return data.decode("utf-16")
        return None if b"\0" in data[:SNIFF_BYTES] else data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None


def _records(file: Path, name: str, fields: Fields, left: int) -> list[Document]:
    out = []
    for number, line in enumerate(_lines(file, left), 1):
        if not line.strip():
            continue
        where = f"{name}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{where} is not JSON: {error}") from None
        out.append(_document(record, where, fields))
    return [d for d in out if d.text.strip()]


def _lines(file: Path, left: int) -> Iterator[bytes]:
    """Lines of a plain or gzipped file, bounded after decompression."""
    try:
        with gzip.open(file) if file.name.endswith(".gz") else file.open("rb") as stream:
            for line in stream:
                left -= len(line)
                if left < 0:
                    raise UsageError(f"{file} holds more than {MAX_TEXT_BYTES >> 20} MB of text: take a part of it")
                yield line
    except (gzip.BadGzipFile, EOFError) as error:
        raise UsageError(f"{file} is not a whole gzip file: {error}") from None


def _document(record: Any, where: str, fields: Fields) -> Document:
    if not isinstance(record, dict):
        raise UsageError(f"{where} is a {type(record).__name__}, expected an object with the field {fields.text!r}")
    text = record.get(fields.text)
    if not isinstance(text, str):
        have = ", ".join(sorted(map(str, record))) or "none"
        raise UsageError(f"{where} has no text in {fields.text!r} (fields: {have}): name the field, --text-field")
    owner = record.get(fields.owner) if fields.owner else ""
    if not isinstance(owner, int | str):
        raise UsageError(f"{where} does not say in {fields.owner!r} whose it is: see --client-field")
    if not fields.label:
        return Document(where, text, owner=str(owner))
    label = record.get(fields.label)
    if not isinstance(label, int | str) or isinstance(label, bool):
        raise UsageError(f"{where} has no label in {fields.label!r}, expected a number or a name: see --label-field")
    return Document(where, text, label, str(owner))
