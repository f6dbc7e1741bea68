"""ExecuTorch: the plain runtime that phones have, on one `.pte` file with the methods train, eval and forward.

Its Python wheel takes and gives torch tensors; on a phone the same file runs without PyTorch.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
from executorch.runtime import Runtime, Verification
from numpy.typing import NDArray

from covey_edge.data import Batch
from covey_edge.trainers import Score
from covey_shared.bundle import Bundle
from covey_shared.errors import BundleError, UsageError
from covey_shared.layout import Vector


@dataclass(frozen=True)
class ExecutorchTrainer:
    """One program; a method is loaded when it is first used."""

    program: Any
    path: Path

    def loss_and_gradient(self, adapter: Vector, batch: Batch) -> tuple[float, Vector]:
        """One call of `train`."""
        loss, gradient = self._call("train", adapter, *batch)
        return float(loss), gradient.numpy()

    def evaluate(self, adapter: Vector, batch: Batch) -> Score:
        """One call of `eval`."""
        loss_sum, tokens, correct = self._call("eval", adapter, *batch)
        return Score(float(loss_sum), int(tokens), int(correct))

    def logits(self, adapter: Vector, input_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """One call of `forward`."""
        out: NDArray[np.float32] = self._call("forward", adapter, input_ids)[0].numpy()
        return out

    def _call(self, method: str, *arrays: NDArray[Any]) -> list[Any]:
        try:
            loaded = self.program.load_method(method)
            outputs: list[Any] = loaded.execute(
                [torch.from_numpy(np.require(a, requirements=("C", "W"))) for a in arrays]
            )
        except (RuntimeError, KeyError) as error:
            raise BundleError(f"ExecuTorch cannot run the method {method!r} of {self.path}: {error}") from None
        return outputs


def open_trainer(bundle: Bundle, threads: int, provider: str) -> ExecutorchTrainer:
    """Load the program. The delegates are compiled into it, so there is no provider to choose."""
    if provider not in ("", "cpu"):
        raise UsageError(f"--provider {provider} is for ONNX Runtime and PyTorch: ExecuTorch's is fixed at export")
    if threads:
        _unsafe_reset_threadpool(threads)  # unsafe only while a method runs
        torch.set_num_threads(threads)
    path = bundle.path("executorch", "model")
    try:
        program = Runtime.get().load_program(path, verification=Verification.InternalConsistency)
    except (RuntimeError, ValueError) as error:
        raise BundleError(f"ExecuTorch cannot load {path}: {error}") from None
    return ExecutorchTrainer(program, path)
