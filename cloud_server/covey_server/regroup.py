"""When devices are grouped anew, and what a cohort that begins starts from. Pure.

Who is where is part of the server's state: it is stored with the version from which it holds, so a server that was
killed in the middle of a round goes on with the same groups.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from covey_server.cohorts import Cohorts, cluster
from covey_shared.errors import TaskFileError
from covey_shared.layout import Layout, Vector
from covey_shared.schema import Scalar
from covey_shared.sharing import COHORT, Division


class Grouping(NamedTuple):
    """How a task groups its devices: every so many versions, with this hysteresis, size and pins (name to cohort)."""

    cohorts: int
    every: int
    margin: float
    smallest: int
    pins: Mapping[str, int]


def grouping_of(args: Mapping[str, Scalar]) -> Grouping:
    """From the arguments of strategy `cohorts`; raises TaskFileError for a pin that names no cohort."""
    count, pins = int(args["count"]), {}
    for pin in str(args["pins"]).split():
        name, _, number = pin.partition("=")
        if not name or not number.isdecimal() or int(number) >= count:
            raise TaskFileError(f"[strategy] pins has {pin!r}; write DEVICE=COHORT with a cohort from 0 to {count - 1}")
        pins[name] = int(number)
    return Grouping(count, int(args["every"]), float(args["margin"]), int(args["smallest"]), pins)


def members(state: Any) -> dict[str, int]:
    """Who is where, from a server's state; nobody before the first grouping, which is cohort 0."""
    return dict(state["member"]) if state else {}


def cohort_of(grouping: Grouping | None, state: Any, client: str) -> int:
    """A device's cohort: where it is pinned, else where it was put, else the first."""
    return grouping.pins.get(client, members(state).get(client, 0)) if grouping else 0


def regrouped(grouping: Grouping, state: Any, names: Sequence[str], changes: Sequence[Vector]) -> Any:
    """The state with devices grouped by their changes, float32 [n] each; all of them are in memory for it."""
    before = None
    if state:
        before = Cohorts(members(state), np.stack([c.astype(np.float64) for c in state["centres"]]))
    found = cluster(
        names, np.stack(changes).astype(np.float64), grouping.cohorts, before,
        margin=grouping.margin, smallest=grouping.smallest, pinned=grouping.pins,
    )  # fmt: skip
    return {"member": found.member, "centres": [c.astype(np.float32) for c in found.centres]}


def inherited(grouping: Grouping, before: Any, after: Any, names: Sequence[str]) -> dict[int, int]:
    """For each cohort that nobody was in and somebody is now: the one that most of its devices come from."""
    known = {*members(before).values(), *grouping.pins.values(), *([] if before else [0])}
    out = {}
    for cohort in sorted({cohort_of(grouping, after, name) for name in names} - known):
        came = [cohort_of(grouping, before, name) for name in names if cohort_of(grouping, after, name) == cohort]
        out[cohort] = max(sorted(set(came)), key=came.count)
    return out


def copied(division: Division, vector: Vector, sources: Mapping[int, int]) -> Vector:
    """A published vector in which some cohorts' copies are those of others."""
    out, layout = vector.copy(), division.published
    own = [t.name for t in division.adapter.tensors if division.label(t) == COHORT]
    slices = {tensor.name: where for tensor, where in layout.slices()}
    for target, source in sources.items():
        for name in own:
            out[slices[f"{COHORT}{target}.{name}"]] = vector[slices[f"{COHORT}{source}.{name}"]]
    return out


def aligned(layout: Layout, entries: Vector) -> Vector:
    """A change as it is compared: each tensor to unit length, so that one with large steps does not decide alone."""
    out = np.zeros_like(entries)
    for _, where in layout.slices():
        size = float(np.linalg.norm(entries[where]))
        out[where] = entries[where] / np.float32(size) if size else 0
    return out
