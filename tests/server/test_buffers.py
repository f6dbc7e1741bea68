"""Asynchronous buffers in memory: hand-written orders of events, and every order against a simple model."""

from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from covey_server import buffers, recipe
from covey_server.buffers import Flight, Rules, Saved, State, admits, resumed, step
from covey_server.engine import (
    CLOSING,
    DONE,
    OPEN,
    Assign,
    CheckedIn,
    CloseRound,
    Decision,
    Done,
    Event,
    Published,
    Tick,
    UpdateAccepted,
    Wait,
)
from covey_shared.entries import Entries

RULES = Rules(rounds=3, buffer=2, max_staleness=1, concurrency=0, deadline_s=10.0, retry_s=1.0)
EMPTY = Saved(version=0, counts=(), frozen=False, flights={}, issued=0)


def begun(rules: Rules = RULES) -> State:
    state: State = resumed(rules, EMPTY, 0.0)[0]
    return state


def play(state: State, *events: Event, rules: Rules = RULES) -> tuple[State, list[Decision]]:
    decisions: list[Decision] = []
    for event in events:
        state, new = step(rules, state, event)
        decisions += new
    return state, decisions


def code(state: State, client: str, round_: int, version: int, rules: Rules = RULES) -> str | None:
    refused = admits(rules, state, client, round_, version)
    return refused.code if refused else None


def test_a_fast_device_goes_on_while_a_slow_one_trains() -> None:
    state, decisions = play(
        begun(), CheckedIn("slow", 0.0), CheckedIn("fast", 0.0), UpdateAccepted(2, "fast", 1), CheckedIn("fast", 1.0),
        UpdateAccepted(3, "fast", 1), CheckedIn("fast", 2.0), Published(1), CheckedIn("fast", 3.0),
    )  # fmt: skip
    assert decisions == [
        Assign("slow", 1, 0, 0, 10.0), Assign("fast", 2, 0, 0, 10.0), Assign("fast", 3, 0, 0, 10.0), CloseRound(1),
        Wait("fast", 0.2), Assign("fast", 4, 0, 1, 10.0),
    ]  # fmt: skip
    assert code(state, "slow", 1, 0) is None, "one version late, and welcome"
    state, decisions = play(state, UpdateAccepted(1, "slow", 2), UpdateAccepted(4, "fast", 2))
    assert decisions == [CloseRound(2)]


def test_asked_again_answered_alike() -> None:
    _, decisions = play(begun(), CheckedIn("a", 0.0), CheckedIn("a", 5.0))
    assert decisions == [Assign("a", 1, 0, 0, 10.0)] * 2


def test_what_is_too_stale_is_refused_and_the_device_starts_from_the_newest() -> None:
    state, _ = play(begun(), CheckedIn("slow", 0.0))
    for version in (1, 2):
        for _ in range(2):
            state, _ = play(state, CheckedIn("b", 0.0))
            state, decisions = play(state, UpdateAccepted(state.issued, "b", version))
        assert decisions == [CloseRound(version)]
        state, _ = play(state, Published(version))
    refused = admits(RULES, state, "slow", 1, 0)
    assert refused is not None
    assert refused.code == "stale"
    assert "2 behind the one that is being made, at most 1 are taken; check in again and fetch the newest" in refused[1]
    _, decisions = play(state, CheckedIn("slow", 0.0))
    assert decisions == [Assign("slow", state.issued + 1, 0, 2, 10.0)]


def test_what_comes_while_a_version_is_made_belongs_to_the_next() -> None:
    state, decisions = play(begun(), *(CheckedIn(c, 0.0) for c in "abcd"),
                            UpdateAccepted(1, "a", 1), UpdateAccepted(2, "b", 1), UpdateAccepted(3, "c", 2),
                            UpdateAccepted(4, "d", 2))  # fmt: skip
    assert (state.phase, state.counts) == (CLOSING, (2, 2))
    state, decisions = play(state, Published(1))
    assert decisions == [CloseRound(2)], "the next buffer is full already"
    assert (state.version, state.counts, state.phase) == (1, (2,), CLOSING)


def test_places_are_limited_and_given_on_after_the_deadline() -> None:
    rules = replace(RULES, concurrency=1)
    state, decisions = play(begun(rules), CheckedIn("a", 0.0), CheckedIn("b", 9.0), CheckedIn("b", 10.5), rules=rules)
    assert decisions == [Assign("a", 1, 0, 0, 10.0), Wait("b", 1.0), Assign("b", 2, 0, 0, 10.0)]
    assert code(state, "a", 1, 0, rules) is None, "late, and still welcome"


def test_what_is_not_admitted() -> None:
    state, _ = play(begun(), CheckedIn("a", 0.0), CheckedIn("b", 0.0))
    assert code(state, "a", 1, 0) is None
    assert code(state, "b", 1, 0) == "not_assigned", "another's assignment"
    assert code(state, "c", 9, 0) == "not_assigned"
    assert code(state, "a", 1, 1) == "wrong_version"
    state, _ = play(state, UpdateAccepted(1, "a", 1))
    assert code(state, "a", 1, 0) == "not_assigned", "counted: the store knows it as a duplicate"
    last = resumed(RULES, EMPTY._replace(version=2, counts=(2,), flights={"a": Flight(7, 2)}, issued=7), 0.0)[0]
    assert (last.phase, code(last, "a", 7, 2)) == (CLOSING, "late")


def test_a_restart_goes_on_where_the_disk_says() -> None:
    saved = Saved(version=1, counts=(1, 0), frozen=False, flights={"a": Flight(5, 1)}, issued=6)
    state, decisions = resumed(RULES, saved, 100.0)
    assert (state.phase, decisions) == (OPEN, ())
    assert state.flights == {"a": Flight(5, 1, 110.0)}
    assert play(state, CheckedIn("a", 100.0), CheckedIn("b", 100.0))[1] == [
        Assign("a", 5, 0, 1, 10.0), Assign("b", 7, 0, 1, 10.0),
    ]  # fmt: skip
    for changed in (saved._replace(counts=(2,)), saved._replace(frozen=True)):
        state, decisions = resumed(RULES, changed, 0.0)
        assert (state.phase, decisions) == (CLOSING, (CloseRound(2),))
    assert resumed(RULES, saved._replace(version=3, counts=()), 0.0)[0].phase == DONE


def test_the_table_knows_every_pair_but_the_impossible() -> None:
    missing = {(p, e) for p in (OPEN, CLOSING, DONE) for e in get_args(Event)} - buffers.TABLE.keys()
    assert missing == {(OPEN, Published), (DONE, Published)}
    with pytest.raises(ValueError, match="does not expect Published while the round is open"):
        step(RULES, begun(), Published(1))


def test_staleness_weights() -> None:
    weigh = recipe.staleness_weight
    assert [weigh("polynomial", 0.5, 0.1, s) for s in (0, 3, 8)] == [1.0, 0.5, pytest.approx(1 / 3)]
    assert [weigh("polynomial", 1.0, 0.1, s) for s in (0, 1)] == [1.0, 0.5]
    assert [weigh("constant", 0.5, 0.1, s) for s in (0, 1, 9)] == [1.0, 0.1, 0.1]
    assert [weigh("none", 0.5, 0.1, s) for s in (0, 9)] == [1.0, 1.0]
    entries = Entries(4, slice(0, 2), np.array([2, -4], np.float32))
    assert recipe.aged(entries, 1.0) is entries
    assert recipe.aged(entries, 0.5).values.tolist() == [1, -2]


class BuffersMachine(RuleBasedStateMachine):
    """Any order of check-ins, uploads, publications and restarts, against the plain rules of a buffer.

    The model is the store's point of view: a list of assignments and a list of counted updates, and nothing else.
    """

    def __init__(self) -> None:
        super().__init__()
        self.law = Rules(rounds=4, buffer=3, max_staleness=2, concurrency=4, deadline_s=10.0, retry_s=1.0)
        self.state = resumed(self.law, EMPTY, 0.0)[0]
        self.now_s = 0.0
        self.version = 0
        self.frozen = False
        self.assigned: list[tuple[str, int]] = []  # (device, version) by number from 1
        self.counted: dict[int, int] = {}  # assignment -> the version that counts it
        self.held: dict[int, float] = {}  # assignment -> until when it holds a place

    def flight(self, client: str) -> int | None:
        """The device's open assignment."""
        numbers = [i + 1 for i, (who, _) in enumerate(self.assigned) if who == client]
        if not numbers or numbers[-1] in self.counted:
            return None
        old = self.version - self.assigned[numbers[-1] - 1][1] > self.law.max_staleness
        return None if old else numbers[-1]

    def count(self, version: int) -> int:
        return sum(v == version for v in self.counted.values())

    def feed(self, event: Event) -> tuple[Decision, ...]:
        self.state, decisions = step(self.law, self.state, event)
        return self.heed(decisions)

    def heed(self, decisions: tuple[Decision, ...]) -> tuple[Decision, ...]:
        for decision in decisions:
            if isinstance(decision, CloseRound):
                assert decision.round == self.version + 1
                assert self.frozen or self.count(self.version + 1) == self.law.buffer, (
                    "each version has `buffer` updates"
                )
                self.frozen = True
        return decisions

    @rule(client=st.sampled_from("abcdef"))
    def check_in(self, client: str) -> None:
        answer = self.feed(CheckedIn(client, self.now_s))[-1]
        if self.version == self.law.rounds:
            assert answer == Done(client, self.version)
        elif self.frozen:
            assert isinstance(answer, Wait)
        elif isinstance(answer, Wait):
            assert self.flight(client) is None
            assert sum(until > self.now_s for until in self.open_places().values()) >= self.law.concurrency
        else:
            assert isinstance(answer, Assign)
            known = self.flight(client)
            if known is None:
                assert answer.version == self.version, "always from the newest"
                self.assigned.append((client, answer.version))
                known = len(self.assigned)
            assert answer == Assign(client, known, 0, self.assigned[known - 1][1], self.law.deadline_s)
            self.held[known] = self.now_s + self.law.deadline_s

    def open_places(self) -> dict[int, float]:
        flights = {self.flight(client) for client in "abcdef"}
        return {number: until for number, until in self.held.items() if number in flights}

    @rule(client=st.sampled_from("abcdef"), data=st.data())
    def upload(self, client: str, data: st.DataObject) -> None:
        mine = [i + 1 for i, (who, _) in enumerate(self.assigned) if who == client]
        if not mine:
            return
        number = data.draw(st.sampled_from(mine))
        version = self.assigned[number - 1][1]
        target = self.version + 1 + self.frozen
        while self.count(target) >= self.law.buffer:
            target += 1
        welcome = self.flight(client) == number and target <= self.law.rounds
        welcome = welcome and self.version + self.frozen - version <= self.law.max_staleness
        assert (admits(self.law, self.state, client, number, version) is None) >= welcome
        if welcome and target - 1 - version <= self.law.max_staleness:  # the store looks again, at its own buffer
            self.counted[number] = target
            self.feed(UpdateAccepted(number, client, target))

    @rule(seconds=st.floats(0.1, 12.0))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        assert self.feed(Tick(self.now_s)) == ()

    @rule()
    def publish(self) -> None:
        if self.frozen:
            self.version, self.frozen = self.version + 1, False
            self.feed(Published(self.version))

    @rule()
    def restart(self) -> None:
        clients = {client: self.flight(client) for client in "abcdef"}
        flights = {c: Flight(n, self.assigned[n - 1][1]) for c, n in clients.items() if n is not None}
        top = max([self.version, *self.counted.values()])
        counts = tuple(self.count(v) for v in range(self.version + 1, top + 1))
        saved = Saved(self.version, counts, self.frozen, flights, len(self.assigned))
        self.state, decisions = resumed(self.law, saved, self.now_s)
        self.heed(decisions)
        self.held = {n: self.now_s + self.law.deadline_s for n in clients.values() if n is not None}

    @invariant()
    def the_state_is_what_the_disk_says(self) -> None:
        state = self.state
        assert state.version == self.version
        assert state.phase == (DONE if self.version == self.law.rounds else CLOSING if self.frozen else OPEN)
        assert state.gathered == self.count(self.version + 1)
        if state.phase != DONE:
            flights = {c: n for c in "abcdef" if (n := self.flight(c)) is not None}
            assert {c: f.round for c, f in state.flights.items()} == flights
        assert state.issued == len(self.assigned)
        for version in range(1, self.version + 1):
            assert self.count(version) == self.law.buffer
        for number, version in self.counted.items():
            assert 0 <= version - 1 - self.assigned[number - 1][1] <= self.law.max_staleness


BuffersMachine.TestCase.settings = settings(max_examples=80, stateful_step_count=50, deadline=None)
TestBuffers = BuffersMachine.TestCase
