"""What to try next: successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943) with neighbours. Pure.

All of it is a function of what was found so far, so a plan that was killed goes on where it was, and the number of
pilots that run at the same time changes nothing. The stages:

1. `rates`: one choice at every rate, with AdamW on devices or Adam on the server, for a few rounds; for three times
   as many where these teach nothing, and all that follows then begins with so many.
2. `first`: many choices at the best of these rates, as few rounds.
3. `around`: neighbours of the best: another rate, another server, rank traded against density (as FLASC-Search does).
4. `then`: a third goes on for three times the rounds, and again. At the first cut the best of each rank and of each way
   of choosing entries stays: what sends little a round starts slowly, and would never be seen at its best otherwise.
   With those that go on comes the best of them at the next lower rate, which pays in the long run if at all.

The one that is recommended lost least in the longest pilots. Where others are as good within what the devices' own
losses can tell (a paired standard error) and within a hundredth of what was learned, it is the one with the fewest
bytes.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from covey_edge.planner.sizes import Pair, at_other_ranks, population, promising
from covey_edge.planner.space import PROBED, RATES, Choice, neighbours

ETA = 3
LEARNED = 0.02  # of the loss at the start: less is what pilots differ by that have learned nothing yet
EQUAL = 0.01  # of what was learned: a difference that is not worth more bytes
LEADERS = 3  # choices whose neighbours are tried


class Found(NamedTuple):
    """What a pilot of so many rounds came to.

    `losses`: held-out loss of each device in the same order, nats, infinite where training failed. `worst`: the most
    bytes that a device took in a round, up and down. `sent`, `received`: the means.
    """

    losses: tuple[float, ...]
    accuracy: float
    worst: int
    sent: float
    received: float
    seconds: float

    @property
    def loss(self) -> float:
        """The mean over devices."""
        mean = math.fsum(self.losses) / len(self.losses) if self.losses else math.inf
        return mean if math.isfinite(mean) else math.inf


class Job(NamedTuple):
    """A choice that is to be trained for so many rounds in all."""

    choice: Choice
    rounds: int


class Search(NamedTuple):
    """What is searched: pairs that fit, the budget, choices to begin with, lengths of pilots, downloads' origin.

    `before`: the loss of version 0."""

    pairs: tuple[Pair, ...]
    budget: int
    pilots: int
    rungs: tuple[int, ...]
    since: str
    before: float = math.inf
    rates: tuple[float, ...] = RATES


Results = Mapping[Job, Found]
Stage = tuple[str, list[Job]]


def rungs(rounds: int, least: int = 2) -> tuple[int, ...]:
    """Lengths of pilots, each a third of the next, at most three.

    >>> rungs(18), rungs(6), rungs(1)
    ((2, 6, 18), (2, 6), (1,))
    """
    lengths = [rounds]
    while len(lengths) < 3 and lengths[0] // ETA >= least:
        lengths.insert(0, lengths[0] // ETA)
    return tuple(lengths)


def next_stage(search: Search, results: Results) -> Stage | None:
    """The first stage that has something to run, and what of it is not there yet; None when all is done."""
    jobs: list[Job] = []
    for name, stage in _stages(search, results):
        jobs = [job for job in stage if job not in results]
        if jobs:
            return name, jobs
    return None


def _stages(search: Search, results: Results) -> list[Stage]:
    """The stages as far as they are known: each follows from the results of those before it."""
    kinds, out = promising(search.pairs), list[Stage]()
    for first in search.rungs:
        out.append(("rates", [Job(choice, first) for choice in probes(search, kinds)]))
        if not _done(out, results):
            return out
        if learned(search, results, out[-1][1]):
            break
    search = search._replace(rungs=search.rungs[len(out) - 1 :])
    begun = population(kinds, search.pilots, best_probe(search, kinds, results))
    out.append(("first", [Job(choice, first) for choice in begun]))
    if not _done(out, results):
        return out
    tried = list(dict.fromkeys([*(job.choice for _, jobs in out for job in jobs)]))
    around = [c for leader in ranked(search, results, tried, first)[:LEADERS] for c in _around(search, leader)]
    out.append(("around", [Job(choice, first) for choice in dict.fromkeys(around) if choice not in tried]))
    tried += [job.choice for job in out[-1][1]]
    for before, rounds in zip(search.rungs, search.rungs[1:], strict=False):
        if not _done(out, results):
            return out
        tried = with_lower_rate(search, kept(search, results, tried, before))
        out.append((f"{rounds} rounds", [Job(choice, rounds) for choice in tried]))
    return out


def _done(stages: Sequence[Stage], results: Results) -> bool:
    return all(job in results for _, jobs in stages for job in jobs)


def learned(search: Search, results: Results, jobs: Sequence[Job]) -> bool:
    """Whether the best of these pilots is clearly below the loss of version 0: else their order is chance."""
    best = min(results[job].loss for job in jobs)
    return math.isinf(search.before) or best < search.before * (1 - LEARNED)


def probes(search: Search, kinds: Sequence[Sequence[Pair]]) -> list[Choice]:
    """The choice that rates and servers are compared on, once for each: what loses least of all that fits."""
    best = min((pair for mine in kinds for pair in mine), key=lambda p: (p.error, -p.rank, p.size))
    return [Choice(best.rank, best.up, best.down, search.since, rate, server) for server, rate in probed(search)]


def probed(search: Search) -> list[tuple[str, float]]:
    """The servers and rates that the search begins with."""
    return [(server, rate) for server, rates in PROBED.items() for rate in rates if rate in search.rates]


def best_probe(search: Search, kinds: Sequence[Sequence[Pair]], results: Results) -> Choice:
    """The one with the least loss."""
    first = search.rungs[0]
    return min(probes(search, kinds), key=lambda c: (results[Job(c, first)].loss, c.rate, c.server))


def _around(search: Search, leader: Choice) -> list[Choice]:
    near = [c for c in neighbours(leader) if c.rate in search.rates]
    return [*near, *at_other_ranks(search.pairs, leader)]


def ranked(search: Search, results: Results, choices: Sequence[Choice], rounds: int) -> list[Choice]:
    """Those that can be recommended, the least loss first."""
    fit = [c for c in choices if admissible(search, results.get(Job(c, rounds)))]
    return sorted(fit, key=lambda c: (results[Job(c, rounds)].loss, results[Job(c, rounds)].worst, c))


def admissible(search: Search, found: Found | None) -> bool:
    """Whether a pilot ended, with a loss, within the budget in each of its rounds."""
    return found is not None and math.isfinite(found.loss) and found.worst <= search.budget


def kept(search: Search, results: Results, choices: Sequence[Choice], rounds: int) -> list[Choice]:
    """A third goes on, at least two; at the first cut with the best of each rank and kind."""
    order = ranked(search, results, choices, rounds)
    count = max(2, math.ceil(len(order) / ETA))
    firsts: list[Choice] = []
    if rounds == search.rungs[0] and len(search.rungs) > 1:
        firsts = [*_first_of(order, lambda c: c.sends), *_first_of(order, lambda c: c.rank)]
    firsts = list(dict.fromkeys(firsts))
    rest = [c for c in order if c not in firsts]
    chosen = {*firsts, *rest[: max(0, count - len(firsts))]}
    return [c for c in order if c in chosen]


def with_lower_rate(search: Search, order: Sequence[Choice]) -> list[Choice]:
    """Also the best of them at the next lower rate: short pilots prefer a rate that is too large for long ones."""
    if not order:
        return []
    lower = [rate for rate in search.rates if rate < order[0].rate]
    return list(dict.fromkeys([*order, *(replace(order[0], rate=max(lower)) for _ in lower[:1])]))


def _first_of(order: Sequence[Choice], key: Callable[[Choice], object]) -> list[Choice]:
    seen: dict[object, Choice] = {}
    for choice in order:
        seen.setdefault(key(choice), choice)
    return list(seen.values())


def longest(search: Search, results: Results) -> list[Job]:
    """The pilots that a recommendation is made from: of the most rounds that any ended with, the least loss first."""
    fit = [job for job, found in results.items() if admissible(search, found)]
    rounds = max((job.rounds for job in fit), default=0)
    final = [job for job in fit if job.rounds == rounds]
    return sorted(final, key=lambda job: (results[job].loss, results[job].worst, job.choice))


def recommend(search: Search, results: Results) -> Job | None:
    """The pilot whose choice is recommended; None where none is fit."""
    final = longest(search, results)
    if not final:
        return None
    best = results[final[0]]
    equal = [job for job in final if _as_good(best, results[job], search.before)]
    return min(equal, key=lambda job: (results[job].worst, results[job].loss, job.choice))


def _as_good(best: Found, other: Found, before: float) -> bool:
    """Whether the difference is within one standard error of the devices' own differences, and within a hundredth of
    what was learned: few devices say little, and a small budget is no reason to learn less than it allows.
    """
    difference = np.subtract(other.losses, best.losses)
    error = float(difference.std(ddof=1) / math.sqrt(len(difference))) if len(difference) > 1 else 0.0
    return other.loss - best.loss <= min(error, EQUAL * max(0.0, before - best.loss))
