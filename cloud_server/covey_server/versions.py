"""From the accepted updates on disk to the next version: the same bits whenever and however often it is done.

A function of the run's recipe, of the server's state and of the rows in their order, so a server that was killed makes
the same version again, and a test can replay a whole run.
"""

import dataclasses
from collections.abc import Iterator, Sequence

from covey_server import recipe
from covey_server.defence import Defence, guarded
from covey_server.recipe import ServerState
from covey_server.run import Run
from covey_server.store import UpdateRow
from covey_shared.entries import Entries
from covey_shared.errors import CodecError, UsageError
from covey_shared.messages import Step


def next_version(run: Run, server: ServerState, rows: Sequence[UpdateRow]) -> tuple[ServerState, Step]:
    """The version that counts `rows`, and its step. Folds in the order of the rows, one update in memory."""
    divided = run.divided
    start = divided.whole(server.view, server.version + 1)
    change = recipe.fold_weighted(run.recipe.strategy, start, weighed(run, rows))
    try:
        return recipe.advance(run.recipe, server, divided.down(change))
    except CodecError as error:
        raise UsageError(
            f"round {server.version + 1} cannot be published, {error}; start a new run with a lower "
            "[server] learning_rate"
        ) from None


def weighed(run: Run, rows: Sequence[UpdateRow]) -> Iterator[tuple[Entries, float]]:
    """The updates with what each weighs, bounded as the task's [defence] says."""
    weights = [run.recipe.strategy.weigh(row.examples) for row in rows]
    devices = [row.client for row in rows]
    bounds = Defence(**dataclasses.asdict(run.task.defence))
    return guarded(bounds, lambda: map(run.update, rows), weights, devices, devices)
