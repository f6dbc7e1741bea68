"""Backups: consistent while the server works, verified, restorable, and never half there."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from covey_server import backup, vaults
from covey_server.backup import Copied, copy_run, verify
from covey_server.blobs import StoreError
from covey_shared.errors import UsageError
from tests.helpers_server import replay, run_to_end, served, status_of, write_task

KEEP = '[upload]\ncodec = "dense"\n'


def keeping(folder: Path, rounds: int) -> Path:
    path = write_task(folder, KEEP, rounds=rounds)
    path.write_text(path.read_text().replace("seed = 7\n", "seed = 7\nkeep_updates = true\npublish_every = 0\n"))
    return path


def covey(*args: object, **env: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "covey_shared.cli", "server", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **env})


def test_backups_of_a_busy_server_are_runs_of_their_own(tmp_path: Path) -> None:
    task = keeping(tmp_path, rounds=25)
    copies: list[Copied] = []
    with served(task) as server:
        devices = [server.device("a"), server.device("b")]
        training = threading.Thread(target=run_to_end, args=(devices, server.start))
        training.start()
        while training.is_alive():
            copies.append(copy_run(tmp_path / "run", tmp_path / f"copy{len(copies)}"))
        training.join()
        digests = [row.digest for row in server.aggregator.versions]
    assert len(copies) >= 2
    assert copies[0].version < copies[-1].version
    for number, copied in enumerate(copies):
        folder = tmp_path / f"copy{number}"
        assert verify(folder) == copied
        assert replay(task, folder) == digests[: copied.version + 1], "the same bits as the run had"
        assert verify(folder)._replace(bytes=0) == copied._replace(bytes=0), "and it was not changed by being read"
    middle = len(copies) // 2
    with served(task, tmp_path / f"copy{middle}") as server:
        devices = [server.device("a"), server.device("b")]
        run_to_end(devices, server.start)
        assert [row.digest for row in server.aggregator.versions] == digests, "a restored run ends alike"


def test_the_commands(tmp_path: Path) -> None:
    task = write_task(tmp_path, KEEP)
    with served(task, tmp_path / "task.run") as server:
        devices = [server.device("a"), server.device("b")]
        for device in devices:
            device.take_part(server.start)
        server.wait_for_version(1)
        devices[0].take_part(server.start)
        made = covey("backup", tmp_path / "copy", "--task", task)
        assert (made.returncode, made.stderr) == (0, "")
        assert "version 1 and 1 updates that are not folded yet" in made.stdout
        run_to_end(devices, server.start)
    restored = covey("restore", tmp_path / "copy", "--data-dir", tmp_path / "again")
    assert (restored.returncode, restored.stderr) == (0, "")
    assert f"go on with covey serve TASK --data-dir {tmp_path / 'again'}" in restored.stdout
    with served(task, tmp_path / "again") as server:
        assert status_of(server.url)["round"]["accepted"] == ["a"]
    for args, sentence in (
        (("backup", tmp_path / "copy", "--task", task), "exists already"),
        (("backup", tmp_path / "new", "--data-dir", tmp_path / "nowhere"), "there is no run in"),
        (("backup", tmp_path / "new"), "either --data-dir FOLDER or --task FILE"),
        (("restore", tmp_path / "copy", "--data-dir", tmp_path / "again"), "exists already"),
    ):
        refused = covey(*args)
        assert refused.returncode == 1
        assert refused.stderr.count("\n") == 1
        assert sentence in refused.stderr


def test_a_backup_that_is_killed_leaves_nothing_that_looks_like_one(tmp_path: Path) -> None:
    with served(keeping(tmp_path, rounds=1)) as server:
        run_to_end([server.device("a"), server.device("b")], server.start)
    killed = covey("backup", tmp_path / "copy", "--data-dir", tmp_path / "run", COVEY_FAILPOINT="backup")
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "copy").exists()
    assert covey("backup", tmp_path / "copy", "--data-dir", tmp_path / "run").returncode == 0
    assert not (tmp_path / "copy.partial").exists()


def test_vaults_are_in_a_backup_and_what_is_deleted_meanwhile_is_not(tmp_path: Path) -> None:
    with served(keeping(tmp_path, rounds=1)) as server:
        run_to_end([server.device("a"), server.device("b")], server.start)
    kept = tmp_path / "run" / "vaults"
    vaults.keep(kept, "a", "0" * 64, b"sealed by a")
    vaults.keep(kept, "b.c", "1" * 64, b"sealed by b.c")
    (kept / f".partial-{'2' * 64}").write_bytes(b"half")
    assert copy_run(tmp_path / "run", tmp_path / "copy").vaults == 2
    made = covey("backup", tmp_path / "copy2", "--data-dir", tmp_path / "run")
    assert "and 2 vaults, " in made.stdout
    vaults.delete(kept, "0" * 64)
    assert copy_run(tmp_path / "run", tmp_path / "later").vaults == 1
    assert copy_run(tmp_path / "copy", tmp_path / "again").vaults == 2
    assert {path.name: path.read_bytes() for path in (tmp_path / "again" / "vaults").iterdir()} == {
        f"a.{'0' * 64}": b"sealed by a", f"b.c.{'1' * 64}": b"sealed by b.c",
    }  # fmt: skip
    restored = covey("restore", tmp_path / "copy", "--data-dir", tmp_path / "bare", "--without-vaults")
    assert restored.returncode == 0
    assert not (tmp_path / "bare" / "vaults").exists()


def test_a_vault_that_is_deleted_while_it_is_copied_is_not_in_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(keeping(tmp_path, rounds=1)) as server:
        run_to_end([server.device("a"), server.device("b")], server.start)
    kept = tmp_path / "run" / "vaults"
    vaults.keep(kept, "a", "0" * 64, b"sealed by a")

    def meanwhile(name: str) -> None:
        if (tmp_path / "copy.partial" / "vaults" / f"a.{'0' * 64}").exists():
            vaults.delete(kept, "0" * 64)

    monkeypatch.setattr(backup, "failpoint", meanwhile)
    assert copy_run(tmp_path / "run", tmp_path / "copy").vaults == 0


@pytest.mark.parametrize("part", ["blobs", "segments"])
def test_a_damaged_run_is_not_backed_up_and_a_damaged_backup_not_restored(part: str, tmp_path: Path) -> None:
    with served(keeping(tmp_path, rounds=2)) as server:
        for name in ("a", "b"):
            server.device(name).take_part(server.start)
        server.wait_for_version(1)
    copy_run(tmp_path / "run", tmp_path / "copy")
    path = next(path for path in sorted((tmp_path / "copy" / part).rglob("*")) if path.is_file())
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(StoreError, match="is damaged"):
        copy_run(tmp_path / "copy", tmp_path / "again")
    assert not (tmp_path / "again").exists()
    with pytest.raises(UsageError, match="exists already"):
        copy_run(tmp_path / "copy", tmp_path / "run")
