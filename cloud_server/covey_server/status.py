"""The run as plain data for people and dashboards: where it stands, devices, bytes, held-out loss by version."""

import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from covey_server import engine, store
from covey_server.regroup import members
from covey_server.store import TrafficRow
from covey_server.traffic import UNNAMED, merged

if TYPE_CHECKING:
    from covey_server.aggregator import Aggregator


async def report(aggregator: "Aggregator") -> dict[str, Any]:
    """The whole status, ready for JSON. Losses are in nats per token; a loss that nobody reported is null."""
    run, state = aggregator.run, aggregator.state
    clients, history, saved = await run.db.do(_read)
    now_s = time.monotonic()
    traffic = merged(saved, aggregator.traffic.rows())
    of_device = _by(lambda row: row.client, traffic)
    return {
        "task": run.task.task.name,
        "model": run.bundle.manifest.model,
        "bundle": run.bundle.digest,
        "layout": run.layout.digest,
        "entries": run.divided.division.top.size,
        "state": "done" if state.phase == engine.DONE else "running",
        "paused": aggregator.control.paused,
        "pinned": aggregator.control.pinned,
        "version": state.version,
        "rounds": aggregator.last,
        "mode": run.task.round.mode,
        "round": run.machine.facts(state, now_s),
        "clients": [
            {**row, "seen_s": _ago(aggregator.seen.get(row["client"]), now_s), **_bytes(of_device[row["client"]])}
            for row in clients
        ],
        "bytes": {
            **_bytes(traffic),
            "unnamed_down": sum(row.down for row in of_device[UNNAMED]),
            "routes": {name: _bytes(rows) for name, rows in _by(lambda row: row.route, traffic).items()},
        },
        "dense_bytes": 4 * run.divided.division.top.size,
        "cohorts": members(aggregator.server.cohorts),
        "sharing": run.divided.division.described(),
        "history": history,
    }


def _read(db: sqlite3.Connection) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[TrafficRow]]:
    """Devices, versions and traffic at one instant."""
    losses, own = (_losses(db, table) for table in store.EVALUATIONS.values())
    devices = [_device(row, losses[row[0]], own[row[0]]) for row in db.execute(_DEVICES)]
    return devices, _history(db), store.traffic(db)


def _losses(db: sqlite3.Connection, table: str) -> dict[str, list[tuple[int, float]]]:
    """(version, held-out loss) of each device, oldest first."""
    out: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for client, version, loss in db.execute(f"SELECT client, version, loss_sum / tokens FROM {table} ORDER BY version"):
        out[client].append((version, loss))
    return out


_DEVICES = """
SELECT c.client, c.runtime, c.examples, count(u.round), max(u.round),
       (SELECT loss_after FROM updates WHERE client = c.client ORDER BY round DESC LIMIT 1), total(u.seconds)
FROM clients c LEFT JOIN updates u ON u.client = c.client GROUP BY c.client ORDER BY c.client
"""


def _device(row: Any, losses: list[tuple[int, float]], own: list[tuple[int, float]]) -> dict[str, Any]:
    """One device; `losses` and, with what it keeps to itself, `own` are (version, held-out loss), oldest first."""
    keys = ("client", "runtime", "examples", "updates", "last_round", "training_loss", "training_s")
    ends = {"first": losses[:1], "last": losses[-1:], "personal": own[-1:]}
    return {**dict(zip(keys, row, strict=True)), **{f"{k}_evaluation": _point(*p) for k, p in ends.items()}}


def _point(point: tuple[int, float] | None = None) -> dict[str, Any] | None:
    return {"version": point[0], "loss": point[1]} if point else None


def _history(db: sqlite3.Connection) -> list[dict[str, Any]]:
    """Each version with the held-out loss over all devices, every token counting once."""
    query = "SELECT version, sum(loss_sum), sum(tokens), sum(correct), count(*) FROM {} GROUP BY version"
    seen = {row[0]: row[1:] for row in db.execute(query.format("evaluations"))}
    own = {row[0]: row[1:] for row in db.execute(query.format("personal_evaluations"))}
    ages = {version: {"staleness": mean, "staleness_max": most} for version, mean, most in db.execute(_AGES)}
    fresh = {"staleness": 0.0, "staleness_max": 0}
    return [
        {
            **_version(row, *seen.get(row.version, (None, 0, 0, 0))),
            **ages.get(row.version, fresh),
            **_personal(*own.get(row.version, (None, 0, 0, 0))),
        }
        for row in store.versions(db)
    ]


_AGES = """
SELECT counted_in, avg(counted_in - 1 - version), max(counted_in - 1 - version) FROM updates GROUP BY counted_in
"""


def _version(row: store.VersionRow, loss_sum: float | None, tokens: int, correct: int, clients: int) -> dict[str, Any]:
    return {
        "version": row.version,
        "updates": row.updates,
        "step_bytes": row.step_bytes,
        "digest": row.digest,
        "created": row.created,
        "loss": None if loss_sum is None else loss_sum / tokens,
        "accuracy": correct / tokens if tokens else None,
        "tokens": tokens,
        "evaluated_by": clients,
    }


def _personal(loss_sum: float | None, tokens: int, correct: int, clients: int) -> dict[str, Any]:
    """What devices measured with their own tensors; none where nothing is personal."""
    return {
        "personal_loss": None if loss_sum is None else loss_sum / tokens,
        "personal_accuracy": correct / tokens if tokens else None,
        "personal_evaluated_by": clients,
    }


def _by(key: Callable[[TrafficRow], str], traffic: list[TrafficRow]) -> dict[str, list[TrafficRow]]:
    groups: dict[str, list[TrafficRow]] = defaultdict(list)
    for row in traffic:
        groups[key(row)].append(row)
    return groups


def _bytes(rows: list[TrafficRow]) -> dict[str, int]:
    """Bodies up and down, and of those what carried updates and adapters."""
    return {
        "up": sum(row.up for row in rows),
        "down": sum(row.down for row in rows),
        "update_up": sum(row.up for row in rows if row.route == "update"),
        "adapter_down": sum(row.down for row in rows if row.route == "adapter"),
    }


def _ago(then: float | None, now_s: float) -> float | None:
    return None if then is None else now_s - then
