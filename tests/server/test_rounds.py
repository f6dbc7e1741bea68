"""The round engine in memory: hand-written orders of events, and every order against a simple model."""

from dataclasses import replace
from math import inf
from random import Random
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from covey_server import rounds
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
    ReopenRound,
    Tick,
    UpdateAccepted,
    Wait,
)
from covey_server.rounds import Rules, Saved, State, admits, opened, resumed, step

RULES = Rules(rounds=2, target=2, cohort=3, minimum=1, deadline_s=10.0, pool_s=0.0, retry_s=1.0, seed=5)


def play(rules: Rules, state: State, *events: Event) -> tuple[State, list[Decision]]:
    decisions: list[Decision] = []
    for event in events:
        state, new = step(rules, state, event)
        decisions += new
    return state, decisions


def test_a_round_from_check_in_to_the_next() -> None:
    state, decisions = play(
        RULES, opened(RULES, 0), CheckedIn("a", 0.0), CheckedIn("b", 1.0), UpdateAccepted(1, "a", 1),
        UpdateAccepted(1, "b", 1), CheckedIn("a", 2.0), Published(1), CheckedIn("a", 3.0),
    )  # fmt: skip
    assert decisions == [
        Assign("a", 1, 0, 0, 10.0), Assign("b", 1, 0, 0, 9.0), CloseRound(1), Wait("a", 1.0),
        Assign("a", 2, 0, 1, 10.0),
    ]  # fmt: skip
    assert (state.phase, state.round, state.version) == (OPEN, 2, 1)


def test_the_last_round_ends_the_task() -> None:
    rules = replace(RULES, rounds=1)
    state, decisions = play(
        rules, opened(rules, 0), CheckedIn("a", 0.0), CheckedIn("b", 0.0), UpdateAccepted(1, "a", 1),
        UpdateAccepted(1, "b", 1), Published(1), Tick(99.0), UpdateAccepted(1, "b", 1), CheckedIn("c", 99.0),
    )  # fmt: skip
    assert state.phase == DONE
    assert decisions[-1] == Done("c", 1)


def test_asked_twice_answered_alike_and_the_deadline_stands() -> None:
    _, decisions = play(RULES, opened(RULES, 0), CheckedIn("a", 0.0), CheckedIn("a", 4.0))
    assert decisions == [Assign("a", 1, 0, 0, 10.0), Assign("a", 1, 0, 0, 6.0)]


def test_no_more_than_the_cohort_is_asked() -> None:
    _, decisions = play(RULES, opened(RULES, 0), *(CheckedIn(c, 0.0) for c in "abcd"))
    assert [type(d) for d in decisions] == [Assign, Assign, Assign, Wait]


def test_who_has_delivered_waits() -> None:
    _, decisions = play(RULES, opened(RULES, 0), CheckedIn("a", 0.0), UpdateAccepted(1, "a", 1), CheckedIn("a", 1.0))
    assert decisions[-1] == Wait("a", 1.0)


def test_the_deadline_closes_with_the_minimum() -> None:
    state, decisions = play(
        RULES,
        opened(RULES, 0),
        CheckedIn("a", 5.0),
        CheckedIn("b", 5.0),
        UpdateAccepted(1, "a", 1),
        Tick(14.9),
        Tick(15.0),
    )
    assert decisions[-1] == CloseRound(1)
    assert state.phase == CLOSING
    assert state.deadline_s == inf


def test_the_deadline_may_be_noticed_by_a_check_in() -> None:
    _, decisions = play(RULES, opened(RULES, 0), CheckedIn("a", 0.0), UpdateAccepted(1, "a", 1), CheckedIn("b", 11.0))
    assert decisions[-2:] == [CloseRound(1), Wait("b", 1.0)]


def test_below_the_minimum_the_round_begins_again_and_keeps_what_it_has() -> None:
    rules = replace(RULES, minimum=2)
    state, decisions = play(
        rules, opened(rules, 0), CheckedIn("a", 0.0), CheckedIn("b", 0.0), UpdateAccepted(1, "a", 1), Tick(10.0)
    )
    assert decisions[-1] == ReopenRound(1, 1)
    assert (state.attempt, state.version, state.accepted, state.deadline_s) == (1, 0, frozenset("a"), inf)
    state, decisions = play(rules, state, Tick(99.0), CheckedIn("c", 100.0))
    assert decisions == [Assign("c", 1, 1, 0, 10.0)]  # the new attempt's deadline runs from its first assignment
    assert admits(state, "b", 1, 0) is None  # late, and still welcome
    _, decisions = play(rules, state, UpdateAccepted(1, "b", 1))
    assert decisions == [CloseRound(1)]


def test_a_server_without_devices_waits_for_ever() -> None:
    assert play(RULES, opened(RULES, 0), *(Tick(float(t)) for t in range(0, 10**6, 10**4))) == (opened(RULES, 0), [])


def test_an_update_of_an_earlier_round_changes_nothing() -> None:
    state = opened(RULES, 1)
    assert play(RULES, state, UpdateAccepted(1, "a", 1)) == (state, [])


def test_uniform_selection_draws_from_the_pool_whatever_the_order() -> None:
    rules = replace(RULES, pool_s=5.0)
    devices = [f"d{i}" for i in range(20)]
    drawn = []
    for order in (devices, devices[::-1]):
        state, decisions = play(rules, opened(rules, 0), *(CheckedIn(c, 1.0) for c in order))
        assert decisions == [Wait(c, 5.0) for c in order]
        state, _ = play(rules, state, Tick(6.0))
        drawn.append(state.cohort)
        assert len(state.cohort) == rules.cohort
        assert state.deadline_s == 16.0
        _, decisions = play(rules, state, *(CheckedIn(c, 7.0) for c in order))
        assert {d.client for d in decisions if isinstance(d, Assign)} == state.cohort
    assert drawn[0] == drawn[1]


def test_uniform_selection_is_uniform() -> None:
    counts = dict.fromkeys("abcdef", 0)
    for seed in range(600):
        rules = replace(RULES, pool_s=5.0, seed=seed)
        state, _ = play(rules, opened(rules, 0), *(CheckedIn(c, 0.0) for c in "abcdef"), Tick(5.0))
        for client in state.cohort:
            counts[client] += 1
    assert all(240 < count < 360 for count in counts.values()), counts  # 300 expected, standard deviation 12


def test_a_pool_that_is_too_small_leaves_places_to_who_comes_first() -> None:
    rules = replace(RULES, pool_s=5.0)
    _, decisions = play(rules, opened(rules, 0), CheckedIn("a", 0.0), Tick(5.0), CheckedIn("b", 6.0))
    assert decisions == [Wait("a", 5.0), Assign("b", 1, 0, 0, 9.0)]


SAVED = Saved(round=1, attempt=2, version=0, frozen=False, assigned=frozenset("abc"), cohort=frozenset("bc"),
              accepted=frozenset("a"))  # fmt: skip


def test_a_restart_goes_on_with_a_fresh_deadline() -> None:
    state, decisions = resumed(RULES, SAVED, 1000.0)
    assert decisions == ()
    assert (state.attempt, state.cohort, state.accepted, state.deadline_s) == (
        2,
        frozenset("abc"),
        frozenset("a"),
        1010.0,
    )
    assert admits(state, "b", 1, 0) is None


def test_a_restart_closes_what_was_to_be_closed() -> None:
    full, frozen = SAVED._replace(accepted=frozenset("ab")), SAVED._replace(frozen=True)
    for saved in (full, frozen):
        state, decisions = resumed(RULES, saved, 0.0)
        assert (state.phase, decisions) == (CLOSING, (CloseRound(1),))


def test_a_restart_of_a_finished_task_and_of_one_with_more_rounds() -> None:
    saved = Saved(3, 0, 2, False, frozenset(), frozenset(), frozenset())
    assert resumed(RULES, saved, 0.0)[0].phase == DONE
    state, _ = resumed(replace(RULES, rounds=3), saved, 0.0)
    assert (state.phase, state.round, state.version) == (OPEN, 3, 2)


def test_what_is_not_admitted() -> None:
    state, _ = play(RULES, opened(RULES, 1), CheckedIn("a", 0.0))
    for client, round_, version, code in [
        ("a", 1, 0, "late"),
        ("a", 3, 1, "wrong_version"),
        ("a", 2, 0, "wrong_version"),
        ("b", 2, 1, "not_assigned"),
    ]:
        refused = admits(state, client, round_, version)
        assert refused is not None
        assert refused.code == code
    assert admits(state, "a", 2, 1) is None
    closing, _ = play(RULES, state, UpdateAccepted(2, "a", 2), Tick(10.0))
    refused = admits(closing, "a", 2, 1)
    assert refused is not None
    assert refused.code == "late"


def test_the_table_knows_every_pair_but_the_impossible() -> None:
    missing = {(p, e) for p in (OPEN, CLOSING, DONE) for e in get_args(Event)} - rounds.TABLE.keys()
    assert missing == {(OPEN, Published), (DONE, Published)}
    with pytest.raises(ValueError, match="does not expect Published while the round is open"):
        step(RULES, opened(RULES, 0), Published(1))


@settings(max_examples=60, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([0.0, 3.0]), st.integers(1, 4), st.floats(1.0, 2.0))
def test_rounds_end_whatever_devices_do(rng: Random, pool_s: float, target: int, factor: float) -> None:
    """Devices that vanish, dawdle and come back: as long as some deliver, every round is closed, within its bounds."""
    rules = Rules(rounds=3, target=target, cohort=int(target * factor), minimum=(target + 1) // 2, deadline_s=10.0,
                  pool_s=pool_s, retry_s=1.0, seed=1)  # fmt: skip
    state, now_s = opened(rules, 0), 0.0
    training: dict[str, int] = {}
    for _ in range(5000):
        now_s += rng.random()
        client = f"d{rng.randrange(6)}"
        state, decisions = play(rules, state, Tick(now_s), CheckedIn(client, now_s))
        training |= {d.client: d.round for d in decisions if isinstance(d, Assign)}
        if training and rng.random() < 0.5:
            client = rng.choice(sorted(training))
            round_ = training.pop(client)
            if rng.random() < 0.7 and admits(state, client, round_, round_ - 1) is None:
                state, more = play(rules, state, UpdateAccepted(round_, client, round_))
                decisions += more
        assert state.accepted <= state.cohort <= state.assigned
        assert len(state.cohort - state.accepted) <= rules.cohort
        if any(isinstance(d, CloseRound) for d in decisions):
            assert rules.minimum <= len(state.accepted) <= rules.target
            state, _ = play(rules, state, Published(state.version + 1))
        if state.phase == DONE:
            return
    raise AssertionError(f"stuck in {state}")


class EngineMachine(RuleBasedStateMachine):
    """Any order of check-ins, uploads, time, publications and restarts, against the plain rules of a round."""

    devices = Bundle("devices")

    def __init__(self) -> None:
        super().__init__()
        self.law = Rules(rounds=3, target=2, cohort=3, minimum=2, deadline_s=10.0, pool_s=0.0, retry_s=1.0, seed=1)
        self.now_s = 0.0
        self.state = opened(self.law, 0)
        self.version = 0
        self.invited: set[str] = set()  # of this round, any attempt
        self.delivered: set[str] = set()
        self.closing = False
        self.attempt = 0
        self.deadline_s = inf

    def feed(self, event: Event) -> tuple[Decision, ...]:
        self.state, decisions = step(self.law, self.state, event)
        for decision in decisions:
            if isinstance(decision, CloseRound):
                assert not self.closing
                assert len(self.delivered) >= self.law.minimum
                assert len(self.delivered) >= self.law.target or self.now_s >= self.deadline_s
                self.closing, self.deadline_s = True, inf
            if isinstance(decision, ReopenRound):
                assert len(self.delivered) < self.law.minimum
                assert self.now_s >= self.deadline_s
                self.attempt, self.deadline_s = self.attempt + 1, inf
                assert decision == ReopenRound(self.version + 1, self.attempt)
        return decisions

    @rule(target=devices, name=st.sampled_from("abcdef"))
    def device(self, name: str) -> str:
        return name

    @rule(client=devices)
    def check_in(self, client: str) -> None:
        answer = self.feed(CheckedIn(client, self.now_s))[-1]
        if self.version == self.law.rounds:
            assert answer == Done(client, self.version)
        elif isinstance(answer, Assign):
            assert not self.closing
            assert client not in self.delivered
            self.deadline_s = min(self.deadline_s, self.now_s + self.law.deadline_s)
            left = self.deadline_s - self.now_s
            assert answer == Assign(client, self.version + 1, self.attempt, self.version, left)
            self.invited.add(client)
        else:
            assert isinstance(answer, Wait)
            assert self.closing or client in self.delivered or len(self.state.cohort) >= self.law.cohort

    @rule(client=devices)
    def upload(self, client: str) -> None:
        if admits(self.state, client, self.version + 1, self.version) is not None:
            assert self.closing or client not in self.invited or self.version == self.law.rounds
            return
        assert client in self.invited
        self.delivered.add(client)
        self.feed(UpdateAccepted(self.version + 1, client, self.version + 1))
        assert self.closing == (len(self.delivered) >= self.law.target)

    @rule(seconds=st.floats(0.1, 12.0))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        due = self.now_s >= self.deadline_s
        decisions = self.feed(Tick(self.now_s))
        assert bool(decisions) == due

    @rule()
    def publish(self) -> None:
        if self.closing:
            self.version += 1
            self.feed(Published(self.version))
            self.invited, self.delivered, self.closing, self.attempt = set(), set(), False, 0

    @rule(gap_s=st.floats(0.0, 100.0))
    def restart(self, gap_s: float) -> None:
        cohort = frozenset() if self.version == self.law.rounds else self.state.cohort
        saved = Saved(
            self.version + 1, self.attempt, self.version, self.closing, frozenset(self.invited), cohort,
            frozenset(self.delivered),
        )  # fmt: skip
        self.now_s += gap_s
        self.state, decisions = resumed(self.law, saved, self.now_s)
        assert decisions == ((CloseRound(self.version + 1),) if self.closing else ())
        if not self.closing:
            self.deadline_s = self.now_s + self.law.deadline_s if self.invited else inf

    @invariant()
    def the_state_is_whole(self) -> None:
        state = self.state
        assert state.phase == (DONE if self.version == self.law.rounds else CLOSING if self.closing else OPEN)
        assert state.version == self.version
        assert state.accepted == self.delivered
        assert state.accepted <= state.cohort <= state.assigned
        assert len(state.cohort - state.accepted) <= self.law.cohort
        assert state.assigned == self.invited
        assert state.deadline_s == self.deadline_s


EngineMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestEngine = EngineMachine.TestCase
