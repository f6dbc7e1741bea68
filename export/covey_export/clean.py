"""All rewrites of a traced graph that every runtime gains from, in order."""

from collections.abc import Callable

from covey_export.cross_entropy import chunked_loss
from covey_export.graph import Graph
from covey_export.passes import (
    drop_noops,
    drop_unused,
    fold_constants,
    halves,
    late_expand,
    normalise,
    permutes,
    powers,
    share_constants,
    share_nodes,
)  # fmt: skip
from covey_export.products import add_in_product, short_silu, small_full

PASSES: tuple[Callable[[Graph], None], ...] = (
    normalise, drop_noops, fold_constants, share_constants, drop_noops, powers, late_expand, halves, permutes,
    share_nodes, small_full, share_nodes, short_silu, chunked_loss, add_in_product, permutes, share_nodes,
)  # fmt: skip


def clean(graph: Graph) -> Graph:
    """Apply them all."""
    for rewrite in PASSES:
        rewrite(graph)
        graph.module.graph.eliminate_dead_code()
    drop_unused(graph)
    graph.module.graph.lint()
    graph.module.recompile()
    return graph
