import io
import json
from contextlib import ExitStack
from pathlib import Path

from covey_edge.events import Events, display, open_events, printable


def test_a_line_of_json_for_each_event(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "events.jsonl"
    for start in (0, 2):  # a second process goes on in the same file
        with ExitStack() as stack:
            events = open_events(stack, io.StringIO(), quiet=True, path=path)
            for i in range(start, start + 2):
                events.emit("step", what="training", round=1, done=i, total=4, loss=0.5)
                assert len(path.read_text().splitlines()) == i + 1  # flushed while it is true
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["done"] for line in lines] == [0, 1, 2, 3]
    assert lines[0]["time"] > 1.7e9


def shown(*, bars: bool) -> str:
    """A short life, as a person sees it."""
    stream = io.StringIO()
    with ExitStack() as stack:
        events = Events(display(stack, stream, bars=bars))
        for done in (0, 5, 10):
            events.emit("piece", what="downloading the bundle", done=done, total=10)
        for number in (1, 2):
            events.emit("round", round=number, rounds=2, attempt=1, version=number - 1, deadline_s=9.0)
            for done in (1, 2):
                events.emit("batch", what="evaluating", done=done, total=2)
            for done in (1, 2, 3):
                events.emit("step", what=f"training for round {number}", round=number, done=done, total=3, loss=0.5)
            events.emit("trained", round=number, steps=3, seconds=1.0, loss_before=2.0, loss_after=1.0, bytes=9)
        events.notice("")
        events.notice("the \x1b[2Jend")
        events.emit("done", version=2)
    return stream.getvalue()


def test_sentences_alone_where_nobody_looks() -> None:
    assert shown(bars=False) == (
        "round 1: 3 steps, training loss 2.0000 -> 1.0000\n"
        "round 2: 3 steps, training loss 2.0000 -> 1.0000\n"
        "the  [2Jend\n"
    )


def test_bars_for_a_person() -> None:
    seen = shown(bars=True)
    for what in ("downloading the bundle", "evaluating", "training for round 2", "rounds: 100%", "| 2/2 ["):
        assert what in seen
    assert "round 2: 3 steps, training loss 2.0000 -> 1.0000\n" in seen


def test_printable() -> None:
    assert printable("a\x00b\nc\x1b]0;title\x07é") == "a b c ]0;title é"


def test_a_long_wait_is_explained_once() -> None:
    stream = io.StringIO()
    with ExitStack() as stack:
        events = Events(display(stack, stream, bars=False))
        for _ in range(3):
            for _ in range(30):
                events.emit("wait", seconds=1.0)
            events.emit("round", round=1, rounds=2, attempt=1, version=0, deadline_s=9.0)
            for _ in range(5):
                events.emit("wait", seconds=1.0)
            events.emit("round", round=1, rounds=2, attempt=1, version=0, deadline_s=9.0)
    assert stream.getvalue().count("waiting for other devices") == 3
    assert "[round] target" in stream.getvalue()
