"""What stages are made of: their arguments, checked, and the form of those that write nothing."""

import difflib
from collections.abc import Callable, Iterable

from covey_shared.codec.chain import Reach, Stage, State
from covey_shared.entries import Entries
from covey_shared.errors import CodecError
from covey_shared.messages import StageSpec
from covey_shared.schema import Scalar


def no_state(seed: int) -> State:
    """Of a stage that remembers nothing."""
    return None


def unchanged(entries: Entries | None, part: bytes) -> Entries:
    """The decoder of a stage that left entries out."""
    assert entries is not None
    return entries


def filter_stage(
    spec: StageSpec,
    leaves: Reach,
    encode: Callable[[Entries, State], tuple[Entries, bytes, State]],
    decode: Callable[[Entries | None, bytes], Entries] = unchanged,
    init: Callable[[int], State] = no_state,
) -> Stage:
    """A stage that leaves entries out and writes nothing."""
    return Stage(spec, "", False, leaves, 0, init, encode, decode)


def arguments(spec: StageSpec, known: dict[str, Scalar | None]) -> dict[str, Scalar]:
    """The spec's arguments over their defaults; None marks one that must be given."""
    for name in spec.args:
        if name not in known:
            raise CodecError(f"stage {spec.name}: unknown argument {name!r}{nearest(name, known)}")
    out = {}
    for name, default in known.items():
        value = spec.args.get(name, default)
        if value is None:
            raise CodecError(f"stage {spec.name}: the argument {name!r} is missing")
        out[name] = value
    return out


def number(spec: StageSpec, value: Scalar, name: str, low: float, high: float) -> float:
    """A number in low..high, 0 excluded."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not (value > 0 and low <= value <= high):
        bound = f"{low:g}..{high:g}" if low else f"above 0 and at most {high:g}"
        raise CodecError(f"stage {spec.name}: {name} must be a number {bound}, got {value!r}")
    return float(value)


def whole(spec: StageSpec, value: Scalar, name: str, low: int, high: int) -> int:
    """A whole number in low..high."""
    if type(value) is not int or not low <= value <= high:
        raise CodecError(f"stage {spec.name}: {name} must be a whole number in {low}..{high}, got {value!r}")
    return value


def nearest(word: str, known: Iterable[str]) -> str:
    """What to say about a word that is not known: the nearest that is, or all."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known are {', '.join(known)}" if known else "; it takes none"
