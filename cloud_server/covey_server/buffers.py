"""Asynchronous buffers, as the other table of the engine: FedBuff (Nguyen et al. 2022, arXiv 2106.06639).

              CheckedIn        UpdateAccepted     Tick      Published
    open      assign or wait   count, may close   nothing   -
    closing   wait a moment    count              nothing   the next buffer (may close at once), or done
    done      go home          nothing            nothing   -

Nobody waits for anybody: a device takes the newest version whenever it asks, and uploads when it is ready. Each
`buffer` accepted updates are folded into the next version, whatever versions they started from. An update's staleness
is the number of versions that were published since then; one beyond `max_staleness` is refused, staler ones weigh less.

A device has one assignment at a time. Its number, `round` on the wire, is never given twice, so an update is known by
(round, client) whatever happens. Updates that come while a version is made wait in the next buffer, which the store
says: the number of a buffer is decided in the transaction that counts the update.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, NamedTuple

from covey_server import engine
from covey_server.engine import (
    CLOSING,
    DONE,
    OPEN,
    Assign,
    CheckedIn,
    CloseRound,
    Done,
    Event,
    Machine,
    Outcome,
    Published,
    Refuse,
    Table,
    UpdateAccepted,
    Wait,
)

BRIEF_S = 0.2  # until the next version, usually: it is better to wait for it than to train the one before


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How versions are made: `buffer` updates each, at most `max_staleness` versions old.

    At most `concurrency` devices train at a time (0: any number); one that has not delivered after `deadline_s` gives
    its place to another and may deliver all the same. `rounds` is the number of versions.
    """

    rounds: int
    buffer: int
    max_staleness: int
    concurrency: int
    deadline_s: float
    retry_s: float


class Flight(NamedTuple):
    """A device's open assignment; it holds a place until `until_s`."""

    round: int
    version: int
    until_s: float = inf


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Where a task stands. `counts`: updates of the version that is being made, and of those after it.

    `flights`: the open assignment of each device, as long as its update would be taken. `issued`: the highest number
    of an assignment.
    """

    phase: str
    version: int
    counts: tuple[int, ...] = ()
    flights: Mapping[str, Flight] = field(default_factory=dict)
    issued: int = 0

    @property
    def round(self) -> int:
        """The version that is being made."""
        return self.version + 1

    @property
    def gathered(self) -> int:
        """Updates of the version that is being made."""
        return self.counts[0] if self.counts else 0


class Saved(NamedTuple):
    """What a store knows of a run when its server starts. `frozen`: the next version had begun to be made."""

    version: int
    counts: tuple[int, ...]
    frozen: bool
    flights: Mapping[str, Flight]
    issued: int


def resumed(rules: Rules, saved: Saved, now_s: float) -> Outcome:
    """The state after a restart. Devices in flight keep their places: the time without a server is not their fault."""
    flights = {client: flight._replace(until_s=now_s + rules.deadline_s) for client, flight in saved.flights.items()}
    state = State(phase=OPEN, version=saved.version, counts=saved.counts, flights=flights, issued=saved.issued)
    return _settle(rules, state, frozen=saved.frozen)


def _settle(rules: Rules, state: State, *, frozen: bool = False) -> Outcome:
    """The phase that follows from the counts."""
    if state.version >= rules.rounds:
        return replace(state, phase=DONE, flights={}), ()
    if frozen or state.gathered >= rules.buffer:
        return replace(state, phase=CLOSING), (CloseRound(state.round),)
    return replace(state, phase=OPEN), ()


def _offer(rules: Rules, state: State, event: CheckedIn) -> Outcome:
    """The assignment that the device has; else one of the newest version, if there is room."""
    client, now_s = event
    flight = state.flights.get(client)
    if flight is None:
        if rules.concurrency and _training(state, now_s) >= rules.concurrency:
            return state, (Wait(client, rules.retry_s),)
        flight = Flight(state.issued + 1, state.version)
    flight = flight._replace(until_s=now_s + rules.deadline_s)
    state = replace(state, flights={**state.flights, client: flight}, issued=max(state.issued, flight.round))
    return state, (Assign(client, flight.round, 0, flight.version, rules.deadline_s),)


def _training(state: State, now_s: float) -> int:
    return sum(flight.until_s > now_s for flight in state.flights.values())


def staleness(state: State, version: int) -> int:
    """How old `version` will be in the version that is being made, or in the next if that one's set is final."""
    return state.version + (state.phase == CLOSING) - version


def _hold(rules: Rules, state: State, event: CheckedIn) -> Outcome:
    return state, (Wait(event.client, min(BRIEF_S, rules.retry_s)),)


def _count(rules: Rules, state: State, event: UpdateAccepted) -> Outcome:
    state = _counted(state, event)
    return _settle(rules, state)


def _count_late(rules: Rules, state: State, event: UpdateAccepted) -> Outcome:
    return _counted(state, event), ()


def _counted(state: State, event: UpdateAccepted) -> State:
    """The update in its buffer, and its device free for the next assignment. Of a published version: nothing."""
    place = event.counted_in - state.version - 1
    if place < 0:
        return state
    counts = [*state.counts, *[0] * (place + 1 - len(state.counts))]
    counts[place] += 1
    flight = state.flights.get(event.client)
    landed = flight is not None and flight.round == event.round
    flights = {c: f for c, f in state.flights.items() if not (landed and c == event.client)}
    return replace(state, counts=tuple(counts), flights=flights)


def _next(rules: Rules, state: State, event: Published) -> Outcome:
    """The next buffer, with what came meanwhile; assignments that have become too old are forgotten."""
    oldest = event.version - rules.max_staleness
    flights = {client: flight for client, flight in state.flights.items() if flight.version >= oldest}
    return _settle(rules, replace(state, version=event.version, counts=state.counts[1:], flights=flights))


def _send_home(rules: Rules, state: State, event: CheckedIn) -> Outcome:
    return state, (Done(event.client, state.version),)


def _nothing(rules: Rules, state: State, event: Event) -> Outcome:
    return state, ()


TABLE: Table = {
    (OPEN, engine.CheckedIn): _offer,
    (OPEN, engine.UpdateAccepted): _count,
    (OPEN, engine.Tick): _nothing,
    (CLOSING, engine.CheckedIn): _hold,
    (CLOSING, engine.UpdateAccepted): _count_late,
    (CLOSING, engine.Tick): _nothing,
    (CLOSING, engine.Published): _next,
    (DONE, engine.CheckedIn): _send_home,
    (DONE, engine.UpdateAccepted): _nothing,
    (DONE, engine.Tick): _nothing,
}


def step(rules: Rules, state: State, event: Event) -> Outcome:
    """The next state and what is to be done now."""
    return engine.step(TABLE, rules, state, event)


def admits(rules: Rules, state: State, client: str, round_: int, version: int) -> Refuse | None:
    """Whether an update may still count, apart from its content; None means yes."""
    if state.phase == DONE or (state.phase == CLOSING and state.round >= rules.rounds):
        return Refuse("late", "the task's last version is being made, or is; check in again")
    if version > state.version:
        return Refuse("wrong_version", f"version {version} does not exist, the newest is {state.version}")
    if (stale := staleness(state, version)) > rules.max_staleness:
        return too_stale(version, stale, rules.max_staleness)
    flight = state.flights.get(client)
    if flight is None or flight.round != round_:
        return Refuse("not_assigned", f"device {client} has no assignment {round_}; check in first")
    if flight.version != version:
        return Refuse(
            "wrong_version", f"assignment {round_} trains version {flight.version}, the update starts from {version}"
        )
    return None


def too_stale(version: int, stale: int, most: int) -> Refuse:
    """The refusal of an update that comes too late to be of use."""
    return Refuse(
        "stale", f"the update starts from version {version}, {stale} behind the one that is being made, at most {most} "
        "are taken; check in again and fetch the newest"
    )  # fmt: skip


def facts(rules: Rules, state: State, now_s: float) -> dict[str, Any]:
    """What a status page says of the buffer."""
    return {
        "number": min(state.round, rules.rounds),
        "phase": state.phase,
        "attempt": 0,
        "assigned": sorted(state.flights),
        "accepted": [],
        "gathered": state.gathered,
        "target": rules.buffer,
        "minimum": rules.buffer,
        "deadline_s": None,
    }


def machine(rules: Rules, saved: Saved) -> Machine:
    """Buffers that go on from what was saved."""
    return Machine(
        resumed=lambda now_s: resumed(rules, saved, now_s),
        step=lambda state, event: step(rules, state, event),
        admits=lambda state, client, round_, version: admits(rules, state, client, round_, version),
        facts=lambda state, now_s: facts(rules, state, now_s),
    )
