"""Cohorts with real clients and the real server, which is stopped in the middle of a round."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from covey_edge.versions import NOTHING, Held, advance
from covey_server import task_file
from covey_shared.bundle import Bundle
from covey_shared.errors import TaskFileError
from covey_shared.messages import Adapter, Refusal
from tests.helpers_edge_serving import serving
from tests.helpers_fleet import Ended, bigram_bundle, take_part
from tests.helpers_server import call, replay, status_of

TEXTS = {
    "ann": "the cat sat on the mat and the dog lay on the log; ",
    "bea": "the dog lay on the mat and the cat sat on the log; ",
    "cid": "0123 4567 8901 2345 6789 0012 3456 7890; ",
    "dan": "0987 6543 2101 2345 6789 0011 2233 4455; ",
}
COHORTS = '[strategy]\nname = "cohorts"\nevery = 2\n{more}[upload]\ncodec = "levels"\n'


def together(url: str, folder: Path, bundle: Bundle, names: tuple[str, ...], *, once: bool = False) -> list[Ended]:
    async def everyone() -> list[Ended]:
        every = (take_part(url, name, folder, bundle, text=TEXTS[name], once=once) for name in names)
        return await asyncio.gather(*every)

    return asyncio.run(everyone())


def test_cohorts_are_found_and_survive_a_restart_in_the_middle_of_a_round(tmp_path: Path) -> None:
    bundle = bigram_bundle(tmp_path / "bundle")
    everybody = tuple(TEXTS)

    def server(rounds: int = 6):  # type: ignore[no-untyped-def]
        return serving(
            bundle, tmp_path / "server", rounds=rounds, target=4, more=COHORTS.format(more=""), keep_updates=True
        )

    with server() as running:
        for _ in range(3):  # after version 2 there are cohorts
            together(running.url, tmp_path, bundle, everybody, once=True)
        running.wait_for_version(3)
        grouped = status_of(running.url)["cohorts"]
        together(running.url, tmp_path, bundle, ("ann", "cid"), once=True)
    assert grouped["ann"] == grouped["bea"] != grouped["cid"] == grouped["dan"]
    with server() as running:
        assert status_of(running.url)["cohorts"] == grouped
        ended = together(running.url, tmp_path, bundle, everybody)
        status = status_of(running.url)
        divided, view = running.aggregator.run.divided, running.aggregator.server.view
    assert status["cohorts"] == grouped
    digests = [version["digest"] for version in status["history"]]
    division = divided.division
    for (record, log), name in zip(ended, everybody, strict=True):
        assert record.cohort == grouped[name]
        mine = division.downloaded(record.cohort)
        assert record.adapter == view[division.published.positions(mine)].tobytes(), "bit for bit what was published"
        sizes = {e["version"]: e["bytes"] for e in log if e["event"] == "version"}
        steps = {v["version"]: v["step_bytes"] for v in status["history"]}
        assert sizes[6] < steps[6] * mine.size / division.published.size + 700, "the other cohort's copies stay away"
    assert digests == replay(tmp_path / "server" / "task.toml", tmp_path / "server" / "run")
    first, second = (divided.division.at(divided.start, view, cohort) for cohort in (0, 1))
    size = divided.division.adapter.size
    assert not np.array_equal(first[:size], second[:size]), "each cohort has learned what is its own"
    assert status["history"][-1]["loss"] < status["history"][0]["loss"] - 0.05


def test_a_device_gets_the_copies_of_its_own_cohort_alone(tmp_path: Path) -> None:
    """Eve is new here, and so in cohort 0."""
    bundle = bigram_bundle(tmp_path / "bundle")
    pinned = COHORTS.format(more='smallest = 1\npins = "ann=0 cid=1"\n')
    with serving(bundle, tmp_path / "server", rounds=3, target=2, more=pinned) as running:
        together(running.url, tmp_path, bundle, ("ann", "cid"))
        division, view = running.aggregator.run.divided.division, running.aggregator.server.view
        for query, code in (("&cohort=1", "conflict"), ("&cohort=99", "conflict"), ("&cohort=-1", "bad_message"),
                            ("&cohort=x", "bad_message"), ("&cohort=", "bad_message")):  # fmt: skip
            answer = call(running.url, "GET", f"/v1/adapter/3?held=-1{query}", who="eve")
            assert Refusal.from_bytes(answer.body).code == code
        for cohort, layout in ((None, division.common), (0, division.copy(0))):
            assert layout is not None
            query = "" if cohort is None else f"&cohort={cohort}"
            message = Adapter.from_bytes(call(running.url, "GET", f"/v1/adapter/3?held=-1{query}", who="eve").body)
            here = view[division.published.positions(layout)]
            start = division.start(bundle.start(7))[division.published.positions(layout)]
            held = advance(Held(NOTHING, start), message, layout, lambda start=start: start)  # type: ignore[misc]
            assert (message.layout, held.adapter.tobytes()) == (layout.digest, here.tobytes())


def test_a_task_without_cohorts_has_no_copies(tmp_path: Path) -> None:
    bundle = bigram_bundle(tmp_path / "bundle")
    with serving(bundle, tmp_path / "server") as running:
        answer = call(running.url, "GET", "/v1/adapter/0?held=-1&cohort=0", who="eve")
        assert Refusal.from_bytes(answer.body).code == "bad_message"


@pytest.mark.parametrize("since", ["version", "start"])
def test_clusters_that_share_nothing(since: str, tmp_path: Path) -> None:
    """With every tensor a cohort's; a device that moves takes the other copies whole."""
    bundle = bigram_bundle(tmp_path / "bundle")
    more = COHORTS.format(more='tensors = "*"\nsmallest = 1\n') + f'[download]\nsince = "{since}"\n'
    with serving(bundle, tmp_path / "server", rounds=5, target=4, more=more) as running:
        ended = together(running.url, tmp_path, bundle, tuple(TEXTS))
        status, view = status_of(running.url), running.aggregator.server.view
        division = running.aggregator.run.divided.division
    assert division.common is None
    assert division.published.size == 2 * division.adapter.size
    assert set(status["cohorts"].values()) == {0, 1}
    for record, log in ended:
        assert record.cohort == status["cohorts"][record.client]
        assert record.adapter == view[division.published.positions(division.copy(record.cohort))].tobytes()
        versions = [e["version"] for e in log if e["event"] == "version"]
        assert versions == [0, 1, 2, 3, 4, 5], "one download of each, whichever cohort it was"
    assert status["history"][-1]["loss"] < status["history"][0]["loss"] - 0.05


def test_a_pinned_device(tmp_path: Path) -> None:
    bundle = bigram_bundle(tmp_path / "bundle")
    pinned = COHORTS.format(more='pins = "ann=1"\nsmallest = 1\n')
    with serving(bundle, tmp_path / "server", rounds=3, target=4, more=pinned) as running:
        logs = together(running.url, tmp_path, bundle, tuple(TEXTS))
        cohorts = status_of(running.url)["cohorts"]
        assert running.aggregator._assignment(None, "ann").cohort == 1
    assert cohorts["ann"] == 1
    assert len(logs) == 4


@pytest.mark.parametrize("pins", ["ann", "ann=2", "=1", "ann=-1"])
def test_pins_that_name_no_cohort(pins: str, tmp_path: Path) -> None:
    bundle = bigram_bundle(tmp_path / "bundle")
    more = COHORTS.format(more=f'pins = "{pins}"\n')
    with pytest.raises(TaskFileError, match="write DEVICE=COHORT"), serving(bundle, tmp_path / "server", more=more):
        pass


def test_cohorts_need_synchronous_rounds() -> None:
    with pytest.raises(TaskFileError, match="mode 'sync'"):
        task_file.parse('[task]\nbundle = "b"\n[round]\nmode = "async"\n[strategy]\nname = "cohorts"\n')
