"""The runtimes that a bundle is written for, one file each.

A target is a pair of functions: `write(graphs, folder)` puts its files below the bundle's folder and returns role ->
path for the manifest, and `open_role(folder, paths, role)` returns one of them as a function on NumPy arrays, run by
the real runtime, which is how a bundle proves itself. A new runtime is one file and one line here.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from numpy.typing import NDArray

Array = NDArray[Any]
Run = Callable[[Mapping[str, Array]], list[Array]]


class Target(NamedTuple):
    """`write(graphs by role, folder) -> {role: path}` and `open_role(folder, {role: path}, role) -> run`."""

    write: Callable[[Mapping[str, Any], Path], dict[str, str]]
    open_role: Callable[[Path, Mapping[str, str], str], Run]


MODULES = {"onnx": "onnx_runtime", "executorch": "executorch_runtime", "torch": "torch_runtime"}


def load_target(name: str) -> Target:
    """The target of this name; only then are its libraries imported."""
    module = importlib.import_module(f"covey_export.targets.{MODULES[name]}")
    return Target(module.write, module.open_role)
