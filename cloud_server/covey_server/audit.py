"""What operators did, and when: a list that grows, each entry with a hash over itself and the one before.

An entry is written in the transaction of what it tells of, so there is never one without the other. Who can write the
run's folder can rewrite the list, all of it; who keeps the newest `chain` elsewhere notices. Secrets are never in it:
codes and tokens are named by their labels, or by the first digits of their hash.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Sequence
from typing import Concatenate, NamedTuple, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
FIRST = "0" * 64  # what comes before the first entry
MOST_SHOWN = 1000


class Entry(NamedTuple):
    """`time` in Unix seconds; `who` a token's label, or who sat at the server's machine; what they `did`, to `what`."""

    number: int
    time: float
    who: str
    did: str
    what: str
    chain: str


def record(db: sqlite3.Connection, who: str, did: str, what: str, now: float) -> None:
    """Add an entry."""
    last = db.execute("SELECT number, chain FROM audit ORDER BY number DESC LIMIT 1").fetchone()
    number, before = last or (0, FIRST)
    entry = Entry(number + 1, now, who, did, what, "")
    db.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?, ?)", (*entry[:-1], chained(entry, before)))


def recorded(
    work: Callable[Concatenate[sqlite3.Connection, P], T], who: str, did: str, what: str, now: float
) -> Callable[Concatenate[sqlite3.Connection, P], T]:
    """A piece of a transaction that leaves an entry if it succeeds."""

    def both(db: sqlite3.Connection, /, *args: P.args, **kwargs: P.kwargs) -> T:
        result = work(db, *args, **kwargs)
        record(db, who, did, what, now)
        return result

    return both


def entries(db: sqlite3.Connection, most: int = MOST_SHOWN) -> list[Entry]:
    """The newest entries, oldest first."""
    rows = db.execute("SELECT number, time, who, did, what, chain FROM audit ORDER BY number DESC LIMIT ?", (most,))
    return [Entry(*row) for row in rows][::-1]


def broken(found: Sequence[Entry], most: int = MOST_SHOWN) -> int | None:
    """The number of the first entry that was changed, or before which one is missing; None where all hold.

    Where there are `most`, the first of them is believed: what came before it is not shown.
    """
    number, chain = 0, FIRST
    for place, entry in enumerate(found):
        believed = place == 0 and len(found) == most
        if not believed and (entry.number != number + 1 or entry.chain != chained(entry, chain)):
            return entry.number
        number, chain = entry.number, entry.chain
    return None


def chained(entry: Entry, before: str) -> str:
    """The hash of an entry and of the chain before it."""
    return hashlib.sha256(json.dumps([before, *entry[:-1]]).encode()).hexdigest()
