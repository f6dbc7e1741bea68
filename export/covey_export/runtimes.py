"""The real runtimes, each as a function on NumPy arrays: how a bundle proves itself.

Only the runtime that is asked for is imported, and nothing of the exporter, so that the memory that a proof measures
is that of a device.
"""

import importlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from covey_export.roles import inputs_of
from covey_shared.program import Program, compile_program

Array = NDArray[Any]
Run = Callable[[Mapping[str, Array]], list[Array]]


LIBRARIES = {"onnx": "onnxruntime", "executorch": "executorch.runtime", "torch": "safetensors.torch"}


def load_library(target: str) -> None:
    """Import a target's runtime, so that what it weighs can be told from what a graph weighs."""
    importlib.import_module(LIBRARIES[target])


def open_role(target: str, folder: Path, paths: Mapping[str, str], role: str, threads: int = 0) -> Run:
    """One graph of a bundle's folder; `paths` is what the manifest has for the target, role -> path.

    `threads` 0 leaves it to the runtime; ExecuTorch always has its own number.
    """
    return OPENERS[target](folder, paths, role, threads)


def _open_onnx(folder: Path, paths: Mapping[str, str], role: str, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = False  # its planned buffers come on top of the arena: half the memory without
    options.add_session_config_entry("session.disable_prepacking", "1")  # two more copies of the base for 7 % of speed
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # as in covey_export.threads
    session = onnxruntime.InferenceSession(folder / paths[role], options, providers=["CPUExecutionProvider"])
    return lambda inputs: list(session.run(None, dict(inputs)))


def _open_executorch(folder: Path, paths: Mapping[str, str], role: str, threads: int) -> Run:
    import torch
    from executorch.runtime import Runtime

    method = Runtime.get().load_program(folder / paths["model"]).load_method(role)

    def run(inputs: Mapping[str, Array]) -> list[Array]:
        given = [torch.from_numpy(inputs[name]) for name in inputs_of(role, inputs)]
        return [x.numpy().copy() for x in method.execute(given)]

    return run


def _open_torch(folder: Path, paths: Mapping[str, str], role: str, threads: int) -> Run:
    import torch
    from safetensors.torch import load_file

    if threads:
        torch.set_num_threads(threads)
    program = Program.from_bytes((folder / paths[role]).read_bytes())
    weights = load_file(folder / paths["weights"])
    run = compile_program(program, _aten, _literal)
    return partial(_call_torch, run, {name: weights[name] for name in program.constants})


def _call_torch(run: Any, weights: Mapping[str, Any], inputs: Mapping[str, Array]) -> list[Array]:
    import torch

    with torch.inference_mode():
        out = run({**weights, **{name: torch.from_numpy(x) for name, x in inputs.items()}})
    return [x.numpy() for x in out]


def _aten(name: str) -> Any:
    import torch

    _, packet, overload = name.split(".")
    return getattr(getattr(torch.ops.aten, packet), overload)


def _literal(kind: str, name: str) -> Any:
    import torch

    return torch.device("cpu") if kind == "device" else getattr(torch, name)


OPENERS = {"onnx": _open_onnx, "executorch": _open_executorch, "torch": _open_torch}
