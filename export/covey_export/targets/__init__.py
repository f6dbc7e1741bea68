"""The runtimes that a bundle is written for, one module each with a function `write`.

`write(graphs, folder)` takes the graphs by role, puts its files below the bundle's folder and returns role -> path for
the manifest. A new runtime is one module and one line here, and its opener in `covey_export.runtimes`.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Write = Callable[[Mapping[str, Any], Path], dict[str, str]]
MODULES = {"onnx": "onnx_target", "executorch": "executorch_target", "torch": "torch_target"}


def writer(name: str) -> Write:
    """The target's `write`; only then are its libraries imported."""
    write: Write = importlib.import_module(f"covey_export.targets.{MODULES[name]}").write
    return write
