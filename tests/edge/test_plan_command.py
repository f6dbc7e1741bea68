"""`covey plan` with real graphs: from a sample to a file that the real server serves; killed, and going on."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from covey_edge.planner import pilot
from covey_edge.planner.deal import Sample, deal
from covey_edge.planner.halving import Job
from covey_edge.planner.pilot import Running, Stage
from covey_edge.planner.space import Choice, Scene, text
from covey_server import task_file
from covey_server.simulation import begin
from covey_shared import simulation
from covey_shared.bundle import Bundle
from covey_shared.cli import main
from covey_shared.errors import TaskFileError
from covey_shared.layout import vector_digest
from covey_shared.messages import Adapter
from tests.helpers_edge import BigramTrainer
from tests.helpers_fleet import Ended, bigram_bundle, take_part
from tests.helpers_server import call, served, status_of

WORDS = ("the cat sat on the mat. ", "a stitch in time saves nine. ", "still waters run deep. ", "early birds sing. ")
SMALL = ["--rounds", "2", "--steps", "1", "--pilots", "3", "--eval-batches", "1", "--threads", "1"]


def sample_of(folder: Path, copies: int = 30) -> Path:
    """A folder of three people's texts."""
    folder.mkdir()
    for i, words in enumerate(WORDS[:3]):
        (folder / f"person-{i}.txt").write_text(words * copies)
    return folder


def stage_of(tmp_path: Path, cohort: int) -> Stage:
    bundle = bigram_bundle(tmp_path / "bundle", ranks=(1, 2, 4))
    dealt = deal(Sample(sample_of(tmp_path / "sample"), 3), bundle)
    return Stage(bundle, BigramTrainer(), dealt.devices, Scene(4, cohort, 7), begin, 2)


def trained(stage: Stage, job: Job, saved: bytes = b"") -> Running:
    *_, last = pilot.train(stage, job, pilot.start(stage, job, saved))
    return last


@pytest.mark.parametrize(
    "choice",
    [
        Choice(2, "sign", "levels 0.3", "version", 0.03),
        Choice(4, "top 1/4 levels", "levels 0.1", "start", 0.01, "momentum"),
        Choice(1, "adaptive 1/16", "sign", "version", 0.03, "adam"),
    ],
    ids=lambda c: c.words,
)
def test_a_pilot_is_what_server_and_clients_do(choice: Choice, tmp_path: Path) -> None:
    """The same task over HTTP, with agents of the same names and data: the same version, bit for bit, and its bytes."""
    stage = stage_of(tmp_path, cohort=3)
    job = Job(choice, 3)
    last = trained(stage, job)
    path = tmp_path / "task.toml"
    path.write_text(text(choice, stage.scene).replace('"."', '"bundle"').replace("1000000", "3"))

    async def everyone(url: str) -> list[Ended]:
        made = [
            take_part(url, name, tmp_path / "state", stage.bundle, trainer=BigramTrainer(), dataset=data)
            for name, data in stage.devices.items()
        ]
        return await asyncio.gather(*made)

    with served(path) as server:
        ended = asyncio.run(everyone(server.url))
        history = status_of(server.url)["history"]
    message = Adapter.from_bytes(last.server.adapter(-1))
    assert [row["version"] for row in history] == [0, 1, 2, 3]
    assert message.digest == history[-1]["digest"]
    for record, log in ended:
        assert vector_digest(record.version().adapter) == message.digest
        sent = [e["bytes"] for e in log if e["event"] == "uploaded"]
        assert len(sent) == 3
    everything = [e["bytes"] for _, log in ended for e in log if e["event"] == "uploaded"]
    # the loss and the seconds in a message are numbers of fixed length, so even the bytes are the same
    assert sum(everything) == last.up


def test_a_pilot_goes_on_from_its_bytes(tmp_path: Path) -> None:
    """Fewer devices a round than there are: who is asked, what they hold and what codecs kept back are all saved."""
    stage = stage_of(tmp_path, cohort=2)
    choice = Choice(2, "top 1/4 sign", "levels 0.3", "version", 0.03)
    whole = trained(stage, Job(choice, 5))
    half = trained(stage, Job(choice, 2)).to_bytes()
    again = trained(stage, Job(choice, 5), half)
    assert again.server.adapter(-1) == whole.server.adapter(-1)
    assert (again.worst, again.up, again.down, again.rounds) == (whole.worst, whole.up, whole.down, 5)
    assert pilot.found(stage, again).losses == pilot.found(stage, whole).losses


def test_a_device_that_missed_rounds_downloads_more_steps_or_one_from_the_start(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, cohort=1)
    sizes = {}
    for since in ("version", "start"):
        last = trained(stage, Job(Choice(4, "sign", "levels 0.3", since, 0.03), 5))
        sizes[since] = len(last.server.adapter(1))
    assert sizes["version"] > 2 * sizes["start"]


def test_training_that_fails_is_a_pilot_without_a_loss(tmp_path: Path) -> None:
    stage = stage_of(tmp_path, cohort=3)._replace(trainer=BigramTrainer(poison_at=5))
    last = trained(stage, Job(Choice(4, "sign", "levels 0.3", "version", 0.03), 3))
    assert last.failed
    assert not np.isfinite(pilot.found(stage, last).loss)


def test_the_servers_half_is_found_and_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    bundle = bigram_bundle(tmp_path / "bundle")
    found: Any = simulation.server()
    assert found is begin
    for bad, sentence in (
        ('[strategy]\nname = "cohorts"\n', "cannot be simulated"),
        ('[round]\nmode = "async"\n', "cannot be simulated"),
        ("[upload]\ncodec = 'none'\n", "codec"),
    ):
        with pytest.raises(TaskFileError, match=sentence):
            begin(f'[task]\nbundle = "b"\n{bad}', bundle)


def command(bundle: Path, data: Path, out: Path, *more: str) -> list[str]:
    return ["plan", str(bundle), "--data", str(data), "--bytes-per-round", "6kB", "--out", str(out), *SMALL, *more]


def pilots_of(out: Path) -> tuple[Any, list[Any]]:
    """What was recommended, and the pilots but for their seconds."""
    result = json.loads((out / "result.json").read_text())
    rows = [{k: v for k, v in row.items() if k != "seconds"} for row in result["pilots"]]
    return result["recommended"], sorted(rows, key=json.dumps)


def test_from_a_sample_to_a_server(lm: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A whole plan; the file is served by the real server, and nothing recommended is beyond the budget."""
    out = tmp_path / "plan"
    assert main(command(lm.folder, sample_of(tmp_path / "sample"), out)) == 0
    said = capsys.readouterr()
    assert "recommended: rank" in said.out
    assert f"covey serve {out / 'task.toml'}" in said.out
    assert "3 of the 3 owners that the sample has by its folders or files" in said.err
    chosen, rows = pilots_of(out)
    best = next(row for row in rows if {k: row[k] for k in chosen} == chosen)
    assert best["worst"] <= 6000
    before = json.loads((out / "result.json").read_text())["loss_before"]
    least = min(row["loss"] for row in rows if row["worst"] <= 6000 and row["rounds"] == chosen["rounds"])
    assert best["loss"] - least <= 0.01 * (before - least)
    task = task_file.read(out / "task.toml")
    assert (task.task.rank, task.client.learning_rate) == (chosen["rank"], chosen["rate"])
    with served(out / "task.toml") as server:
        assert status_of(server.url)["rounds"] == 10
        assert call(server.url, "GET", "/v1/task").status == 200


@pytest.mark.slow
def test_killed_and_going_on(lm: Bundle, tmp_path: Path) -> None:
    """Killed in the midst, it goes on and comes to what a plan comes to that ran two pilots at a time."""
    sample, once, twice = sample_of(tmp_path / "sample"), tmp_path / "once", tmp_path / "twice"
    tool = [sys.executable, "-m", "covey_shared.cli"]
    process = subprocess.Popen(tool + command(lm.folder, sample, twice), stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while len(_lines(twice)) < 6 and time.monotonic() < until:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    there = _lines(twice)
    assert len(there) >= 6
    assert not (twice / "task.toml").exists()
    done = subprocess.run(tool + command(lm.folder, sample, twice), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert _lines(twice)[: len(there)] == there, "what was found is not found again"
    subprocess.run(tool + command(lm.folder, sample, once, "--jobs", "2"), check=True, capture_output=True)
    assert pilots_of(once) == pilots_of(twice)
    assert (once / "task.toml").read_text() == (twice / "task.toml").read_text()


def _lines(out: Path) -> list[str]:
    path = out / "pilots.jsonl"
    return path.read_text().splitlines() if path.exists() else []


def test_labelled_records_and_a_bundle_of_one_rank(
    classifier: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    records = tmp_path / "films.jsonl"
    records.write_text(
        "".join(f'{{"text": "a very {w} film", "label": {i}}}\n' for i, w in ((0, "bad"), (1, "good"))) * 40
    )
    out = tmp_path / "plan"
    assert (
        main([*command(classifier.folder, records, out, "--clients", "3", "--cohort", "2"), "--budget-minutes", "1"])
        == 0
    )
    said = capsys.readouterr()
    assert "the bundle has one rank, 2, so density and precision alone are searched" in said.err
    assert "dealt out by a Dirichlet of 0.5 over classes; 2 a round" in said.err
    assert task_file.read(out / "task.toml").since in ("start", "version")


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--bytes-per-round", "600"], "too little for anything: the smallest is"),
        (["--bytes-per-round", "much"], "is no number of bytes"),
        (["--clients", "1"], "--clients must be at least 2"),
        (["--cohort", "9"], "--cohort is at most --clients"),
        (["--data", "nothing"], "there is nothing at nothing"),
    ],
)
def test_one_sentence(
    more: list[str], sentence: str, lm: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command(lm.folder, sample_of(tmp_path / "sample"), tmp_path / "plan"), *more]) == 1
    said = capsys.readouterr().err
    assert sentence in said
    assert said.splitlines()[-1].startswith("covey plan: ")
