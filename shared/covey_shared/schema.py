"""The form of messages: frozen dataclasses in msgpack, and a reader that trusts nothing.

A message is one msgpack map with string keys, one key a field, all fields present, none besides. Arrays travel as raw
bytes. Decoding is driven by the schema: a container is only opened where the schema has one, and its length is checked
before its items are read, so hostile bytes cannot make the decoder build anything larger than the message itself.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, Union

import msgpack

from covey_shared.errors import MessageError

MAX_ITEMS = 4096  # of any list or map in a message
MAX_ALL = 131_072  # items of all its lists and maps together: what they weigh in memory, not on the wire, is bounded
MAX_TEXT = 65_536  # bytes of any string
NAME_BYTES = 64
NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
DIGEST = re.compile(r"[0-9a-f]{64}")

Scalar = Union[bool, int, float, str]  # noqa: UP007  (typing.get_origin tells it from X | None)

M = TypeVar("M", bound="Message")


def require(ok: bool, sentence: str) -> None:
    """Raises MessageError with the sentence unless `ok`."""
    if not ok:
        raise MessageError(sentence)


@cache
def _field_names(cls: type) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(cls))


def check_name(what: str, name: str) -> None:
    """A name that may stand in a URL, a file name and a log: 1 to 64 letters, digits, '.', '_', '-'; no leading '.'."""
    if not (len(name) <= NAME_BYTES and NAME.fullmatch(name)):
        raise MessageError(
            f"{what} must be 1 to {NAME_BYTES} letters, digits, '.', '_' or '-', not beginning with '.'; "
            f"got {name[:80]!r}"
        )


def check_digest(what: str, digest: str) -> None:
    """A SHA-256 in lower-case hex."""
    if not DIGEST.fullmatch(digest):
        raise MessageError(f"{what} must be 64 lower-case hex digits, got {digest[:80]!r}")


class Message:
    """Base of all messages: a frozen dataclass of scalars, bytes, messages, tuples and string-keyed maps of them."""

    def to_bytes(self) -> bytes:
        """The msgpack form."""
        packed: bytes = msgpack.packb(_plain(self), use_bin_type=True)
        return packed

    @classmethod
    def from_bytes(cls: type[M], data: bytes) -> M:
        """The inverse of `to_bytes`. Raises MessageError for anything else, left-over bytes included."""
        unpacker = msgpack.Unpacker(
            raw=False, strict_map_key=True, max_buffer_size=len(data) + 1, max_str_len=MAX_TEXT, max_bin_len=len(data),
            max_array_len=0, max_map_len=0, max_ext_len=0,
        )  # fmt: skip
        unpacker.feed(data)
        try:
            kind: Any = cls
            message = _reader(kind)(Reader(unpacker), cls.__name__)
        except MessageError:
            raise
        except Exception as error:  # msgpack raises its own classes, ValueError, UnicodeDecodeError and more
            name = type(error).__name__
            raise MessageError(f"not a valid {cls.__name__} message: {name} near byte {unpacker.tell()}") from None
        if unpacker.tell() != len(data):
            raise MessageError(f"{len(data) - unpacker.tell()} bytes left over after the {cls.__name__} message")
        return typing.cast(M, message)


class Reader:
    """An unpacker that opens containers only as long as the items of all of them stay within MAX_ALL."""

    def __init__(self, unpacker: Any):
        self.unpack, self._unpacker, self._left = unpacker.unpack, unpacker, MAX_ALL

    def read_array_header(self) -> int:
        """How many items follow."""
        return self._spend(self._unpacker.read_array_header())

    def read_map_header(self) -> int:
        """How many keys with their values follow."""
        return self._spend(self._unpacker.read_map_header())

    def _spend(self, count: int) -> int:
        self._left -= count
        require(self._left >= 0, f"the message has more than {MAX_ALL:,} items in all")
        return count


def _plain(value: Any) -> Any:
    if isinstance(value, Message):
        kind: Any = type(value)
        return {name: _plain(getattr(value, name)) for name in _field_names(kind)}
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value


Read = Callable[[Reader, str], Any]  # one value from the unpacker, or MessageError that names the field


@cache
def _reader(kind: Any) -> Read:
    """What reads a value of type `kind`. Made once: an upload is read as fast as its bytes allow."""
    if isinstance(kind, type) and issubclass(kind, Message):
        return _message_reader(kind)
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is tuple:
        return _tuple_reader(_reader(args[0]))
    if origin is dict:
        return _dict_reader(_reader(args[1]))
    if origin in (Union, types.UnionType):
        return lambda unpacker, where: _union(unpacker.unpack(), args, where)
    return lambda unpacker, where: _scalar(unpacker.unpack(), kind, where)


def _tuple_reader(item: Read) -> Read:
    def read(unpacker: Reader, where: str) -> Any:
        count = unpacker.read_array_header()
        require(count <= MAX_ITEMS, f"{where} has {count} items, at most {MAX_ITEMS} are allowed")
        return tuple([item(unpacker, f"{where}[{i}]") for i in range(count)])

    return read


def _dict_reader(item: Read) -> Read:
    def read(unpacker: Reader, where: str) -> Any:
        count = unpacker.read_map_header()
        require(count <= MAX_ITEMS, f"{where} has {count} entries, at most {MAX_ITEMS} are allowed")
        out: dict[str, Any] = {}
        for _ in range(count):
            key = _scalar(unpacker.unpack(), str, f"a key of {where}")
            if key in out:
                raise MessageError(f"{where} has the key {key[:40]!r} twice")
            out[key] = item(unpacker, f"{where}.{key[:40]}")
        return out

    return read


def _message_reader(cls: type) -> Read:
    readers = {name: (_reader(kind), f".{name}") for name, kind in typing.get_type_hints(cls).items()}

    def read(unpacker: Reader, where: str) -> Any:
        count = unpacker.read_map_header()
        require(count <= len(readers), f"{where} has {count} fields, {cls.__name__} has {len(readers)}")
        values: dict[str, Any] = {}
        for _ in range(count):
            key = _scalar(unpacker.unpack(), str, f"a field name of {where}")
            if key not in readers:
                raise MessageError(f"{where} has the unknown field {key[:40]!r}")
            if key in values:
                raise MessageError(f"{where} has the field {key!r} twice")
            field, name = readers[key]
            values[key] = field(unpacker, where + name)
        if len(values) < len(readers):
            missing = next(name for name in readers if name not in values)
            raise MessageError(f"{where} lacks the field {missing!r}")
        return cls(**values)

    return read


def _union(value: Any, kinds: tuple[Any, ...], where: str) -> Any:
    if type(value) in kinds:
        return _scalar(value, type(value), where)
    raise MessageError(f"{where} is a {type(value).__name__}, expected one of {', '.join(k.__name__ for k in kinds)}")


def _scalar(value: Any, kind: Any, where: str) -> Any:
    if kind is float and type(value) is int:
        value = float(value)  # msgpack writers may shorten 1.0 to 1
    if type(value) is not kind:
        raise MessageError(f"{where} is a {type(value).__name__}, expected {kind.__name__}")
    if kind is float and not math.isfinite(value):
        raise MessageError(f"{where} is {value}, expected a finite number")
    return value
