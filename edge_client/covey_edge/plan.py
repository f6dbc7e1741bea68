"""What a device does next: a pure function of what it holds and what the server said. No sockets, files or clocks."""

from collections.abc import Set
from typing import NamedTuple

from covey_shared.messages import Assignment


class Fetch(NamedTuple):
    """Come to this version of the adapter."""

    version: int


class Evaluate(NamedTuple):
    """Measure the held-out loss of the version that is held, and report it."""

    version: int


class Train(NamedTuple):
    """Train the version that is held for this round, encode the change and keep it as pending."""

    round: int
    attempt: int
    version: int
    deadline_s: float
    cohort: int = 0


class Upload(NamedTuple):
    """Send what is pending until the server has acknowledged or refused it."""


class Wait(NamedTuple):
    """Do nothing for a while."""

    seconds: float


class Finish(NamedTuple):
    """The end."""


class CheckIn(NamedTuple):
    """Ask the server what to do."""


Action = Fetch | Evaluate | Train | Upload | Wait | Finish | CheckIn


class View(NamedTuple):
    """What decisions depend on: the version held (-1 = none), versions evaluated, whether an update is pending.

    `uploaded` counts the updates acknowledged since this process started.
    """

    held: int
    evaluated: Set[int]
    pending: bool
    uploaded: int


class Wishes(NamedTuple):
    """What the person asked for: evaluate every so many versions (0 = only the first and the last), one round only."""

    eval_every: int = 1
    once: bool = False


def before_check_in(view: View, wishes: Wishes) -> tuple[Action, ...]:
    """An unacknowledged update goes first: the server counts it, or says why not, before it gives new work."""
    if view.pending:
        return (Upload(),)
    return (Finish(),) if wishes.once and view.uploaded else (CheckIn(),)


def after_check_in(view: View, assignment: Assignment, wishes: Wishes) -> tuple[Action, ...]:
    """The server's word as a list of actions; when it is done, the device checks in again."""
    if assignment.action == "wait":
        return (Wait(max(0.0, assignment.retry_after_s)),)
    version = assignment.version
    actions: list[Action] = []
    if 0 not in view.evaluated:
        actions += [*_come_to(view.held, 0), Evaluate(0)]
        view = view._replace(held=0, evaluated={*view.evaluated, 0})
    actions += _come_to(view.held, version)
    if assignment.action == "done":
        return (*actions, *_score(view, version, wanted=True), Finish())
    due = wishes.eval_every > 0 and version % wishes.eval_every == 0
    train = Train(assignment.round, assignment.attempt, version, assignment.deadline_s, assignment.cohort)
    return (*actions, *_score(view, version, wanted=due), train, Upload())


def _come_to(held: int, version: int) -> list[Action]:
    return [] if held == version else [Fetch(version)]


def _score(view: View, version: int, *, wanted: bool) -> list[Action]:
    return [Evaluate(version)] if wanted and version not in view.evaluated else []
