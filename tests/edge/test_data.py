from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey_edge.data import (
    IGNORED,
    Dataset,
    TokenExamples,
    batch_of,
    build_dataset,
    evaluation_batches,
    evaluation_count,
    split_blocks,
    split_rows,
    training_batch,
    windows,
)
from covey_edge.texts import Document
from covey_edge.tokens import Coder, bytes_coder, open_tokenizer
from covey_shared.errors import BundleError, UsageError
from covey_shared.manifest import Manifest, Tokenizer
from tests.helpers_edge import BYTES, manifest_of

CODER = bytes_coder(BYTES)


@given(st.integers(0, 200), st.integers(2, 20))
def test_windows_predict_each_token_but_the_first_once(count: int, seq_len: int) -> None:
    tokens = np.arange(10, 10 + count, dtype=np.int32)
    examples = windows(tokens, seq_len, 0)
    predicted: list[int] = []
    for start in range(examples.count):
        batch = batch_of(examples, np.array([start]), 1)
        predicted += [int(label) for label in batch.labels[0, 1:] if label != IGNORED]
        assert (
            batch.inputs[0, :-1][batch.labels[0, 1:] >= 0] + 1 == batch.labels[0, 1:][batch.labels[0, 1:] >= 0]
        ).all()
    assert predicted == tokens[1:].tolist()


@given(st.integers(0, 300), st.floats(0.01, 0.5))
def test_splits_cover_and_do_not_meet(count: int, share: float) -> None:
    for split in (split_blocks, split_rows):
        train, heldout = split(count, share)
        assert sorted([*train, *heldout]) == list(range(count))
        if count >= 2:
            assert len(train) >= 1
            assert abs(len(heldout) - max(1, round(count * share))) <= 1


def test_heldout_blocks_are_contiguous() -> None:
    heldout = split_blocks(1000, 0.2)[1]
    assert (np.diff(heldout) > 1).sum() == 7
    assert heldout[-1] == 999


def texts_of(*texts: str) -> tuple[Document, ...]:
    return tuple(Document(f"d{i}", t) for i, t in enumerate(texts))


def train_part(data: Dataset) -> TokenExamples:
    assert isinstance(data.train, TokenExamples)
    return data.train


def test_documents_are_packed_with_end_marks() -> None:
    data = build_dataset(texts_of("ab", "cd" * 40), CODER, manifest_of(), 0.2)
    assert train_part(data).ids[0, :7].tolist() == [100, 101, 1, 102, 103, 102, 103]
    assert data.train.count + data.heldout.count == -(-(3 + 81 - 1) // 15)


@pytest.mark.parametrize("text", ["", "a", "ab" * 5])
def test_too_little_text(text: str) -> None:
    with pytest.raises(UsageError, match=r"too little data: it makes \d windows of 16 tokens, and at least 2"):
        build_dataset(texts_of(text), CODER, manifest_of(), 0.2)


@given(st.integers(1, 7), st.integers(1, 5), st.integers(0, 2**63))
def test_training_batches_are_endless_shuffles(count: int, batch_size: int, seed: int) -> None:
    examples = windows(np.arange(1, 2 + 3 * count, dtype=np.int32), 4, 0)
    steps = 3 * count
    seen = [int(i) for s in range(steps) for i in training_batch(examples, batch_size, seed, s).inputs[:, 0]]
    firsts = sorted(examples.ids[:, 0].tolist())
    for epoch in range(steps * batch_size // count):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == firsts
    again = training_batch(examples, batch_size, seed, steps - 1)
    np.testing.assert_array_equal(again.inputs[:, 0], seen[-batch_size:])
    assert (again.labels != IGNORED).all()


def test_seeds_differ() -> None:
    examples = windows(np.arange(1, 2 + 3 * 50, dtype=np.int32), 4, 0)
    assert training_batch(examples, 8, 1, 0).inputs.tolist() != training_batch(examples, 8, 2, 0).inputs.tolist()


@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 5))
def test_evaluation_counts_each_example_once(count: int, batch_size: int, limit: int) -> None:
    examples = TokenExamples(
        np.arange(count, dtype=np.int32)[:, None].repeat(3, 1),
        np.full(count, 3, np.int32),
        np.arange(count, dtype=np.int64),
    )
    batches = list(evaluation_batches(examples, batch_size, limit))
    assert len(batches) == evaluation_count(examples, batch_size, limit)
    counted = [int(label) for b in batches for label in b.labels if label != IGNORED]
    assert counted == sorted(set(counted))
    assert len(counted) == (min(count, limit * batch_size) if limit else count)
    assert all(b.inputs.shape == (batch_size, 3) for b in batches)
    assert {b.inputs.dtype for b in batches} | {b.labels.dtype for b in batches} == {np.dtype(np.int64)}


CLASSES = {"task": "sequence-classification", "labels": ("ham", "spam"), "seq_len": 6}


def classified(*labels: int | str) -> tuple[Document, ...]:
    return tuple(Document(f"d.jsonl, line {i + 1}", f"text {i}", label) for i, label in enumerate(labels))


def test_classification_rows() -> None:
    data = build_dataset(classified(0, "spam", 1, "0", "ham"), CODER, manifest_of(**CLASSES), 0.2)
    assert data.heldout.count == 1
    assert data.train.count == 4
    both = [label for part in data for label in part.batch(np.arange(part.count)).labels.tolist()]
    assert sorted(both) == [0, 0, 0, 1, 1]
    assert train_part(data).ids[0].tolist()[-1] == 1  # cut, with its end mark
    batch = batch_of(data.train, np.array([0, 1]), 3)
    assert batch.labels.shape == (3,)
    assert batch.labels[2] == IGNORED
    np.testing.assert_array_equal(batch.inputs[2], batch.inputs[0])


@pytest.mark.parametrize("label", [2, -1, "eggs", "-1", "²"])
def test_labels_out_of_range(label: int | str) -> None:
    with pytest.raises(
        UsageError, match=r"d.jsonl, line 2 has the label .*, this task has the classes 0 to 1 \(ham, spam\)"
    ):
        build_dataset(classified(0, label), CODER, manifest_of(**CLASSES), 0.2)


def test_one_record_is_too_few() -> None:
    with pytest.raises(UsageError, match="too little data: it makes 1 labelled records"):
        build_dataset(classified(0), CODER, manifest_of(**CLASSES), 0.2)


@settings(max_examples=50)
@given(st.text(max_size=60))
def test_bytes_round_trip(text: str) -> None:
    text = text.encode("utf-8", "replace").decode()
    ids = CODER.document(text)
    assert CODER.text(ids) == text
    assert ids[-1] == 1
    assert ((ids[:-1] >= 3) & (ids[:-1] < 259)).all()


@pytest.fixture(scope="module")
def library_coder(tmp_path_factory: pytest.TempPathFactory) -> tuple[Coder, Manifest, Path]:
    """A WordPiece tokenizer made here, with BERT's framing."""
    library = pytest.importorskip("tokenizers", reason="the library is not installed")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "cat", "sat", "##s", "x"]
    model = library.models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="[UNK]")
    tokenizer = library.Tokenizer(model)
    tokenizer.pre_tokenizer = library.pre_tokenizers.Whitespace()
    tokenizer.post_processor = library.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer.enable_padding(length=32)  # as some published files have it; the client pads by itself
    tokenizer.enable_truncation(5)
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "tokenizer").mkdir()
    tokenizer.save(str(folder / "tokenizer" / "tokenizer.json"))
    spec = Tokenizer(kind="tokenizers", path="tokenizer/tokenizer.json", vocab_size=9, pad_id=0, eos_id=3)
    return open_tokenizer(spec, folder), manifest_of(tokenizer=spec, **CLASSES), folder


def test_library_tokenizer(library_coder: tuple[Coder, Manifest, Path]) -> None:
    coder, manifest, _ = library_coder
    assert coder.document("the cats sat the cat").tolist() == [4, 5, 7, 6, 4, 5, 3]  # no framing but the end mark
    assert coder.row("the cats sat the cat", 6).tolist() == [2, 4, 5, 7, 6, 3]  # cut inside the framing
    assert coder.row("the", 6).tolist() == [2, 4, 3]
    assert coder.document("the cat " * 20).size == 41  # a row's limit does not stay
    data = build_dataset(classified(0, 1), coder, manifest, 0.5)
    assert train_part(data).ids.shape == (1, 6)
    assert train_part(data).ids[0, 3:].tolist() in ([3, 0, 0], [1, 3, 0])


def test_library_tokenizer_refusals(library_coder: tuple[Coder, Manifest, Path], tmp_path: Path) -> None:
    _, manifest, folder = library_coder
    small = open_tokenizer(
        Tokenizer(kind="tokenizers", path="tokenizer/tokenizer.json", vocab_size=6, pad_id=0), folder
    )
    with pytest.raises(BundleError, match="the tokenizer gives the id 7, the model knows 6"):
        small.document("cats")
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="is not a tokenizer file"):
        open_tokenizer(manifest.text, tmp_path)
