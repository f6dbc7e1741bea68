"""Asynchronous mode over HTTP: staleness in receipts, refusals by age, duplicates, restarts; and the keys' checks."""

from pathlib import Path

import pytest

from covey_server import task_changes, task_file
from covey_shared.errors import TaskFileError
from covey_shared.messages import Receipt, Refusal
from tests.helpers_server import Device, Served, replay, run_to_end, served, status_of, write_task

ASYNC = 'mode = "async"\nbuffer = {buffer}\nmax_staleness = {staleness}\n'


def async_task(folder: Path, *, rounds: int = 3, buffer: int = 2, staleness: int = 1, more: str = "") -> Path:
    path = write_task(folder, rounds=rounds)
    text = path.read_text().replace("target = 2\n", ASYNC.format(buffer=buffer, staleness=staleness))
    path.write_text(text.replace("seed = 7\n", "seed = 7\nkeep_updates = true\n") + more)
    return path


def prepared(server: Served, name: str) -> tuple[Device, int, bytes]:
    """A device with an update that it has not sent yet."""
    device = server.device(name)
    assignment = device.check_in()
    device.fetch(assignment.version, server.start)
    return device, assignment.round, device.update(device.task(), assignment)


def test_staleness_from_acceptance_to_refusal(tmp_path: Path) -> None:
    with served(async_task(tmp_path)) as server:
        slow, slow_round, slow_body = prepared(server, "slow")
        slower, slower_round, slower_body = prepared(server, "slower")
        fast = server.device("fast")
        for _ in range(2):
            assert fast.take_part(server.start) == "train"
        server.wait_for_version(1)
        receipt = Receipt.from_bytes(slow.upload(slow_round, slow_body).body)
        assert (receipt.status, receipt.version, receipt.staleness) == ("accepted", 2, 1)
        assert fast.take_part(server.start) == "train"
        server.wait_for_version(2)
        refusal = Refusal.from_bytes(slower.upload(slower_round, slower_body).body)
        assert refusal.code == "stale"
        assert "check in again and fetch the newest" in refusal.message
        assert slower.take_part(server.start) == "train", "and it goes on from the newest"
        again = Receipt.from_bytes(slow.upload(slow_round, slow_body).body)
        assert (again.status, again.version, again.staleness) == ("duplicate", 2, 1)
        conflict = slow.upload(slow_round, slow.update(slow.task(), slow.check_in(), round=slow_round, version=0))
        assert Refusal.from_bytes(conflict.body).code == "conflict"
        assert fast.take_part(server.start) == "train"
        server.wait_for_version(3)
        history = status_of(server.url)["history"]
        assert [(v["updates"], v["staleness"], v["staleness_max"]) for v in history] == [
            (0, 0.0, 0), (2, 0.0, 0), (2, 0.5, 1), (2, 0.0, 0),
        ]  # fmt: skip
        assert "1 versions old at most" in server.lines[1]
        assert fast.take_part(server.start) == "done"
    assert [v["digest"] for v in history] == replay(tmp_path / "task.toml", tmp_path / "run")


def test_one_device_alone_fills_every_buffer_across_a_restart(tmp_path: Path) -> None:
    task = async_task(tmp_path, buffer=3)
    with served(task) as server:
        alone = server.device("alone")
        for _ in range(4):
            alone.take_part(server.start)
            if len(server.aggregator.versions) == 1 and server.aggregator.state.phase == "closing":
                server.wait_for_version(1)
        _, number, body = prepared(server, "alone")
    with served(task) as server:
        alone.url = server.url
        state = server.aggregator.state
        assert (state.version, state.round) == (1, 2)
        assert alone.check_in().round == number, "the assignment outlives the server"
        assert Receipt.from_bytes(alone.upload(number, body).body).status == "accepted"
        assert Receipt.from_bytes(alone.upload(number, body).body).status == "duplicate"
        alone.bodies.clear()
        run_to_end([alone], server.start)
        assert server.aggregator.state.version == 3
        digests = [row.digest for row in server.aggregator.versions]
    assert digests == replay(task, tmp_path / "run")


def test_another_devices_assignment_is_of_no_use(tmp_path: Path) -> None:
    with served(async_task(tmp_path)) as server:
        _, number, _ = prepared(server, "a")
        thief = server.device("thief")
        assignment = thief.check_in()
        thief.fetch(0, server.start)
        body = thief.update(thief.task(), assignment, round=number)
        assert Refusal.from_bytes(thief.upload(number, body).body).code == "not_assigned"


def test_keys_of_the_other_mode_are_refused() -> None:
    text = '[task]\nbundle = "b"\n[round]\n'
    with pytest.raises(TaskFileError, match="buffer belongs to mode = 'async', this task has 'sync'; remove it"):
        task_file.parse(text + "buffer = 3\n")
    with pytest.raises(TaskFileError, match="target belongs to mode = 'sync', this task has 'async'; remove it"):
        task_file.parse(text + 'mode = "async"\ntarget = 3\n')
    with pytest.raises(TaskFileError, match=r"mode is 'asink', which is unknown; did you mean 'async'"):
        task_file.parse(text + 'mode = "asink"\n')
    task = task_file.parse(text + 'mode = "async"\nbuffer = 3\nstaleness = "constant"\n')
    assert (task.round.buffer, task.round.max_staleness) == (3, 20)
    assert task_changes.changed_key(task.to_json(), task_file.parse(text), 0) == "round.mode"
