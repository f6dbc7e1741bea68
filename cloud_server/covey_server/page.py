"""The status as one HTML page without scripts: names come from strangers, so everything is escaped."""

from collections.abc import Callable, Collection, Iterable, Sequence
from html import escape
from typing import Any

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Refresh": "5",
}

STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse;margin:1rem 0}"
    "td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child{text-align:left}"
)


Column = tuple[str, Callable[[dict[str, Any]], object]]  # a heading, and what of an item stands under it


def render(status: dict[str, Any]) -> str:
    """The page for a status report."""
    round_ = status["round"]
    head = f"{status['task']}: {status['state']}, version {status['version']} of {status['rounds']}"
    now = (
        f"all {status['rounds']} rounds are done"
        if round_["phase"] == "done"
        else f"round {round_['number']} is {round_['phase']}: {round_['gathered']} of {round_['target']} updates, "
        f"{len(round_['assigned'])} devices assigned"
    )
    sent = status["bytes"]
    return (
        f"<!doctype html><meta charset=utf-8><title>{escape(head)}</title><style>{STYLE}</style>"
        f"<h1>{escape(head)}</h1><p>{escape(now)}<p>model {escape(status['model'])}, bundle {status['bundle'][:12]}, "
        f"{status['entries']:,} entries; {sent['up']:,} bytes up, {sent['down']:,} bytes down"
        f"<p>Join with <code>covey join URL --data FOLDER</code>{_devices(status)}{_versions(status)}"
    )


def _devices(status: dict[str, Any]) -> str:
    """Cohorts and devices' own losses are columns where there are any."""
    columns: list[Column] = [
        ("device", lambda c: c["client"]),
        ("runtime", lambda c: c["runtime"]),
        ("updates", lambda c: c["updates"]),
        ("loss at first", lambda c: _loss(c["first_evaluation"])),
        ("loss now", lambda c: _loss(c["last_evaluation"])),
        ("own loss now", lambda c: _loss(c["personal_evaluation"])),
        ("cohort", lambda c: status["cohorts"].get(c["client"], "")),
        ("bytes up", lambda c: f"{c['up']:,}"),
        ("bytes down", lambda c: f"{c['down']:,}"),
    ]
    return _table(columns, status["clients"], optional=("own loss now", "cohort"))


def _versions(status: dict[str, Any]) -> str:
    """Everybody's model and devices' own side by side, where devices keep something to themselves."""
    columns: list[Column] = [
        ("version", lambda v: v["version"]),
        ("updates", lambda v: v["updates"]),
        ("step bytes", lambda v: f"{v['step_bytes']:,}"),
        ("held-out loss", lambda v: _number(v["loss"])),
        ("own loss", lambda v: _number(v["personal_loss"])),
        ("accuracy", lambda v: _number(v["accuracy"])),
        ("own accuracy", lambda v: _number(v["personal_accuracy"])),
        ("devices", lambda v: v["evaluated_by"]),
    ]
    return _table(columns, list(reversed(status["history"])), optional=("own loss", "own accuracy"))


def _table(columns: Iterable[Column], items: Sequence[dict[str, Any]], optional: Collection[str]) -> str:
    """A row for each item; of the optional columns those that say something."""
    shown = [(name, of) for name, of in columns if name not in optional or any(of(item) != "" for item in items)]
    return _cells((name for name, _ in shown), ([of(item) for _, of in shown] for item in items))


def _cells(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    cells = "".join(f"<th>{escape(name)}" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(value))}" for value in row) for row in rows)
    return f"<table><tr>{cells}{body}</table>"


def _loss(point: dict[str, Any] | None) -> str:
    return _number(point["loss"] if point else None)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
