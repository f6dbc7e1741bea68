"""ONNX Runtime: plain inference sessions on the CPU, or on an execution provider that is installed (CUDA, TensorRT)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from covey_shared.bundle import Bundle
from covey_shared.errors import BundleError, UsageError

SHORT = {"": "CPU", "cpu": "CPU", "cuda": "CUDA", "tensorrt": "Tensorrt", "coreml": "CoreML", "openvino": "OpenVINO"}


@dataclass(frozen=True)
class Sessions:
    """Three sessions, each made when it is first used: a device that never generates text never loads `forward`."""

    bundle: Bundle
    threads: int
    provider: str

    def __call__(self, role: str, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """One run. Inputs are contiguous arrays, which ONNX Runtime reads in place."""
        outputs: list[NDArray[Any]] = getattr(self, f"_{role}").run(None, dict(inputs))
        return outputs

    @cached_property
    def _train(self) -> Any:
        return self._session("train")

    @cached_property
    def _eval(self) -> Any:
        return self._session("eval")

    @cached_property
    def _forward(self) -> Any:
        return self._session("forward")

    def _session(self, role: str) -> Any:
        path = self.bundle.path("onnx", role)
        try:
            return onnxruntime.InferenceSession(path, session_options(self.threads), [self.provider])
        except Exception as error:  # the library's errors share no base class but Exception
            raise BundleError(
                f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {_first_line(error)}"
            ) from None


def open_graphs(bundle: Bundle, threads: int, provider: str) -> Sessions:
    """Sessions on one execution provider."""
    return Sessions(bundle, threads, provider_name(provider))


def provider_name(provider: str) -> str:
    """The library's name of a provider, given in full or in short; refuses one that is not installed."""
    name = f"{SHORT[provider.lower()]}ExecutionProvider" if provider.lower() in SHORT else provider
    available = onnxruntime.get_available_providers()
    if name not in available:
        raise UsageError(f"this ONNX Runtime has no provider {provider!r}; it has {', '.join(available)}")
    return name


def session_options(threads: int) -> Any:
    """Quiet, and with idle threads asleep: the client is a guest on the device."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
