"""The list of what operators did: an entry for each change and for nothing else, and no way to change one unnoticed."""

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from covey_server import audit
from covey_server.database import connect
from covey_server.schema import SCHEMA
from covey_shared.cli import main
from tests.helpers_server import Served, enroll, send, served, write_task


def post(server: Served, path: str, token: str, body: bytes | None = None, method: str = "POST") -> int:
    headers = {"Authorization": f"Bearer {token}"} | ({"Content-Type": "application/json"} if body else {})
    return send(server.admin, method, path, body, headers).status


def test_who_did_what_is_kept_and_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = write_task(tmp_path)
    with served(task, tmp_path / "task.run") as server:
        database = server.aggregator.run.db
        assert main(["admin", "new", str(task), "--role", "operator", "--label", "bob"]) == 0
        token = capsys.readouterr().out.strip()
        enroll(server.url, "kitchen")
        assert post(server, "/v1/codes", token, b'{"count": 2, "label": "shop"}') == 200
        assert post(server, "/v1/devices/kitchen/revoke", token) == 200
        assert post(server, "/v1/devices/nobody/revoke", token) == 404
        assert post(server, "/v1/pause", token) == 200
        assert post(server, "/v1/resume", token) == 200
        assert post(server, "/v1/latest", token, b'{"version": 1}') == 403
        assert main(["enroll", "revoke", "kitchen", str(task)]) == 0
        found = database.run(audit.entries)
        said: Any = send(server.admin, "GET", "/v1/audit", None, {"Authorization": f"Bearer {token}"}).body
    did = [(entry.did, entry.what) for entry in found]
    assert did == [
        ("make token", "bob, operator, good for 2160 h"), ("make codes", "2, good for 24 h, label shop"),
        ("revoke device", "kitchen"), ("pause", ""), ("resume", ""), ("revoke device", "kitchen"),
    ]  # fmt: skip
    assert [entry.who for entry in found[1:5]] == ["bob"] * 4
    assert found[0].who.endswith(" on the server")
    assert token not in str(found)
    assert b'"broken": null' in said
    capsys.readouterr()
    assert main(["admin", "log", str(task)]) == 0
    shown = capsys.readouterr().out
    assert "bob  revoke device  kitchen\n" in shown
    assert f"the newest is {found[-1].chain}" in shown
    with closing(sqlite3.connect(tmp_path / "task.run" / "covey.sqlite")) as db:
        db.execute("UPDATE audit SET who = 'eve' WHERE number = 3")
        db.commit()
    assert main(["admin", "log", str(task)]) == 1
    assert "entry 3 was changed" in capsys.readouterr().out


@given(st.integers(0, 5), st.sampled_from(["time", "who", "did", "what", "delete", "swap"]))
def test_no_entry_can_be_changed_or_taken_out_but_the_last(number: int, how: str) -> None:
    with closing(connect(Path(":memory:"), SCHEMA)) as db:
        for i in range(7):
            audit.record(db, f"who{i}", "did", f"what{i}", float(i))
        found = audit.entries(db)
    assert audit.broken(found) is None
    assert audit.broken(found[3:]) == 4, "the first three are missing"
    assert audit.broken(found[3:], most=4) is None, "more than four are not shown"
    if how == "delete":
        del found[number]
    elif how == "swap":
        found[number], found[number + 1] = found[number + 1], found[number]
    else:
        changed: Any = {how: 99.0 if how == "time" else "x"}
        found[number] = found[number]._replace(**changed)
    assert audit.broken(found) is not None


def test_an_action_that_fails_leaves_no_entry(tmp_path: Path) -> None:
    with closing(connect(tmp_path / "d", SCHEMA)) as db:
        with pytest.raises(ZeroDivisionError):
            audit.recorded(lambda db: 1 / 0, "ann", "divide", "", 1.0)(db)
        assert audit.entries(db) == []
