"""PyTorch: the bundle's training graph as a list of ATen calls, on the CPU or on CUDA. No autograd, no transformers."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from covey_shared.bundle import Bundle
from covey_shared.errors import BundleError, UsageError
from covey_shared.program import Program, compile_program

Call = Callable[[Mapping[str, Any]], list[Any]]


@dataclass(frozen=True)
class Programs:
    """The programs, each compiled when it is first used, and the weights on their device."""

    bundle: Bundle
    weights: Mapping[str, torch.Tensor]
    device: torch.device

    def __call__(self, role: str, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """One run of a program."""
        call = self.load(role)
        with torch.inference_mode():
            given = {
                k: torch.from_numpy(np.require(a, requirements=("C", "W"))).to(self.device) for k, a in inputs.items()
            }
            return [x.cpu().numpy() for x in call({**self.weights, **given})]

    def load(self, role: str) -> Call:
        """A program, compiled."""
        call: Call = getattr(self, f"_{role}")
        return call

    @cached_property
    def _train(self) -> Call:
        return self._compile("train")

    @cached_property
    def _eval(self) -> Call:
        return self._compile("eval")

    @cached_property
    def _forward(self) -> Call:
        return self._compile("forward")

    def _compile(self, role: str) -> Call:
        program = Program.from_bytes(self.bundle.path("torch", role).read_bytes())
        return compile_program(program, operator, self._literal)

    def _literal(self, kind: str, name: str) -> Any:
        return getattr(torch, name) if kind == "dtype" else self.device


def choose_device(provider: str) -> str:
    """`cpu` (the default), `cuda` or `cuda:1`; `auto` is CUDA where PyTorch sees a device."""
    if provider == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(provider or "cpu")
    except RuntimeError:
        raise UsageError(f"--provider {provider}: PyTorch knows no such device, try cpu or cuda") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"--provider {provider}: this PyTorch sees no CUDA device")
    return str(device)


def open_graphs(bundle: Bundle, threads: int, provider: str) -> Programs:
    """Load the weights to a device; `provider` is as `choose_device` gives it."""
    device = torch.device(provider or "cpu")
    if threads:
        torch.set_num_threads(threads)
    path = bundle.path("torch", "weights")
    try:
        return Programs(bundle, load_file(path, device=str(device)), device)
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
