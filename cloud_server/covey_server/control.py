"""What an operator and a publisher change while a run is served, kept in the run so that it survives a restart."""

import asyncio
import sqlite3
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from covey_server import store
from covey_server.publish import point_latest
from covey_server.refusals import Refused

if TYPE_CHECKING:
    from covey_server.aggregator import Aggregator

PAUSED, PINNED = "paused", "pinned"
WAIT_S = 10.0  # that devices are told to wait while a run is paused
CROWD_S = 60.0  # devices that asked within this time are expected again
CHECK_INS_PER_S = 200.0  # that waiting devices are spread to


Save = Callable[[sqlite3.Connection, "Control"], None]


class Control(NamedTuple):
    """`paused`: nobody is given work. `pinned`: the version that `latest` names, None for the newest."""

    paused: bool = False
    pinned: int | None = None


def load(db: sqlite3.Connection) -> Control:
    """As it was left."""
    meta = store.get_meta(db)
    pinned = meta.get(PINNED, "")
    return Control(meta.get(PAUSED) == "1", int(pinned) if pinned else None)


def save(db: sqlite3.Connection, control: Control) -> None:
    """Keep it."""
    pinned = "" if control.pinned is None else str(control.pinned)
    store.set_meta(db, {PAUSED: "1" if control.paused else "", PINNED: pinned})


def pace(wait_s: float, crowd: int, draw: float) -> float:
    """How long a device waits that is one of `crowd`, so that all of them ask CHECK_INS_PER_S times a second at most.

    `draw` in [0, 1) spreads those that came together.

    >>> pace(1.0, 10, 0.5), pace(1.0, 100_000, 0.5)
    (1.0, 500.0)
    """
    spread_s = crowd / CHECK_INS_PER_S
    return wait_s if spread_s <= wait_s else spread_s * (0.5 + draw)


async def pause(aggregator: "Aggregator", paused: bool, save: Save) -> None:
    """Give nobody work from now on, or again; what is under way may finish."""
    await _change(aggregator, aggregator.control._replace(paused=paused), save)


async def pin(aggregator: "Aggregator", version: int | None, save: Save) -> None:
    """Let `latest` name this published version until told otherwise; None for the newest. Raises Refused."""
    folder = aggregator.publish_dir
    there = [v for v in range(aggregator.state.version + 1) if folder is not None and (folder / f"v{v}").is_dir()]
    target = version if version is not None else max(there, default=-1)
    if folder is None or target not in there:
        raise Refused("not_found", f"version {target} is not among the adapters that were published")
    await _change(aggregator, aggregator.control._replace(pinned=version), save)
    await asyncio.to_thread(point_latest, folder, target)


async def _change(aggregator: "Aggregator", new: Control, save: Save) -> None:
    await aggregator.run.db.do(save, new)
    aggregator.control = new
