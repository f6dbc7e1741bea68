"""From the accepted updates on disk to the next version: the same bits whenever and however often it is done.

A function of the run's recipe, of the server's state and of the rows in their order, so a server that was killed makes
the same version again, and a test can replay a whole run.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from covey_server import access, recipe
from covey_server.defence import guarded
from covey_server.recipe import ServerState
from covey_server.regroup import Grouping, aligned, cohort_of, copied, inherited, regrouped
from covey_server.run import Run
from covey_server.store import UpdateRow
from covey_shared.entries import Entries
from covey_shared.errors import CodecError, UsageError
from covey_shared.layout import Vector
from covey_shared.messages import Step
from covey_shared.sharing import Division


def next_version(run: Run, server: ServerState, rows: Sequence[UpdateRow]) -> tuple[ServerState, Step]:
    """The version that counts `rows`, and its step. Folds in the order of the rows, one update in memory."""
    divided = run.divided
    start = divided.whole(server.view, server.version + 1)
    change = divided.down(recipe.fold_weighted(run.recipe.strategy, start, weighed(run, server, rows)))
    if run.grouping and (server.version + 1) % run.grouping.every == 0:
        names, changes = [row.client for row in rows], [run.decoded(row)[0].dense() for row in rows]
        server, change = grouped(divided.division, run.grouping, server, change, names, changes)
    try:
        return recipe.advance(run.recipe, server, change)
    except CodecError as error:
        raise UsageError(
            f"round {server.version + 1} cannot be published, {error}; start a new run with a lower "
            "[server] learning_rate"
        ) from None


def grouped(
    division: Division, grouping: Grouping, server: ServerState, change: Vector, names: Sequence[str],
    changes: Sequence[Vector],
) -> tuple[ServerState, Vector]:  # fmt: skip
    """The state with devices grouped by this round's updates, and cohorts that begin as copies of others.

    `change` is the mean of what is published, `changes` what the devices of these names sent.
    """
    layout = division.uploaded(server.version + 1)
    after = regrouped(grouping, server.cohorts, names, [aligned(layout, sent) for sent in changes])
    sources = inherited(grouping, server.cohorts, after, names)
    w, view = copied(division, server.w, sources), server.view
    return dataclasses.replace(server, w=w, view=view, cohorts=after), copied(division, change, sources)


def weighed(run: Run, server: ServerState, rows: Sequence[UpdateRow]) -> Iterator[tuple[Entries, float]]:
    """The updates with what each weighs, bounded as the task's [defence] says."""
    weights = [run.recipe.strategy.weigh(row.examples) for row in rows]
    devices = [row.client for row in rows]
    bounds = run.task.defence
    cohorts = [cohort_of(run.grouping, server.cohorts, name) for name in devices]
    labels = run.db.run(access.issuers) if bounds.issuer_share < 1 else {}
    issuers = [f"label {labels[name]}" if name in labels else f"device {name}" for name in devices]
    return guarded(bounds, lambda: map(run.update, rows, cohorts), weights, devices, issuers)
