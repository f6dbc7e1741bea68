"""ExecuTorch: the plain runtime that phones have, on one `.pte` file with the methods train, eval and forward.

Its Python wheel takes and gives torch tensors; on a phone the same file runs without PyTorch.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
from executorch.runtime import Runtime, Verification
from numpy.typing import NDArray

from covey_shared.bundle import Bundle
from covey_shared.errors import BundleError, UsageError


@dataclass(frozen=True)
class Methods:
    """One program; a method is loaded when it is first used."""

    program: Any
    path: Path

    def __call__(self, role: str, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """One call of a method, whose inputs go by their order."""
        try:
            outputs = self.load(role).execute(
                [torch.from_numpy(np.require(a, requirements=("C", "W"))) for a in inputs.values()]
            )
        except (RuntimeError, KeyError) as error:
            raise BundleError(f"ExecuTorch cannot run the method {role!r} of {self.path}: {error}") from None
        return [x.numpy() for x in outputs]

    def load(self, role: str) -> Any:
        """A method, ready to run."""
        return self.program.load_method(role)


def choose_device(provider: str) -> str:
    """The delegates are compiled into the program, so there is nothing to choose."""
    if provider not in ("", "cpu", "auto"):
        raise UsageError(f"--provider {provider} is for ONNX Runtime and PyTorch: ExecuTorch's is fixed at export")
    return ""


def open_graphs(bundle: Bundle, threads: int, provider: str) -> Methods:
    """Load the program; `provider` is as `choose_device` gives it."""
    if threads:
        _unsafe_reset_threadpool(threads)  # unsafe only while a method runs
        torch.set_num_threads(threads)
    path = bundle.path("executorch", "model")
    try:
        program = Runtime.get().load_program(path, verification=Verification.InternalConsistency)
    except (RuntimeError, ValueError) as error:
        raise BundleError(f"ExecuTorch cannot load {path}: {error}") from None
    return Methods(program, path)
