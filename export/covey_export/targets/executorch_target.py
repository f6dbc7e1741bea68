"""The `executorch` target: one `model.pte` with the methods train, eval and forward, lowered to XNNPACK.

The methods share their weights, and each frozen weight is stored once: XNNPACK takes it as it is, forward through
`linear` and backward through `mm`.

What XNNPACK can take is told by its exporter's rules, which its runtime does not always keep to. So there are three
ways to share the graphs out, and a program that does not load, or computes something else, is written in the next one.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from covey_export.blame import blamed
from covey_export.graph import Graph, closed
from covey_export.targets.executorch_passes import suit_executorch

MODEL = "executorch/model.pte"


Lower = Callable[[Mapping[str, Any]], Any]


def write(graphs: Mapping[str, Graph], folder: Path, share: Lower | None = None) -> dict[str, str]:
    """Write `executorch/model.pte`; `share` gives operators to XNNPACK, and is `in_parts` if there is none."""
    (folder / "executorch").mkdir(parents=True, exist_ok=True)
    with (folder / MODEL).open("wb") as stream:
        lower(graphs, share or in_parts).write_to_file(stream)
    return {"model": MODEL}


def lower(graphs: Mapping[str, Graph], share: Lower) -> Any:
    """ExecuTorch's program manager for these graphs, one method a role."""
    from executorch.exir import ExecutorchBackendConfig

    from covey_export.targets.executorch_partition import just_in_time

    suited = {role: suit_executorch(graph) for role, graph in graphs.items()}
    programs = {role: torch.export.export(closed(graph), graph.examples) for role, graph in suited.items()}
    with blamed("ExecuTorch cannot hold this model's graphs"):
        return share(programs).to_executorch(ExecutorchBackendConfig(passes=[just_in_time]))


def in_parts(programs: Mapping[str, Any]) -> Any:
    """Parts of our own: few, and each weight once."""
    from executorch.exir import EdgeCompileConfig, to_edge

    from covey_export.targets.executorch_partition import InOrder

    config = EdgeCompileConfig(
        _check_ir_validity=False, _skip_dim_order=True, preserve_ops=[torch.ops.aten.linear.default]
    )
    return to_edge(dict(programs), compile_config=config).to_backend(InOrder())


def as_executorch_does(programs: Mapping[str, Any]) -> Any:
    """ExecuTorch's own parts: many, and products' weights packed."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner

    return _lowered(programs, [XnnpackPartitioner(force_fp32_dynamic_linear=True)])


def without_xnnpack(programs: Mapping[str, Any]) -> Any:
    """ExecuTorch's portable kernels alone: slow, and always there."""
    return _lowered(programs, [])


def _lowered(programs: Mapping[str, Any], partitioners: list[Any]) -> Any:
    from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower

    config = EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True)
    return to_edge_transform_and_lower(dict(programs), partitioner=partitioners, compile_config=config)


WAYS = (write, partial(write, share=as_executorch_does), partial(write, share=without_xnnpack))
