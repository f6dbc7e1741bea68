"""The tokenizer of a base model, as what a device needs of it."""

from pathlib import Path
from typing import Any

from covey_export.base import Base
from covey_shared.errors import UsageError
from covey_shared.manifest import Tokenizer

BYTE_TOKENIZERS = ("ByT5Tokenizer",)
PATH = "tokenizer/tokenizer.json"


def write_tokenizer(base: Base, folder: Path) -> Tokenizer:
    """Describe the tokenizer, and write `tokenizer/tokenizer.json` where a device needs a file."""
    tokenizer = base.tokenizer
    ids: dict[str, Any] = {
        "vocab_size": base.vocabulary,
        "pad_id": _first(tokenizer.pad_token_id, base.model.config.get_text_config().pad_token_id, 0),
        "eos_id": _first(tokenizer.eos_token_id, -1),
        "bos_id": _first(tokenizer.bos_token_id, -1),
        "unk_id": _first(tokenizer.unk_token_id, -1),
    }
    if type(tokenizer).__name__ in BYTE_TOKENIZERS:
        return Tokenizer(kind="bytes", offset=int(tokenizer.offset), **ids)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UsageError(
            f"{type(tokenizer).__name__} has no tokenizer.json, which devices need; "
            "save the model's fast tokenizer beside it (AutoTokenizer.from_pretrained(...).save_pretrained(FOLDER))"
        )
    if backend.get_vocab_size() > base.vocabulary:
        raise UsageError(
            f"the tokenizer has {backend.get_vocab_size():,} tokens, the model only {base.vocabulary:,}: "
            "they do not belong together"
        )
    backend.no_padding()  # the device pads and cuts to the graph's own shape
    backend.no_truncation()
    (folder / PATH).parent.mkdir(parents=True, exist_ok=True)
    (folder / PATH).write_text(backend.to_str(), encoding="utf-8")
    return Tokenizer(kind="tokenizers", path=PATH, **ids)


def _first(*candidates: Any) -> int:
    return next(int(c) for c in candidates if c is not None)
