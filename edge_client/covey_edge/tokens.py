"""Text to token ids, as the bundle's manifest says: raw bytes (no library), or a Hugging Face `tokenizer.json`."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from covey_shared.errors import BundleError
from covey_shared.manifest import Tokenizer

Ids = NDArray[np.int32]


class Coder(NamedTuple):
    """`document(text)`: all ids of a text, with the start and end marks that the model knows, for packing.

    `row(text, limit)`: at most `limit` ids of one example, as the model's own tokenizer frames it ([CLS] ... [SEP]).
    `text(ids)`: back to text, for showing people what the model writes.
    """

    document: Callable[[str], Ids]
    row: Callable[[str, int], Ids]
    text: Callable[[Ids], str]


def open_tokenizer(spec: Tokenizer, folder: Path) -> Coder:
    """The coder that a manifest describes; its file, if it has one, lies in the bundle's `folder`."""
    return bytes_coder(spec) if spec.kind == "bytes" else tokenizers_coder(spec, folder)


def bytes_coder(spec: Tokenizer) -> Coder:
    """Token = byte of UTF-8 + `offset` (ByT5, Xue et al. 2022, https://arxiv.org/abs/2105.13626), end mark after each.

    >>> coder = bytes_coder(Tokenizer(kind="bytes", offset=3, vocab_size=259, pad_id=0, eos_id=1))
    >>> coder.document("Hi").tolist(), coder.row("Hi", 2).tolist(), coder.text(coder.document("Hi"))
    ([75, 108, 1], [75, 1], 'Hi')
    """

    def document(text: str) -> Ids:
        raw = np.frombuffer(text.encode("utf-8", "surrogatepass"), np.uint8).astype(np.int32) + np.int32(spec.offset)
        return _framed(raw, spec)

    def row(text: str, limit: int) -> Ids:
        ids = document(text)
        return ids if len(ids) <= limit else np.concatenate([ids[: limit - 1], ids[-1:]])

    def text(ids: Ids) -> str:
        kept = ids[(ids >= spec.offset) & (ids < spec.offset + 256)] - spec.offset
        return kept.astype(np.uint8).tobytes().decode("utf-8", "replace")

    return Coder(document, row, text)


def tokenizers_coder(spec: Tokenizer, folder: Path) -> Coder:
    """The model's own tokenizer, without transformers. Raises BundleError for a file that is none."""
    from tokenizers import Tokenizer as Library

    path = folder / spec.path
    try:
        library = Library.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare Exception
        raise BundleError(f"{path} is not a tokenizer file: {str(error)[:200]}") from None
    library.no_padding()
    library.no_truncation()

    def document(text: str) -> Ids:
        return _framed(_checked(library.encode(text, add_special_tokens=False).ids, spec), spec)

    def row(text: str, limit: int) -> Ids:
        library.enable_truncation(limit)  # the library knows which marks to keep when it cuts
        ids = _checked(library.encode(text).ids, spec)
        library.no_truncation()
        return ids

    return Coder(document, row, lambda ids: str(library.decode(ids.tolist())))


def _framed(ids: Ids, spec: Tokenizer) -> Ids:
    first, last = (np.array([i] if i >= 0 else [], np.int32) for i in (spec.bos_id, spec.eos_id))
    return np.concatenate([first, ids, last])


def _checked(ids: list[int], spec: Tokenizer) -> Ids:
    out = np.asarray(ids, np.int32)
    if out.size and int(out.max()) >= spec.vocab_size:
        raise BundleError(
            f"the tokenizer gives the id {int(out.max())}, the model knows {spec.vocab_size}: export the bundle again"
        )
    return out
