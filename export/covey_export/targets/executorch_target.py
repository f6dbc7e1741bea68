"""The `executorch` target: one `model.pte` with the methods train, eval and forward, lowered to XNNPACK.

The methods share their weights, and each frozen weight is stored once: XNNPACK takes it as it is, forward through
`linear` and backward through `mm`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from covey_export.blame import blamed
from covey_export.graph import Graph, closed
from covey_export.targets.executorch_passes import suit_executorch

MODEL = "executorch/model.pte"


def write(graphs: Mapping[str, Graph], folder: Path) -> dict[str, str]:
    """Write `executorch/model.pte`."""
    (folder / "executorch").mkdir(parents=True, exist_ok=True)
    with (folder / MODEL).open("wb") as stream:
        lower(graphs).write_to_file(stream)
    return {"model": MODEL}


def lower(graphs: Mapping[str, Graph]) -> Any:
    """ExecuTorch's program manager for these graphs, one method a role."""
    from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge

    from covey_export.targets.executorch_partition import InOrder, just_in_time

    suited = {role: suit_executorch(graph) for role, graph in graphs.items()}
    programs = {role: torch.export.export(closed(graph), graph.examples) for role, graph in suited.items()}
    with blamed("ExecuTorch cannot hold this model's graphs"):
        edge = to_edge(programs, compile_config=EdgeCompileConfig(
            _check_ir_validity=False, _skip_dim_order=True, preserve_ops=[torch.ops.aten.linear.default],
        ))  # fmt: skip
        return edge.to_backend(InOrder()).to_executorch(ExecutorchBackendConfig(passes=[just_in_time]))
