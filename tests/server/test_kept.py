"""Decoded updates that wait in memory: bounded, never needed, never changed."""

from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from covey_server import store
from covey_server.kept import Decoded, Kept
from covey_shared.entries import Entries
from tests.helpers_server import replay, run_to_end, served, write_task


def decoded(count: int) -> Decoded:
    return Decoded(Entries(100, np.arange(count, dtype=np.uint32), np.ones(count, np.float32)), "layout")


def test_what_has_no_room_is_not_kept_and_room_comes_back() -> None:
    kept = Kept(limit=800)
    kept.put("a", decoded(60))
    kept.put("b", decoded(60))
    kept.put("c", decoded(40))
    assert [kept.get(name) is not None for name in "abc"] == [True, False, True]
    kept.drop(["a", "b", "never seen"])
    kept.put("b", decoded(60))
    kept.put("b", decoded(60))
    assert kept.get("a") is None
    assert kept.get("b") is not None
    kept.drop("bc")
    kept.put("d", decoded(100))
    assert kept.get("d") is not None


def test_what_is_kept_cannot_be_changed() -> None:
    kept = Kept()
    kept.put("a", decoded(3))
    found = kept.get("a")
    assert found is not None
    with pytest.raises(ValueError, match="read-only"):
        found.entries.values[0] = 7


def test_a_version_is_the_same_whether_its_updates_were_kept_or_read(tmp_path: Path) -> None:
    task = write_task(tmp_path, rounds=2, target=3)
    task.write_text(task.read_text().replace("[task]", "[task]\nkeep_updates = true"))
    with served(task) as server:
        run, first = server.aggregator.run, server.device("a")
        first.take_part(server.start)
        (row,) = run.db.run(store.updates_of, 1)
        kept = run.kept.get(row.sha256)
        assert kept is not None
        run.kept.drop([row.sha256])  # the first is read from the disk, the others are kept
        read = run.decoded(row)
        assert_array_equal(read.entries.dense(), kept.entries.dense())
        run_to_end([server.device(name) for name in "abc"], server.start)
        assert not any(run.kept.get(row.sha256) for row in run.db.run(store.updates_of, 1)), "folded, and let go"
        digests = [version.digest for version in server.aggregator.versions]
    assert digests == replay(task, tmp_path / "run")
