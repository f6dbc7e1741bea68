"""The runtimes that a bundle is written for, one module each with a function `write`.

`write(graphs, folder)` takes the graphs by role, puts its files below the bundle's folder and returns role -> path for
the manifest. A new runtime is one module and one line here, and its opener in `covey_export.runtimes`. A module may
have `WAYS`, a tuple of such functions, the best first, where what was written may turn out not to run.
"""

import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Write = Callable[[Mapping[str, Any], Path], dict[str, str]]
MODULES = {"onnx": "onnx_target", "executorch": "executorch_target", "torch": "torch_target"}


def writers(name: str) -> tuple[Write, ...]:
    """The target's ways to write, the best first; only then are its libraries imported."""
    module = importlib.import_module(f"covey_export.targets.{MODULES[name]}")
    return getattr(module, "WAYS", None) or (module.write,)


def writer(name: str) -> Write:
    """The best of them."""
    return writers(name)[0]
