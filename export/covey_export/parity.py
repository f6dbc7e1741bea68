"""The proof that a bundle trains: each runtime's loss and gradient against eager PyTorch and PEFT on the same batch.

The reference is the PEFT model itself, with the adapter loaded by PEFT's own loader and its gradients named by PEFT's
own function, so a tensor under a wrong name shows as well. The adapter is random and not the start, at which half of
the gradient is zero.
"""

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from covey_export.adapter import Adapted, adapter_gradient, load_adapter, load_frozen
from covey_export.blame import blamed
from covey_export.runtimes import Array
from covey_export.tasks import IGNORED, Task, arguments
from covey_shared.errors import UsageError
from covey_shared.layout import Layout, Vector
from covey_shared.manifest import Parity

TOLERANCE = 1e-5  # relative, in float32: what summing in another order costs is a tenth of it
SPREAD = 0.02  # standard deviation of what is added to the start to get the adapter of the proof


class Reference(NamedTuple):
    """What eager PyTorch says: `inputs` by name, and the outputs of the three roles."""

    inputs: dict[str, Array]
    loss: float
    gradient: Vector
    tokens: int
    correct: int
    logits: Array


def reference(adapted: Adapted, task: Task, batch: Mapping[str, torch.Tensor], pad_id: int, seed: int) -> Reference:
    """Run the PEFT model forward and backward, eagerly; leaves it with the proof's adapters in it."""
    rng = np.random.default_rng(seed)
    vectors = {"adapter": adapted.start + np.float32(SPREAD) * rng.standard_normal(adapted.layout.size, np.float32)}
    load_adapter(adapted, vectors["adapter"])
    if adapted.frozen:
        vectors["frozen"] = random_second(adapted.frozen, rng)
        load_frozen(adapted, vectors["frozen"])
    kwargs = arguments(task, batch[task.input], pad_id)
    with blamed(f"{type(adapted.inner).__name__} cannot be run on batches of this shape: it stops"):
        out = adapted.model(**kwargs, labels=batch["labels"])
        out.loss.backward()
    gradient = adapter_gradient(adapted)
    adapted.model.zero_grad(set_to_none=True)
    labels = task.aligned(batch["labels"])
    hits = (out.logits.argmax(-1) == labels).sum()
    return Reference(
        inputs={**vectors, **{k: v.numpy() for k, v in batch.items()}},
        loss=float(out.loss.detach()), gradient=gradient, tokens=int((labels != IGNORED).sum()), correct=int(hits),
        logits=out.logits.detach().numpy(),
    )  # fmt: skip


def random_second(layout: Layout, rng: np.random.Generator) -> Vector:
    """A second adapter that shows in the loss: lora_A as it starts, lora_B small."""
    parts = []
    for tensor, where in layout.slices():
        spread = 1 / math.sqrt(math.prod(tensor.shape[1:])) if tensor.kind == "lora_A" else SPREAD
        parts.append(np.float32(spread) * rng.standard_normal(where.stop - where.start, np.float32))
    return np.concatenate(parts)


def prove(target: str, folder: Path, paths: Mapping[str, str], expected: Reference) -> Parity:
    """Run the written files in a process of their own, compare, and refuse what differs."""
    seen, cost = _probe(target, folder, paths, expected.inputs)
    tokens, correct = int(seen["n_tokens"]), int(seen["n_correct"])
    mean = float(seen["loss_sum"]) / max(tokens, 1)
    errors = {
        "loss": relative(float(seen["loss"]), expected.loss),
        "gradient": relative(seen["grad"], expected.gradient),
        "evaluated loss": relative(mean, expected.loss),
        "logits": relative(seen["logits"], expected.logits),
    }
    for what, error in errors.items():
        if not error <= TOLERANCE:
            raise UsageError(
                f"the {target} graph does not compute what PyTorch does: its {what} is off by {error:.1e}, "
                f"more than {TOLERANCE:.0e}, so no bundle was written; --targets can leave {target} out"
            )
    if tokens != expected.tokens or abs(correct - expected.correct) > 1 + expected.tokens // 100:
        raise UsageError(
            f"the {target} graph counts {tokens} tokens, {correct} of them right, where PyTorch counts "
            f"{expected.tokens} and {expected.correct}, so no bundle was written"
        )
    return Parity(
        loss_error=max(errors["loss"], errors["evaluated loss"]), gradient_error=errors["gradient"],
        tolerance=TOLERANCE, peak_bytes=int(cost["peak_bytes"]), step_seconds=float(cost["step_seconds"]),
    )  # fmt: skip


def relative(seen: Any, expected: Any) -> float:
    """Norm of the difference over the norm of what is expected, in float64; infinite where the shapes differ."""
    a, b = np.asarray(seen, np.float64), np.asarray(expected, np.float64)
    if a.shape != b.shape:
        return float("inf")
    return float(np.linalg.norm(a - b) / max(float(np.linalg.norm(b)), 1e-30))


def _probe(target: str, folder: Path, paths: Mapping[str, str], inputs: Mapping[str, Array]) -> tuple[Any, Any]:
    """Outputs by name, and the cost, from `covey_export.probe`; its files lie beside the bundle's and go again."""
    request, answer = folder / "probe-in.npz", folder / "probe-out.npz"
    np.savez(request, **inputs)  # type: ignore[arg-type]
    command = [sys.executable, "-P", "-m", "covey_export.probe", target, str(folder), json.dumps(dict(paths))]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
        if done.returncode:
            raise UsageError(f"the {target} runtime cannot run the graph: {_last_words(done)}")
        with np.load(answer) as outputs:
            return dict(outputs), json.loads(done.stdout.splitlines()[-1])
    finally:
        request.unlink(missing_ok=True)
        answer.unlink(missing_ok=True)


def _last_words(done: "subprocess.CompletedProcess[str]") -> str:
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"it died with status {done.returncode}"
