"""The tasks: for each, the class that loads it, the batch that it is traced with, and its loss. A new task is one row.

Labels follow Hugging Face: -100 is not counted. A causal LM's labels stand at the positions of their tokens, and the
shift is in the graph: it shifts the labels and not the logits, whose slice would cost a copy of the largest tensor,
twice.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100


class Task(NamedTuple):
    """`loss_sum(logits, labels)`, `aligned(labels)` to the logits, and what `transformers` and PEFT call the task."""

    auto_class: str
    peft_type: str
    aligned: Callable[[Tensor], Tensor]
    masked: bool
    labels_shape: Callable[[int, int], tuple[int, ...]]


def _next_token(labels: Tensor) -> Tensor:
    """The label that each position predicts, [B, T]: the next token, and nothing at the end."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


TASKS: dict[str, Task] = {
    "causal-lm": Task("AutoModelForCausalLM", "CAUSAL_LM", _next_token, False, lambda b, t: (b, t)),
    "sequence-classification": Task(
        "AutoModelForSequenceClassification", "SEQ_CLS", lambda labels: labels, True, lambda b, t: (b,)
    ),
}


def loss_sum(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats, summed over the counted targets; logits [..., V], targets int64 [...]."""
    flat = logits.reshape(-1, logits.shape[-1])
    return F.cross_entropy(flat, targets.reshape(-1), ignore_index=IGNORED, reduction="sum")


def counted(targets: Tensor) -> Tensor:
    """How many targets count, int64 []."""
    return (targets != IGNORED).sum()


def mean_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy in nats a counted target, float32 []; 0 where none counts, so that an empty batch does no harm."""
    return loss_sum(logits, targets) / counted(targets).clamp(min=1).to(torch.float32)


def statistics(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss summed, targets counted, targets hit: float32 [], int64 [], int64 []."""
    hits = (logits.argmax(-1) == targets).sum()
    return loss_sum(logits, targets), counted(targets), hits


def example_batch(
    task: Task, *, batch_size: int, seq_len: int, vocabulary: int, labels: int, pad_id: int, seed: int
) -> dict[str, Tensor]:
    """Random tokens, int64 [B, T], and labels; some labels are not counted, and an encoder's rows are padded."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, (batch_size, seq_len), generator=rng)
    shape = task.labels_shape(batch_size, seq_len)
    if not task.masked:
        targets = ids.clone()
        targets[0, : seq_len // 4] = IGNORED
        return {"input_ids": ids, "labels": targets}
    ids = torch.where(ids == pad_id, (pad_id + 1) % vocabulary, ids)
    ids[-1, max(2, seq_len // 2) :] = pad_id
    return {"input_ids": ids, "labels": torch.randint(0, labels, shape, generator=rng)}


def arguments(task: Task, input_ids: Tensor, pad_id: int) -> dict[str, Any]:
    """What the model is called with. The mask is made from the tokens, so that a device sends nothing else."""
    mask = {"attention_mask": (input_ids != pad_id).to(torch.int64)} if task.masked else {}
    return {"input_ids": input_ids, **mask}
