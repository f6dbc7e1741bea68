"""Cohorts with real clients and the real server, which is stopped in the middle of a round."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from covey_server import task_file
from covey_shared.bundle import Bundle
from covey_shared.errors import TaskFileError
from covey_shared.layout import vector_digest
from tests.helpers_edge_serving import serving
from tests.helpers_fleet import Ended, bigram_bundle, take_part
from tests.helpers_server import replay, status_of

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
    assert {vector_digest(record.version().adapter) for record, _ in ended} == {digests[-1]}
    assert digests == replay(tmp_path / "server" / "task.toml", tmp_path / "server" / "run")
    first, second = (divided.division.at(divided.start, view, cohort) for cohort in (0, 1))
    size = divided.division.adapter.size
    assert not np.array_equal(first[:size], second[:size]), "each cohort has learned what is its own"
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
