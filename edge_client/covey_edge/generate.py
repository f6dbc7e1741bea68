"""Text from a causal LM and an adapter, through the bundle's own `forward` graph, whose window [B, T] is fixed.

There is no cache between two passes, as the graph is the one that training is evaluated with: a pass computes all B x T
positions anew, whatever is in them. So a pass is put to use: with greedy choice the free positions hold guesses, each
row another one, and all that the model itself would have chosen is taken at once. A guess is what followed the last
time that the text ended like this (prompt lookup, https://github.com/apoorvumang/prompt-lookup-decoding), checked as in
speculative decoding (Leviathan et al. 2023, https://arxiv.org/abs/2211.17192); the result is that of one token at a
time. A text longer than T tokens slides through the window, which then holds its last T tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from covey_edge.tokens import Coder
from covey_edge.trainers import Trainer
from covey_shared.errors import UsageError
from covey_shared.layout import Vector
from covey_shared.manifest import Manifest

GUESS = 8  # tokens of a guess at most
NGRAM = 3  # tokens that two places have in common, tried from this down to 1

Logits = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is chosen: `temperature` 0 is the likeliest; `top_k` 0 and `top_p` 1 leave all tokens in."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf") or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise UsageError("--temperature and --top-k must not be negative, and --top-p is above 0 and at most 1")


@dataclass(frozen=True)
class Writer:
    """A model that writes: graphs, adapter and window."""

    trainer: Trainer
    adapter: Vector
    manifest: Manifest

    def logits(self, rows: Sequence[Sequence[int]]) -> list[Logits]:
        """For each row of tokens, cut to its last T: logits float32 [its length, vocabulary]."""
        batch, length = self.manifest.batch_size, self.manifest.seq_len
        ids = np.full((batch, length), self.manifest.text.pad_id, np.int64)
        kept = [row[-length:] for row in rows]
        for i in range(batch):
            row = kept[min(i, len(kept) - 1)]  # a row that is not needed repeats the last: none is without a token
            ids[i, : len(row)] = row
        out = self.trainer.logits(self.adapter, ids)
        return [out[i, : len(row)] for i, row in enumerate(kept)]


def prompt_ids(text: str, coder: Coder, manifest: Manifest) -> list[int]:
    """The tokens to go on from: as in training, but without the end mark after them."""
    spec = manifest.text
    ids = coder.document(text).tolist()
    ids = ids[:-1] if spec.eos_id >= 0 else ids
    start = [i for i in (spec.bos_id, spec.eos_id) if i >= 0][:1]  # in training an end mark stands before a document
    if not ids and not start:
        raise UsageError("this model has no mark for the beginning of a text: give a --prompt")
    return ids or start


def greedy(writer: Writer, prompt: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """The likeliest continuation, some tokens at a time, one yield a pass; ends with the model's end mark."""
    text, left = list(prompt), max_tokens
    while left > 0:
        room = min(GUESS, left - 1, writer.manifest.seq_len - len(text))
        tries = guesses(text, writer.manifest.batch_size, room) or [[]]
        logits = writer.logits([text + guess for guess in tries])
        taken = max((_accepted(own, guess) for own, guess in zip(logits, tries, strict=True)), key=len)
        yield from _until_end(taken, writer.manifest.text.eos_id)
        if writer.manifest.text.eos_id in taken:
            return
        text, left = text + taken, left - len(taken)


def _until_end(tokens: list[int], eos_id: int) -> Iterator[list[int]]:
    """The tokens before the end mark, if there are any."""
    kept = tokens[: tokens.index(eos_id)] if eos_id in tokens else tokens
    if kept:
        yield kept


def _accepted(logits: Logits, guess: list[int]) -> list[int]:
    """What the model would choose after the text and after each right token of the guess: at least one token."""
    likeliest = logits[len(logits) - len(guess) - 1 :].argmax(-1).tolist()
    right = next((i for i, token in enumerate(guess) if token != likeliest[i]), len(guess))
    return [int(token) for token in likeliest[: right + 1]]


def guesses(text: Sequence[int], count: int, length: int) -> list[list[int]]:
    """Up to `count` different continuations that the text had at earlier places that end as it does now.

    >>> guesses([1, 2, 3, 9, 1, 2, 3], 4, 2)
    [[9, 1]]
    """
    found: list[list[int]] = []
    if length < 1:
        return found
    for size in range(min(NGRAM, len(text) - 1), 0, -1):
        ending = list(text[-size:])
        for start in range(len(text) - size - 1, -1, -1):
            guess = list(text[start + size : start + size + length])
            if list(text[start : start + size]) == ending and guess not in found:
                found.append(guess)
                if len(found) == count:
                    return found
    return found


def sample(writer: Writer, prompt: Sequence[int], max_tokens: int, how: Sampling, count: int) -> list[list[int]]:
    """`count` continuations drawn at random, at most B of them, which cost no more than one."""
    rng = np.random.default_rng(how.seed)
    texts: list[list[int]] = [list(prompt) for _ in range(count)]
    done = [False] * count
    for _ in range(max_tokens):
        for i, logits in enumerate(writer.logits(texts)):
            token = draw(logits[-1], how, rng)
            done[i] = done[i] or token == writer.manifest.text.eos_id
            if not done[i]:
                texts[i].append(token)
        if all(done):
            break
    return [text[len(prompt) :] for text in texts]


def draw(logits: Logits, how: Sampling, rng: np.random.Generator) -> int:
    """One token from the logits [vocabulary]: the `top_k` likeliest, of these the fewest that make up `top_p`."""
    if how.temperature == 0:
        return int(logits.argmax())
    order = np.argsort(-logits, kind="stable")[: how.top_k or None]
    scaled = logits[order].astype(np.float64) / how.temperature
    p = np.exp(scaled - scaled[0])
    p /= p.sum()
    kept = max(1, int(np.searchsorted(np.cumsum(p), how.top_p)) + 1)
    return int(rng.choice(order[:kept], p=p[:kept] / p[:kept].sum()))


@dataclass
class Stream:
    """Text that grows with its tokens: a character or word that is not whole yet is held back."""

    coder: Coder
    ids: list[int]

    def __post_init__(self) -> None:
        self._shown = self._text()

    def add(self, tokens: Sequence[int]) -> str:
        """The text that these tokens add to what was returned so far."""
        self.ids = [*self.ids, *tokens]
        text = self._text()
        if not text.startswith(self._shown):  # a tokenizer that changes what it said: begin where they part
            return ""
        new, self._shown = text[len(self._shown) :], text
        return new

    def rest(self) -> str:
        """What was held back, at the end."""
        return self.coder.text(np.asarray(self.ids, np.int32))[len(self._shown) :]

    def _text(self) -> str:
        return self.coder.text(np.asarray(self.ids, np.int32)).rstrip("\ufffd")
