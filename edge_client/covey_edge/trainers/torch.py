"""PyTorch: the bundle's training graph as a list of ATen calls, on the CPU or on CUDA. No autograd, no transformers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from covey_edge.data import Batch
from covey_edge.trainers import Score
from covey_shared.bundle import Bundle
from covey_shared.errors import BundleError, UsageError
from covey_shared.layout import Vector
from covey_shared.program import Program, compile_program

Run = Callable[[Mapping[str, Any]], list[Any]]


@dataclass(frozen=True)
class TorchTrainer:
    """The programs, each compiled when it is first used, and the weights on their device."""

    bundle: Bundle
    weights: Mapping[str, torch.Tensor]
    device: torch.device

    def loss_and_gradient(self, adapter: Vector, batch: Batch) -> tuple[float, Vector]:
        """One run of the joint program."""
        loss, gradient = self._run(self._train, adapter=adapter, input_ids=batch.input_ids, labels=batch.labels)
        return float(loss), gradient.cpu().numpy()

    def evaluate(self, adapter: Vector, batch: Batch) -> Score:
        """One run of the evaluation program."""
        out = self._run(self._eval, adapter=adapter, input_ids=batch.input_ids, labels=batch.labels)
        return Score(float(out[0]), int(out[1]), int(out[2]))

    def logits(self, adapter: Vector, input_ids: NDArray[np.int64]) -> NDArray[np.float32]:
        """One run of the forward program."""
        out: NDArray[np.float32] = self._run(self._forward, adapter=adapter, input_ids=input_ids)[0].cpu().numpy()
        return out

    def _run(self, program: Run, **arrays: NDArray[Any]) -> list[Any]:
        with torch.inference_mode():
            given = {
                k: torch.from_numpy(np.require(a, requirements=("C", "W"))).to(self.device) for k, a in arrays.items()
            }
            return program({**self.weights, **given})

    @cached_property
    def _train(self) -> Run:
        return self._compile("train")

    @cached_property
    def _eval(self) -> Run:
        return self._compile("eval")

    @cached_property
    def _forward(self) -> Run:
        return self._compile("forward")

    def _compile(self, role: str) -> Run:
        program = Program.from_bytes(self.bundle.path("torch", role).read_bytes())
        return compile_program(program, operator, self._literal)

    def _literal(self, kind: str, name: str) -> Any:
        return getattr(torch, name) if kind == "dtype" else self.device


def open_trainer(bundle: Bundle, threads: int, provider: str) -> TorchTrainer:
    """Load the weights to a device: `cpu` (the default), `cuda` or `cuda:1`."""
    try:
        device = torch.device(provider or "cpu")
        if device.type == "cuda" and not torch.cuda.is_available():
            raise UsageError(f"--provider {provider}: this PyTorch sees no CUDA device")
    except RuntimeError:
        raise UsageError(f"--provider {provider}: PyTorch knows no such device, try cpu or cuda") from None
    if threads:
        torch.set_num_threads(threads)
    path = bundle.path("torch", "weights")
    try:
        return TorchTrainer(bundle, load_file(path, device=str(device)), device)
    except Exception as error:  # safetensors raises its own class, which it does not export
        raise BundleError(f"the weights {path} cannot be read: {error}") from None


def operator(name: str) -> Callable[..., Any]:
    """The ATen operator of this name. What writes into its arguments is refused: a program is a function."""
    _, packet, overload = name.split(".")
    try:
        found = getattr(getattr(torch.ops.aten, packet), overload)
    except AttributeError:
        raise BundleError(f"this PyTorch ({torch.__version__}) has no operator {name}: update it") from None
    if found._schema.is_mutable:
        raise BundleError(f"the program calls {name}, which changes its arguments; programs may not")
    call: Callable[..., Any] = found
    return call
