"""Checking what a person wrote in a TOML table; every refusal is a TaskFileError of one sentence."""

import difflib
import math
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from covey_shared.errors import MessageError, TaskFileError
from covey_shared.schema import Scalar, check_name

Table = Mapping[str, Any]
Defaults = Mapping[str, Mapping[str, Scalar]]


def known(where: str, table: Table, names: Iterable[str], what: str = "key") -> None:
    """Refuses a key that is not among `names`, and names the nearest that is."""
    choices = list(names)
    for key in table:
        if key not in choices:
            raise TaskFileError(f"{where} has the unknown {what} {key!r}; {_hint(key, choices)}")


def one_of(where: str, name: str, names: Iterable[str]) -> None:
    """Refuses a name that is not among `names`, and names the nearest that is."""
    choices = list(names)
    if name not in choices:
        raise TaskFileError(f"{where} is {name!r}, which is unknown; {_hint(name, choices)}")


def _hint(name: str, choices: list[str]) -> str:
    near = difflib.get_close_matches(name, choices, 1, 0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(choices)}"


T = TypeVar("T", bool, int, float, str)


def typed(where: str, value: Any, kind: type[T]) -> T:
    """`value` as `kind`; an integer may stand for a float, and nothing for anything else."""
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind or (isinstance(value, float) and not math.isfinite(value)):
        raise TaskFileError(f"{where} must be {NOUNS[kind]}, got {value!r}")
    return value


NOUNS: dict[type, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def like(where: str, value: Any, default: Scalar) -> Scalar:
    """`value`, checked to be of the type of `default`."""
    kind: type[Any] = type(default)
    checked: Scalar = typed(where, value, kind)
    return checked


def named(where: str, name: str) -> str:
    """A name that may stand in a message and a path."""
    try:
        check_name(where, name)
    except MessageError as error:
        raise TaskFileError(str(error)) from None
    return name


def in_range(where: str, value: float, low: float, high: float) -> None:
    """Refuses a number outside `low` to `high`, ends included."""
    if not low <= value <= high:
        raise TaskFileError(f"{where} must be {low:,g} to {high:,g}, got {value:,g}")


def positive(where: str, value: float) -> None:
    """Refuses zero and below."""
    if not value > 0:
        raise TaskFileError(f"{where} must be above 0, got {value:g}")
