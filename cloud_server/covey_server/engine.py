"""The round engine: a pure state machine. Events go in, decisions come out; it has no clock, no I/O and no randomness
of its own, so every order of events can be tried in memory.

    rule 1: whatever decides who trains, what counts and when a version is made stands in rounds.py and buffers.py
    rule 2: time enters only as `now_s` of an event, in seconds of any clock that does not go back
    rule 3: an event that a table does not list is a bug of the caller

Here is what both modes share: the words, and the machine. rounds.py is the synchronous table, buffers.py the
asynchronous one, and whoever drives them cannot tell them apart.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

OPEN, CLOSING, DONE = "open", "closing", "done"
SOON_S = 0.05  # the shortest wait that is handed out, so that nobody asks in a tight loop


class State(Protocol):
    """Where a task stands, as far as both modes say so. `round` is the version that is being made."""

    @property
    def phase(self) -> str:
        """OPEN: updates are gathered. CLOSING: a version is made of them. DONE: there is no next."""

    @property
    def round(self) -> int:
        """The version that is being made."""

    @property
    def version(self) -> int:
        """The newest version."""


class CheckedIn(NamedTuple):
    """A device offers itself."""

    client: str
    now_s: float


class UpdateAccepted(NamedTuple):
    """The update of a device for its assignment `round` is on disk, and part of version `counted_in`."""

    round: int
    client: str
    counted_in: int


class Tick(NamedTuple):
    """Time has passed."""

    now_s: float


class Published(NamedTuple):
    """The version that was being made is on disk and is the head."""

    version: int


class Assign(NamedTuple):
    """The device is to train `version` and upload for `round` within `deadline_s` seconds."""

    client: str
    round: int
    attempt: int
    version: int
    deadline_s: float


class Wait(NamedTuple):
    """The device is to ask again in `retry_after_s` seconds."""

    client: str
    retry_after_s: float


class Done(NamedTuple):
    """The task has ended with `version`."""

    client: str
    version: int


class CloseRound(NamedTuple):
    """Freeze the updates of version `round`, aggregate them, publish, and report with Published."""

    round: int


class ReopenRound(NamedTuple):
    """The round begins its next attempt; nothing is aggregated."""

    round: int
    attempt: int


class Refuse(NamedTuple):
    """Why an update is not taken: a stable code and a sentence."""

    code: str
    message: str


Event = CheckedIn | UpdateAccepted | Tick | Published
Decision = Assign | Wait | Done | CloseRound | ReopenRound
Outcome = tuple[Any, tuple[Decision, ...]]
Table = Mapping[tuple[str, type], Callable[[Any, Any, Any], Outcome]]


class Machine(NamedTuple):
    """A mode with its rules: the state after a restart, the next state, and whether an update may count.

    `resumed(now_s)` goes on from what the store knew. `admits(state, client, round, version)` is None for yes.
    `facts(state, now_s)` is what a status page says of the work on the next version.
    """

    resumed: Callable[[float], Outcome]
    step: Callable[[Any, Event], Outcome]
    admits: Callable[[Any, str, int, int], Refuse | None]
    facts: Callable[[Any, float], dict[str, Any]]


def step(table: Table, rules: Any, state: State, event: Event) -> Outcome:
    """The next state and what is to be done now."""
    handler = table.get((state.phase, type(event)))
    if handler is None:
        raise ValueError(f"the engine does not expect {type(event).__name__} while the round is {state.phase}")
    return handler(rules, state, event)
