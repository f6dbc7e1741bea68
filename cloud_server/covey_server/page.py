"""The status as one HTML page without scripts: names come from strangers, so everything is escaped."""

from collections.abc import Iterable
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
    rows = (
        (c["client"], c["runtime"], c["updates"], _loss(c["first_evaluation"]), _loss(c["last_evaluation"]),
         f"{c['up']:,}", f"{c['down']:,}")
        for c in status["clients"]
    )  # fmt: skip
    return _table(("device", "runtime", "updates", "loss at first", "loss now", "bytes up", "bytes down"), rows)


def _versions(status: dict[str, Any]) -> str:
    rows = (
        (v["version"], v["updates"], f"{v['step_bytes']:,}", _number(v["loss"]), v["evaluated_by"])
        for v in reversed(status["history"])
    )
    return _table(("version", "updates", "step bytes", "held-out loss", "devices"), rows)


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    cells = "".join(f"<th>{escape(name)}" for name in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(value))}" for value in row) for row in rows)
    return f"<table><tr>{cells}{body}</table>"


def _loss(point: dict[str, Any] | None) -> str:
    return _number(point["loss"] if point else None)


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
