"""Text through a window of fixed shape: guesses change the number of passes and nothing else."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_edge.generate import Sampling, Stream, Writer, draw, greedy, guesses, prompt_ids, sample
from covey_edge.tokens import bytes_coder, open_tokenizer
from covey_edge.trainers import open_trainer
from covey_shared.bundle import Bundle
from covey_shared.errors import UsageError
from tests.helpers_edge import BYTES, LAYOUT, BigramTrainer, manifest_of


def bigram(seed: int = 0, **changes: object) -> Writer:
    """A model whose next byte depends on the last one alone, so that it soon repeats itself."""
    vector = np.random.default_rng(seed).standard_normal(LAYOUT.size).astype(np.float32)
    return Writer(BigramTrainer(), vector, manifest_of(**changes))


def one_at_a_time(writer: Writer, prompt: list[int], count: int) -> list[int]:
    """What `greedy` must write: a pass for each token, no guesses."""
    text = list(prompt)
    for _ in range(count):
        token = int(writer.logits([text])[0][-1].argmax())
        if token == writer.manifest.text.eos_id:
            break
        text.append(token)
    return text[len(prompt) :]


@given(seed=st.integers(0, 50), prompt=st.lists(st.integers(3, 258), min_size=1, max_size=40), count=st.integers(1, 40))
def test_guesses_change_nothing(seed: int, prompt: list[int], count: int) -> None:
    writer = bigram(seed, seq_len=16)
    taken = [token for part in greedy(writer, prompt, count) for token in part]
    assert taken == one_at_a_time(writer, prompt, count)


def test_guesses_save_passes_on_text_that_repeats_itself() -> None:
    writer = bigram(3, seq_len=200)
    passes = list(greedy(writer, [70], 120))
    assert sum(map(len, passes)) == 120
    assert len(passes) < 60


def test_a_real_model_writes_the_same_with_guesses(lm: Bundle) -> None:
    vector = np.random.default_rng(0).standard_normal(lm.manifest.layout.size).astype(np.float32) * np.float32(0.1)
    writer = Writer(open_trainer(lm, "onnx", threads=1), vector, lm.manifest)
    prompt = [*b"abcabcab"]
    taken = [token for part in greedy(writer, prompt, 40) for token in part]
    assert taken == one_at_a_time(writer, prompt, 40)


@given(text=st.lists(st.integers(0, 3), max_size=30), count=st.integers(1, 5), length=st.integers(-3, 6))
def test_guesses_are_what_followed(text: list[int], count: int, length: int) -> None:
    found = guesses(text, count, length)
    assert len(found) <= count
    for guess in found:
        assert 1 <= len(guess) <= length
        assert any(text[i : i + 1 + len(guess)] == [text[-1], *guess] for i in range(len(text) - 1))


def test_drawing_keeps_to_its_limits() -> None:
    logits = np.log(np.asarray([0.5, 0.3, 0.15, 0.05], np.float32))
    rng = np.random.default_rng(0)

    def seen(**how: float) -> set[int]:
        return {draw(logits, Sampling(**{"temperature": 1.0, **how}), rng) for _ in range(300)}  # type: ignore[arg-type]

    assert seen() == {0, 1, 2, 3}
    assert seen(top_k=2) == {0, 1}
    assert seen(top_p=0.7) == {0, 1}
    assert seen(top_p=1e-9) == {0}
    assert seen(temperature=1e-3) == {0}
    assert draw(logits, Sampling(), rng) == 0
    drawn = [draw(logits, Sampling(temperature=1.0), rng) for _ in range(4000)]
    assert np.allclose(np.bincount(drawn) / 4000, [0.5, 0.3, 0.15, 0.05], atol=0.03)


@pytest.mark.parametrize("how", [{"temperature": -1.0}, {"top_k": -1}, {"top_p": 0.0}, {"temperature": float("nan")}])
def test_impossible_choices(how: dict[str, float]) -> None:
    with pytest.raises(UsageError):
        Sampling(**how)  # type: ignore[arg-type]


def test_samples_depend_on_the_seed_alone() -> None:
    writer, how = bigram(), Sampling(temperature=1.0, seed=5)
    first = sample(writer, [70], 12, how, 3)
    assert first == sample(writer, [70], 12, how, 3)
    assert first != sample(writer, [70], 12, Sampling(temperature=1.0, seed=6), 3)
    assert len({tuple(s) for s in first}) == 3


def test_a_prompt_is_framed_as_in_training(lm: Bundle) -> None:
    coder = open_tokenizer(lm.manifest.text, lm.folder)
    assert prompt_ids("Hi", coder, lm.manifest) == [75, 108]
    assert prompt_ids("", coder, lm.manifest) == [lm.manifest.text.eos_id]
    bare = manifest_of(tokenizer=BYTES.__class__(kind="bytes", offset=3, vocab_size=259, pad_id=0))
    with pytest.raises(UsageError, match="give a --prompt"):
        prompt_ids("", bytes_coder(bare.text), bare)


@given(text=st.text(max_size=20), cuts=st.lists(st.integers(0, 60), max_size=5))
def test_a_stream_says_everything_once(text: str, cuts: list[int]) -> None:
    """Characters come whole, however their bytes are cut."""
    coder = bytes_coder(BYTES)
    ids = (np.frombuffer(text.encode(), np.uint8).astype(int) + 3).tolist()
    stream, said, last = Stream(coder, []), "", 0
    for cut in [*sorted(cuts), len(ids)]:
        said += stream.add(ids[last:cut])
        last = max(last, min(cut, len(ids)))
    assert said + stream.rest() == text
