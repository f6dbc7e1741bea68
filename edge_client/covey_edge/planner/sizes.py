"""What fits a budget of bytes: sizes of real messages, and which of the choices that fit are worth a pilot. Pure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from covey_edge.planner.space import CODECS, DOWN, SINCE_START, UP, Choice
from covey_shared.errors import UsageError
from covey_shared.show import size_text

UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
ROOM = 1.05  # a coded vector's length moves with its values; a choice that just fits at first would not later


class Message(NamedTuple):
    """A real change of one rank through one codec: bytes of the message, and the share of the norm that it lost."""

    size: int
    error: float


class Pair(NamedTuple):
    """Codecs of both ways at one rank: bytes of a device and round, and how much both lose."""

    rank: int
    up: str
    down: str
    size: int
    error: float


Measured = Mapping[tuple[int, str, str], Message]  # by rank, "up" or "down", and the codec's word


def parse_bytes(text: str) -> int:
    """A number of bytes as people write it.

    >>> [parse_bytes(t) for t in ("50kB", "0.5 MB", "64KiB", "1200")]
    [50000, 500000, 65536, 1200]
    """
    found = re.fullmatch(r"\s*(\d{1,15}(?:\.\d{1,9})?)\s*([kKmMgG]?[iI]?[bB]?)\s*", text)
    unit = found.group(2).lower() if found else "?"
    unit = unit + "b" if unit in ("k", "m", "g") else unit
    if found is None or unit not in UNITS:
        raise UsageError(f"--bytes-per-round {text!r} is no number of bytes; write 50kB, 0.5MB or 50000")
    size = int(float(found.group(1)) * UNITS[unit])
    if size < 1:
        raise UsageError(f"--bytes-per-round {text!r} is nothing; the smallest message has some hundred bytes")
    return size


def varies(word: str) -> bool:
    """Whether a codec's length depends on the values: not where every entry takes as many bits."""
    return CODECS[word].sends not in ("all", "segments") or word.startswith("levels")


def expected(word: str, message: Message) -> int:
    """The bytes to reckon with."""
    return int(message.size * ROOM) if varies(word) else message.size


def pairs(measured: Measured, since: str) -> list[Pair]:
    """Every upload with every download, at each rank."""
    downs = SINCE_START if since == "start" else DOWN
    ranks = sorted({rank for rank, _, _ in measured})
    return [_pair(measured, rank, up, down) for rank in ranks for up in UP for down in downs]


def _pair(measured: Measured, rank: int, up: str, down: str) -> Pair:
    sent, got = measured[rank, "up", up], measured[rank, "down", down]
    return Pair(rank, up, down, expected(up, sent) + expected(down, got), sent.error + got.error)


def affordable(every: Sequence[Pair], budget: int) -> list[Pair]:
    """Those that fit; refuses a budget that nothing fits, naming the smallest that something would."""
    found = [pair for pair in every if pair.size <= budget]
    if not found:
        least = min(every, key=lambda pair: pair.size)
        rank = f"rank {least.rank}, " if least.rank else ""
        more = "; a bundle with a lower rank (covey export --ranks) takes fewer" if rank else ""
        raise UsageError(
            f"{size_text(budget)} a device and round is too little for anything: the smallest is {least.size:,} bytes "
            f"({rank}up {least.up}, down {least.down}){more}"
        )
    return found


def promising(found: Iterable[Pair]) -> list[list[Pair]]:
    """For each rank and each way of choosing entries the pairs that lose least, best first; one for each upload.

    Codecs that cost more and lose more than another of the same kind are left out.
    """
    kinds: dict[tuple[str, int], list[Pair]] = {}
    for up, mine in _grouped(found).items():
        kinds.setdefault((CODECS[up[1]].sends, up[0]), []).append(min(mine, key=lambda p: (p.error, p.size)))
    order = list(dict.fromkeys(codec.sends for codec in CODECS.values()))
    keys = sorted(kinds, key=lambda key: (order.index(key[0]), -key[1]))
    return [_undominated(kinds[key]) for key in keys]


def _grouped(found: Iterable[Pair]) -> dict[tuple[int, str], list[Pair]]:
    out: dict[tuple[int, str], list[Pair]] = {}
    for pair in found:
        out.setdefault((pair.rank, pair.up), []).append(pair)
    return out


def _undominated(found: list[Pair]) -> list[Pair]:
    out: list[Pair] = []
    for pair in sorted(found, key=lambda p: (p.error, p.size)):
        if not out or pair.size < out[-1].size:
            out.append(pair)
    return out


def population(kinds: Sequence[Sequence[Pair]], count: int, like: Choice) -> list[Choice]:
    """At most `count` choices like one in rate and server, in turn from each rank and kind, the best of each first."""
    out: list[Choice] = []
    for depth in range(max(map(len, kinds), default=0)):
        out += [replace(like, rank=p[depth].rank, up=p[depth].up, down=p[depth].down) for p in kinds if depth < len(p)]
    return out[:count]


def at_other_ranks(found: Sequence[Pair], choice: Choice) -> list[Choice]:
    """The same way of choosing entries one rank up and one down, as fine as fits: rank against density."""
    ranks = sorted({pair.rank for pair in found})
    at = ranks.index(choice.rank)
    out = []
    for rank in (*ranks[max(0, at - 1) : at], *ranks[at + 1 : at + 2]):
        mine = [p for p in found if p.rank == rank and CODECS[p.up].sends == choice.sends]
        if mine:
            best = min(mine, key=lambda p: (p.error, p.size))
            out.append(Choice(rank, best.up, best.down, choice.since, choice.rate, choice.server))
    return out
