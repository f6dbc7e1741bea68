import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_edge import texts
from covey_edge.texts import decode, read_texts
from covey_shared.errors import UsageError


def test_folder_in_order_with_reasons(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("hidden")
    (tmp_path / "b.py").write_text("print(1)")
    (tmp_path / "a.md").write_text("# a")
    (tmp_path / "sub" / "c.json").write_text("{}")
    (tmp_path / "sub" / "utf16.txt").write_text("wörld", encoding="utf-16")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\0\0")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "link").symlink_to(tmp_path / "missing")
    found = read_texts(tmp_path, records=False)
    assert [(d.name, d.text) for d in found.documents] == [
        ("a.md", "# a"), ("b.py", "print(1)"), ("sub/c.json", "{}"), ("sub/utf16.txt", "wörld"),
    ]  # fmt: skip
    assert dict(found.skipped) == {
        "image.png": "binary", "latin.txt": "binary", "empty.txt": "empty", "link": "not a regular file",
    }  # fmt: skip
    assert found.skipped_sentence() == (
        "skipped 4 files (2 binary, 1 empty, 1 not a regular file): empty.txt, image.png, latin.txt, ..."
    )


@pytest.mark.parametrize("name", ["d.jsonl", "d.jsonl.gz"])
def test_records(tmp_path: Path, name: str) -> None:
    lines = [{"body": "one", "y": 3}, {"body": "two", "y": "sports"}, {"body": " ", "y": 0}]
    data = "\n\n".join(map(json.dumps, lines)).encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    found = read_texts(path, records=True, text_field="body", label_field="y").documents
    assert [(d.text, d.label) for d in found] == [("one", 3), ("two", "sports")]
    assert [d.text for d in read_texts(path, records=False, text_field="body").documents] == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b'{"text": "a"}', "line 1 has no label in 'label'"),
        (b'{"text": "a", "label": true}', "line 1 has no label in 'label'"),
        (b'{"label": 1, "text": "a"}\n{"label": 1, "body": "a"}', "line 2 has no text in 'text' (fields: body, label)"),
        (b"[1]", "line 1 is a list"),
        (b"{", "line 1 is not JSON"),
        (b"[" * 100_000, "line 1 is not JSON"),
        (b"\xff\xfe", "line 1 is not JSON"),
        (b"", "holds no labelled records"),
    ],
)  # fmt: skip
def test_bad_records_are_one_sentence(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(content)
    with pytest.raises(UsageError) as error:
        read_texts(path, records=True)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_no_text(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nothing at"):
        read_texts(tmp_path / "nowhere", records=False)
    with pytest.raises(UsageError, match="holds no text: it is empty"):
        read_texts(tmp_path, records=False)
    (tmp_path / "x.bin").write_bytes(b"\0")
    with pytest.raises(UsageError, match=r"skipped 1 file \(1 binary\): x.bin"):
        read_texts(tmp_path, records=False)
    with pytest.raises(UsageError, match=r"labelled records .*not .jsonl"):
        read_texts(tmp_path, records=True)


def test_odd_records_do_not_spoil_a_folder_of_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "log.jsonl").write_text('{"level": 3}')
    found = read_texts(tmp_path, records=False)
    assert len(found.documents) == 1
    assert found.skipped == (("log.jsonl", "records without text"),)


def test_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "MAX_TEXT_BYTES", 1 << 20)
    (tmp_path / "a.txt").write_text("a" * 700_000)
    (tmp_path / "b.txt").write_text("b" * 700_000)
    (tmp_path / "c.txt").write_text("c")
    found = read_texts(tmp_path, records=False)
    assert [d.name for d in found.documents] == ["a.txt", "c.txt"]
    assert found.skipped == (("b.txt", "beyond 1 MB"),)
    bomb = tmp_path / "bomb.jsonl.gz"
    bomb.write_bytes(gzip.compress(b'{"text": "' + b"a" * (1 << 22) + b'"}'))
    with pytest.raises(UsageError, match="more than 1 MB of text"):
        read_texts(bomb, records=False)
    bomb.write_bytes(bomb.read_bytes()[:100])
    with pytest.raises(UsageError, match="not a whole gzip file"):
        read_texts(bomb, records=False)


@given(st.binary(max_size=300))
def test_decode_never_fails(data: bytes) -> None:
    text = decode(data)
    assert text is None or isinstance(text, str)


@given(st.text(max_size=100).filter(lambda s: "\0" not in s and not s.startswith("\ufeff")))
def test_decode_utf8(text: str) -> None:
    assert decode(text.encode()) == text
