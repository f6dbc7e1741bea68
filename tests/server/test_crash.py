"""SIGKILL at every step that matters and at random, in both modes; and the order of things that makes it safe.

What is acknowledged counts once, nothing else counts, and every version has the bits of a run that nobody disturbed:
see tests/helpers_crash.py for the oracle. `make crash KILLS=1000` does the same for longer.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from covey_server import failpoints, intake, segments
from covey_shared.bundle import Bundle
from covey_shared.messages import Receipt
from tests.helpers_crash import PLACES, POINTS, Campaign
from tests.helpers_server import Device, served, write_task

KILLS = 30  # in each mode


@pytest.mark.parametrize("mode", ["sync", "async"])
def test_killed_at_every_step_and_at_random(mode: str, tmp_path: Path) -> None:
    campaign = Campaign(tmp_path, mode)
    for name, hits in POINTS.items():
        campaign.kill_at(f"{name}:{hits[0]}" + ":0.0003" * (name == "checkpoint"))
    while campaign.kills.total() < KILLS:
        campaign.kill_after(0.02 + 0.2 * campaign.random.random())
    found = campaign.finish()
    assert (found["kills"], found["lost"], found["counted_twice"]) == (KILLS, 0, 0)
    assert found["acknowledged"] >= 20
    assert found["versions"] >= 5
    assert found["duplicates"] > 0, "the devices did duplicate"


def test_every_failpoint_is_tried() -> None:
    """The two that a campaign does not pass are killed in test_migrations and test_backup."""
    assert {place.split(":")[0] for place in PLACES} | {"migrating", "backup"} == set(failpoints.POINTS)


def test_nothing_is_acknowledged_before_it_is_synced_and_committed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order as the process sees it."""
    order: list[str] = []
    sync = segments.sync_file
    with served(write_task(tmp_path)) as server:
        device = server.device("a")
        device.fetch(0, server.start)
        body = device.update(device.task(), device.check_in())

        def log_sync(descriptor: int) -> None:
            sync(descriptor)
            order.append("synced")

        def log_receipt(**fields: object) -> Receipt:
            order.append("receipt")
            return Receipt(**fields)  # type: ignore[arg-type]

        monkeypatch.setattr(segments, "sync_file", log_sync)
        monkeypatch.setattr(intake, "Receipt", log_receipt)
        server.aggregator.run.db.run(lambda c: c.set_trace_callback(lambda text: order.append(text.split()[0])))
        order.clear()
        assert device.upload(1, body).status == 200
        server.aggregator.run.db.run(lambda c: c.set_trace_callback(None))
    accepted = order[: order.index("receipt")]
    assert [step for step in accepted if step in ("INSERT", "synced", "COMMIT")][-3:] == ["INSERT", "synced", "COMMIT"]


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_nothing_is_acknowledged_before_the_kernel_was_told_to_sync(tmp_path: Path) -> None:
    """The order as the kernel sees it: segment written, segment synced, log written, log synced, 200 sent."""
    task, log = write_task(tmp_path), tmp_path / "strace"
    calls = "trace=openat,pwrite64,write,fdatasync,fsync,sendto,sendmsg,writev"
    command = ["strace", "-f", "-y", "-s", "40", "-o", str(log), "-e", calls, sys.executable, "-m", "covey_shared.cli"]
    arguments = ["serve", str(task), "--port", "0", "--url-file", str(tmp_path / "url"), "--open"]
    child = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        while not (tmp_path / "url").exists():
            if child.poll() is not None:
                pytest.skip(f"strace cannot trace here: {child.communicate()[1][-200:]}")
        device = Device((tmp_path / "url").read_text().strip(), "a")
        device.fetch(0, Bundle.open(tmp_path / "bundle").start(7))
        body = device.update(device.task(), device.check_in())
        before = len(log.read_text().splitlines())
        assert device.upload(1, body).status == 200
    finally:
        subprocess.run(["kill", "-TERM", *children(child.pid)], check=False)
        child.communicate(timeout=30)
    names = [name for line in log.read_text().splitlines()[before:] if (name := event(line))]
    first = names[: names.index("answered 200")]
    assert [name for name in first if name.startswith("segment")] == ["segment written", "segment synced"]
    last = [name for name in first if name.startswith("log")][-2:]
    assert last == ["log written", "log synced"]
    assert first.index("segment synced") < len(first) - 1 - first[::-1].index("log synced")


def children(pid: int) -> list[str]:
    """The processes of a parent."""
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def event(line: str) -> str:
    """What a line of strace is about, in words; empty for the rest."""
    call = re.match(r"\d+ +(\w+)\((\d+)<([^>]*)>", line)
    if call is None:
        return ""
    name, _, path = call.groups()
    kind = "segment" if path.endswith(".updates") else "log" if path.endswith("-wal") else ""
    if kind and name in ("pwrite64", "write"):
        return f"{kind} written"
    if kind and name in ("fdatasync", "fsync"):
        return f"{kind} synced"
    return "answered 200" if "HTTP/1.1 200" in line else ""
