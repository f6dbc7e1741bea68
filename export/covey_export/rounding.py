"""What rounding the base costs: its loss before and after, on a text that is given or on the batch of the proof."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from covey_export.adapter import Adapted
from covey_export.base import Base
from covey_export.quantise import Codes, Digest, quantise_base
from covey_export.recipe import Recipe
from covey_export.tasks import TASKS, Task, arguments, counted, loss_sum
from covey_shared.errors import UsageError
from covey_shared.manifest import Quantisation

BATCHES = 16  # of the sample, at most
INT4_GROUP = 32
Batch = Mapping[str, Tensor]


def quantised(
    base: Base, adapted: Adapted, recipe: Recipe, batch: Batch, pad_id: int
) -> tuple[Quantisation | None, dict[Digest, Codes]]:
    """Round the model's frozen weights in place; returns what the manifest says of it, and the codes."""
    if recipe.bits == 32:
        return None, {}
    task = TASKS[recipe.task]
    batches = sample_batches(base, recipe) if recipe.sample else [batch]
    before, tokens = mean_loss_of(adapted.model, task, batches, pad_id)
    group = recipe.group or (INT4_GROUP if recipe.bits == 4 else 0)
    codes = quantise_base(adapted.model, recipe.bits, group)
    after, _ = mean_loss_of(adapted.model, task, batches, pad_id)
    record = Quantisation(
        bits=recipe.bits, group=group, parameters=sum(c.numbers for c in codes.values()), loss_float32=before,
        loss=after, tokens=tokens, measured_on="sample" if recipe.sample else "batch",
    )  # fmt: skip
    return record, codes


def mean_loss_of(model: torch.nn.Module, task: Task, batches: list[Batch], pad_id: int) -> tuple[float, int]:
    """The loss in nats a counted label over all batches, and how many labels counted."""
    total, labels = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            logits = model(**arguments(task, batch[task.input], pad_id)).logits
            targets = task.aligned(batch["labels"])
            total, labels = total + float(loss_sum(logits, targets)), labels + int(counted(targets))
    return total / max(labels, 1), labels


def sample_batches(base: Base, recipe: Recipe) -> list[Batch]:
    """A text's tokens in the shape of the training batches, as many as it fills."""
    try:
        text = Path(recipe.sample).expanduser().read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"--sample {recipe.sample} cannot be read: {error.strerror}") from None
    size = recipe.batch_size * recipe.seq_len
    tokens = base.tokenizer(text[: BATCHES * size * 16], add_special_tokens=False)["input_ids"]
    count = min(BATCHES, len(tokens) // size)
    if not count:
        raise UsageError(f"--sample {recipe.sample} has {len(tokens)} tokens, too few for one batch of {size}")
    ids = torch.tensor(tokens[: count * size]).view(count, recipe.batch_size, recipe.seq_len)
    return [{"input_ids": part, "labels": part} for part in ids]
