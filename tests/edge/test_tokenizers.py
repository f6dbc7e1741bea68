"""Tokenizers of every family: the ids that the Kotlin client must give as well, by the files that it reads too."""

import json
from pathlib import Path

import pytest

from covey_edge.tokens import open_tokenizer
from covey_shared.manifest import Tokenizer
from tests.helpers_shared import vectors

pytest.importorskip("tokenizers", reason="a model's own tokenizer needs the tokenizers library")
FOLDER = Path(__file__).parent.parent / "vectors" / "tokenizers"
FAMILIES = sorted(p.stem for p in FOLDER.glob("*.json") if p.stem not in ("texts", "bad"))
SPEC = Tokenizer(kind="tokenizers", path="tokenizer.json", vocab_size=1 << 20, pad_id=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_library_gives_the_ids_of_the_golden_files(name: str, tmp_path: Path) -> None:
    family, texts = vectors(f"tokenizers/{name}.json"), vectors("tokenizers/texts.json")["texts"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(family["tokenizer"]))
    coder = open_tokenizer(SPEC, tmp_path)
    for text, document, row in zip(texts, family["documents"], family["rows"], strict=True):
        assert coder.document(text).tolist() == document
        assert coder.row(text, family["limit"]).tolist() == row
