"""`covey enroll` and `covey admin`: before a server, beside one, and what they say when something is wrong."""

import re
from pathlib import Path

import pytest

from covey_server.access_cli import seconds
from covey_shared.cli import main
from covey_shared.errors import UsageError
from tests.helpers_server import call, code_of, enroll, send, served, write_task


def run(capsys: pytest.CaptureFixture[str], *args: object, code: int = 0) -> str:
    """The command's output, or its error."""
    assert main([str(arg) for arg in args]) == code
    said = capsys.readouterr()
    return said.err if code else said.out


def test_codes_before_the_server_and_devices_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = write_task(tmp_path)
    data = tmp_path / "task.run"
    plain = run(capsys, "enroll", "new", task, "--count", 2, "--plain").split()
    assert all(re.fullmatch("([0-9A-Z]{4}-){4}[0-9A-Z]{4}", code) for code in plain)
    with served(task, data, is_open=False) as server:
        assert enroll(server.url, "kitchen", plain[0]).status == 200
        said = run(capsys, "enroll", "new", task, "--ttl", "7d", "--name", "hall")
        (fixed,) = re.findall("(?:[0-9A-Z]{4}-){4}[0-9A-Z]{4}$", said, re.MULTILINE)[:1]
        assert "shown this once" in said
        assert enroll(server.url, "anything", fixed).status == 200
        listed = run(capsys, "enroll", "list", data)
        assert re.search("device  kitchen .* enrolled", listed)
        assert re.search("device  hall .* enrolled", listed)
        assert "used by hall" in listed
        assert not any(code in listed for code in (*plain, fixed))
        unused = re.search(r"code    ([0-9a-f]{8})  until .* unused", listed)
        assert unused
        run(capsys, "enroll", "revoke", unused[1], data)
        assert code_of(enroll(server.url, "late", plain[1]).body) == "bad_code"
        assert call(server.url, "GET", "/v1/task", who="kitchen").status == 200
        assert "refused from now on" in run(capsys, "enroll", "revoke", "kitchen", task)
        assert call(server.url, "GET", "/v1/task", who="kitchen").status == 403


def test_the_printed_line_is_the_one_to_type(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = write_task(tmp_path)
    with served(task, tmp_path / "task.run") as server:
        server.aggregator.run.db.run(
            lambda db: db.execute("INSERT INTO meta VALUES ('url', ?)", (server.url,)) and None
        )
        said = run(capsys, "enroll", "new", task)
    assert re.search(rf"covey join {server.url} --data FOLDER --code [0-9A-Z-]+", said)
    assert re.search(rf"{server.url}#[0-9A-Z-]+", said)


def test_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = write_task(tmp_path)
    token = run(capsys, "admin", "new", task, "--role", "operator", "--label", "ann").strip()
    assert token.startswith("covey_operator_")
    assert "ann  operator" in run(capsys, "admin", "list", task)
    assert token not in run(capsys, "admin", "list", task)
    assert "already" in run(capsys, "admin", "new", task, "--role", "viewer", "--label", "ann", code=1)
    with served(task, tmp_path / "task.run") as server:
        bearer = {"Authorization": f"Bearer {token}"}
        assert send(server.admin, "GET", "/v1/codes", headers=bearer).status == 200
        run(capsys, "admin", "drop", "ann", task)
        assert send(server.admin, "GET", "/v1/codes", headers=bearer).status == 401


def test_what_is_wrong_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    task = write_task(tmp_path)
    monkeypatch.chdir(tmp_path)
    for args, sentence in (
        (("enroll", "list"), "there are 0 runs in this folder"),
        (("enroll", "list", task), "there is no run in"),
        (("enroll", "list", "nothing.toml"), "there is no task file and no run"),
        (("enroll", "new", task, "--count", "0"), "codes are made 1 to 1,000 at a time"),
        (("enroll", "new", task, "--ttl", "soon"), "'soon' is no time"),
        (("enroll", "new", task, "--count", "2", "--name", "x"), "a name belongs to one device"),
        (("enroll", "new", task, "--name", "a/b"), "the device's name must be 1 to 64 letters"),
        (("admin", "drop", "bob", task), "there is no run in"),
    ):
        error = run(capsys, *args, code=1)
        assert sentence in error
        assert error.count("\n") == 1
    run(capsys, "enroll", "new", task)
    assert "unused" in run(capsys, "enroll", "list"), "the only run here"
    assert "no device is enrolled as 'bob'" in run(capsys, "enroll", "revoke", "bob", code=1)
    assert "there is no token 'bob'" in run(capsys, "admin", "drop", "bob", code=1)


@pytest.mark.parametrize("text", ["", "24", "-1h", "1w", "1e3s", "9999999h"])
def test_times(text: str) -> None:
    with pytest.raises(UsageError, match="is no time"):
        seconds(text)
