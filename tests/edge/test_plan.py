import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_edge.plan import (
    CheckIn,
    Evaluate,
    Fetch,
    Finish,
    Train,
    Upload,
    View,
    Wait,
    Wishes,
    after_check_in,
    before_check_in,
)
from covey_shared.messages import Assignment


def assigned(action: str, version: int = 0, round_: int = 1) -> Assignment:
    return Assignment(action=action, round=round_, attempt=1, version=version, deadline_s=9.0, retry_after_s=3.0)


def view(held: int = -1, evaluated: tuple[int, ...] = (), *, pending: bool = False, uploaded: int = 0) -> View:
    return View(held, set(evaluated), pending, uploaded)


TRAIN = (Train(5, 1, 4, 9.0), Upload())
CASES = [
    ("a new device at the start", view(), assigned("train"), Wishes(),
     (Fetch(0), Evaluate(0), Train(1, 1, 0, 9.0), Upload())),
    ("a new device, late", view(), assigned("train", 4, 5), Wishes(),
     (Fetch(0), Evaluate(0), Fetch(4), Evaluate(4), *TRAIN)),
    ("the next round", view(3, (0, 3)), assigned("train", 4, 5), Wishes(), (Fetch(4), Evaluate(4), *TRAIN)),
    ("the same round again", view(4, (0, 4)), assigned("train", 4, 5), Wishes(), TRAIN),
    ("not due", view(3, (0,)), assigned("train", 4, 5), Wishes(eval_every=3), (Fetch(4), *TRAIN)),
    ("due", view(3, (0,)), assigned("train", 4, 5), Wishes(eval_every=2), (Fetch(4), Evaluate(4), *TRAIN)),
    ("only first and last", view(3, (0,)), assigned("train", 4, 5), Wishes(eval_every=0), (Fetch(4), *TRAIN)),
    ("the server went back", view(6, (0, 4)), assigned("train", 4, 5), Wishes(), (Fetch(4), *TRAIN)),
    ("wait", view(4, (0,)), assigned("wait"), Wishes(), (Wait(3.0),)),
    ("done", view(3, (0, 3)), assigned("done", 4), Wishes(eval_every=0), (Fetch(4), Evaluate(4), Finish())),
    ("done and known", view(4, (0, 4)), assigned("done", 4), Wishes(), (Finish(),)),
    ("done before it began", view(), assigned("done", 0), Wishes(), (Fetch(0), Evaluate(0), Finish())),
]  # fmt: skip


@pytest.mark.parametrize(("name", "seen", "word", "wishes", "expected"), CASES, ids=[c[0] for c in CASES])
def test_table(name: str, seen: View, word: Assignment, wishes: Wishes, expected: tuple[object, ...]) -> None:
    assert after_check_in(seen, word, wishes) == expected


def test_before_a_check_in() -> None:
    assert before_check_in(view(), Wishes()) == (CheckIn(),)
    assert before_check_in(view(pending=True), Wishes()) == (Upload(),)
    assert before_check_in(view(pending=True, uploaded=1), Wishes(once=True)) == (Upload(),)
    assert before_check_in(view(uploaded=1), Wishes(once=True)) == (Finish(),)
    assert before_check_in(view(uploaded=1), Wishes()) == (CheckIn(),)


@given(
    st.integers(-1, 9),
    st.frozensets(st.integers(0, 9)),
    st.sampled_from(["train", "wait", "done"]),
    st.integers(0, 9),
    st.integers(0, 4),
)
def test_laws(held: int, evaluated: frozenset[int], action: str, version: int, every: int) -> None:
    """Whatever is asked: nothing is trained or measured but the version that is held then, and never twice."""
    actions = after_check_in(View(held, evaluated, False, 0), assigned(action, version), Wishes(every))
    measured = set(evaluated)
    for step in actions:
        if isinstance(step, Fetch):
            assert step.version != held
            held = step.version
        if isinstance(step, Evaluate):
            assert step.version == held
            assert step.version not in measured
            measured.add(step.version)
        if isinstance(step, Train):
            assert step.version == held == version
    if action != "wait":
        assert 0 in measured
    if action == "done":
        assert actions[-1] == Finish()
        assert version in measured
    assert [isinstance(a, Train) for a, _ in itertools.pairwise((*actions, None))].count(True) == (action == "train")
