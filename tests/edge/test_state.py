import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from covey_edge.local import Progress
from covey_edge.optim import OptimizerState
from covey_edge.state import (
    Client,
    Pending,
    Scored,
    StateFolder,
    bytes_of,
    new_client,
    open_folder,
    training_of,
    vector_of,
    write_durably,
)
from covey_shared.errors import UsageError


def full_client() -> Client:
    return replace(
        new_client("me", "task/1"),
        held=3,
        adapter=bytes_of(np.arange(5, dtype=np.float32)),
        pending=(Pending(round=4, attempt=1, version=3, body=b"\0\1", codec="c", codec_after=b"c"),),
        history=(Scored(version=0, loss_sum=4.5, tokens=3, correct=1),),
        sent={"update": 12},
    )


def test_round_trip(tmp_path: Path) -> None:
    client = full_client()
    vector = np.float32(1) / np.arange(1, 6, dtype=np.float32)
    progress = Progress(vector, OptimizerState(2, (vector, -vector)), (1.0, 2.0), (3.0,), 0.25)
    with open_folder(tmp_path / "deep" / "state") as folder:
        assert folder.load_client() == (None, "")
        folder.save(client)
        folder.save(training_of("task/1", 4, 1, 3, progress))
    with open_folder(tmp_path / "deep" / "state") as folder:
        assert folder.load_client() == (client, "")
        training, _ = folder.load_training()
        assert training is not None
        assert (training.round, training.attempt, training.version) == (4, 1, 3)
        back = training.progress()
        np.testing.assert_array_equal(back.optimizer.moments[1], -vector)
        assert back.step == 2
        folder.forget_training()
        folder.forget_training()
        assert folder.load_training() == (None, "")
    assert client.version().adapter.tolist() == [0, 1, 2, 3, 4]
    assert client.score_of(0) == client.history[0]
    assert client.score_of(1) is None


def test_names_are_random_unless_given() -> None:
    assert new_client("", "t").client != new_client("", "t").client
    assert new_client("kitchen", "t").client == "kitchen"


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_damage_is_noticed_and_moved_aside(tmp_path: Path, data: st.DataObject) -> None:
    folder = StateFolder(tmp_path)
    folder.save(full_client())
    path = tmp_path / "client"
    raw = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        raw = raw[: data.draw(st.integers(0, len(raw) - 1))]
    else:
        at = data.draw(st.integers(0, len(raw) - 1).filter(lambda i: i != 7))  # 7 is the format's number
        raw[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(raw)
    found, sentence = folder.load_client()
    assert found is None
    assert "is damaged" in sentence
    assert "moved to client.damaged" in sentence
    assert (tmp_path / "client.damaged").read_bytes() == raw
    assert folder.load_client() == (None, "")


def test_a_newer_format_is_left_alone(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path)
    folder.save(full_client())
    raw = bytearray((tmp_path / "client").read_bytes())
    raw[7] = 2
    (tmp_path / "client").write_bytes(raw)
    with pytest.raises(UsageError, match="written by a newer covey"):
        folder.load_client()
    assert (tmp_path / "client").read_bytes() == raw


def test_one_process_a_folder(tmp_path: Path) -> None:
    code = "import sys, pathlib, covey_edge.state as s\nwith s.open_folder(pathlib.Path(sys.argv[1])): pass"
    with open_folder(tmp_path):
        other = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
        assert other.returncode != 0
        assert f"another covey join (process {os.getpid()}) uses {tmp_path}" in other.stderr
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)


def test_vectors_keep_their_bits() -> None:
    odd = np.array([np.nan, -0.0, 1e-45, np.inf], np.float32)
    assert bytes_of(vector_of(bytes_of(odd))) == bytes_of(odd)


FULL_DISK = """
import json, sys
from pathlib import Path
from covey_edge.state import StateFolder, write_durably
from covey_shared.errors import UsageError
folder = Path(sys.argv[1])
write_durably(folder / "client", b"a" * 20_000)
try:
    write_durably(folder / "client", b"b" * 200_000)
except UsageError as error:
    print(json.dumps({"error": str(error), "kept": (folder / "client").read_bytes() == b"a" * 20_000,
                      "files": sorted(p.name for p in folder.iterdir())}))
"""


def test_full_disk_keeps_what_was_there(tmp_path: Path) -> None:
    """On a real file system of 64 kB, in a namespace of its own."""
    script = f'mount -t tmpfs -o size=64k tmpfs "{tmp_path}" && exec "$0" -c "$1" "{tmp_path}"'
    if not shutil.which("unshare"):
        pytest.skip("needs unshare to mount a small file system")
    run = subprocess.run(
        ["unshare", "-Urm", "sh", "-c", script, sys.executable, FULL_DISK], capture_output=True, text=True, check=False
    )
    if "unshare" in run.stderr or "mount" in run.stderr:
        pytest.skip(f"this system lets no one mount a small file system: {run.stderr.strip()[:80]}")
    said = json.loads(run.stdout)
    assert said["kept"]
    assert said["files"] == ["client"]
    assert "no space is left for" in said["error"]
    assert "what was saved before is kept" in said["error"]


def test_writes_are_whole_files(tmp_path: Path) -> None:
    path = tmp_path / "f"
    write_durably(path, b"one")
    write_durably(path, b"two")
    assert path.read_bytes() == b"two"
    assert [p.name for p in tmp_path.iterdir()] == ["f"]
