"""Trainers: one small interface, three runtimes behind it, each a file with `open_graphs(bundle, threads, provider)`.

`onnx` is the default (Jetson, servers, desktops), `executorch` runs what phones run, `torch` is for machines that have
PyTorch anyway, with or without CUDA. A runtime is imported only when it is opened.
"""

import sys
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from covey_edge.data import Batch
from covey_edge.quiet import quiet
from covey_edge.trainers.providers import FallsBack, Notice, Run, first_line
from covey_shared.bundle import Bundle
from covey_shared.errors import BundleError, CoveyError, UsageError
from covey_shared.layout import Vector
from covey_shared.manifest import Manifest

# In the order of `auto`: the lightest first. The name is the bundle's target, the value what has to be installed.
MODULES = {"onnx": ("onnxruntime",), "executorch": ("executorch", "torch"), "torch": ("torch", "safetensors")}
RUNTIMES = tuple(MODULES)


class Score(NamedTuple):
    """Held-out result: `loss_sum` in nats over `tokens` counted positions (rows, for a classifier), `correct` hits."""

    loss_sum: float
    tokens: int
    correct: int


class Trainer(Protocol):
    """The frozen base model on a runtime: the adapter goes in with every call, nothing stays behind."""

    def loss_and_gradient(self, adapter: Vector, batch: Batch) -> tuple[float, Vector]:
        """Mean loss over the counted labels, in nats, and its gradient, float32 [n], which the caller may keep."""

    def evaluate(self, adapter: Vector, batch: Batch) -> Score:
        """The sums over one batch."""

    def logits(self, adapter: Vector, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """For `inputs` as in a Batch: float32 [B, T, vocabulary] of a causal LM, [B, classes] of a classifier."""


@dataclass(frozen=True)
class GraphTrainer:
    """The trainer of every runtime. `frozen` float32 [m]: the second adapter, added and not trained, if there is one.

    `with_frozen` gives a trainer with another one; both share the loaded graphs.
    """

    manifest: Manifest
    run: Run
    frozen: Vector | None = None

    def loss_and_gradient(self, adapter: Vector, batch: Batch) -> tuple[float, Vector]:
        """One run of the joint graph."""
        loss, gradient = self.run("train", self._inputs("train", adapter, batch))
        return float(loss), gradient

    def evaluate(self, adapter: Vector, batch: Batch) -> Score:
        """One run of the evaluation graph."""
        loss_sum, tokens, correct = self.run("eval", self._inputs("eval", adapter, batch))
        return Score(float(loss_sum), int(tokens), int(correct))

    def logits(self, adapter: Vector, inputs: NDArray[Any]) -> NDArray[np.float32]:
        """One run of the forward graph."""
        return self.run("forward", self._inputs("forward", adapter, Batch(inputs, _NO_LABELS)))[0]

    def with_frozen(self, frozen: Vector) -> "GraphTrainer":
        """The same with this second adapter; refuses a vector that does not fit `manifest.frozen`."""
        if self.manifest.frozen is None:
            raise BundleError("the bundle takes no second adapter: export it with --frozen-rank")
        self.manifest.frozen.check(frozen)
        return replace(self, frozen=frozen)

    def _inputs(self, role: str, adapter: Vector, batch: Batch) -> dict[str, NDArray[Any]]:
        """By name, in the graph's order."""
        given: dict[str, NDArray[Any]] = {"adapter": adapter, "labels": batch.labels}
        if self.frozen is not None:
            given["frozen"] = self.frozen
        return {name: given.get(name, batch.inputs) for name in self.manifest.inputs(role)}


_NO_LABELS = np.empty(0, np.int64)


def choose_runtime(manifest: Manifest, wanted: str) -> str:
    """The runtime to use: the one wanted, or with `auto` the first that the bundle has and that is installed here."""
    have = [r for r in RUNTIMES if r in manifest.graphs]
    if wanted == "auto":
        found = next((r for r in have if not missing_modules(r)), None)
        if found is None:
            raise UsageError(
                f"the bundle is for {' or '.join(have)}, none of which is installed here: "
                f"pip install 'covey[edge,{have[0] if have else 'onnx'}]'"
            )
        return found
    require_runtime(wanted)
    if wanted not in have:
        raise BundleError(
            f"the bundle has no graphs for {wanted}, it has {', '.join(have)}: use --runtime {have[0]}, "
            f"or export it with --targets {wanted}"
        )
    return wanted


def require_runtime(runtime: str) -> None:
    """Refuses a runtime that is not installed, with the command that installs it."""
    missing = missing_modules(runtime)
    if missing:
        raise UsageError(
            f"the runtime {runtime} needs {' and '.join(missing)}, not installed here: "
            f"pip install 'covey[edge,{runtime}]'"
        )


def missing_modules(runtime: str) -> list[str]:
    """The modules of a runtime that are not there, without importing any."""
    return [m for m in MODULES[runtime] if not _is_there(m)]


def _is_there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ModuleNotFoundError, ValueError):  # half installed
        return False


def to_stderr(sentence: str) -> None:
    """Where a trainer's notices go unless the caller has a better place."""
    print(sentence, file=sys.stderr, flush=True)


def open_graphs(
    bundle: Bundle, runtime: str, threads: int = 0, provider: str = "", notice: Notice = to_stderr
) -> tuple[Run, str]:
    """A bundle's graphs on a runtime, and the device that was chosen: empty or a name with CPU in it for the CPU."""
    with quiet():
        module = import_module(f"covey_edge.trainers.{runtime}")
        device = module.choose_device(provider)
        if "cpu" in device.lower() or not device:
            return module.open_graphs(bundle, threads, device), device
        on_cpu = partial(module.open_graphs, bundle, threads, "cpu")
        try:
            return FallsBack(module.open_graphs(bundle, threads, device), on_cpu, device, notice), device
        except (CoveyError, RuntimeError) as error:  # torch moves weights to the device here
            cause, graphs = first_line(error), on_cpu()
    notice(f"{device} cannot run this bundle here, so the CPU does: {cause}")
    return graphs, "cpu"


def open_trainer(
    bundle: Bundle, runtime: str, threads: int = 0, provider: str = "", frozen: Vector | None = None,
    notice: Notice = to_stderr,
) -> GraphTrainer:  # fmt: skip
    """Load a bundle's graphs into a runtime.

    `threads`: of the CPU, 0 = the runtime's own choice. `provider`: the device, `cuda` or `auto` say; empty = CPU.
    `frozen`: the second adapter of a bundle that takes one; zeros by default. `notice` hears when the CPU takes over
    from a device that does not work.
    """
    run, _ = open_graphs(bundle, runtime, threads, provider, notice)
    second = bundle.manifest.frozen
    trainer = GraphTrainer(bundle.manifest, run, np.zeros(second.size, np.float32) if second else None)
    return trainer if frozen is None else trainer.with_frozen(frozen)
