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
    """What `transformers` and PEFT call the task, `aligned(labels)` to the logits, and the name of the graph's input.

    `masked`: the rows are padded, and the mask is made from the tokens. `generates`: it may keep a cache, or not.
    """

    auto_class: str
    peft_type: str | None
    aligned: Callable[[Tensor], Tensor]
    masked: bool = False
    generates: bool = False
    input: str = "input_ids"


def _next_token(labels: Tensor) -> Tensor:
    """The label that each position predicts, [B, T]: the next token, and nothing at the end."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


TASKS: dict[str, Task] = {
    "causal-lm": Task("AutoModelForCausalLM", "CAUSAL_LM", _next_token, generates=True),
    "sequence-classification": Task(
        "AutoModelForSequenceClassification", "SEQ_CLS", lambda labels: labels, masked=True
    ),
    "image-classification": Task("AutoModelForImageClassification", None, lambda labels: labels, input="pixel_values"),
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


def example_tokens(
    task: Task, shape: tuple[int, int], vocabulary: int, labels: int, pad_id: int, seed: int
) -> dict[str, Tensor]:
    """Random tokens, int64 [B, T], and labels; some labels are not counted, and an encoder's rows are padded."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, vocabulary, shape, generator=rng)
    if task.generates:
        targets = ids.clone()
        targets[0, : shape[1] // 4] = IGNORED
        return {task.input: ids, "labels": targets}
    ids = torch.where(ids == pad_id, (pad_id + 1) % vocabulary, ids)
    ids[-1, max(2, shape[1] // 2) :] = pad_id
    return {task.input: ids, "labels": torch.randint(0, labels, shape[:1], generator=rng)}


def example_images(task: Task, shape: tuple[int, ...], labels: int, seed: int) -> dict[str, Tensor]:
    """Random images, float32 [B, C, H, W], and labels."""
    rng = torch.Generator().manual_seed(seed)
    pixels = torch.randn(shape, generator=rng)
    return {task.input: pixels, "labels": torch.randint(0, labels, shape[:1], generator=rng)}


def arguments(task: Task, inputs: Tensor, pad_id: int) -> dict[str, Any]:
    """What the model is called with. The mask is made from the tokens, so that a device sends nothing else."""
    if task.masked:
        return {task.input: inputs, "attention_mask": (inputs != pad_id).to(torch.int64)}
    return {task.input: inputs, "use_cache": False} if task.generates else {task.input: inputs}
