"""The device that a runtime computes on: chosen by name or by `auto`, and left for the CPU when it does not work.

What is not installed is refused. What is installed may still not work, since a provider is listed by what the wheel
holds and not by what the board has: the driver is missing, or there are no kernels for this GPU, which shows at the
first run. Then the CPU takes over, with one sentence.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from numpy.typing import NDArray

from covey_shared.bundle import Bundle
from covey_shared.errors import CoveyError

Notice = Callable[[str], None]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
TENSORRT = "TensorrtExecutionProvider"
# `auto` takes the first that is there. TensorRT is taken by name only: building its engines takes minutes.
AUTO = (CUDA, "MIGraphXExecutionProvider", "ROCMExecutionProvider", CPU)
SHORT = {"": CPU, "cpu": CPU, "cuda": CUDA, "tensorrt": TENSORRT, "rocm": "ROCMExecutionProvider",
         "migraphx": "MIGraphXExecutionProvider", "coreml": "CoreMLExecutionProvider",
         "openvino": "OpenVINOExecutionProvider", "xnnpack": "XnnpackExecutionProvider"}  # fmt: skip


class Run(Protocol):
    """What a runtime is to us: a bundle's graphs, called by role."""

    def __call__(self, role: str, inputs: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """One run. `inputs` are by name and in the graph's order; the outputs are in theirs."""

    def load(self, role: str) -> Any:
        """Make a graph ready, which the first call does otherwise."""


@dataclass
class FallsBack:
    """A runtime on a device that may turn out not to work: until a graph has run once, its failure means the CPU."""

    run: Run
    on_cpu: Callable[[], Run]
    device: str
    notice: Notice
    worked: set[str] = field(default_factory=set)

    def __call__(self, role: str, inputs: Mapping[str, NDArray[Any]]) -> Sequence[NDArray[Any]]:
        """One run of a graph."""
        try:
            outputs = self.run(role, inputs)
        except Exception as error:  # runtimes' errors share no base class but Exception
            if role in self.worked:
                raise
            self.notice(f"{self.device} cannot run this bundle here, so the CPU does: {first_line(error)}")
            self.run, self.worked = self.on_cpu(), {"train", "eval", "forward"}
            return self.run(role, inputs)
        self.worked.add(role)
        return outputs

    def load(self, role: str) -> Any:
        """The graph on the device, or the device's error."""
        return self.run.load(role)


def pick(wanted: str, available: Sequence[str]) -> str:
    """ONNX Runtime's name of the provider that is wanted; empty where it is not there.

    >>> pick("auto", ["AzureExecutionProvider", CPU]), pick("CUDA", [CUDA, CPU]), pick("cuda", [CPU])
    ('CPUExecutionProvider', 'CUDAExecutionProvider', '')
    """
    if wanted.lower() == "auto":
        return next(name for name in (*AUTO, CPU) if name in available or name == CPU)
    name = SHORT.get(wanted.lower(), wanted)
    return name if name in available else ""


def with_options(name: str, bundle: Bundle) -> list[Any]:
    """The providers of a session, each with its options: `name`, then what takes the operators that it lacks.

    CUDA computes in full float32, not TF32, so that devices of a task agree to float32 rounding. TensorRT keeps the
    engines that it built, by bundle: https://onnxruntime.ai/docs/execution-providers/TensorRT-ExecutionProvider.html.
    """
    cuda = (CUDA, {"use_tf32": "0"})
    if name == CUDA:
        return [cuda, CPU]
    if name == TENSORRT:
        kept = str(cache_folder() / "tensorrt" / bundle.digest[:16])
        Path(kept).mkdir(parents=True, exist_ok=True)
        engine = {"trt_engine_cache_enable": "1", "trt_engine_cache_path": kept,
                  "trt_timing_cache_enable": "1", "trt_timing_cache_path": kept}  # fmt: skip
        return [(TENSORRT, engine), cuda, CPU]
    return [name] if name == CPU else [name, CPU]


def cache_folder() -> Path:
    """Where the client keeps what can be made again: bundles, and a provider's compiled engines."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "covey"


def first_line(error: Exception) -> str:
    """An error in a few words: runtimes' errors go on for pages."""
    text = str(error).strip()
    if isinstance(error, CoveyError):
        return text
    return text.splitlines()[0][:300] if text else type(error).__name__
