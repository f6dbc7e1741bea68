"""Messages: round trips of anything valid, and what hostile bytes cost. Golden bytes are in test_vectors.py."""

import dataclasses
import subprocess
import sys
import time
import types
import typing
from contextlib import suppress
from typing import Any, Union

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey_shared import messages
from covey_shared.errors import MessageError
from covey_shared.messages import Receipt, Task, Update
from covey_shared.schema import MAX_ITEMS, Message
from tests.vectors.make import MESSAGES

TYPES = [type(message) for message in MESSAGES.values()]
TEXT = st.text(max_size=20)
SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(-(2**63), 2**63 - 1),
    float: st.floats(allow_nan=False, allow_infinity=False),
    str: TEXT,
    bytes: st.binary(max_size=40),
}


def values_of(kind: Any) -> st.SearchStrategy[Any]:
    """Anything of a message's field type."""
    if kind in SCALARS:
        return SCALARS[kind]
    if isinstance(kind, type) and issubclass(kind, Message):
        return any_message(kind)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return st.lists(values_of(args[0]), min_size=1, max_size=3).map(tuple)
    if origin is dict:
        return st.dictionaries(TEXT, values_of(args[1]), max_size=3)
    assert origin in (Union, types.UnionType)
    return st.one_of([values_of(k) for k in args])


def any_message(cls: type[Message]) -> st.SearchStrategy[Message]:
    """A valid message: a golden one whose fields hold anything of their type that the message still accepts."""
    golden = next((m for m in [*MESSAGES.values(), *nested()] if type(m) is cls), None)
    assert golden is not None
    hints = typing.get_type_hints(cls)

    def build(changes: dict[str, Any]) -> Message:
        message = golden
        for name, value in changes.items():
            with suppress(MessageError):
                message = dataclasses.replace(message, **{name: value})  # type: ignore[type-var]
        return message

    return st.fixed_dictionaries({}, optional={n: values_of(kind) for n, kind in hints.items()}).map(build)


def nested() -> list[Message]:
    task, adapter = MESSAGES["task"], MESSAGES["adapter"]
    assert isinstance(task, Task)
    assert isinstance(adapter, messages.Adapter)
    return [task.local, task.upload_codec[0], task.sharing, adapter.steps[0]]


def test_every_message_has_a_golden_one() -> None:
    own = {c for c in vars(messages).values() if isinstance(c, type) and issubclass(c, Message) and c is not Message}
    assert own == {*TYPES, *(type(m) for m in nested())}


@pytest.mark.parametrize("cls", TYPES, ids=lambda c: c.__name__)
@settings(max_examples=60)
@given(data=st.data())
def test_round_trip(cls: type[Message], data: st.DataObject) -> None:
    message = data.draw(any_message(cls))
    packed = message.to_bytes()
    assert cls.from_bytes(packed) == message
    assert msgpack.unpackb(packed, strict_map_key=False)  # ordinary msgpack


@pytest.mark.parametrize("name", MESSAGES)
def test_every_cut_and_every_flip_is_refused_or_still_valid(name: str) -> None:
    cls, packed = type(MESSAGES[name]), MESSAGES[name].to_bytes()
    for length in range(len(packed)):
        with pytest.raises(MessageError):
            cls.from_bytes(packed[:length])
    for at in range(len(packed)):
        for bit in range(8):
            with suppress(MessageError):
                cls.from_bytes(packed[:at] + bytes([packed[at] ^ 1 << bit]) + packed[at + 1 :])


@pytest.mark.parametrize("cls", TYPES, ids=lambda c: c.__name__)
@settings(max_examples=100)
@given(data=st.binary(max_size=200))
def test_arbitrary_bytes_are_refused(cls: type[Message], data: bytes) -> None:
    with pytest.raises(MessageError):
        cls.from_bytes(data)


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@pytest.mark.parametrize("name", MESSAGES)
@settings(max_examples=60)
@given(data=st.data(), value=JSON)
def test_any_value_in_any_field_is_refused_or_sound(name: str, data: st.DataObject, value: Any) -> None:
    """Well-formed msgpack of the wrong shape."""
    cls = type(MESSAGES[name])
    plain = msgpack.unpackb(MESSAGES[name].to_bytes())
    plain[data.draw(st.sampled_from(sorted(plain)))] = value
    packed = msgpack.packb(plain)
    with suppress(MessageError):
        message = cls.from_bytes(packed)
        assert cls.from_bytes(message.to_bytes()) == message


def test_bytes_arrive_as_they_are_whatever_their_size() -> None:
    update = MESSAGES["update"]
    assert isinstance(update, Update)
    large = dataclasses.replace(update, parts={"packed": bytes(range(256)) * 20_000})
    assert Update.from_bytes(large.to_bytes()) == large


HOSTILE = {
    "nested lists": b"\x91" * 10_000_000,
    "a list of ten million nils": b"\xdd\x00\x98\x96\x80" + b"\xc0" * 10_000_000,
    "a map of five million pairs": b"\xdf\x00\x4c\x4b\x40" + b"\xa0\xc0" * 5_000_000,
    "ten million bytes": b"\xc6\x00\x98\x96\x80" + bytes(10_000_000),
    "a string of ten million": b"\xdb\x00\x98\x96\x80" + b"a" * 10_000_000,
    "a known field with a list of ten million": b"\x81\xa5round\xdd\x00\x98\x96\x80" + b"\xc0" * 10_000_000,
    "parts of two million": b"\x81\xa5parts\xdf\x00\x1e\x84\x80" + b"\xa1a\xc4\x01b" * 2_000_000,
    "codec of a million maps": b"\x81\xa5codec\xdd\x00\x0f\x42\x40" + b"\x80" * 10_000_000,
    "an endless extension": b"\x81\xa5round\xc9\x00\x98\x96\x80\x01" + bytes(10_000_000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_megabytes_are_refused_quickly(name: str) -> None:
    began = time.process_time()
    for cls in (Update, Receipt, Task):
        with pytest.raises(MessageError):
            cls.from_bytes(HOSTILE[name])
    assert time.process_time() - began < 2


def test_hostile_megabytes_stay_below_64() -> None:
    """Ten megabytes of the worst in a fresh process: its memory may grow by 64 MB at most."""
    if sys.platform != "linux":
        pytest.skip("ru_maxrss has another unit elsewhere")
    code = """
import resource
from covey_shared.errors import MessageError
from covey_shared.messages import Update
for data in (b"\\x91" * 10_000_000, b"\\x81\\xa5round\\xdd\\x00\\x98\\x96\\x80" + b"\\xc0" * 10_000_000,
             b"\\x81\\xa5parts\\xdf\\x00\\x1e\\x84\\x80" + b"\\xa1a\\xc4\\x01b" * 2_000_000):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        Update.from_bytes(data)
    except MessageError:
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    grown = [int(line) for line in run.stdout.split()]
    assert len(grown) == 3
    assert max(grown) < 64


@pytest.mark.parametrize("count", [MAX_ITEMS, MAX_ITEMS + 1])
def test_containers_have_a_bound(count: int) -> None:
    update = MESSAGES["update"]
    packed = dataclasses.replace(update, parts={f"p{i}": b"" for i in range(count)}).to_bytes()  # type: ignore[type-var]
    if count <= MAX_ITEMS:
        assert Update.from_bytes(packed).to_bytes() == packed
    else:
        with pytest.raises(MessageError, match=r"Update\.parts has 4097 entries, at most 4096 are allowed"):
            Update.from_bytes(packed)


WRONG: list[tuple[str, str, Any, str]] = [
    ("update", "client", "../etc/passwd", "client must be 1 to 64 letters"),
    ("update", "client", ".hidden", "client must be 1 to 64 letters"),
    ("update", "client", "", "client must be 1 to 64 letters"),
    ("update", "client", "a" * 65, "client must be 1 to 64 letters"),
    ("update", "client", "\u00e9", "client must be 1 to 64 letters"),
    ("update", "layout", "00", "layout must be 64 lower-case hex digits"),
    ("update", "examples", 0, "examples must be in 1..2"),
    ("update", "round", -1, "must not be negative"),
    ("update", "codec", (), "codec has 0 stages, expected 1 to 16"),
    ("checkin", "held", -2, "held must be -1 or a version"),
    ("assignment", "action", "sleep", "action must be train, wait or done, got 'sleep'"),
    ("adapter", "base", 5, "base 5 is not in -1..4"),
    ("evaluation", "correct", 1001, "correct must be in 0..1000"),
    ("evaluation", "tokens", 0, "tokens must be in 1..2"),
    ("receipt", "status", "no", "status must be accepted or duplicate"),
    ("task", "state", "paused", "state must be 'running' or 'done'"),
    ("task", "seed", -1, "seed must be in 0..2"),
]


@pytest.mark.parametrize(("name", "field", "value", "sentence"), WRONG)
def test_an_invalid_message_cannot_exist(name: str, field: str, value: Any, sentence: str) -> None:
    with pytest.raises(MessageError, match=sentence):
        dataclasses.replace(MESSAGES[name], **{field: value})  # type: ignore[type-var]
    plain = msgpack.unpackb(MESSAGES[name].to_bytes())
    plain[field] = list(value) if isinstance(value, tuple) else value
    with pytest.raises(MessageError, match=sentence):
        type(MESSAGES[name]).from_bytes(msgpack.packb(plain))


LOCAL = {"learning_rate": 0.0, "steps": 0, "momentum": 1.0, "beta1": -0.1, "eps": -1.0, "optimizer": "adam"}


@pytest.mark.parametrize("field", LOCAL)
def test_local_config_is_checked(field: str) -> None:
    task = MESSAGES["task"]
    assert isinstance(task, Task)
    with pytest.raises(MessageError, match=field):
        dataclasses.replace(task.local, **{field: LOCAL[field]})  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_on_the_wire_are_finite(bad: float) -> None:
    plain = msgpack.unpackb(MESSAGES["update"].to_bytes())
    plain["loss_after"] = bad
    with pytest.raises(MessageError, match=r"Update\.loss_after is (nan|inf), expected a finite number"):
        Update.from_bytes(msgpack.packb(plain))


def test_messages_of_a_future_version_are_refused_by_field() -> None:
    plain = msgpack.unpackb(MESSAGES["receipt"].to_bytes())
    with pytest.raises(MessageError, match="Receipt has 7 fields, Receipt has 6"):
        Receipt.from_bytes(msgpack.packb({**plain, "new": 1}))
