"""Synchronous rounds, as one of the two tables of the engine.

              CheckedIn        UpdateAccepted     Tick              Published
    open      assign or wait   count, may close   may close, may    -
                                                  reopen, may draw
    closing   wait             count              nothing           open the next, or done
    done      go home          nothing            nothing           -

A round trains from the head version and closes when `target` updates are in, or at its deadline with at least
`minimum`. Below the minimum it is opened again, attempt + 1, on the same version, and keeps what it has. The deadline
runs from the first assignment, so a server without devices waits for ever.
"""

from dataclasses import dataclass, replace
from math import inf
from typing import Any, NamedTuple

from covey_server import engine
from covey_server.engine import (
    CLOSING,
    DONE,
    OPEN,
    SOON_S,
    Assign,
    CheckedIn,
    CloseRound,
    Done,
    Event,
    Machine,
    Outcome,
    Published,
    Refuse,
    ReopenRound,
    Table,
    Tick,
    UpdateAccepted,
    Wait,
)
from covey_shared.prng import derive, permutation


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """How rounds are run: counts of devices and of updates, times in seconds.

    `cohort` devices are asked for `target` updates. With `pool_s` above 0 those who ask within that time are pooled
    and the cohort is drawn from them, else who comes first is taken.
    """

    rounds: int
    target: int
    cohort: int
    minimum: int
    deadline_s: float
    pool_s: float
    retry_s: float
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """Where a task stands.

    `assigned`: devices asked in any attempt of this round, whose updates are welcome. `cohort`: those that hold a
    place in this attempt. `accepted`: those whose update is on disk; a subset of both. `deadline_s` and `draw_s` are
    times of the caller's clock, infinite while they do not run.
    """

    phase: str
    round: int
    attempt: int
    version: int
    assigned: frozenset[str] = frozenset()
    cohort: frozenset[str] = frozenset()
    accepted: frozenset[str] = frozenset()
    pool: frozenset[str] = frozenset()
    deadline_s: float = inf
    draw_s: float = inf


class Saved(NamedTuple):
    """What a store knows of the round that was open when the server stopped. `frozen`: it had begun to close."""

    round: int
    attempt: int
    version: int
    frozen: bool
    assigned: frozenset[str]
    cohort: frozenset[str]
    accepted: frozenset[str]


def opened(rules: Rules, version: int) -> State:
    """The state after `version` was published: the next round, open and empty, or the end."""
    if version >= rules.rounds:
        return State(phase=DONE, round=version, attempt=0, version=version)
    return State(phase=OPEN, round=version + 1, attempt=0, version=version)


def resumed(rules: Rules, saved: Saved, now_s: float) -> Outcome:
    """The state after a restart. The deadline starts anew: the time without a server is not the devices' fault."""
    if saved.version >= rules.rounds:
        return opened(rules, saved.version), ()
    state = State(
        phase=OPEN,
        round=saved.round,
        attempt=saved.attempt,
        version=saved.version,
        assigned=saved.assigned,
        cohort=saved.cohort | saved.accepted,
        accepted=saved.accepted,
        deadline_s=now_s + rules.deadline_s if saved.assigned else inf,
    )
    if saved.frozen or len(saved.accepted) >= rules.target:
        return _close(state)
    return state, ()


def step(rules: Rules, state: State, event: Event) -> Outcome:
    """The next state and what is to be done now."""
    return engine.step(TABLE, rules, state, event)


def _offer(rules: Rules, state: State, event: CheckedIn) -> Outcome:
    """A check-in of an open round: the same answer for the same device, a free place, or patience."""
    client = event.client
    state, due = _watch(rules, state, Tick(event.now_s))
    if due:  # the round has just closed or begun again: ask the new state
        state, more = step(rules, state, event)
        return state, due + more
    if client in state.accepted:
        return state, (Wait(client, rules.retry_s),)
    if client in state.cohort:
        return state, (_assignment(state, client, event.now_s),)
    if _pooling(rules, state):
        starts = event.now_s + rules.pool_s if state.draw_s == inf else state.draw_s
        state = replace(state, pool=state.pool | {client}, draw_s=starts)
        return state, (Wait(client, max(starts - event.now_s, SOON_S)),)
    if len(state.cohort) >= rules.cohort:
        return state, (Wait(client, rules.retry_s),)
    state = _place(rules, state, frozenset({client}), event.now_s)
    return state, (_assignment(state, client, event.now_s),)


def _pooling(rules: Rules, state: State) -> bool:
    """Whether this attempt has yet to draw its cohort. Once it has, places left over go to who comes first."""
    return rules.pool_s > 0 and state.cohort <= state.accepted and state.deadline_s == inf


def _draw(rules: Rules, state: State, now_s: float) -> State:
    """Takes a uniform sample of the pool into the free places."""
    waiting = sorted(state.pool - state.cohort)
    order = permutation(derive(rules.seed, "cohort", state.round, state.attempt), len(waiting))
    free = max(rules.cohort - len(state.cohort), 0)
    drawn = frozenset(waiting[i] for i in order[:free])
    return _place(rules, replace(state, pool=frozenset(), draw_s=inf), drawn, now_s)


def _place(rules: Rules, state: State, clients: frozenset[str], now_s: float) -> State:
    return replace(
        state,
        assigned=state.assigned | clients,
        cohort=state.cohort | clients,
        deadline_s=min(state.deadline_s, now_s + rules.deadline_s),
    )


def _assignment(state: State, client: str, now_s: float) -> Assign:
    return Assign(client, state.round, state.attempt, state.version, max(state.deadline_s - now_s, 0.0))


def _count(rules: Rules, state: State, event: UpdateAccepted) -> Outcome:
    state = _counted(state, event)
    return _close(state) if len(state.accepted) >= rules.target else (state, ())


def _count_late(rules: Rules, state: State, event: UpdateAccepted) -> Outcome:
    """On disk before the round was frozen, reported after the decision to close: it is part of the round."""
    return _counted(state, event), ()


def _counted(state: State, event: UpdateAccepted) -> State:
    if event.round != state.round:
        return state
    one = frozenset({event.client})
    return replace(state, assigned=state.assigned | one, cohort=state.cohort | one, accepted=state.accepted | one)


def _watch(rules: Rules, state: State, event: Tick) -> Outcome:
    """A draw that is due, and then a deadline that has passed."""
    if event.now_s >= state.draw_s:
        return _draw(rules, state, event.now_s), ()
    if event.now_s < state.deadline_s:
        return state, ()
    return _close(state) if len(state.accepted) >= rules.minimum else _reopen(state)


def _close(state: State) -> Outcome:
    return replace(state, phase=CLOSING, pool=frozenset(), deadline_s=inf, draw_s=inf), (CloseRound(state.round),)


def _reopen(state: State) -> Outcome:
    """Those who did not deliver lose their place and keep the right to deliver late."""
    attempt = state.attempt + 1
    state = replace(state, attempt=attempt, cohort=state.accepted, deadline_s=inf)
    return state, (ReopenRound(state.round, attempt),)


def _hold(rules: Rules, state: State, event: CheckedIn) -> Outcome:
    return state, (Wait(event.client, rules.retry_s),)


def _send_home(rules: Rules, state: State, event: CheckedIn) -> Outcome:
    return state, (Done(event.client, state.version),)


def _next(rules: Rules, state: State, event: Published) -> Outcome:
    return opened(rules, event.version), ()


def _nothing(rules: Rules, state: State, event: Event) -> Outcome:
    return state, ()


TABLE: Table = {
    (OPEN, CheckedIn): _offer,
    (OPEN, UpdateAccepted): _count,
    (OPEN, Tick): _watch,
    (CLOSING, CheckedIn): _hold,
    (CLOSING, UpdateAccepted): _count_late,
    (CLOSING, Tick): _nothing,
    (CLOSING, Published): _next,
    (DONE, CheckedIn): _send_home,
    (DONE, UpdateAccepted): _nothing,
    (DONE, Tick): _nothing,
}


def admits(state: State, client: str, round_: int, version: int) -> Refuse | None:
    """Whether an update may still count, apart from its content; None means yes."""
    if round_ < state.round or (round_ == state.round and state.phase != OPEN):
        return Refuse("late", f"round {round_} is closed; check in again")
    if round_ > state.round:
        return Refuse("wrong_version", f"round {round_} has not begun, round {state.round} is open; check in again")
    if version != state.version:
        return Refuse(
            "wrong_version", f"round {round_} trains version {state.version}, the update starts from {version}"
        )
    if client not in state.assigned:
        return Refuse("not_assigned", f"device {client} was not assigned to round {round_}; check in first")
    return None


def facts(rules: Rules, state: State, now_s: float) -> dict[str, Any]:
    """What a status page says of the round."""
    return {
        "number": min(state.round, rules.rounds),
        "phase": state.phase,
        "attempt": state.attempt,
        "assigned": sorted(state.cohort),
        "accepted": sorted(state.accepted),
        "gathered": len(state.accepted),
        "target": rules.target,
        "minimum": rules.minimum,
        "deadline_s": None if state.deadline_s == inf else max(state.deadline_s - now_s, 0.0),
    }


def machine(rules: Rules, saved: Saved) -> Machine:
    """Synchronous rounds that go on from what was saved."""
    return Machine(
        resumed=lambda now_s: resumed(rules, saved, now_s),
        step=lambda state, event: step(rules, state, event),
        admits=admits,
        facts=lambda state, now_s: facts(rules, state, now_s),
    )
