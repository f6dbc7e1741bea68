"""ONNX Runtime: plain inference sessions on the CPU, or on an execution provider that is installed (CUDA, TensorRT)."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import onnxruntime
from numpy.typing import NDArray

from covey_edge.trainers.providers import first_line, pick, with_options
from covey_shared.bundle import Bundle
from covey_shared.errors import BundleError, UsageError


@dataclass(frozen=True)
class Sessions:
    """Three sessions, each made when it is first used: a device that never generates text never loads `forward`."""

    bundle: Bundle
    threads: int
    provider: str

    def __call__(self, role: str, inputs: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """One run. Inputs are contiguous arrays, which ONNX Runtime reads in place."""
        outputs: list[NDArray[Any]] = self.load(role).run(None, dict(inputs))
        return outputs

    def load(self, role: str) -> Any:
        """The session of a graph."""
        return getattr(self, f"_{role}")

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
        providers = with_options(self.provider, self.bundle)
        try:
            session = onnxruntime.InferenceSession(path, session_options(self.threads), providers)
        except Exception as error:  # the library's errors share no base class but Exception
            raise BundleError(
                f"ONNX Runtime {onnxruntime.__version__} cannot load {path}: {first_line(error)}"
            ) from None
        if session.get_providers()[0] != self.provider:  # the library goes on with the CPU and says so only in its log
            raise BundleError(f"ONNX Runtime cannot open {self.provider}: is the driver for it installed?")
        return session


def open_graphs(bundle: Bundle, threads: int, provider: str) -> Sessions:
    """Sessions on one execution provider."""
    return Sessions(bundle, threads, choose_device(provider))


def choose_device(provider: str) -> str:
    """The library's name of a provider, given in full, in short or as `auto`; refuses one that is not installed."""
    available = onnxruntime.get_available_providers()
    name = pick(provider, available)
    if not name:
        raise UsageError(f"this ONNX Runtime has no provider {provider!r}; it has {', '.join(available)}")
    return name


def session_options(threads: int) -> Any:
    """Quiet, with idle threads asleep, and small: the client is a guest on the device.

    Planned buffers would come on top of the arena, and packed weights beside those that are mapped from the file: for a
    training graph, where each weight is used in two directions, twice the base. `covey export` measures with the same.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.enable_mem_pattern = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options
