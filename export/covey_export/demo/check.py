"""The published adapter, loaded as anyone would, with PEFT, and checked against what the devices saw.

The devices saw the adapter through ONNX Runtime and ExecuTorch, as a flat vector that came over the wire in pieces.
Here it is a folder in PEFT's own format on top of the original Hugging Face model. Both must have the same loss.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

GENERATE_TOKENS = 160
BATCH = 16


@dataclass(frozen=True)
class Sample:
    """The same prompt continued by the base model and by the tuned one."""

    prompt: str
    before: str
    after: str


def load_models(model: str, adapter: Path) -> tuple[Any, Any]:
    """The base model, and a second copy of it with the published adapter on top; both float32, in evaluation mode."""
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    other = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    return base.eval(), PeftModel.from_pretrained(other, str(adapter)).eval()


@torch.no_grad()
def mean_loss(model: Any, ids: NDArray[np.int64], labels: NDArray[np.int64]) -> float:
    """Mean next-token loss in nats over the counted labels of int64 [N, T] windows."""
    total, count = 0.0, 0
    for i in range(0, len(ids), BATCH):
        x, y = torch.from_numpy(ids[i : i + BATCH]), torch.from_numpy(labels[i : i + BATCH])
        logits = model(input_ids=x).logits[:, :-1].float()
        target = y[:, 1:]
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), target, ignore_index=-100, reduction="sum")
        total += float(loss)
        count += int((target != -100).sum())
    return total / count


@torch.no_grad()
def sample(base: Any, tuned: Any, model: str, prompt: str) -> Sample:
    """Continuations of `prompt`, both drawn with the same seed: greedy ones of a small model go round in circles."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False).input_ids
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

    def run(which: Any) -> str:
        torch.manual_seed(0)
        out = which.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=GENERATE_TOKENS, do_sample=True,
            temperature=0.6, top_p=0.9, pad_token_id=pad,
        )  # fmt: skip
        text: str = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        return text

    return Sample(prompt, run(base), run(tuned))
