"""The planner's pure parts: bytes, what fits, what is tried next, what is recommended, the file, dealing."""

import math
import random
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from covey_edge.planner import halving
from covey_edge.planner.book import Book, from_json, name_of, opened, to_json
from covey_edge.planner.deal import Sample, deal, dirichlet, owners
from covey_edge.planner.halving import Found, Job, Search
from covey_edge.planner.run import Cost, fitted
from covey_edge.planner.sizes import Message, Pair, affordable, pairs, parse_bytes, population, promising
from covey_edge.planner.space import (
    CODECS,
    DOWN,
    PROBED,
    SERVERS,
    SINCE_START,
    UP,
    Choice,
    Scene,
    neighbours,
    text,
)
from covey_edge.planner.taskfile import Facts, render
from covey_edge.texts import Document
from covey_server import task_file
from covey_server.prepare import codec_of
from covey_shared.errors import UsageError
from tests.helpers_edge import LAYOUT, manifest_of
from tests.helpers_fleet import bigram_bundle

RANKS = (1, 2, 4)
PROBES = sum(map(len, PROBED.values()))
SCENE = Scene(steps=4, cohort=3, seed=0)
BITS = {"exact": 32.0, "affine 8": 9.0, "affine 4": 5.0, "affine 2": 3.0, "levels 0.1": 4.0, "levels 0.2": 2.8,
        "levels 0.3": 2.2, "levels 0.5": 1.4, "levels 0.7": 0.9, "sign": 1.0, "sign rows": 1.01}  # fmt: skip


def measured(ranks: tuple[int, ...] = RANKS, entries: int = 4000) -> dict[tuple[int, str, str], Message]:
    """Made-up sizes in the order of the real ones."""
    out = {}
    for rank in ranks:
        for way, words in (("up", UP), ("down", DOWN)):
            for word in words:
                bits = BITS.get(word, 6 * CODECS[word].density)
                size = 300 + int(rank * entries * bits / 8)
                out[rank, way, word] = Message(size, 1 / (1 + bits))
    return out


def search_of(budget: int, pilots: int = 12, rounds: int = 18, since: str = "version") -> Search:
    return Search(tuple(affordable(pairs(measured(), since), budget)), budget, pilots, halving.rungs(rounds), since)


def fake(job: Job, seed: int = 0) -> Found:
    """A made-up pilot: more ranks and rounds help, a rate of 3e-3 is best, and each choice has its own luck."""
    choice, luck = job.choice, random.Random(f"{job.choice}{seed}")
    loss = 5 - math.log1p(job.rounds) * (1 + 0.1 * choice.rank) + abs(math.log(choice.rate / 3e-3)) + luck.random()
    pair = next(
        p for p in pairs(measured(), choice.since) if (p.rank, p.up, p.down) == (choice.rank, choice.up, choice.down)
    )
    losses = tuple(loss + 0.1 * luck.random() for _ in range(3))
    if luck.random() < 0.1:
        losses = (math.inf,) * 3
    return Found(losses, 0.5, int(pair.size * luck.uniform(0.9, 1.1)), 10.0, 10.0, 1.0)


def finish(search: Search, run: Callable[[Job], Found], results: dict[Job, Found], most: int = 10_000) -> int:
    """Run what is wanted until nothing is; how many pilots that took."""
    count = 0
    while count < most and (stage := halving.next_stage(search, results)):
        for job in stage[1][: most - count]:
            assert job not in results
            results[job] = run(job)
            count += 1
    return count


@pytest.mark.parametrize(
    ("written", "size"), [("50kB", 50_000), ("0.5 MB", 500_000), ("64KiB", 65_536), ("1200", 1200), ("2k", 2000)]
)
def test_bytes_as_people_write_them(written: str, size: int) -> None:
    assert parse_bytes(written) == size


@given(st.text(max_size=12))
def test_what_is_no_number_of_bytes_is_refused(written: str) -> None:
    with suppress(UsageError):  # and with nothing else
        assert parse_bytes(written) >= 1


@pytest.mark.parametrize("word", UP)
def test_every_codec_is_one_that_the_server_takes(word: str) -> None:
    """Each word's lines are a section of a task file whose codec fits a layout, both ways where they are for that."""
    for since in ("version", "start"):
        down = (
            word if word in (SINCE_START if since == "start" else DOWN) else "sign" if since == "version" else "exact"
        )
        for server in SERVERS:
            task = task_file.parse(text(Choice(2, word, down, since, 1e-3, server), SCENE))
            codec_of("upload", task.upload, LAYOUT)
            codec_of("download", task.download, LAYOUT)
            assert (task.task.rank, task.since, task.client.steps) == (2, since, 4)


@given(st.integers(1, 200_000), st.sampled_from(["version", "start"]))
def test_nothing_beyond_the_budget_is_taken(budget: int, since: str) -> None:
    every = pairs(measured(), since)
    least = min(pair.size for pair in every)
    if budget < least:
        with pytest.raises(UsageError, match=rf"the smallest is {least:,} bytes \(rank 1, up"):
            affordable(every, budget)
        return
    fit = affordable(every, budget)
    assert all(pair.size <= budget for pair in fit)
    chosen = population(promising(fit), 20, Choice(1, "sign", "exact", since, 1e-3))
    assert 1 <= len(chosen) <= 20
    assert len(set(chosen)) == len(chosen)
    sizes = {(p.rank, p.up, p.down): p.size for p in fit}
    assert all(sizes[c.rank, c.up, c.down] <= budget for c in chosen)


def test_the_population_has_every_rank_and_kind_first() -> None:
    fit = affordable(pairs(measured(), "version"), 20_000)
    chosen = population(promising(fit), 15, Choice(1, "sign", "exact", "version", 1e-3))
    assert {c.rank for c in chosen} == set(RANKS)
    assert {c.sends for c in chosen} == {"all", "top", "important", "segments", "adaptive"}


def test_more_bytes_for_more_loss_is_never_promising() -> None:
    for kind in promising(affordable(pairs(measured(), "version"), 50_000)):
        assert kind == sorted(kind, key=lambda p: p.error)
        assert all(a.size > b.size for a, b in pairwise(kind))


@settings(max_examples=12, deadline=None)
@given(
    budget=st.integers(2500, 60_000), pilots=st.integers(2, 20), rounds=st.integers(1, 30), seed=st.integers(0, 99),
    since=st.sampled_from(["version", "start"]),
)  # fmt: skip
def test_a_search_ends_within_the_budget(budget: int, pilots: int, rounds: int, seed: int, since: str) -> None:
    search = search_of(budget, pilots, rounds, since)
    results: dict[Job, Found] = {}
    finish(search, lambda job: fake(job, seed), results)
    chosen = halving.recommend(search, results)
    if chosen is None:
        assert not any(halving.admissible(search, found) for found in results.values())
        return
    assert results[chosen].worst <= budget
    assert math.isfinite(results[chosen].loss)
    assert chosen.rounds in search.rungs
    assert len(results) <= (PROBES + pilots + halving.LEADERS * 9) * len(search.rungs)


@settings(max_examples=8, deadline=None)
@given(kill=st.integers(0, 80), seed=st.integers(0, 99))
def test_killed_anywhere_it_comes_to_the_same(kill: int, seed: int) -> None:
    """What is there in which order does not matter: some pilots at random from an unfinished stage, then the rest."""
    search = search_of(12_000)
    whole: dict[Job, Found] = {}
    finish(search, lambda job: fake(job, seed), whole)
    part: dict[Job, Found] = {}
    finish(search, lambda job: fake(job, seed), part, most=kill)
    shuffled = list(part.items())
    random.Random(seed).shuffle(shuffled)
    again = dict(shuffled)
    ran = finish(search, lambda job: fake(job, seed), again)
    assert again == whole
    assert ran == len(whole) - len(part)
    assert halving.recommend(search, again) == halving.recommend(search, whole)


def test_the_first_cut_keeps_each_rank_and_kind() -> None:
    search = search_of(20_000, pilots=15)
    results: dict[Job, Found] = {}
    while (stage := halving.next_stage(search, results)) and stage[0] != "6 rounds":
        results |= {job: Found((4.0 + 0.01 * job.choice.rank,) * 2, 0.0, 100, 1, 1, 0) for job in stage[1]}
    assert stage is not None
    assert {job.choice.rank for job in stage[1]} == set(RANKS)
    assert len({job.choice.sends for job in stage[1]}) == 5


def test_pilots_that_learn_nothing_are_made_longer() -> None:
    """Three times the rounds until the loss is below that of the start; then nothing shorter is run."""
    search = search_of(20_000)._replace(before=4.0)

    def slow(job: Job) -> Found:
        return Found((4.0 if job.rounds < 6 else 3.0 + 0.01 * job.choice.rank,) * 2, 0.0, 100, 1, 1, 0)

    results: dict[Job, Found] = {}
    finish(search, slow, results)
    assert sum(job.rounds == search.rungs[0] for job in results) == PROBES
    assert sum(job.rounds == 6 for job in results) > 2 * PROBES
    assert halving.recommend(search, results) is not None
    flat: dict[Job, Found] = {}
    finish(search, lambda job: Found((4.0,) * 2, 0.0, 100, 1, 1, 0), flat)
    assert {job.rounds for job in flat} == set(search.rungs), "that nothing is learned at all comes to an end too"


def test_of_equals_the_one_with_the_fewest_bytes() -> None:
    a, b, c = (Choice(rank, "sign", "sign", "version", 1e-3) for rank in (4, 2, 1))
    results = {
        Job(a, 6): Found((3.0, 3.2, 3.1), 0, 900, 1, 1, 0),
        Job(b, 6): Found((3.1, 3.1, 3.103), 0, 500, 1, 1, 0),  # a thousandth more: as good
        Job(c, 6): Found((3.3, 3.2, 3.3), 0, 100, 1, 1, 0),  # worse on most, and by more than a hundredth of 2 nats
    }
    search = Search((), 1000, 2, (2, 6), "version", 5.1)
    assert halving.recommend(search, results) == Job(b, 6)
    assert halving.recommend(search._replace(budget=200), results) == Job(c, 6)
    assert halving.recommend(search._replace(budget=50), results) is None


def test_neighbours_differ_in_one_thing() -> None:
    choice = Choice(2, "sign", "levels 0.1", "version", 3e-3)
    near = neighbours(choice)
    for other in near:
        assert sum(choice.to_json()[k] != v for k, v in other.to_json().items()) == 1
    assert {c.rate for c in near} == {1e-3, 3e-3, 1e-2}
    assert any(c.since == "start" for c in near)
    assert not any(c.since == "start" for c in neighbours(Choice(2, "sign", "sign", "version", 3e-3)))


@given(st.floats(0.001, 10), st.floats(0.001, 5), st.floats(1, 1e5))
def test_a_plan_is_made_to_fit_the_time(round_s: float, eval_s: float, seconds: float) -> None:
    search = fitted(search_of(20_000, pilots=24), Cost(round_s, eval_s, seconds))
    assert 6 <= search.pilots <= 24
    assert 1 <= search.rungs[-1] <= 18
    assert list(search.rungs) == sorted(set(search.rungs))


def test_the_recommended_file_is_complete_and_parses() -> None:
    facts = Facts("../b", "m", RANKS, 5000, 30, 18, 5.0, 'roles by field "client"\nwith #', 90)
    found = Found((3.0, 3.1), 0.3, 4800, 2000.0, 2700.0, 1.0)
    for up in UP:
        made = render(Choice(2, up, "levels 0.3", "version", 3e-3, "momentum"), found, SCENE, facts)
        task = task_file.parse(made)
        assert (task.task.rank, task.task.rounds, task.task.bundle, task.round.target) == (2, 90, "../b", 3)
        assert task.server.name == "momentum"
        assert all(line.startswith("#") or len(line) < 120 for line in made.splitlines())
        assert "held-out loss 5.0000 -> 3.0500" in " ".join(made.lower().replace("\n# ", " ").split())


@settings(deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=200), st.integers(2, 9), st.floats(0.05, 50), st.integers(0, 9))
def test_every_example_is_dealt_once(labels: list[int], count: int, alpha: float, seed: int) -> None:
    dealt = dirichlet(np.array(labels, np.int64), count, alpha, seed)
    assert len(dealt) == count
    assert sorted(np.concatenate(dealt).tolist()) == list(range(len(labels)))


def test_smaller_alpha_is_more_uneven() -> None:
    labels = np.repeat(np.arange(4), 200)

    def purity(alpha: float) -> float:
        parts = [np.bincount(labels[mine], minlength=4) for mine in dirichlet(labels, 6, alpha, 0) if len(mine)]
        return float(np.mean([part.max() / part.sum() for part in parts]))

    assert purity(0.05) > purity(100) + 0.2


def test_whose_is_a_document(tmp_path: Path) -> None:
    manifest, sample = manifest_of(), Sample(tmp_path, 4)
    folders = [Document("ann/a.txt", "x"), Document("ann/b/c.txt", "y"), Document("bob/d.txt", "z")]
    assert {k: len(v) for k, v in owners(folders, sample, manifest).items()} == {"ann": 2, "bob": 1}
    files = [Document("a.jsonl, line 1", "x"), Document("a.jsonl, line 2", "y"), Document("b.txt", "z")]
    assert {k: len(v) for k, v in owners(files, sample, manifest).items()} == {"a.jsonl": 2, "b.txt": 1}
    by_field = Sample(tmp_path, 4, client_field="role")
    roles = [Document("p, line 1", "x", owner="R"), Document("p, line 2", "x", owner="J")]
    assert set(owners(roles, by_field, manifest)) == {"R", "J"}


def test_dealing_text(tmp_path: Path) -> None:
    """By field, by file, by stretch; too little is refused with a sentence."""
    bundle = bigram_bundle(tmp_path / "bundle")
    text_of = "to be or not to be, that is the question. " * 20
    records = tmp_path / "all.jsonl"
    records.write_text("".join(f'{{"text": "{text_of}", "role": "{r}"}}\n' for r in ("ann", "bob", "cid", "dan")))
    dealt = deal(Sample(records, 3, client_field="role"), bundle)
    assert len(dealt.devices) == 3
    assert set(dealt.devices) < {"ann", "bob", "cid", "dan"}
    assert "3 of the 4 owners that the sample has by field 'role'" in dealt.how
    again = deal(Sample(records, 3, client_field="role"), bundle)
    assert list(again.devices) == list(dealt.devices)
    folder = tmp_path / "files"
    folder.mkdir()
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(text_of)
    assert set(deal(Sample(folder, 3), bundle).devices) == {"a.txt", "b.txt"}
    alone = tmp_path / "alone.txt"
    alone.write_text(text_of)
    assert len(deal(Sample(alone, 3), bundle).devices) == 3
    alone.write_text("short")
    with pytest.raises(UsageError, match="the sample is enough for 0 devices"):
        deal(Sample(alone, 3), bundle)
    with pytest.raises(UsageError, match="does not say in 'author' whose it is"):
        deal(Sample(records, 3, client_field="author"), bundle)
    with pytest.raises(UsageError, match="there is nothing at"):
        deal(Sample(tmp_path / "nothing", 3), bundle)


def test_results_are_kept_and_a_torn_line_is_passed_over(tmp_path: Path) -> None:
    choice = Choice(2, "sign", "levels 0.3", "version", 3e-3)
    first, failed = Job(choice, 2), Job(choice, 6)
    with opened(tmp_path / "plan", {"seed": 0}, force=False) as notes:
        notes.add(first, Found((3.0, 2.5), 0.25, 100, 40.5, 50.0, 0.1))
    with (tmp_path / "plan" / "pilots.jsonl").open("a") as out:
        out.write('{"rounds": 6, "rank"')
    with opened(tmp_path / "plan", {"seed": 0}, force=False) as notes:
        assert set(notes.results) == {first}
        notes.add(failed, Found((math.inf, 2.0), 0.0, 100, 1.0, 1.0, 0.1))
    assert Book(tmp_path / "plan").results[failed].losses == (math.inf, 2.0)
    with (
        pytest.raises(UsageError, match="holds a plan with another seed"),
        opened(tmp_path / "plan", {"seed": 1}, force=False),
    ):
        pass
    for name in ("messages.json", "fitted.json"):
        (tmp_path / "plan" / name).touch()
    with opened(tmp_path / "plan", {"seed": 1}, force=True) as notes:
        assert not notes.results
    assert {p.name for p in (tmp_path / "plan").iterdir()} == {"lock", "plan.json", "pilots"}, "nothing old counts"
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").touch()
    with (
        pytest.raises(UsageError, match="is not a folder that covey plan made"),
        opened(tmp_path / "other", {}, force=True),
    ):
        pass


@given(st.lists(st.floats(0, 1e6) | st.just(math.inf), min_size=1, max_size=4))
def test_a_result_survives_json(losses: list[float]) -> None:
    found = Found(tuple(losses), 0.5, 10, 1.5, 2.5, 0.1)
    assert from_json(to_json(found)) == found
    assert len(name_of(Choice(1, "sign", "sign", "version", 1e-3))) == 24


def test_pairs_are_of_one_rank() -> None:
    assert {type(pair) for pair in pairs(measured((0,)), "version")} == {Pair}
    with pytest.raises(UsageError, match=r"the smallest is \d+ bytes \(up exact, down exact\)$"):
        affordable(pairs(measured((0,), 1), "version"), 10)
